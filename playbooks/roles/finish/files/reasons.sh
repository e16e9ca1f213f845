# Prints one line for each thing that waits for a restart of the host. Changes nothing.
#   argument TEXT | option MODULE NAME SHOWN | pages PATH COUNT | groups FOLDER ARGUMENT | loader NAME
set -eu
[ ! -e /run/reboot-required ] || echo "reboot: the distribution asks for it"
booted=" $(cat /proc/cmdline) "
while read -r verb name option shown || [ -n "$verb" ]; do
  case $verb in
    argument) case "$booted" in *" $name "*) ;; *) echo "reboot: kernel argument $name" ;; esac ;;
    option)
      file=/sys/module/$name/parameters/$option
      [ -e "$file" ] || continue
      found=$(cat "$file")
      case "$found/$shown" in
        "$shown/$shown" | 0/N | N/0 | 1/Y | Y/1) ;;
        *) echo "reboot: $name.$option is $found, wanted $shown" ;;
      esac ;;
    pages)
      [ -e "$name" ] || { echo "pages: this kernel has no $name"; continue; }
      found=$(cat "$name")
      [ "$found" -ge "$option" ] || echo "reboot: $name has $found of $option pages; where a restart brings no more, ask for fewer: bulkhead_hugepages" ;;
    groups)
      # Booted with the argument, and still none: no restart mends that.
      case "$booted" in *" $option "*) ;; *) continue ;; esac
      [ -n "$(ls "$name" 2>/dev/null)" ] || echo "by hand: no IOMMU works here, so no GPU can be isolated: switch VT-d or AMD-Vi on in the firmware" ;;
    loader) echo "by hand: only GRUB's configuration is written; give the kernel its arguments in this boot loader" ;;
  esac
done

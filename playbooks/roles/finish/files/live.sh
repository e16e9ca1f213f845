# Makes the running system equal to the lines on standard input, and prints what differed; with DRY=1 it only prints.
#   value PATH VALUE    a file of /proc/sys or /sys
#   module NAME         a module that is loaded
#   proc OPTION         an option of /proc's mount
#   swap off
set -eu
dry=${DRY:-}
squeeze() { tr -s '[:space:]' ' ' <"$1" | sed 's/ $//; s/.*\[\(.*\)\].*/\1/'; }
while read -r verb name value || [ -n "$verb" ]; do
  case $verb in
    value)
      # A kernel without the setting cannot have it; the doctor says whether that matters.
      [ -e "$name" ] || continue
      before=$(squeeze "$name") || continue
      [ "$before" != "$value" ] || continue
      if [ -z "$dry" ]; then
        printf '%s\n' "$value" >"$name" 2>/dev/null || { echo "refused: $name stays $before, wanted $value"; continue; }
        now=$(squeeze "$name")
        # Fewer hugepages than asked for: memory is in pieces, and only the next boot can tell.
        [ "$now" != "$before" ] || continue
        echo "changed: $name: $before -> $now"
      else
        echo "changed: $name: $before -> $value"
      fi ;;
    module)
      found=$(printf %s "$name" | tr - _)
      [ ! -e "/sys/module/$found" ] || continue
      if [ -n "$dry" ]; then echo "changed: module $name would be loaded"; continue; fi
      modprobe "$name" && echo "changed: module $name loaded" || echo "refused: module $name cannot be loaded" ;;
    proc)
      ! grep -Eq '^[^ ]+ /proc proc [^ ]*hidepid=(2|invisible)' /proc/self/mounts || continue
      [ -n "$dry" ] || mount -o "remount,$name" /proc
      echo "changed: /proc mounted with $name" ;;
    swap)
      [ "$(wc -l </proc/swaps)" -gt 1 ] || continue
      [ -n "$dry" ] || swapoff -a
      echo "changed: swap is off" ;;
  esac
done

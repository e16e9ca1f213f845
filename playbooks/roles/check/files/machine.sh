# Prints as JSON what the roles need to know of a machine. Changes nothing.
set -eu
list() { printf '%s' "$1" | tr -s ' \n' ',' | sed 's/^,//; s/,$//'; }
nodes=""
for node in /sys/devices/system/node/node[0-9]*; do
  [ -e "$node/meminfo" ] || continue
  kib=$(awk '/MemTotal:/ {print $4}' "$node/meminfo")
  cpus=$(cat "$node/cpulist")
  # The first core of a node with all its threads: the host's own share, as the agent counts it.
  first=${cpus%%[,-]*}
  core=""
  [ -z "$first" ] || core=$(cat "/sys/devices/system/cpu/cpu$first/topology/thread_siblings_list")
  nodes="$nodes,{\"node\":${node##*node},\"memory_mib\":$((kib / 1024)),\"cpus\":\"$cpus\",\"first_core\":\"$core\"}"
done
init=false; [ ! -d /run/systemd/system ] || init=true
unfinished=false; [ ! -e /var/lib/bulkhead/prepare.unfinished ] || unfinished=true
enrolled=false; [ ! -e /var/lib/bulkhead/agent/link/enrolment.json ] || enrolled=true
libvirt=false; [ ! -e /etc/libvirt/qemu.conf ] || libvirt=true
grub=false; ! command -v update-grub >/dev/null || grub=true
ports=$(if command -v sshd >/dev/null; then sshd -T 2>/dev/null | awk '$1 == "port" {print $2}'; fi)
# The port that this very connection came in by; sudo hides it, its parent has it.
[ -z "${SSH_CONNECTION:-}" ] || ports="$ports ${SSH_CONNECTION##* }"
free_kib=$(df -Pk /var/lib | awk 'NR == 2 {print $4}')
printf '{"init":%s,"unfinished":%s,"enrolled":%s,"libvirt":%s,"grub":%s,"ssh_ports":[%s],"nodes":[%s],"disk_free_gib":%s}\n' \
  "$init" "$unfinished" "$enrolled" "$libvirt" "$grub" "$(list "$ports")" "${nodes#,}" "$((free_kib / 1048576))"

#!/bin/sh
# Installs the system packages of bindep.txt that are missing: `hostprep/packages.sh PROFILE...` (base, test, lab).
# Quiet and quick when nothing is missing. Needs root or sudo only to install.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
wanted=""
for profile in "$@"; do
  wanted="$wanted $(sed -n "s/^\([a-z0-9.+-]*\) .*\[.*\b$profile\b.*\].*/\1/p" "$here/bindep.txt")"
done
missing=""
for package in $wanted; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
root=""
[ "$(id -u)" = 0 ] || root="sudo"
echo "installing:$missing" >&2
# Services that packages bring must not start on a machine that only builds and tests.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
  $root chmod 755 "$policy"
  trap '$root rm -f "$policy"' EXIT
fi
log=$(mktemp)
if ! { $root apt-get update && DEBIAN_FRONTEND=noninteractive $root apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "could not install:$missing" >&2
  exit 1
fi
rm -f "$log"

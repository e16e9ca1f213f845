# Installs WHEEL with what LOCK pins into an environment of its own, unless it is there; prints `installed` if it did.
set -eu
cd /opt/bulkhead
# One at a time, should two operators have the same idea.
exec 9>.installing
flock 9
id=$({ "$PYTHON" --version; cat "$LOCK" "$WHEEL"; } | sha256sum | cut -c 1-16)
if [ -e "venvs/$id/complete" ] && [ "$(readlink venv)" = "venvs/$id" ]; then exit 0; fi
if ! [ -e "venvs/$id/complete" ]; then
  rm -rf "venvs/$id"
  "$PYTHON" -m venv "venvs/$id"
  # From where the host's own pip configuration says.
  "venvs/$id/bin/pip" install --quiet --no-input --disable-pip-version-check --require-hashes -r "$LOCK"
  "venvs/$id/bin/pip" install --quiet --no-input --disable-pip-version-check --no-deps "$WHEEL"
  "venvs/$id/bin/bulkhead" agent schema >/dev/null
  touch "venvs/$id/complete"
fi
before=$(readlink venv || true)
ln -s "venvs/$id" venv.new
mv -T venv.new venv
# The one before stays: going back is one link.
for each in venvs/*; do
  if [ "$each" != "venvs/$id" ] && [ "$each" != "$before" ]; then rm -rf "$each"; fi
done
echo installed

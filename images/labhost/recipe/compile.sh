#!/bin/sh
# Runs inside the builder root: /in holds the wheels, the lock, the modules' and the fake NVML's sources; what the
# lab host gets is left under /out in the places it will have there. Nothing is downloaded here.
set -eu
headers=$(ls -d /usr/src/linux-headers-*-amd64 | head -n1)
release=${headers#/usr/src/linux-headers-}

echo "lab: kernel modules for $release"
mkdir -p /build/modules
tar -xJf /usr/src/linux-source-6.12.tar.xz -C /build --strip-components=2 --wildcards \
    'linux-source-6.12/samples/vfio-mdev/*.[ch]'
cp /build/vfio-mdev/*.[ch] /in/modules/*.c /build/modules/
echo 'obj-m := mbochs.o mdpy.o mtty.o hangremove.o staleint3.o' >/build/modules/Kbuild
make -s -j"$(nproc)" -C "$headers" M=/build/modules modules
mkdir -p "/out/usr/lib/modules/$release/extra"
strip --strip-debug /build/modules/*.ko
cp /build/modules/*.ko "/out/usr/lib/modules/$release/extra/"

echo "lab: fake NVML"
mkdir -p /out/usr/local/lib
gcc -O2 -Wall -Wextra -Werror -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 \
    -o /out/usr/local/lib/libnvidia-ml.so.1 /in/fakenvml/fakenvml.c

echo "lab: Python packages"
python3 -m venv /opt/bulkhead/venv
pip="/opt/bulkhead/venv/bin/pip --disable-pip-version-check install --quiet --no-index --find-links /in/wheels"
# pip compares hashes with the lock; sdists build against what is installed here (setuptools first, no isolation).
grep -A99 '^setuptools==' /in/requirements.lock | awk 'NR==1 || /^ +--hash/ {print} /^ +#/ {exit}' >/build/setuptools.lock
$pip --require-hashes -r /build/setuptools.lock
$pip --require-hashes --no-build-isolation -r /in/requirements.lock
/opt/bulkhead/venv/bin/python -c 'import libvirt, lxml.etree, ovs.db.idl, pydantic, pynvml, pyudev'
/opt/bulkhead/venv/bin/pip --disable-pip-version-check uninstall --quiet --yes pip
mkdir -p /out/opt/bulkhead
cp -a /opt/bulkhead/venv /out/opt/bulkhead/

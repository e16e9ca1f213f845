#!/bin/sh
# Runs inside a Debian 12 root: fetches the source of its QEMU, applies the patches in /in, compiles what a lab host
# needs and leaves it under /out with the libraries it is linked to and its loader, so that it runs anywhere.
set -eu
sed -n 's/^deb /deb-src /p' /etc/apt/sources.list $(ls /etc/apt/sources.list.d/*.list 2>/dev/null) >/etc/apt/sources.list.d/source.list
apt-get -q update
mkdir /build
cd /build
apt-get -q source qemu
cd qemu-*/
for patch in /in/*.patch; do patch -p1 --fuzz=0 <"$patch"; done
mkdir build
cd build
../configure --target-list=x86_64-softmmu --without-default-features --enable-system --enable-tcg --enable-kvm \
    --enable-slirp --disable-docs --disable-tools --disable-debug-info
ninja qemu-system-x86_64

mkdir -p /out/lib /out/share
strip -o /out/qemu-system-x86_64 qemu-system-x86_64
ldd qemu-system-x86_64 | sed -n 's#.* => \(/[^ ]*\) .*#\1#p; s#^[[:space:]]*\(/[^ ]*ld-linux[^ ]*\) .*#\1#p' | while read -r library; do
    cp -L "$library" /out/lib/
done
cp -L /usr/share/seabios/*.bin /usr/share/qemu/linuxboot_dma.bin /usr/share/qemu/kvmvapic.bin /out/share/

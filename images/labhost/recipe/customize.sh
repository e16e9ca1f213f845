#!/bin/sh
# Runs once inside the lab host's root, after its packages and the compiled products are in place.
set -eu

cat >>/etc/libvirt/qemu.conf <<'CONF'

# The lab host's settings: what a prepared host has, and no memory of a guest in any file.
security_default_confined = 1
dump_guest_core = 0
max_core = 0
namespaces = [ "mount" ]
seccomp_sandbox = 1
remember_owner = 0
CONF
cat >>/etc/libvirt/libvirtd.conf <<'CONF'

# Root alone may speak to libvirt: no polkit between.
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
unix_sock_admin_perms = "0700"
CONF
# Stay: by default libvirtd leaves after two idle minutes, and coming back takes seconds here.
mkdir -p /etc/systemd/system/libvirtd.service.d
printf '[Service]\nEnvironment=LIBVIRTD_ARGS=\n' >/etc/systemd/system/libvirtd.service.d/lab.conf

# libvirt keeps each VM's master key and state here: never on a disk. Every VM's QEMU has a uid of its own and must
# reach its folder through this one: it may pass, not list.
owner=$(stat -c 'uid=%u,gid=%g' /var/lib/libvirt/qemu)
echo "tmpfs /var/lib/libvirt/qemu tmpfs nosuid,nodev,noexec,size=64m,$owner,mode=711 0 0" >>/etc/fstab
mkdir -p /var/lib/bulkhead
ln -s /opt/bulkhead/venv/bin/bulkhead /usr/local/bin/bulkhead

rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key

systemctl -q enable lab-net.service ssh.service libvirtd.service libvirtd.socket virtlogd.socket openvswitch-switch.service
# The switch requires this one to be there unless it is disabled; masked alone it takes the switch with it.
systemctl -q disable ovs-record-hostname.service
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer logrotate.timer systemd-tmpfiles-clean.timer getty@tty1.service serial-getty@ttyS0.service \
    polkit.service systemd-logind.service systemd-networkd-wait-online.service systemd-pcrphase.service \
    libvirt-guests.service console-getty.service systemd-update-utmp.service systemd-random-seed.service \
    keyboard-setup.service console-setup.service ldconfig.service systemd-journal-catalog-update.service \
    systemd-binfmt.service systemd-hwdb-update.service systemd-update-done.service systemd-sysusers.service \
    systemd-firstboot.service first-boot-complete.target ovs-record-hostname.service proc-sys-fs-binfmt_misc.automount; do
    systemctl -q mask "$unit" || true
done

# The id comes on the kernel's command line, one per lab host.
: >/etc/machine-id
touch /etc/.updated /var/.updated

# Loading Debian's hundred profiles takes twenty seconds here; libvirt's confine the tenants' QEMU, the rest nobody.
find /etc/apparmor.d -maxdepth 1 -type f ! -name 'usr.*libvirt*' ! -name 'usr.lib.libvirt*' -delete
ldconfig
depmod "$(ls /lib/modules | head -n1)"
# The first one was made before the lab host's own modules came.
update-initramfs -u
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /usr/share/locale/*

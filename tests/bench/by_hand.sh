# The same steps as `bulkhead agent apply`, by a careful person with the daemons' own tools. The bench runs it on the
# lab host; ADDRESS IMAGE SHA SECRET TAP NAME and a folder R with key, seed, XML and flows come from there.
set -e
V=/var/lib/bulkhead/byhand
mkdir -p "$V"
last=$(date +%s%N)
step() {
  now=$(date +%s%N)
  echo "$1 $(((now - last) / 1000000))"
  last=$now
}

virsh -q list --all >/dev/null
lspci -D -nn >/dev/null
step read_host

# The volume: the image verified, LUKS made, the image written in.
echo "$SHA  $IMAGE" | sha256sum -c --quiet
exec 3<"$R/key"
qemu-img create -q -f luks --object secret,id=k,file=/dev/fd/3 \
  -o key-secret=k,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256,iter-time=10 "$V/disk" 1G
exec 3<"$R/key"
qemu-img convert -n -f raw --object secret,id=k,file=/dev/fd/3 --target-image-opts "$IMAGE" \
  "driver=luks,file.filename=$V/disk,key-secret=k"
sync "$V/disk"
chown "$OWNER" "$V/disk"
chmod 600 "$V/disk"
step create_volume

cp "$R/original.iso" "$R/seed.iso"
chown "$OWNER" "$R/seed.iso"
step write_seed

virsh -q define --validate "$R/domain.xml" >/dev/null
step define_domain

D=/sys/bus/pci/devices/$ADDRESS
echo vfio-pci >"$D/driver_override"
[ ! -e "$D/driver" ] || echo "$ADDRESS" >"$D/driver/unbind"
echo "$ADDRESS" >/sys/bus/pci/drivers_probe
[ "$(basename "$(readlink "$D/driver")")" = vfio-pci ]
step bind_device

echo 1 >"$D/reset"
step reset_device

virsh -q secret-define "$R/secret.xml" >/dev/null
virsh -q secret-set-value "$SECRET" --file "$R/key" --plain >/dev/null
step put_secret

virsh -q start "$NAME" >/dev/null
step start_domain

virsh -q secret-undefine "$SECRET"
step drop_secret

# What a careful person would look at before the port opens.
pid=$(cat "/run/libvirt/qemu/$NAME.pid")
virsh -q dumpxml "$NAME" >/dev/null
virsh -q vcpuinfo "$NAME" >/dev/null
cat "/proc/$pid/numa_maps" "/proc/$pid/status" "/proc/$pid/task/"*/status >/dev/null
ls -l "/proc/$pid/fd" "$D/iommu_group/devices" >/dev/null
qemu-img info "$V/disk" --force-share >/dev/null
ovs-vsctl list port "$TAP" >/dev/null
step collect_evidence

ovs-vsctl set port "$TAP" tag=150 vlan_mode=access trunks='[]'
ovs-ofctl -O OpenFlow14 --bundle replace-flows br-bulkhead "$R/flows"
ovs-ofctl -O OpenFlow14 diff-flows br-bulkhead "$R/flows"
step open_port

"""How well the lab host itself holds: it starts and ends a VFIO tenant many times, without the product.

Before that, what ends an emulator that is not mended: devices that come and go under busy CPUs. Each cycle
starts a domain by hand-written XML (a stand-in display by VFIO, two pinned CPUs and strict hugepages of the
stand-in's node), waits until its Linux kernel has run through to the missing root disk, destroys it and
looks at what is left. Prints survival and mean times; `docs/lab.md` keeps the figure. Called by `__main__`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from images.labhost import lab, machine

KERNEL = "/var/lib/libvirt/boot/trial-vmlinuz"
CONSOLE = "/var/log/libvirt/qemu/trial-console.log"
# Without a root disk every kernel ends here, after it has found its CPUs, memory and devices.
END_MARK = "VFS: Unable to mount root fs"
GUEST_MIB = 256
TOGGLE_S = 60
TOGGLE = """
import os, time
end, switched = time.time() + {seconds}, 0
for _ in range(2 * os.cpu_count()):
    if os.fork() == 0:
        while time.time() < end:
            time.sleep(0.0005)
        os._exit(0)
files = [os.open("/sys/bus/pci/devices/" + address + "/config", os.O_RDWR) for address in {addresses}]
while time.time() < end:
    for file in files:
        for command in (0, 2):
            os.pwrite(file, command.to_bytes(2, "little"), 4)
            switched += 1
print(switched)
"""
BOOT_LIMIT_S = 240


@dataclass(frozen=True, slots=True)
class Cycle:
    """Seconds of emulated work, as seen from outside, ssh included."""

    start_s: float
    guest_s: float
    destroy_s: float


def domain_xml(role: str, shape: machine.Shape) -> str:
    """Return the tenant's definition for the stand-in `role`."""
    device = next(device for device in machine.DEVICES if device.role == role)
    domain, bus, rest = device.address.split(":")
    slot, function = rest.split(".")
    cpus = shape.cpus // shape.sockets
    first = device.node * cpus + cpus - 2  # the last two of the node; the first ones are the host's
    address = f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'"
    return f"""<domain type='kvm'>
  <name>trial</name>
  <memory unit='MiB'>{GUEST_MIB}</memory>
  <memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages><nosharepages/></memoryBacking>
  <vcpu>2</vcpu>
  <cputune>
    <vcpupin vcpu='0' cpuset='{first}'/><vcpupin vcpu='1' cpuset='{first + 1}'/>
    <emulatorpin cpuset='{first}'/>
  </cputune>
  <numatune><memory mode='strict' nodeset='{device.node}'/></numatune>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{KERNEL}</kernel><cmdline>console=ttyS0 panic=0</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <controller type='usb' model='none'/>
    <hostdev mode='subsystem' type='pci' managed='yes'><source><address {address}/></source></hostdev>
    <serial type='file'><source path='{CONSOLE}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def run_cycle(host: lab.LabHost, role: str, shape: machine.Shape) -> Cycle:
    """Start, watch and destroy one tenant; raise if it leaves a page or does not give the device back."""
    host.ssh(f"rm -f {CONSOLE}; cat >/run/trial.xml", 60, input=domain_xml(role, shape).encode())
    begun = time.monotonic()
    host.ssh("virsh -q create /run/trial.xml", 180)
    started = time.monotonic()
    wait = f"for i in $(seq {BOOT_LIMIT_S}); do grep -q '{END_MARK}' {CONSOLE} && exit; sleep 1; done; exit 1"
    host.ssh(wait, BOOT_LIMIT_S + 60)
    booted = time.monotonic()
    host.ssh("virsh -q destroy trial", 120)
    ended = time.monotonic()
    pages = "/sys/devices/system/node/node*/hugepages/hugepages-2048kB/free_hugepages"
    driver = f"basename $(readlink /sys/bus/pci/devices/{machine.ADDRESS[role]}/driver)"
    left = host.ssh(f"cat {pages}; {driver}; pgrep -c qemu-system || true", 60).stdout.split()
    wanted = [str(machine.HUGEPAGES_PER_NODE)] * shape.sockets + ["bochs-drm", "0"]
    if left != wanted:
        raise lab.LabError(f"the tenant left something: {left}, not {wanted}")
    return Cycle(started - begun, booted - started, ended - booted)


def toggle(host: lab.LabHost, seconds: int) -> int:
    """Switch the stand-ins' memory windows off and on while CPUs take timer interrupts; return how often.

    Every switch changes the emulator's map of devices under the CPUs that are just writing to one.
    """
    addresses = [device.address for device in machine.DEVICES if device.role.startswith("gpu")]
    program = TOGGLE.format(addresses=addresses, seconds=seconds)
    all_of_them = f"for a in {' '.join(addresses)}; do echo $a >/sys/bus/pci/drivers/bochs-drm"
    host.ssh(f"{all_of_them}/unbind; done", 60)
    switched = int(host.ssh("python3 -", seconds + 120, input=program.encode()).stdout)
    host.ssh(f"{all_of_them}/bind; done", 60)
    return switched


def main(host: lab.LabHost, cycles: int) -> int:
    """Run `cycles` cycles over the four stand-ins in turn; print each and the sum. Status 1 if one failed."""
    running = host.running()
    if running is None:
        raise lab.LabError("no lab host runs")
    shape = machine.SHAPES[running.shape]
    host.put(running.kernel, KERNEL)
    done: list[Cycle] = []
    try:
        print(f"{toggle(host, TOGGLE_S)} switches of a stand-in's memory window in {TOGGLE_S} s", flush=True)
        for number in range(cycles):
            cycle = run_cycle(host, f"gpu{number % 4}", shape)
            done.append(cycle)
            print(
                f"cycle {number + 1}: start {cycle.start_s:.1f} s, guest kernel {cycle.guest_s:.1f} s, "
                f"destroy {cycle.destroy_s:.1f} s",
                flush=True,
            )
    except lab.LabError as exc:
        print(f"failed after {len(done)} cycles: {exc}")
    where = f"QEMU {running.qemu_version} ({running.accelerator}, {shape.name})"
    print(f"{len(done)} of {cycles} cycles on {where}")
    if done:
        for name in ("start_s", "guest_s", "destroy_s"):
            values = [getattr(cycle, name) for cycle in done]
            print(f"  {name[:-2]}: mean {statistics.mean(values):.1f} s, longest {max(values):.1f} s")
    return 0 if len(done) == cycles else 1

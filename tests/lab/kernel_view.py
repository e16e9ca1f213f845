"""What the lab host's kernel says, by plain shell commands: nothing of the product is used here."""

from __future__ import annotations

import re


def driver(lab, address: str) -> str:
    return lab.sh(f"basename $(readlink /sys/bus/pci/devices/{address}/driver) 2>/dev/null || echo none")


def vfio_holders(lab, address: str) -> set[int]:
    """Pids that hold the device's group open."""
    script = (
        f"g=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{address}/iommu_group)); "
        'find /proc/[0-9]*/fd -lname "$g" 2>/dev/null | cut -d/ -f3 | sort -u'
    )
    return {int(pid) for pid in lab.sh(script).split()}


def qemu_pid(lab, instance: str) -> int:
    return int(lab.sh(f"cat /run/libvirt/qemu/{instance}.pid"))


def vcpu_cpus(lab, pid: int) -> dict[int, str]:
    """vCPU number to the kernel's list of CPUs that its thread may use."""
    script = (
        f"sed -sn -e 's/^Name:\\t//p;s/^Cpus_allowed_list:\\t//p' /proc/{pid}/task/*/status | paste -d'|' - -"
    )
    found = {}
    for line in lab.sh(script).splitlines():
        match = re.fullmatch(r"CPU (\d+)/KVM\|(.*)", line)
        if match:
            found[int(match.group(1))] = match.group(2)
    return found


def hugepages_by_node(lab, pid: int) -> dict[int, int]:
    """Pages of guest memory by node, from numa_maps."""
    found: dict[int, int] = {}
    for line in lab.sh(f"grep huge /proc/{pid}/numa_maps || true").splitlines():
        for node, pages in re.findall(r"\bN(\d+)=(\d+)", line):
            found[int(node)] = found.get(int(node), 0) + int(pages)
    return found

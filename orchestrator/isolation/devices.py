"""May this PCI function go to this tenant? Pure rules over what was observed; binding obeys them.

The unit that isolates is the IOMMU group: all its members that are not bridges go to one instance together,
or none does. Group numbers are taken from the same look as the rest and never kept. Called by the agent
before it takes a device, and by verdicts afterwards.
"""

from __future__ import annotations

from orchestrator.model.assignment import Device
from orchestrator.model.errors import DeviceError
from orchestrator.model.observed import GroupMember, ObservedDevice

#: Base classes (PCI Code and ID Assignment) that a host cannot lose: memory, system peripherals, processors.
_HOST_BASE_CLASSES = frozenset({"05", "08", "0b"})
#: Serial bus controllers are fair game (USB companions of GPUs) but for the SMBus, which talks to the board
#: itself.
_SMBUS_CLASS = "0c05"


def device_problems(
    observed: ObservedDevice, wanted: Device, unit: frozenset[str], *, instance_pid: int | None = None
) -> tuple[DeviceError, ...]:
    """Say all that forbids giving this function to the instance, worst first; empty when nothing does.

    Args:
        observed: the function now.
        wanted: the function as the assignment names it.
        unit: addresses of all devices of the instance.
        instance_pid: the instance's own QEMU where it runs: it may hold the device, nobody else may.
    """
    return (
        *class_problems(observed),
        *identity_problems(observed, wanted),
        *holder_problems(observed, instance_pid),
        *response_problems(observed),
        *group_problems(observed, unit),
        *node_problems(observed, wanted),
        *reset_problems(observed),
    )


def class_problems(observed: ObservedDevice) -> tuple[DeviceError, ...]:
    """Refuse what is never a tenant's: bridges (NVSwitches are such too) and parts of the host itself."""
    code = observed.class_code
    if code.startswith("06"):
        return (DeviceError("device.is_bridge", f"{observed.address} (class {code}) is a bridge"),)
    if code[:2] in _HOST_BASE_CLASSES or code.startswith(_SMBUS_CLASS):
        return (
            DeviceError(
                "device.host_critical", f"{observed.address} (class {code}) is part of the host itself"
            ),
        )
    return ()


def identity_problems(observed: ObservedDevice, wanted: Device) -> tuple[DeviceError, ...]:
    """Refuse another device in the wanted one's slot.

    An assignment without a serial says nothing of it; the serial of a device that does not answer cannot be
    read.
    """
    pairs = [
        ("vendor", wanted.vendor, observed.vendor),
        ("device", wanted.device, observed.device),
    ]
    if wanted.serial and observed.responds:
        pairs.append(("serial", wanted.serial, observed.serial))
    differing = [
        f"{what} {found or 'none'} instead of {want}" for what, want, found in pairs if found != want
    ]
    if not differing:
        return ()
    return (
        DeviceError(
            "device.identity_mismatch",
            f"{observed.address} is not {wanted.id}: {', '.join(differing)}",
            hint="take the host's inventory again",
        ),
    )


def holder_problems(observed: ObservedDevice, instance_pid: int | None) -> tuple[DeviceError, ...]:
    """Refuse a device that some process has open, the instance's own QEMU left out."""
    others = [pid for pid in observed.holders if pid != instance_pid]
    if not others:
        return ()
    pids = ", ".join(map(str, others))
    return (DeviceError("device.in_use", f"{observed.address} is held open by process {pids}"),)


def response_problems(observed: ObservedDevice) -> tuple[DeviceError, ...]:
    """Refuse a wedged device."""
    if observed.responds:
        return ()
    return (
        DeviceError(
            "device.unresponsive",
            f"{observed.address} does not answer: its configuration space cannot be read or is all ones",
            hint="quarantine it and power-cycle the host",
        ),
    )


def group_problems(observed: ObservedDevice, unit: frozenset[str]) -> tuple[DeviceError, ...]:
    """Refuse a function that shares its IOMMU group with anything that does not go to the same instance.

    A member on a harmless driver, or on none, is refused like any other: peers in a group can reach each
    other's memory whatever their drivers are.
    """
    if observed.group is None:
        return (
            DeviceError(
                "device.no_iommu",
                f"{observed.address} is in no IOMMU group: nothing confines its DMA",
                hint="switch the IOMMU on in firmware and on the kernel's command line",
            ),
        )
    strangers = [
        m for m in observed.members if not m.is_bridge and m.address not in unit | {observed.address}
    ]
    if not strangers:
        return ()
    return (
        DeviceError(
            "device.group_not_isolated",
            f"{observed.address} shares IOMMU group {observed.group} with devices of others; its members are "
            + ", ".join(_describe(member) for member in observed.members),
            hint="give the whole group to one instance, or move the device to a slot behind a port with ACS",
        ),
    )


def node_problems(observed: ObservedDevice, wanted: Device) -> tuple[DeviceError, ...]:
    """Refuse a device on another NUMA node than planned; unknown (-1) equals only unknown, never node 0."""
    if observed.node == wanted.node:
        return ()
    return (
        DeviceError(
            "device.node_mismatch",
            f"{observed.address} is on NUMA node {observed.node}; the assignment says {wanted.node}",
            hint="take the host's inventory again",
        ),
    )


def reset_problems(observed: ObservedDevice) -> tuple[DeviceError, ...]:
    """Refuse a device that the kernel cannot reset: what one tenant leaves in it would meet the next."""
    if observed.reset_methods:
        return ()
    return (DeviceError("device.no_reset", f"the kernel knows no way to reset {observed.address}"),)


def _describe(member: GroupMember) -> str:
    return f"{member.address} (class {member.class_code}, driver {member.driver or 'none'})"

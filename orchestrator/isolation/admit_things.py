"""Admission of devices and volumes: nothing is given twice, and the host has the very device that is meant.

Which function may go to a tenant at all is `isolation.devices`' to say; here it is asked about a whole
assignment, before anything is touched. Pure; `admission` calls it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from orchestrator.isolation.devices import device_problems
from orchestrator.model.assignment import Instance
from orchestrator.model.errors import BulkheadError, InvalidInputError
from orchestrator.model.host import HostFacts, PciFunction
from orchestrator.model.observed import GroupMember, ObservedDevice

_GIB = 1 << 30

#: Index in the assignment, and the instance.
Placed = Sequence[tuple[int, Instance]]


def device_rule_problems(
    instances: Placed, facts: HostFacts | None, held: Container[tuple[str, str]]
) -> Iterator[BulkheadError]:
    """Refuse a device for two, and what the rules of devices say against the host's functions.

    Args:
        held: (instance id, address) of devices that may have gone since they were exposed.
    """
    ids: dict[str, str] = {}
    addresses: dict[str, str] = {}
    functions = {each.address: each for each in facts.functions} if facts is not None else {}
    groups = _groups(facts)
    for index, instance in instances:
        unit = frozenset(device.address for device in instance.devices)
        for at, device in enumerate(instance.devices):
            place = f"instances[{index}].devices[{at}]"
            if device.address in addresses or device.id in ids:
                same_slot = device.address in addresses
                holder = addresses[device.address] if same_slot else ids[device.id]
                yield InvalidInputError(
                    "device.given_twice",
                    f"{device.address if same_slot else device.id} is given to {holder} already",
                    field=f"{place}.address" if same_slot else f"{place}.id",
                )
                continue
            ids[device.id] = addresses[device.address] = instance.id
            if facts is None:
                continue
            function = functions.get(device.address)
            if function is None and (instance.id, device.address) in held:
                continue
            if function is None:
                yield InvalidInputError(
                    "device.missing",
                    f"the host has no PCI function at {device.address}",
                    field=f"{place}.address",
                    hint="take the host's inventory again",
                )
                continue
            for problem in device_problems(observed_from(function, groups), device, unit):
                name = "node" if problem.code == "device.node_mismatch" else "address"
                yield InvalidInputError(
                    problem.code, problem.message, field=f"{place}.{name}", hint=problem.hint
                )


def observed_from(function: PciFunction, groups: dict[int, tuple[GroupMember, ...]]) -> ObservedDevice:
    """See a function of the host's facts as the device rules see it.

    Who holds it and whether it answers is not in the facts; both are looked at again before it is bound.

    Args:
        function: one function of the host.
        groups: all members of each IOMMU group.
    """
    return ObservedDevice(
        address=function.address,
        vendor=function.vendor,
        device=function.device,
        class_code=function.class_code,
        node=function.node,
        driver=function.driver,
        driver_override=None,
        group=function.group,
        members=() if function.group is None else groups[function.group],
        reset_methods=function.reset_methods,
        holders=(),
        serial=function.serial,
    )


def _groups(facts: HostFacts | None) -> dict[int, tuple[GroupMember, ...]]:
    found: dict[int, list[GroupMember]] = {}
    for each in sorted(facts.functions if facts else (), key=lambda function: function.address):
        if each.group is not None:
            found.setdefault(each.group, []).append(GroupMember(each.address, each.class_code, each.driver))
    return {group: tuple(members) for group, members in found.items()}


def volume_problems(instances: Placed) -> Iterator[BulkheadError]:
    """Refuse a volume for two, and an image larger than the volume it is written into."""
    users: dict[str, str] = {}
    for index, instance in instances:
        for at, volume in enumerate(instance.volumes):
            place = f"instances[{index}].volumes[{at}]"
            if volume.id in users:
                yield InvalidInputError(
                    "volume.given_twice",
                    f"{volume.id} is given to {users[volume.id]} already",
                    field=f"{place}.id",
                )
            users.setdefault(volume.id, instance.id)
            if volume.image is not None and volume.image.size_bytes > volume.size_gib * _GIB:
                yield InvalidInputError(
                    "volume.image_too_large",
                    f"an image of {volume.image.size_bytes} bytes does not fit into {volume.size_gib} GiB",
                    field=f"{place}.image.size_bytes",
                    hint=f"order at least {-(-volume.image.size_bytes // _GIB)} GiB",
                )

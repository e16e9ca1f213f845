"""Verdicts on what an instance was given: devices, volumes, seed and console, secrets, ports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.isolation.facts import DiskFacts, InstanceFacts
from orchestrator.isolation.judging import verdict
from orchestrator.model.assignment import Device, Port
from orchestrator.model.evidence import Verdict
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import ObservedPort

#: File systems whose content is gone with the power.
VOLATILE = frozenset({"tmpfs", "ramfs"})


def judge_devices(spec: LaunchSpec, facts: InstanceFacts) -> list[Verdict]:
    """Judge each ordered device, and that the process holds no other."""
    found = [v for device in spec.instance.devices for v in _device(spec, device, facts)]
    ordered = frozenset(device.address for device in spec.instance.devices)
    held = facts.vfio_held
    found.append(
        verdict(
            "gpu.no_other",
            spec.instance.id,
            f"devices {_words(ordered)}",
            _words(held or frozenset()),
            None if held is None else held <= ordered | _group_mates(facts, ordered),
        )
    )
    if ordered:
        unsafe = (facts.unsafe_interrupts, facts.unsafe_noiommu)
        found.append(
            verdict(
                "gpu.iommu",
                spec.instance.id,
                "interrupts remapped, DMA translated",
                f"unsafe interrupts {_on(unsafe[0])}, no-IOMMU mode {_on(unsafe[1])}",
                None if None in unsafe else not any(unsafe),
            )
        )
    return found


def _group_mates(facts: InstanceFacts, ordered: frozenset[str]) -> frozenset[str]:
    """A group's file stands for all of its members; `gpu.group` judges whether they may share it."""
    mates = [d.members for a, d in (facts.devices or {}).items() if a in ordered and d.members]
    return frozenset().union(*mates)


def _device(spec: LaunchSpec, device: Device, facts: InstanceFacts) -> list[Verdict]:
    seen = (facts.devices or {}).get(device.address)
    ordered = frozenset(each.address for each in spec.instance.devices)
    driver = seen.driver if seen else None
    members = seen.members if seen else None
    holders = seen.holders if seen else None
    return [
        verdict(
            "gpu.identity",
            device.id,
            f"{device.address} is {device.vendor}:{device.device} on node {device.node}",
            f"{seen.vendor}:{seen.device} on node {seen.node}" if seen else "",
            (seen.vendor, seen.device, seen.node) == (device.vendor, device.device, device.node)
            if seen
            else None,
        ),
        verdict(
            "gpu.driver",
            device.id,
            f"{device.address} on a vfio driver, held there by its override",
            f"driver {driver or 'none'}, override {(seen.driver_override if seen else None) or 'none'}",
            _is_vfio(driver) and seen.driver_override == driver if seen else None,
        ),
        verdict(
            "gpu.group",
            device.id,
            "every function of its IOMMU group given to this instance",
            _words(members) if members else "no group",
            (bool(members) and (members or frozenset()) <= ordered) if seen else None,
        ),
        verdict(
            "gpu.holder",
            device.id,
            f"held open by pid {facts.pid} alone",
            f"held by pids {', '.join(map(str, holders or ())) or 'none'}",
            None if holders is None or facts.pid is None else holders == (facts.pid,),
        ),
    ]


def _is_vfio(driver: str | None) -> bool:
    """vfio-pci or one of its variants, which are named `..._vfio_pci` or `...-vfio-pci`."""
    return driver is not None and driver.replace("_", "-").endswith("vfio-pci")


def judge_volumes(spec: LaunchSpec, facts: InstanceFacts) -> list[Verdict]:
    """Judge each volume's file, and that seed and console leave nothing on a disk."""
    found: list[Verdict] = []
    for volume in spec.instance.volumes:
        found += _volume(spec, volume.id, (facts.disks or {}).get(volume.id), facts.pid)
    for id_, filesystem in (
        ("seed.volatile", facts.seed_filesystem),
        ("console.volatile", facts.console_filesystem),
    ):
        found.append(
            verdict(
                id_,
                spec.instance.id,
                "kept in memory (tmpfs)",
                filesystem,
                None if filesystem is None else filesystem in VOLATILE,
            )
        )
    return found


def _volume(spec: LaunchSpec, volume: str, disk: DiskFacts | None, pid: int | None) -> list[Verdict]:
    problems = disk.header_problems if disk else None
    holders = disk.holders if disk else None
    private = None
    if disk is not None:
        group_may = bool(disk.mode & 0o070) and disk.gid != spec.uid
        private = disk.uid == spec.uid and not disk.mode & 0o007 and not group_may
    return [
        verdict(
            "volume.header",
            volume,
            "LUKS, aes-256-xts-plain64",
            "; ".join(problems or ()) or "as expected",
            None if problems is None else not problems,
        ),
        verdict(
            "volume.owner",
            volume,
            f"uid {spec.uid}, nobody else may read it",
            f"uid {disk.uid}, gid {disk.gid}, mode {disk.mode:04o}" if disk else "",
            private,
        ),
        verdict(
            "volume.holder",
            volume,
            f"open in pid {pid} alone",
            f"open in pids {', '.join(map(str, holders or ())) or 'none'}",
            None if holders is None or pid is None else holders == (pid,),
        ),
    ]


def judge_secrets(spec: LaunchSpec, facts: InstanceFacts) -> list[Verdict]:
    """Judge that no passphrase outlived the start, and that none stands where it can be read."""
    subject = spec.instance.id
    own = frozenset(volume.id for volume in spec.instance.volumes)
    left = facts.secrets_left
    disks = None if facts.secret_filesystems is None else facts.secret_filesystems - VOLATILE
    return [
        verdict(
            "secret.gone",
            subject,
            "the hypervisor holds no passphrase of its volumes",
            f"held: {_words((left or frozenset()) & own)}",
            None if left is None else not left & own,
        ),
        verdict(
            "secret.argv",
            subject,
            "no unencrypted secret in argv",
            f"{facts.plain_secrets} in argv",
            None if facts.plain_secrets is None else facts.plain_secrets == 0,
        ),
        verdict(
            "secret.master_key",
            subject,
            "files that open argv's secrets kept in memory (tmpfs)",
            _words(facts.secret_filesystems or frozenset()),
            None if disks is None else not disks,
        ),
    ]


def judge_ports(spec: LaunchSpec, ports: tuple[ObservedPort, ...] | None) -> list[Verdict]:
    """Judge an instance's ports once they are meant to be open.

    Args:
        spec: what was ordered.
        ports: ports of the switch's database; None when it could not be read.
    """
    found: list[Verdict] = []
    for port in spec.instance.ports:
        seen = None if ports is None else [each for each in ports if each.port == port.id]
        found += _port(spec, port, seen)
    return found


def judge_flows(bridge: str, flows: int, differences: tuple[str, ...]) -> Verdict:
    """Judge the switch's flows against the compiled policy.

    Args:
        flows: how many the policy has.
        differences: lines that only one of the two has.
    """
    read = f"{len(differences)} differences, first {differences[0]}" if differences else "equal"
    return verdict("switch.flows", bridge, f"the {flows} flows of the policy", read, not differences)


def judge_closed(instances: Iterable[str], seen: Sequence[ObservedPort]) -> list[Verdict]:
    """Judge that what lives elsewhere by now says nothing on this switch: no port of it is open.

    Args:
        seen: every port of ours on the switch.
    """
    found = []
    for instance in instances:
        loud = [each.port for each in seen if each.instance == instance and (each.open or each.vlan)]
        read = f"open: {', '.join(loud)}" if loud else "none is open"
        found.append(verdict("port.cut_off", instance, "no open port", read, not loud))
    return found


def _port(spec: LaunchSpec, port: Port, seen: list[ObservedPort] | None) -> list[Verdict]:
    """A port that the database does not have, or has twice, fails every question about it."""
    one = seen[0] if seen and len(seen) == 1 else None
    how_many = f"{len(seen or ())} ports of that id"
    return [
        verdict(
            "port.owner",
            port.id,
            f"of {spec.instance.id} and {spec.deployment}",
            f"of {one.instance} and {one.deployment}" if one else how_many,
            None
            if seen is None
            else one is not None and (one.instance, one.deployment) == (spec.instance.id, spec.deployment),
        ),
        verdict(
            "port.mode",
            port.id,
            "access port, no trunks",
            f"{one.vlan_mode}, trunks {one.trunks}" if one else how_many,
            None if seen is None else one is not None and one.vlan_mode == "access" and not one.trunks,
        ),
        verdict(
            "port.tag",
            port.id,
            f"VLAN {port.vlan}",
            f"VLAN {one.vlan}" if one else how_many,
            None if seen is None else one is not None and one.vlan == port.vlan,
        ),
        verdict(
            "port.open",
            port.id,
            "marked open",
            ("marked open" if one.open else "not marked") if one else how_many,
            None if seen is None else one is not None and one.open,
        ),
    ]


def _words(values: frozenset[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _on(value: bool | None) -> str:
    return "on" if value else "off"

"""Reads a domain's definition back into `ObservedDomain`: from our metadata, our aliases and the pins.

Pure. What carries no metadata of ours is nobody's business here; what carries it and cannot be read is an
error, since a domain that looks half ours must not be taken for absent. Called by `domains`.
"""

from __future__ import annotations

from lxml import etree

from orchestrator.agent.libvirt.xml.metadata import TAG
from orchestrator.model.cpus import parse_cpu_list
from orchestrator.model.errors import HostError
from orchestrator.model.observed import DomainState, ObservedDomain
from orchestrator.model.pci import PciAddress


def parse(text: str) -> etree._Element:
    """Parse a definition; entities and references to elsewhere are not followed."""
    return etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True))


def is_ours(domain: etree._Element) -> bool:
    """Whether it carries our metadata."""
    return domain.find(f"metadata/{TAG}") is not None


def observed(domain: etree._Element, state: DomainState, pid: int | None) -> ObservedDomain:
    """Read one of our domains.

    Raises:
        HostError: `domain.unreadable`: our metadata is damaged or does not belong to this name.
    """
    name = domain.findtext("name") or ""
    mark = domain.find(f"metadata/{TAG}")
    try:
        if mark is None:
            raise ValueError("no metadata")
        said = {str(key): str(value) for key, value in mark.attrib.items()}
        if said["id"] != name:
            raise ValueError(f"metadata of {said['id']}")
        return ObservedDomain(
            instance=name,
            tenant=said["tenant"],
            deployment=said["deployment"],
            generation=int(said["generation"]),
            digest=said["digest"],
            state=state,
            pid=pid,
            uid=int(said["uid"]),
            cpus=_cpus(domain),
            devices=tuple(_address(each) for each in domain.iterfind("devices/hostdev/source/address")),
            volumes=_aliases(domain, "disk", "vol_"),
            ports=_aliases(domain, "interface", "prt_"),
        )
    except (KeyError, ValueError) as exc:
        raise HostError(
            "domain.unreadable",
            f"the definition of {name} carries our mark and cannot be read: {exc}",
            hint=f"look at it with: virsh dumpxml {name}",
        ) from exc


def _cpus(domain: etree._Element) -> frozenset[int]:
    return frozenset(
        cpu for pin in domain.iterfind("cputune/vcpupin") for cpu in parse_cpu_list(pin.get("cpuset", ""))
    )


def _address(source: etree._Element) -> str:
    parts = (int(source.get(name, ""), 16) for name in ("domain", "bus", "slot", "function"))
    return str(PciAddress(*parts))


def _aliases(domain: etree._Element, tag: str, prefix: str) -> tuple[str, ...]:
    names = (each.get("name", "").removeprefix("ua-") for each in domain.iterfind(f"devices/{tag}/alias"))
    return tuple(name for name in names if name.startswith(prefix))

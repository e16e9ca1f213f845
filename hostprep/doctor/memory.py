"""Memory for guests: hugepages on each node, and the right to pin them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hostprep.doctor.finding import DAEMON_PIDS, MUST, POLICY, Look, finding
from hostprep.probe.files import read_number, read_text
from orchestrator.model.doctor import Finding
from orchestrator.model.errors import HostError
from orchestrator.model.host import NumaNode

_LOCKED = re.compile(r"^Max locked memory\s+(\S+)\s+(\S+)", re.MULTILINE)
_CAPABILITIES = re.compile(r"^CapEff:\s*([0-9a-f]+)", re.MULTILINE)
#: include/uapi/linux/capability.h: CAP_SYS_RESOURCE.
_SYS_RESOURCE = 1 << 24
_MIB = 1 << 20


@dataclass(frozen=True)
class MemoryFacts:
    """None is what could not be read; without a daemon nobody knows."""

    nodes: tuple[NumaNode, ...]
    #: Hard limit of libvirt's daemon in bytes, `unlimited` as -1.
    locked_limit: int | None
    may_raise: bool | None
    pid: int | None


def read(look: Look) -> MemoryFacts:
    """Read them."""
    root = look.root
    pid = next((found for path in DAEMON_PIDS if (found := _pid(look, path)) is not None), None)
    if pid is None:
        return MemoryFacts(look.host.nodes, None, None, None)
    limits = _LOCKED.search(read_text(root / "proc" / str(pid) / "limits") or "")
    held = _CAPABILITIES.search(read_text(root / "proc" / str(pid) / "status") or "")
    hard = None if limits is None else -1 if limits[2] == "unlimited" else int(limits[2])
    may_raise = None if held is None else bool(int(held[1], 16) & _SYS_RESOURCE)
    return MemoryFacts(look.host.nodes, hard, may_raise, pid)


def judge(facts: MemoryFacts) -> tuple[Finding, ...]:
    """Answer `mem.*`."""
    pages = {
        node.node: sum(size * each.total for size, each in node.hugepages.items()) // 1024
        for node in facts.nodes
    }
    # A node without CPUs or without memory runs no guest.
    wanted = [node for node in facts.nodes if node.cpus and node.memory_mib]
    largest = max((node.memory_mib for node in facts.nodes), default=0) * _MIB
    limit = facts.locked_limit
    enough = None if limit is None else limit == -1 or limit >= largest
    return (
        finding(
            "mem.hugepages",
            MUST,
            None if not facts.nodes else any(pages.values()),
            expected="hugepages on some node",
            read=", ".join(f"node {node}: {mib} MiB" for node, mib in pages.items()),
            mend="boot with hugepagesz=1G hugepages=N, or write nr_hugepages below /sys/devices/system/node",
            source="/sys/devices/system/node",
        ),
        *(
            finding(
                "mem.node",
                POLICY,
                pages[node.node] > 0,
                subject=f"node {node.node}",
                expected="hugepages on each node with CPUs and memory",
                read=f"{pages[node.node]} of {node.memory_mib} MiB",
                mend=f"write nr_hugepages below /sys/devices/system/node/node{node.node}/hugepages",
            )
            for node in wanted
        ),
        finding(
            "mem.memlock",
            MUST,
            True if facts.may_raise else enough,
            expected="libvirt may pin a guest's memory (CAP_SYS_RESOURCE, or a limit above a node's memory)",
            read="CAP_SYS_RESOURCE"
            if facts.may_raise
            else None
            if limit is None
            else "unlimited"
            if limit == -1
            else f"{limit // _MIB} MiB",
            mend="set LimitMEMLOCK=infinity in virtqemud.service, systemctl daemon-reload, restart it",
            source="no pid file of virtqemud or libvirtd"
            if facts.pid is None
            else f"/proc/{facts.pid}/limits",
        ),
    )


def _pid(look: Look, path: str) -> int | None:
    try:
        return read_number(look.root / path)
    except HostError:
        return None

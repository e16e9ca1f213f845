"""Who else is there: other processes that run virtual machines, and kernel threads that work for ours.

Tenants come from the hypervisor, everything else from /proc. Reads and never judges. Called by `inspector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hostprep.probe.files import read_text
from orchestrator.agent.evidence import process
from orchestrator.agent.evidence.openfiles import OpenFiles
from orchestrator.isolation.facts import Neighbour

#: proc(5): field 2 of `Uid` is the effective one.
_EFFECTIVE = 1


def read_neighbours(
    root: Path, files: OpenFiles, pid: int, tenants: Mapping[int, str]
) -> tuple[Neighbour, ...] | None:
    """Read all other processes that hold a machine; None when one could not be looked at.

    Args:
        root: where `proc` is.
        files: one pass over all descriptors.
        pid: ourselves, left out.
        tenants: by pid, as the hypervisor says.
    """
    if not files.complete:
        return None
    found = []
    for other in sorted(files.machines - {pid}):
        folder = process.folder(root, other)
        neighbour = _neighbour(folder, other, tenants.get(other))
        if neighbour is not None:
            found.append(neighbour)
        elif process.start_ticks(folder) is not None:
            return None
    return tuple(found)


def _neighbour(folder: Path, pid: int, tenant: str | None) -> Neighbour | None:
    threads = process.threads(folder)
    label = process.label(folder)
    if threads is None or label is None:
        return None
    ids = threads[0].ids("Uid")
    cpus = [thread.cpus for thread in threads]
    if ids is None or len(ids) <= _EFFECTIVE or None in cpus:
        return None
    everywhere = frozenset().union(*(each for each in cpus if each is not None))
    return Neighbour(pid=pid, uid=ids[_EFFECTIVE], cpus=everywhere, label=label, tenant=tenant)


def helper_threads(root: Path, files: OpenFiles, pid: int) -> dict[int, frozenset[int]] | None:
    """Return where vhost's kernel threads for this process may run, by pid; None when one does not say.

    Before Linux 6.4 they are processes of their own, named `vhost-<pid of the owner>`; since then they are
    threads of the owner and stand among its others.
    """
    found: dict[int, frozenset[int]] = {}
    for other in sorted(files.pids):
        folder = process.folder(root, other)
        if read_text(folder / "comm") != f"vhost-{pid}":
            continue
        for thread in process.threads(folder) or ():
            if thread.cpus is None:
                return None
            found[thread.tid] = thread.cpus
    return found

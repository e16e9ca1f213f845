"""How a finding comes from a fact: None is UNKNOWN, True is PASS, anything else is FAIL. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostprep.probe.files import HostPath
from orchestrator.model.doctor import Finding, Severity
from orchestrator.model.evidence import Status
from orchestrator.model.host import HostFacts

MUST, POLICY = Severity.MUST, Severity.POLICY
HOST = "host"
#: What stands for a fact that could not be read.
#: Where libvirt's daemon writes its pid; the modular one first.
DAEMON_PIDS = ("run/virtqemud.pid", "run/libvirt/virtqemud.pid", "run/libvirtd.pid")
NOT_READ = "not read"
_MAX_TEXT = 512


@dataclass(frozen=True)
class Look:
    """What the readers of facts look at.

    Args:
        root: where `sys`, `proc` and `etc` are: this machine's, or a recording's.
        run: runs a program that changes nothing; None where it is missing or fails.
        host: what the probe read.
        bridge: the tenants' bridge.
    """

    root: HostPath
    run: Callable[[tuple[str, ...]], str | None]
    host: HostFacts
    bridge: str


def finding(
    id_: str,
    severity: Severity,
    ok: bool | None,
    *,
    expected: str,
    read: object,
    mend: str,
    subject: str = HOST,
    source: str = "",
) -> Finding:
    """Make a finding; what a host says is shown to people, so nothing in it steers their terminal.

    Args:
        source: the file or program that tells; named where nothing could be read.
    """
    status = Status.UNKNOWN if ok is None else Status.PASS if ok else Status.FAIL
    said = str(read)
    if ok is None and read in (None, ""):
        said = f"{NOT_READ}: {source}" if source else NOT_READ
    return Finding(id_, _clean(subject), severity, status, expected, _clean(said), "" if ok else mend)


def all_of(*answers: bool | None) -> bool | None:
    """Return False if any is, else None if any is, else True."""
    if False in answers:
        return False
    return None if None in answers else True


def shown(fact: str | bool | None) -> str:
    """Return a fact as people read it; one that could not be read is told as such, never as nothing."""
    if fact is None:
        return NOT_READ
    return fact if isinstance(fact, str) else "on" if fact else "off"


def no_answer(program: str) -> str:
    """Return the source of a fact that a program tells."""
    return f"{program} is missing or failed"


def _clean(text: str) -> str:
    cut = text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
    return "".join(each if each.isprintable() else "?" for each in cut)

"""Where a running instance's pty is, by its live definition. Asked when somebody opens a console."""

from __future__ import annotations

import re
from typing import Any

import libvirt

from orchestrator.agent.libvirt.connection import Connection
from orchestrator.agent.libvirt.errors import clean
from orchestrator.agent.libvirt.readback import is_ours, parse
from orchestrator.model.errors import HostError, NotFoundError

#: The kernel's ptys; a definition that names anything else is not one of ours.
_PTY = re.compile(r"/dev/pts/[0-9]{1,7}")


def pty_of(connection: Connection, instance: str) -> str:
    """Return the path of an instance's serial console.

    Raises:
        NotFoundError: `console.unknown`: it is not here or does not run.
        HostError: `console.failed`, `hypervisor.unreachable`.
    """

    def work(opened: Any) -> str:
        domain = opened.lookupByName(instance)
        return str(domain.XMLDesc(0)) if domain.isActive() else ""

    try:
        text = connection.call(work)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise unknown_console(instance) from exc
        raise HostError("console.failed", f"{instance}: {clean(str(exc))}") from exc
    return pty_in(text, instance)


def pty_in(definition: str, instance: str) -> str:
    """Find the pty in a live definition; an empty text is that of an instance that does not run.

    Raises:
        NotFoundError: `console.unknown`.
    """
    domain = parse(definition) if definition else None
    if domain is None or not is_ours(domain):
        raise unknown_console(instance)
    for source in domain.iterfind("devices/serial[@type='pty']/source"):
        path = str(source.get("path") or "")
        if _PTY.fullmatch(path):
            return path
    raise unknown_console(instance)


def unknown_console(instance: str) -> NotFoundError:
    """Say that there is no live console."""
    return NotFoundError(
        "console.unknown", f"no console of {instance} is here", hint="start it first; its kept log stays"
    )

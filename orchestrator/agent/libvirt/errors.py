"""libvirt's errors, said in ours.

Decides code and class by libvirt's own error number. Nothing secret can come along: libvirt is given
passphrases by value only and does not repeat them, and what it says is cut and cleaned all the same. Called
by the drivers beside it.
"""

from __future__ import annotations

import libvirt

from orchestrator.model.errors import BulkheadError, ConflictError, HostError, NotFoundError

#: libvirt appends QEMU's own output to some messages.
_LONGEST = 600

_GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_SECRET})
_CONFLICT = frozenset({libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_DOM_EXIST})
#: Trying again cannot help: the definition does not fit this host.
_REFUSED = frozenset(
    {
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_NO_SUPPORT,
    }
)


def is_gone(exc: libvirt.libvirtError) -> bool:
    """Whether it says that the domain or secret does not exist."""
    return exc.get_error_code() in _GONE


def translate(exc: libvirt.libvirtError, noun: str, verb: str, subject: str) -> BulkheadError:
    """Make our error of libvirt's; the caller raises it `from exc`.

    Args:
        noun: `domain` or `secret`: the code's first part.
        verb: what was tried (`start`); the code is `<noun>.<verb>_failed` where nothing says it better.
        subject: the id it was about.
    """
    code, words = exc.get_error_code(), clean(exc.get_error_message() or str(exc))
    if code in _GONE:
        return NotFoundError(f"{noun}.not_found", f"{subject} does not exist in libvirt: {words}")
    if code in _CONFLICT:
        return ConflictError(f"{noun}.{verb}_conflict", f"{verb} of {subject} contradicts its state: {words}")
    failed = HostError(
        f"{noun}.{verb}_failed",
        f"libvirt could not {verb} {subject}: {words}",
        hint=f"read /var/log/libvirt/qemu/{subject}.log" if (noun, verb) == ("domain", "start") else None,
    )
    if code in _REFUSED:
        # Of this failure alone, not of the class: the same order fails the same way on this host.
        failed.retryable = False  # type: ignore[misc]
    return failed


def clean(words: str) -> str:
    """One line of printable characters, not longer than a screen's worth."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"

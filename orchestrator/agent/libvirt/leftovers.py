"""Files that a domain leaves behind and libvirt never removes: its console, its guest socket, QEMU's log.

Knows them from the definition, so it must be asked before that is forgotten. NVRAM is not among them: libvirt
takes it away itself. Called by `domains`.
"""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from orchestrator.model.errors import HostError

#: Where libvirt keeps what each QEMU printed, as `<domain>.log`.
LOG_DIR = Path("/var/log/libvirt/qemu")


def remove(domain: etree._Element, log_dir: Path = LOG_DIR) -> None:
    """Take away the files of a stopped domain; what is not there is fine.

    Raises:
        HostError: `domain.leftover`: a file stays.
    """
    try:
        for log in _logs(domain, log_dir):
            # virtlogd renames a full log to `<log>.0`, `<log>.1`, ...
            rolled = (each for each in log.parent.glob(f"{log.name}.*") if each.suffix[1:].isdigit())
            for path in (log, *rolled):
                path.unlink(missing_ok=True)
        for socket in _values(domain, "devices/channel[@type='unix']/source[@mode='bind']", "path"):
            # libvirt unlinks it when QEMU ends, but not when the host itself went down.
            socket.unlink(missing_ok=True)
    except OSError as exc:
        raise HostError(
            "domain.leftover", f"{exc.filename} of {domain.findtext('name')} stays: {exc.strerror}"
        ) from exc


def _logs(domain: etree._Element, log_dir: Path) -> list[Path]:
    return [*_values(domain, "devices/serial/log", "file"), log_dir / f"{domain.findtext('name')}.log"]


def _values(domain: etree._Element, where: str, attribute: str) -> list[Path]:
    return [Path(str(each.get(attribute))) for each in domain.iterfind(where) if each.get(attribute)]

"""The agent's journal: what it must remember that the host itself cannot tell.

Fences (deployment, epoch, revision, removed generations), the uid of each VM, the devices of the pool with
the driver they came with and the state of their cleaning, what each open port may speak as, and sightings
of strays. Small, rewritten whole, atomically and durably. It holds no assignment (that may carry secrets)
and no key. Written only by the reconciler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.model.errors import HostError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")
JOURNAL_VERSION = 1


@dataclass(frozen=True)
class PoolDevice:
    """A device that Bulkhead took from the host."""

    id: str
    address: str
    #: The driver it had when it was taken; None when it had none. It comes back when the device leaves the
    #: pool.
    original_driver: str | None
    #: `dirty`, `clean` or `exposed` (DESIGN §4, the part that one host needs).
    state: str
    #: Counts the exposures; evidence of `clean` belongs to one number.
    tenancy: int
    #: The instance it is exposed to.
    instance: str | None = None
    #: Evidence class of the last cleaning, empty while dirty.
    evidence: str = ""
    #: How that cleaning was done, and how long it took.
    method: str = ""
    reset_s: float = 0.0


@dataclass(frozen=True)
class PortRecord:
    """What an opened port may speak as. Kept: absence from an assignment must not cut a running VM off."""

    instance: str
    vlan: int
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Sighting:
    """How often a stray was seen, and when first (seconds since the epoch)."""

    count: int
    first_at_s: float


@dataclass(frozen=True)
class JournalState:
    """The whole memory, as a value."""

    deployment: str | None = None
    epoch: int = 0
    revision: int = 0
    #: Digest of the accepted assignment without its seeds.
    assignment_digest: str = ""
    uids: dict[str, int] = field(default_factory=dict)
    pool: dict[str, PoolDevice] = field(default_factory=dict)
    ports: dict[str, PortRecord] = field(default_factory=dict)
    #: Removed ids and the highest generation that must not come back.
    fences: dict[str, int] = field(default_factory=dict)
    sightings: dict[str, Sighting] = field(default_factory=dict)


class Journal:
    """The state and its file.

    Args:
        path: file in a directory of its own that outlives reboots; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = self._read()

    def update(self, change: Callable[[JournalState], JournalState]) -> None:
        """Replace the state and make it durable before returning. Nothing is written when nothing changed."""
        new = change(self.state)
        if new == self.state:
            return
        self._write(new)
        self.state = new

    def forget(self) -> None:
        """Remember nothing any more, as before the first assignment."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as exc:
            raise HostError("journal.write_failed", f"{self._path} cannot be removed: {exc}") from exc
        self.state = JournalState()

    def _read(self) -> JournalState:
        try:
            raw = json.loads(self._path.read_text())
        except FileNotFoundError:
            return JournalState()
        except (OSError, ValueError) as exc:
            raise HostError(
                "journal.unreadable",
                f"{self._path} cannot be read: {exc}",
                hint="do not delete it while VMs run: restore it, or ask the controller for a new epoch",
            ) from exc
        if raw.get("version") != JOURNAL_VERSION:
            raise HostError("journal.version", f"{self._path} has version {raw.get('version')!r}, not 1")
        return JournalState(
            deployment=raw["deployment"],
            epoch=raw["epoch"],
            revision=raw["revision"],
            assignment_digest=raw["assignment_digest"],
            uids=dict(raw["uids"]),
            pool={key: _known(PoolDevice, value) for key, value in raw["pool"].items()},
            ports={
                key: _known(PortRecord, {**value, "addresses": tuple(value["addresses"])})
                for key, value in raw["ports"].items()
            },
            fences=dict(raw["fences"]),
            sightings={key: _known(Sighting, value) for key, value in raw["sightings"].items()},
        )

    def _write(self, state: JournalState) -> None:
        body: dict[str, Any] = {"version": JOURNAL_VERSION, **dataclasses.asdict(state)}
        temporary = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(temporary, "w") as file:
                json.dump(body, file, sort_keys=True, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as exc:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise HostError("journal.write_failed", f"{self._path} cannot be written: {exc}") from exc


def _known(kind: type[T], value: Mapping[str, Any]) -> T:
    """Make an entry without what a newer agent added, so that going back one version keeps the memory."""
    names = {each.name for each in dataclasses.fields(kind)}
    return kind(**{name: each for name, each in value.items() if name in names})

"""NoCloud seeds: one small ISO per instance, on memory only, since user-data may hold what must not rest on
a disk.

Decides nothing about the content (`nocloud.seed_files` does). Refuses a directory that is not tmpfs or ramfs.
The reconciler calls it through `ports.Seeds`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

from hostprep.probe.files import filesystem_of
from orchestrator.agent.volumes.files import translated, write_atomically
from orchestrator.model.errors import EvidenceError, InvalidInputError
from orchestrator.model.observed import ObservedSeed

#: ISO 9660 (ECMA-119): the primary volume descriptor is sector 16; its field "application use" starts at byte
#: 883.
_PVD_BYTES = 16 * 2048
_APPLICATION_USE = 883
_MARK = b"bulkhead-generation="
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs"})
_NAME = re.compile(r"^vm_[a-z0-9](?:[a-z0-9_]{0,38}[a-z0-9])?$")
_MAX_FILE_BYTES = 1 << 20


class IsoSeeds:
    """The seeds of this host."""

    def __init__(self, root: Path | str, *, memory_only: bool = True) -> None:
        """`memory_only=False` accepts any file system; for tests."""
        self._root = Path(root)
        self._memory_only = memory_only

    def path(self, instance: str) -> str:
        """Where an instance's seed is."""
        if not _NAME.fullmatch(instance):
            raise InvalidInputError("seed.name_invalid", "an instance's id starts with vm_")
        return str(self._root / f"{instance}.iso")

    def observe(self) -> tuple[ObservedSeed, ...]:
        """All seeds; one whose generation cannot be read shows generation 0."""
        with translated(f"listing {self._root}"):
            try:
                names = sorted(path.stem for path in self._root.iterdir() if path.suffix == ".iso")
            except FileNotFoundError:
                return ()
            return tuple(
                ObservedSeed(name, _generation(Path(self.path(name))))
                for name in names
                if _NAME.fullmatch(name)
            )

    def write(self, instance: str, generation: int, files: Mapping[str, bytes]) -> None:
        """Write the ISO labelled `cidata` with these files, atomically.

        Raises:
            EvidenceError: `seed.not_on_memory`: the directory is on a disk.
            HostError, CapacityError: it cannot be written.
        """
        target = Path(self.path(instance))
        with translated(f"writing the seed of {instance}"):
            # QEMU's uid must be able to pass through; each seed is given to its own alone.
            self._root.mkdir(parents=True, exist_ok=True)
            self._root.chmod(0o711)
            if self._memory_only:
                _expect_memory(self._root)
            write_atomically(target, seed_iso(generation, files))

    def remove(self, instance: str) -> None:
        """Take it away. Unknown is fine."""
        with translated(f"removing the seed of {instance}"):
            target = Path(self.path(instance))
            target.unlink(missing_ok=True)
            target.with_name(target.name + ".part").unlink(missing_ok=True)


def seed_iso(generation: int, files: Mapping[str, bytes]) -> bytes:
    """Make the bytes of a seed: ISO 9660 with Rock Ridge and Joliet names, label `cidata`."""
    import pycdlib

    for name, content in files.items():
        if not re.fullmatch(r"[a-z][a-z-]{0,30}", name) or len(content) > _MAX_FILE_BYTES:
            raise InvalidInputError("seed.file_invalid", "a seed holds small files with plain names")
    iso = pycdlib.PyCdlib()
    mark = _MARK + str(generation).encode() + b"\n"
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata", app_use=mark.decode())
    try:
        for name in sorted(files):
            short = name.upper().replace("-", "_")[:20]
            iso.add_fp(
                io.BytesIO(files[name]),
                len(files[name]),
                iso_path=f"/{short}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        written = io.BytesIO()
        iso.write_fp(written)
    finally:
        iso.close()
    return written.getvalue()


def _generation(path: Path) -> int:
    """Read the generation out of a seed's volume descriptor; 0 when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(_PVD_BYTES + _APPLICATION_USE)
            found = stream.read(64)
    except FileNotFoundError:
        return 0
    matched = re.match(rb"bulkhead-generation=([0-9]{1,19})\n", found)
    return int(matched[1]) if matched else 0


def _expect_memory(root: Path) -> None:
    found = filesystem_of(root)
    if found not in _MEMORY_FILESYSTEMS:
        raise EvidenceError(
            "seed.not_on_memory",
            f"{root} lies on {found}, not on tmpfs",
            hint="mount a tmpfs there; hostprep does",
        )

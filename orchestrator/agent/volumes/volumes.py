"""Encrypted volumes as files: `<root>/<volume>/g<generation>.luks` and who owns it in `meta.json`.

A volume is complete when both are there, and the last step of creation is the rename that makes it so; the
first step of erasure undoes it. Never keeps a key. The reconciler calls it through `ports.Volumes`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.agent.volumes import luks
from orchestrator.agent.volumes.files import (
    io_error,
    read_small,
    sync_directory,
    sync_file,
    translated,
    wipe,
    write_atomically,
)
from orchestrator.agent.volumes.images import ImageCache
from orchestrator.agent.volumes.qemuimg import QemuImg
from orchestrator.isolation.luks import MAX_PAYLOAD_BYTES
from orchestrator.model.assignment import Volume
from orchestrator.model.errors import BulkheadError, CapacityError, ConflictError, InvalidInputError
from orchestrator.model.observed import ObservedVolume

_GIB = 1 << 30
_META = "meta.json"
_META_LIMIT_BYTES = 4096
_NAME = re.compile(r"^vol_[a-z0-9](?:[a-z0-9_]{0,38}[a-z0-9])?$")
#: Twice the 2 068 480 bytes that QEMU's LUKS header takes with 64-byte keys.
_WIPED_BYTES = 4 << 20


@dataclass(frozen=True)
class _Meta:
    """Whose volume it is; no secret."""

    volume: str
    deployment: str
    tenant: str
    generation: int
    size_bytes: int


class LuksVolumes:
    """The volumes of this host."""

    def __init__(self, root: Path | str, images: ImageCache, qemu_img: QemuImg | None = None) -> None:
        self._root = Path(root)
        self._images = images
        self._qemu_img = qemu_img or QemuImg()

    def path(self, volume: str, generation: int) -> str:
        """Where a finished volume's file is."""
        return str(self._directory(volume) / f"g{generation}.luks")

    def observe(self) -> tuple[ObservedVolume, ...]:
        """All volumes, finished or not; one without readable metadata shows generation 0 and no owner."""
        with translated(f"listing {self._root}"):
            try:
                names = sorted(e.name for e in os.scandir(self._root) if e.is_dir(follow_symlinks=False))
            except FileNotFoundError:
                return ()
            return tuple(self._observed(name) for name in names if _NAME.fullmatch(name))

    def create(self, volume: Volume, *, deployment: str, tenant: str, passphrase: bytes) -> None:
        """Make the LUKS file, verify the image and write it in, and only then give it its name.

        The finished same volume is left as it is; an unfinished one is erased and made anew.

        Raises:
            NotFoundError: `image.not_found`.
            ConflictError: `volume.exists`, `volume.unclear`, and what `ImageCache.verified` says.
            InvalidInputError: `volume.too_small`.
            CapacityError: `volume.no_space`.
            HostError: `volume.io_failed`, `volume.qemu_img_failed`, `volume.qemu_img_timeout`.
            EvidenceError: `volume.header_wrong`.
        """
        size_bytes = volume.size_gib * _GIB
        if volume.image is not None and volume.image.size_bytes > size_bytes:
            raise InvalidInputError(
                "volume.too_small",
                f"{volume.id} has {size_bytes} bytes, its image {volume.image.size_bytes}",
                field="size_gib",
            )
        meta = _Meta(volume.id, deployment, tenant, volume.generation, size_bytes)
        if self._stands(meta):
            return
        self.erase(volume.id)
        self._expect_space(volume.id, size_bytes)
        try:
            self._make(volume, meta, passphrase)
        except BaseException as exc:
            self._clean_up(volume.id, exc)
            if isinstance(exc, OSError):
                raise io_error(f"creating {volume.id}", exc) from exc
            raise

    def erase(self, volume: str) -> None:
        """Make it incomplete, overwrite the header on disk, give the blocks back, unlink. Unknown is fine."""
        directory = self._directory(volume)
        with translated(f"erasing {volume}"):
            if not directory.is_dir():
                return
            for path in sorted(directory.glob("g*.luks")):
                path.rename(path.with_suffix(".erasing"))
            sync_directory(directory)
            for path in sorted(directory.iterdir()):
                if path.name != _META:
                    wipe(path, _WIPED_BYTES)
            # Last, so that an erasure cut short still says whose volume it was.
            (directory / _META).unlink(missing_ok=True)
            directory.rmdir()
            sync_directory(self._root)

    def _make(self, volume: Volume, meta: _Meta, passphrase: bytes) -> None:
        directory = self._directory(volume.id)
        # Each VM's uid must be able to pass through; only the file itself is given to it.
        directory.mkdir()
        directory.chmod(0o711)
        sync_directory(self._root)
        write_atomically(directory / _META, json.dumps(asdict(meta), sort_keys=True).encode())
        part = directory / f"g{volume.generation}.part"
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._lend(fd, self._qemu_img.uid)
            self._fill(volume, meta, fd, passphrase)
            self._lend(fd, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_file(directory / _META)
        part.rename(directory / f"g{volume.generation}.luks")
        sync_directory(directory)

    def _fill(self, volume: Volume, meta: _Meta, fd: int, passphrase: bytes) -> None:
        if volume.image is None:
            luks.format_volume(self._qemu_img, fd, meta.size_bytes, passphrase)
            return
        with self._images.verified(volume.image) as image_fd:
            luks.format_volume(self._qemu_img, fd, meta.size_bytes, passphrase)
            largest = meta.size_bytes + MAX_PAYLOAD_BYTES
            luks.write_image(self._qemu_img, image_fd, fd, passphrase, largest)
        luks.check_header(fd, meta.size_bytes)

    def _lend(self, fd: int, uid: int) -> None:
        """Give the unfinished file to qemu-img's uid, or take it back."""
        if os.geteuid() == 0:
            os.fchown(fd, uid, uid)

    def _stands(self, wanted: _Meta) -> bool:
        """Whether exactly this volume is there, finished."""
        meta = self._meta(wanted.volume)
        if meta is None or not self._complete(meta):
            self._expect_nothing_finished(wanted.volume)
            return False
        if meta != wanted:
            raise ConflictError(
                "volume.exists",
                f"{wanted.volume} is here with generation {meta.generation} and {meta.size_bytes} bytes, "
                f"for {meta.tenant} of {meta.deployment}",
                hint="order the volume absent first, if its data may go",
            )
        return True

    def _expect_nothing_finished(self, name: str) -> None:
        """Refuse to make a volume anew over a finished file: only damage leaves one without its record."""
        with translated(f"looking at {name}"):
            finished = sorted(path.name for path in self._directory(name).glob("g*.luks"))
        if finished:
            raise ConflictError(
                "volume.unclear",
                f"{name} has the finished file {finished[0]} and no readable record of whose it is",
                hint="order the volume absent first, if its data may go",
            )

    def _expect_space(self, name: str, size_bytes: int) -> None:
        """Refuse what cannot be filled: files are sparse, so the guest would meet the full disk later."""
        with translated(f"looking for space for {name}"):
            self._root.mkdir(parents=True, exist_ok=True)
            self._root.chmod(0o711)
            found = os.statvfs(self._root)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < size_bytes + MAX_PAYLOAD_BYTES:
            raise CapacityError("volume.no_space", f"{name} needs {size_bytes} bytes, {free_bytes} are free")

    def _clean_up(self, name: str, cause: BaseException) -> None:
        try:
            self.erase(name)
        except BulkheadError as exc:
            # What is left shows as incomplete and is erased before the next attempt.
            cause.add_note(f"and cleaning up failed: {exc}")

    def _observed(self, name: str) -> ObservedVolume:
        meta = self._meta(name)
        if meta is None:
            return ObservedVolume(name, "", 0, "", 0, complete=False)
        return ObservedVolume(
            volume=name,
            deployment=meta.deployment,
            generation=meta.generation,
            tenant=meta.tenant,
            size_bytes=meta.size_bytes,
            complete=self._complete(meta),
        )

    def _complete(self, meta: _Meta) -> bool:
        path = Path(self.path(meta.volume, meta.generation))
        return path.is_file() and not path.is_symlink()

    def _meta(self, name: str) -> _Meta | None:
        with translated(f"reading the metadata of {name}"):
            content = read_small(self._directory(name) / _META, _META_LIMIT_BYTES)
        try:
            fields = json.loads(content) if content is not None else None
            meta = _Meta(**fields) if isinstance(fields, dict) else None
        except (ValueError, TypeError):
            return None
        if meta is None or meta.volume != name:
            return None
        if not all(isinstance(text, str) for text in (meta.deployment, meta.tenant)):
            return None
        return meta if isinstance(meta.generation, int) and isinstance(meta.size_bytes, int) else None

    def _directory(self, volume: str) -> Path:
        if not _NAME.fullmatch(volume):
            raise InvalidInputError("volume.name_invalid", "a volume's id starts with vol_")
        return self._root / volume

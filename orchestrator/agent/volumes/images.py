"""The host's cache of tenant images, by content.

Decides whether a file may be written into a volume: right size, right SHA-256, and no disguised format.
Verified every time, through the descriptor that is then read. Never fetches and never runs anything.
`LuksVolumes` and the image import call it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.volumes.files import sync_directory, translated
from orchestrator.agent.volumes.inspect import refuse_other_format
from orchestrator.model.assignment import ImageRef
from orchestrator.model.errors import ConflictError, HostError, InvalidInputError, NotFoundError

_CHUNK_BYTES = 4 << 20
_IMAGE_MODE = 0o444
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


class ImageCache:
    """A directory of images, each named by the digest of its content (`sha256-<hex>.raw`)."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)

    def path(self, digest: str) -> Path:
        """Where the image with this digest is or would be."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidInputError("image.digest_invalid", "an image is named by sha256: and 64 hex digits")
        return self._root / (digest.replace(":", "-") + ".raw")

    @contextmanager
    def verified(self, image: ImageRef) -> Iterator[int]:
        """Open an image after it proved to be what it is called; yields its descriptor.

        The file must not change until the end of the `with` block, or the block fails.

        Raises:
            NotFoundError: `image.not_found`.
            ConflictError: `image.size_mismatch`, `image.digest_mismatch`, `image.format_refused`,
                `image.changed`.
        """
        fd = self._open(image.digest)
        try:
            with translated(f"reading image {image.digest}"):
                # The reader has no rights of its own; the directory keeps everyone else away. Not set again:
                # that would look like a change to whoever reads the same image now.
                if stat.S_IMODE(os.fstat(fd).st_mode) != _IMAGE_MODE:
                    os.fchmod(fd, _IMAGE_MODE)
                before = _state(fd)
                size_bytes = os.fstat(fd).st_size
                if size_bytes != image.size_bytes:
                    raise ConflictError(
                        "image.size_mismatch",
                        f"{image.digest} has {size_bytes} bytes, declared are {image.size_bytes}",
                    )
                found = _digest(fd)
            if found != image.digest:
                raise ConflictError("image.digest_mismatch", f"the file for {image.digest} holds {found}")
            refuse_other_format(fd)
            yield fd
            if _state(fd) != before:
                raise ConflictError("image.changed", f"{image.digest} was changed while it was being read")
        finally:
            os.close(fd)

    def add(self, source: Path, digest: str | None = None) -> ImageRef:
        """Copy a raw image into the cache and return how an assignment names it.

        Args:
            source: a raw disk image.
            digest: what it must be; None takes it as it is.

        Raises:
            ConflictError: `image.digest_mismatch`, `image.format_refused`.
            HostError, CapacityError: it cannot be read or written.
        """
        with translated("preparing the image cache"):
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._root.chmod(0o700)
        part = self._root / f".part-{os.getpid()}"
        try:
            with translated(f"copying image {source}"):
                with source.open("rb") as reader, part.open("w+b") as writer:
                    shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
                    writer.flush()
                    os.fsync(writer.fileno())
                    os.fchmod(writer.fileno(), _IMAGE_MODE)
                    found, size_bytes = _digest(writer.fileno()), os.fstat(writer.fileno()).st_size
                    refuse_other_format(writer.fileno())
            if digest is not None and digest != found:
                raise ConflictError("image.digest_mismatch", f"{source} holds {found}, not {digest}")
            with translated(f"naming image {found}"):
                part.rename(self.path(found))
                sync_directory(self._root)
        finally:
            part.unlink(missing_ok=True)
        return ImageRef(digest=found, size_bytes=size_bytes)

    def _open(self, digest: str) -> int:
        path = self.path(digest)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as exc:
            raise NotFoundError(
                "image.not_found", f"{digest} is not on this host", hint="import the image on this host first"
            ) from exc
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise NotFoundError("image.not_found", f"{digest} is a link, not an image") from exc
            raise HostError("image.unreadable", f"{digest} cannot be opened: {exc.strerror}") from exc


def _digest(fd: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        digest.update(chunk)
        offset += len(chunk)
    return f"sha256:{digest.hexdigest()}"


def _state(fd: int) -> tuple[int, int, int, int]:
    """What changes when a file's content changes. The change time cannot be set back."""
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

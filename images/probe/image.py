"""Hands out the probe image, built once and kept in the user's cache under the key of its recipe.

A finished folder appears by one rename, so a build that is cut off leaves nothing that looks finished; a lock
keeps two builders apart; older recipes' images are removed. Called by `make run`, the lab and the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.probe import build, recipe
from images.probe.recipe import ProbeImageError

IMAGE_NAME = "probe.raw"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ProbeImage:
    """A built image."""

    path: Path
    digest: str
    """"sha256:" and 64 hex digits, over the raw file."""
    size_bytes: int


def cache_folder() -> Path:
    """Return `${XDG_CACHE_HOME:-~/.cache}/bulkhead`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "bulkhead"


def ensure_image(progress: Callable[[str], None] = lambda _line: None) -> ProbeImage:
    """Return the image for this checkout's recipe; build it if it is not in the cache.

    A second when it is there, about ten when it is not. `progress` gets a line per step.

    Raises:
        ProbeImageError: it cannot be built; says what is missing.
    """
    folder = cache_folder() / f"probe-{recipe.resolve().key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / "probe.lock"):
            found = read_image(folder)
            if found is None:
                _build_into(folder, progress)
                found = read_image(folder)
            _remove_others(folder)
    except OSError as exc:
        raise ProbeImageError("probe.cache", f"the image cache cannot be used: {exc}") from exc
    if found is None:
        raise ProbeImageError("probe.cache", f"the image just built in {folder} cannot be read back")
    return found


def read_image(folder: Path) -> ProbeImage | None:
    """Return the image in a finished cache folder; None if there is none, or not all of it."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        path = folder / IMAGE_NAME
        if path.stat().st_size != manifest["size_bytes"]:
            return None
        return ProbeImage(path, str(manifest["digest"]), int(manifest["size_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_manifest(folder: Path, packages: dict[str, str]) -> None:
    """Describe the image in `folder` in the words an image catalogue uses."""
    data = (folder / IMAGE_NAME).read_bytes()
    manifest = {
        "name": "probe",
        "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "virtual_size_bytes": len(data),
        "format": "raw",
        "firmware": ["bios", "uefi"],
        "packages": packages,
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")


def _build_into(folder: Path, progress: Callable[[str], None]) -> None:
    work = Path(tempfile.mkdtemp(prefix="probe-building-", dir=folder.parent))
    try:
        done = work / "done"
        done.mkdir()
        built = build.build(work, progress)
        built.disk.rename(done / IMAGE_NAME)
        write_manifest(done, built.packages)
        if folder.exists():
            shutil.rmtree(folder)
        done.rename(folder)
        progress(f"ready: {folder / IMAGE_NAME}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_others(folder: Path) -> None:
    """Remove images of other recipes and what a killed build left. Whoever has one open can still read it."""
    for other in folder.parent.glob("probe-*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

"""Writes the guest's initramfs: a cpio archive ("newc") with fixed dates and owners, modules in order.

Pure but for reading the modules: the same entries give the same bytes. Needs no root, since device nodes come
from the kernel's devtmpfs. Called by `build`.
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from images.probe.recipe import ProbeImageError

MODULE_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
"""A module's `.modinfo` section is NUL-ended `key=value` texts; `depends` names what it needs: modinfo(8)."""


@dataclass(frozen=True)
class Entry:
    """One name in the archive: a directory (no data), a symbolic link (data is the target) or a file."""

    path: str
    mode: int
    data: bytes = b""


@dataclass(frozen=True)
class Module:
    """One kernel module as it is loaded: unpacked."""

    name: str
    """Its file's name, without what says how it was packed."""
    data: bytes


def directory(path: str, permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path, stat.S_IFDIR | permissions)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def regular(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def write_cpio(entries: Iterable[Entry], mtime: int) -> bytes:
    """Return the archive's bytes, all owned by root and dated `mtime` (seconds since 1970).

    The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    out = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (inode, entry.mode, 0, 0, links, mtime, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % value for value in fields) + name
        out += bytes(-len(out) % 4)
        out += entry.data
        out += bytes(-len(out) % 4)
    out += bytes(-len(out) % 512)
    return bytes(out)


def loading_order(wanted: Iterable[str], folder: Path) -> list[Module]:
    """Return the modules for `wanted` with all they depend on, dependencies first.

    A module that the kernel has built in (named in `modules.builtin`) needs no file and is left out.

    Raises:
        ProbeImageError: the kernel has no such module.
    """
    # Debian 13 packs each one.
    files = {
        path.name.removesuffix(".xz").removesuffix(".ko").replace("-", "_"): path
        for pattern in ("*.ko", "*.ko.xz")
        for path in folder.rglob(pattern)
    }
    built_in = {
        Path(line).stem.replace("-", "_")
        for listing in folder.rglob("modules.builtin")
        for line in listing.read_text().split()
    }
    order: dict[str, Module] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in order or name in built_in or name in trail:
            return
        if name not in files:
            raise ProbeImageError("probe.no_module", f"the kernel has no module {name}")
        module = _unpacked(files[name])
        for needed in depends_of(module.data):
            visit(needed, (*trail, name))
        order[name] = module

    for name in wanted:
        visit(name, ())
    return list(order.values())


def _unpacked(path: Path) -> Module:
    data = path.read_bytes()
    return Module(path.name.removesuffix(".xz"), lzma.decompress(data) if path.suffix == ".xz" else data)


def depends_of(module: bytes) -> list[str]:
    """Return the names a module file says it depends on."""
    found = MODULE_DEPENDS.search(module)
    return [name for name in found.group(1).decode().split(",") if name] if found else []

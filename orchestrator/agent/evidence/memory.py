"""Guest RAM as the kernel holds it, page merging and swap.

numa_maps says for each mapping its policy, its pages by node and their size; guest RAM is what lies in
hugepages, and any memory mapping that is exactly as large as one of the ordered cells. QEMU's own heap is
neither. Called by `inspector`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hostprep.probe.files import names, read_text
from orchestrator.agent.evidence.mounts import below, device_of, unescape
from orchestrator.isolation.facts import KsmFacts, RamFacts

_NODE = re.compile(r"^N(\d+)=(\d+)$")
_PAGE = "kernelpagesize_kB="
#: Backings that are memory although they have a name: memfd, and shared anonymous memory.
_MEMORY_FILES = ("file=/memfd:", "file=/dev/zero")
#: dm-crypt's prefix of its device-mapper uuid.
_CRYPT = "CRYPT-"


@dataclass(frozen=True)
class _Mapping:
    """One line of numa_maps."""

    start: int
    policy: str
    words: frozenset[str]
    #: Pages by node.
    pages: tuple[tuple[int, int], ...]
    page_kib: int | None

    @property
    def is_memory(self) -> bool:
        """No file on a disk or device, no heap and no stack."""
        if self.words & {"heap", "stack"}:
            return False
        files = [word for word in self.words if word.startswith("file=")]
        return all(file.startswith(_MEMORY_FILES) for file in files)


def read_ram(process: Path, cell_kib: Collection[int]) -> RamFacts | None:
    """Read where guest RAM lies; None when the kernel does not say, or not all of it is found.

    Args:
        process: its folder below /proc.
        cell_kib: size of each of the guest's NUMA cells, by which RAM in ordinary pages is known.
    """
    sizes = _sizes_kib(process)
    maps = read_text(process / "numa_maps")
    if sizes is None or maps is None:
        return None
    kib: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    policies = set()
    mapped_kib = 0
    try:
        for mapping in map(_mapping, maps.splitlines()):
            if "huge" not in mapping.words and not (
                mapping.is_memory and sizes.get(mapping.start) in cell_kib
            ):
                continue
            policies.add(mapping.policy)
            mapped_kib += sizes[mapping.start]
            for node, pages in mapping.pages:
                if mapping.page_kib is None:
                    return None
                kib[mapping.page_kib][node] += pages * mapping.page_kib
    except (ValueError, IndexError, KeyError):
        return None
    # A cell whose mapping was not recognised may lie anywhere.
    if mapped_kib < sum(cell_kib):
        return None
    return RamFacts({size: dict(nodes) for size, nodes in kib.items()}, frozenset(policies))


def _sizes_kib(process: Path) -> dict[int, int] | None:
    text = read_text(process / "maps")
    if text is None:
        return None
    found = {}
    try:
        for line in text.splitlines():
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            found[start] = (end - start) // 1024
    except ValueError:
        return None
    return found


def _mapping(line: str) -> _Mapping:
    start, policy, *words = line.split()
    pages = [match.groups() for match in map(_NODE.match, words) if match]
    sizes = [int(word.removeprefix(_PAGE)) for word in words if word.startswith(_PAGE)]
    return _Mapping(
        start=int(start, 16),
        policy=policy,
        words=frozenset(words),
        pages=tuple((int(node), int(count)) for node, count in pages),
        page_kib=sizes[0] if sizes else None,
    )


def read_ksm(root: Path, process: Path) -> KsmFacts | None:
    """Read page merging; a kernel that has `mm` without `ksm` cannot merge."""
    memory = root / "sys/kernel/mm"
    if not memory.is_dir():
        return None
    if not (memory / "ksm").is_dir():
        return KsmFacts(run=0, pages_shared=0, merging_pages=0)
    run, shared = _number(memory / "ksm/run"), _number(memory / "ksm/pages_shared")
    if run is None or shared is None:
        return None
    return KsmFacts(run, shared, _number(process / "ksm_merging_pages"))


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text is not None and text.isdigit() else None


def plain_swaps(root: Path) -> tuple[str, ...] | None:
    """Return the swap areas that are neither encrypted nor in memory; None when one cannot be judged."""
    text = read_text(root / "proc/swaps")
    if text is None:
        return None
    found = []
    # The first line holds the column names.
    for name, kind in _areas(text.splitlines()[1:]):
        protected = _protected(root, name, kind)
        if protected is None:
            return None
        if not protected:
            found.append(name)
    return tuple(found)


def _areas(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        words = line.split()
        yield unescape(words[0]), words[1]


def _protected(root: Path, name: str, kind: str) -> bool | None:
    if kind == "file":
        device = device_of(below(root, name))
        block = root / "sys/dev/block" / device if device is not None else None
    else:
        block = _block(root, name)
    if block is None or not block.is_dir():
        return None
    if block.name.startswith("zram"):
        # Compressed memory, unless the kernel may write its pages back to a device.
        return (read_text(block / "backing_dev") or "none") == "none"
    return _encrypted(root, block)


def _block(root: Path, name: str) -> Path:
    """Return the block device's folder; a mapper's name is not the kernel's."""
    folder = root / "sys/class/block"
    last = name.rpartition("/")[2]
    if name.startswith("/dev/mapper/"):
        for each in names(folder):
            if read_text(folder / each / "dm/name") == last:
                return folder / each
    return folder / last


def _encrypted(root: Path, block: Path) -> bool:
    """dm-crypt itself, or something that lies on nothing else (LVM on LUKS)."""
    if (read_text(block / "dm/uuid") or "").startswith(_CRYPT):
        return True
    lower = names(block / "slaves")
    return bool(lower) and all(_encrypted(root, root / "sys/class/block" / each) for each in lower)

"""CPU lists as the kernel writes them (`0-2,5`), to frozen sets and back."""

from __future__ import annotations

from collections.abc import Iterable

#: The highest CPU number that any Linux numbers (x86-64's NR_CPUS is at most 8192).
MAX_CPU = 8191


def parse_cpu_list(text: str) -> frozenset[int]:
    """Read a kernel CPU list; the empty text is the empty set.

    Raises:
        ValueError: a part is not a number or a rising range, or is above `MAX_CPU`.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low < 0 or high < low or high > MAX_CPU:
            raise ValueError(f"{part!r} is not a CPU range")
        found.update(range(low, high + 1))
    return frozenset(found)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Write CPUs in the kernel's form, sorted, ranges joined."""
    ordered = sorted(set(cpus))
    parts: list[str] = []
    start = 0
    for index in range(1, len(ordered) + 1):
        if index == len(ordered) or ordered[index] != ordered[index - 1] + 1:
            low, high = ordered[start], ordered[index - 1]
            parts.append(str(low) if low == high else f"{low}-{high}")
            start = index
    return ",".join(parts)

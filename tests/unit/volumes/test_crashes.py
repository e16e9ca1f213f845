"""The agent may die before and after every change that creation and erasure make to the disk.

Each test cuts at the first change, then at the second, and so on until nothing is left to cut. Whatever is
found in between is told as unfinished or not at all, never as a volume, and the next attempt gets through.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.volumes.volumes import LuksVolumes

CHANGES = ("mkdir", "rename", "unlink", "rmdir", "ftruncate", "fsync", "write", "fchown")


class Cut(BaseException):
    """The agent dies here."""


class Blade:
    """Counts changes and cuts before (even numbers) or after (odd ones) the n-th of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0
        self.made: list[str] = []

    def around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._step()
            answer = real(*args, **kwargs)
            self.made.append(name)
            self._step()
            return answer

        return call

    def _step(self) -> None:
        self.passed += 1
        if self.passed > self.at:
            raise Cut


@contextmanager
def dying(at: int) -> Iterator[Blade]:
    """Cut at the given step; after it nothing more is done, no cleaning up either."""
    blade = Blade(at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LuksVolumes, "_clean_up", lambda *args: None)
        for name in CHANGES:
            patch.setattr(os, name, blade.around(name, getattr(os, name)))
        yield blade


def cuts(act: Callable[[], None], prepare: Callable[[], None], look: Callable[[], None]) -> list[str]:
    """Cut `act` at each step in turn; return the changes of the run that got through."""
    for at in range(500):
        prepare()
        with dying(at) as blade:
            try:
                act()
                return blade.made
            except Cut:
                pass
        look()
    raise AssertionError("it never gets through")


def test_erasure_cut_anywhere_is_finished_by_the_next(disks) -> None:
    witness = disks.root / "witness"
    empty = disks.volume(image=None)

    def prepare() -> None:
        disks.create(empty)
        witness.unlink(missing_ok=True)
        witness.hardlink_to(Path(disks.volumes.path("vol_a", 1)))

    def look() -> None:
        found = disks.volumes.observe()
        intact = witness.stat().st_size and any(witness.open("rb").read(4096))
        # As long as it counts as a volume, it is one.
        assert intact or not any(v.complete for v in found)
        # As long as a file is left, it says whose it was.
        if [name for name in disks.left() if "luks" in name or "erasing" in name]:
            assert [(v.volume, v.tenant) for v in found] == [("vol_a", "ten_a")]
        disks.volumes.erase("vol_a")
        assert disks.left() == []
        assert witness.stat().st_size == 0

    made = cuts(lambda: disks.volumes.erase("vol_a"), prepare, look)

    assert disks.left() == []
    # The file loses its name before its header, its header before its blocks, all that before its record.
    assert [name for name in made if name != "fsync"] == [
        "rename",
        *["write"] * 4,
        "ftruncate",
        "unlink",
        "unlink",
        "rmdir",
    ]


def test_creation_cut_anywhere_is_made_anew_and_never_half_there(disks) -> None:
    empty = disks.volume(image=None)
    disks.create(empty)
    whole = disks.head()

    def look() -> None:
        done = [v.complete for v in disks.volumes.observe()]
        assert done in ([], [False], [True])
        if done == [True]:
            assert disks.head() == whole
        disks.create(empty)
        assert [v.complete for v in disks.volumes.observe()] == [True]
        assert disks.head() == whole

    made = cuts(lambda: disks.create(empty), lambda: disks.volumes.erase("vol_a"), look)

    assert made.index("mkdir") < len(made) - 2
    assert made[-2:] == ["rename", "fsync"], "the name comes last, and durably"
    assert sorted(disks.left()) == ["vol_a", "vol_a/g1.luks", "vol_a/meta.json"]

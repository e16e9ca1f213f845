"""How often properties are tried, and where tests write; a slow machine is no failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.memory import memory_folder

settings.register_profile(
    "bulkhead", max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bulkhead")

_ALONE = ("lab", "scenario", "soak", "bench")
#: Made of the OpenAPI document while they are collected, which takes seconds.
_LONG_TO_COLLECT = {"test_schemathesis_soak.py"}


def pytest_configure(config: pytest.Config) -> None:
    """Let `tmp_path` lie in memory: stores, journals and keys sync each write, and a disk takes its time."""
    # What a test leaves there is removed when it passes (`tmp_path_retention_policy`).
    if (folder := memory_folder()) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse to spread what has one lab, one order or a clock of its own over processes."""
    if hasattr(item.config, "workerinput"):
        for name in _ALONE:
            if item.get_closest_marker(name) is not None:
                pytest.fail(f"{name} tests run in one process: leave -n out", pytrace=False)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what a run would only throw away again."""
    if collection_path.name in _LONG_TO_COLLECT and "not soak" in str(config.option.markexpr):
        return True
    return None

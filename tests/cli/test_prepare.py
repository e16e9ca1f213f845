"""`host prepare`: who counts as let in. The playbook is tried by tests/unit/hostprep and the lab."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest

from hostprep.run import HostOutcome, State
from orchestrator.cli.nouns import host_prepare
from orchestrator.model.errors import HostError


class Fleet:
    """The controller's hosts: each says `enrolling` so often before it is ready; None never is."""

    def __init__(self, turns: dict[str, int | None]) -> None:
        self.turns = turns
        self.hosts = self

    def __getitem__(self, name: str) -> Any:
        self._name = name
        return self

    def get(self) -> dict[str, str]:
        left = self.turns[self._name]
        if left is not None:
            self.turns[self._name] = max(left - 1, 0)
        return {"state": "ready" if left == 0 else "enrolling"}

    @contextmanager
    def client(self):
        yield self


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(host_prepare.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(host_prepare.time, "sleep", lambda _s: None)


def test_a_host_that_is_heard_is_let_in_and_one_that_stays_silent_has_failed() -> None:
    hosts = [HostOutcome(name, state=State.DONE) for name in ("one", "two", "mute")]

    host_prepare._heard(Fleet({"one": 0, "two": 3, "mute": None}), hosts)  # type: ignore[arg-type]

    assert [each.state for each in hosts] == [State.DONE, State.DONE, State.FAILED]
    error = hosts[2].error
    assert isinstance(error, HostError)
    assert error.code == "prepare.silent"
    assert "journalctl -u bulkhead-agent" in error.explain()

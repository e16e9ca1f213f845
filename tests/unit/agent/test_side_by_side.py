"""Several instances of one host come and go at once, and only what is slow overlaps."""

from __future__ import annotations

import dataclasses
import functools
import threading

import pytest

from images.labhost.tenants import assignment_of
from orchestrator.agent.effects import Effects, Silent
from orchestrator.agent.journal import Journal
from orchestrator.agent.reconcile import Agent
from orchestrator.agent.sim import sim_host
from orchestrator.model.assignment import Power
from orchestrator.model.errors import BulkheadError, HostError
from orchestrator.model.report import HostReport, Phase
from tests.unit.agent.fleet import ACME, ACME2, GLOBEX, Fleet
from tests.unit.agent.world_view import broken_invariants

#: What may overlap: it touches nothing but what is the instance's own.
SLOW = {"create_volume", "put_secret", "start_domain", "drop_secret", "stop_domain"}
WAIT_S = 10.0


class Overlaps:
    """Progress that remembers which steps were under way together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: list[str] = []
        self.pairs: set[frozenset[str]] = set()

    def started(self, _subject: str, step: str) -> None:
        with self._lock:
            self.pairs |= {frozenset((step, other)) for other in self._now}
            self._now.append(step)

    def finished(self, _subject: str, step: str, _duration_s: float, _error: BulkheadError | None) -> None:
        with self._lock:
            self._now.remove(step)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def three(fleet: Fleet, revision: int, power: Power = Power.RUNNING):
    made = [fleet.instance(ACME), fleet.instance(ACME2, core=1), fleet.instance(GLOBEX)]
    return assignment_of([each.model_copy(update={"power": power}) for each in made], revision=revision)


def apply(fleet: Fleet, assignment, at_once: int) -> tuple[HostReport, Overlaps]:
    seen = Overlaps()
    settings = dataclasses.replace(fleet.settings, at_once=at_once)
    agent = Agent(sim_host(fleet.world), Journal(settings.journal_path), settings, progress=seen)
    return agent.apply(assignment), seen


def meet(fleet: Fleet, verb: str, parties: int) -> None:
    """Let this verb go on only when so many are in it at once."""
    gate = threading.Barrier(parties)
    fleet.world.latency_s = {verb: 1.0}
    fleet.world.sleep = lambda seconds: gate.wait(WAIT_S) if seconds else None


@pytest.mark.parametrize("verb", ["create_volume", "start", "stop"])
def test_slow_steps_of_three_instances_are_under_way_together(fleet, verb):
    power = Power.STOPPED if verb == "stop" else Power.RUNNING
    if verb == "stop":
        apply(fleet, three(fleet, 1), at_once=1)
    meet(fleet, verb, 3)

    report, _ = apply(fleet, three(fleet, 2, power), at_once=4)

    assert report.ok, report


def test_short_steps_never_overlap(fleet):
    meet(fleet, "start", 3)
    report, seen = apply(fleet, three(fleet, 1), at_once=4)

    assert report.ok
    assert frozenset({"start_domain"}) in seen.pairs
    for pair in seen.pairs:
        assert pair & SLOW, f"{sorted(pair)} were under way together"
    assert broken_invariants(fleet, settled=True) == ()


def test_one_at_once_is_one_after_another(fleet):
    report, seen = apply(fleet, three(fleet, 1), at_once=1)

    assert report.ok
    assert seen.pairs == set()


@pytest.mark.parametrize(("at_once", "together"), [(2, 2), (3, 3)])
def test_no_more_than_wanted_at_once(fleet, at_once, together):
    inside, most, lock = 0, 0, threading.Lock()

    def sleep(seconds: float) -> None:
        nonlocal inside, most
        if seconds:
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.3)
            with lock:
                inside -= 1

    fleet.world.latency_s, fleet.world.sleep = {"start": 1.0}, sleep
    report, _ = apply(fleet, three(fleet, 1), at_once)

    assert report.ok
    assert most == together


def test_same_outcome_as_one_after_another(fleet, tmp_path):
    other = Fleet(tmp_path / "other")
    for host, at_once in ((fleet, 4), (other, 1)):
        report, _ = apply(host, three(host, 1), at_once=at_once)
        assert report.ok

    assert fleet.snapshot() == other.snapshot()


def test_jobs_begin_in_their_order():
    effects, begun = Effects(Silent()), []

    def job(number: int) -> int:
        begun.append(number)
        with effects.aside():
            threading.Event().wait(0.01)
        return number

    jobs = [functools.partial(job, number) for number in range(40)]
    assert effects.side_by_side(jobs, 7) == tuple(range(40))
    assert begun == list(range(40))


def test_no_thread_to_be_had_is_an_error_and_no_standstill(monkeypatch):
    effects, ended, start = Effects(Silent()), [], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if threading.active_count() > before + 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    def job() -> None:
        with effects.aside():
            threading.Event().wait(0.05)
        ended.append(1)

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        effects.side_by_side([job, job, job], 3)

    assert ended


def test_failure_of_one_leaves_the_others_alone_and_reports_keep_the_order(fleet):
    fleet.world.failures["start"] = [HostError("domain.start_failed", "no")]
    assignment = three(fleet, 1)
    report, _ = apply(fleet, assignment, at_once=4)

    assert [each.instance for each in report.instances] == [each.id for each in assignment.instances]
    phases = sorted(each.phase.value for each in report.instances)
    assert phases == [Phase.ERROR.value, Phase.RUNNING.value, Phase.RUNNING.value]
    again, _ = apply(fleet, three(fleet, 2), at_once=4)
    assert again.ok


def test_mistake_in_one_job_is_raised_when_all_have_ended():
    effects, ended = Effects(Silent()), []

    def good(number: int) -> None:
        with effects.aside():
            threading.Event().wait(0.02)
        ended.append(number)

    def bad() -> None:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        effects.side_by_side([bad, lambda: good(1), lambda: good(2)], 2)

    assert sorted(ended) == [1, 2]
    # The turn is the maker's again.
    with effects.aside():
        pass

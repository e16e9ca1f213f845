"""A crash at every commit of a whole life, before it and after it: all converges, and no invariant breaks.

Each case lets one unit of work fail, either with all of its work undone or right after it was committed, as
when the process dies; then everything goes on with new memory.
"""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy import delete, update

from orchestrator.controller.checks import violations
from orchestrator.controller.scheduler import Scheduler
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import BulkheadError
from orchestrator.model.states import VolumeState
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.tables.instances import ClaimRow, InstanceRow
from orchestrator.store.tables.tenants import QuotaRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform


class CrashError(Exception):
    """The process is gone."""


class Crashing:
    """Wraps a store's units of work; the one with this number fails."""

    def __init__(self, store, number: int, *, after: bool) -> None:
        self._real = store.unit_of_work
        self._left = number
        self._after = after
        self.met = False
        store.unit_of_work = self.unit_of_work

    @contextlib.contextmanager
    def unit_of_work(self, actor):
        self._left -= 1
        mine = self._left == 0
        with self._real(actor) as tx:
            yield tx
            if mine and not self._after:
                self.met = True
                raise CrashError
        if mine and self._after:
            self.met = True
            raise CrashError


def life(platform: Platform) -> None:
    """Create two, stop and start one, delete one; what fails is done again, as clients and loops do."""
    again(platform, lambda: platform.create(platform.acme, "train"))
    again(platform, lambda: platform.create(platform.globex, "serve"))
    run(platform)
    again(platform, lambda: platform.ask(platform.acme, "stop", "train"))
    run(platform)
    again(platform, lambda: platform.ask(platform.acme, "start", "train"))
    run(platform)
    again(platform, lambda: platform.ask(platform.acme, "remove", "train"))
    run(platform)


def life_of_volumes(platform: Platform) -> None:
    """Make an instance with a volume, take it away and erase it, attach another, delete the instance."""
    acme = platform.acme
    again(platform, lambda: platform.volume(acme, "data"))
    again(platform, lambda: platform.create(acme, "train", volumes=("data",)))
    run(platform, rounds=1)
    again(platform, lambda: platform.ask(acme, "stop", "train"))
    run(platform, rounds=1)
    again(platform, lambda: platform.wire(acme, "detach", "train", "data"))
    again(platform, lambda: platform.erase(acme, "data"))
    again(platform, lambda: platform.volume(acme, "more"))
    again(platform, lambda: platform.wire(acme, "attach", "train", "more"))
    again(platform, lambda: platform.ask(acme, "start", "train"))
    run(platform, rounds=1)
    again(platform, lambda: platform.ask(acme, "remove", "train"))
    run(platform, rounds=1)


def again(platform: Platform, step) -> None:
    try:
        step()
    except CrashError:
        platform.scheduler = Scheduler(platform.store)
        # The client sends it again; done already is what it hears then.
        with contextlib.suppress(BulkheadError):
            step()


def run(platform: Platform, rounds: int = 3) -> None:
    for _ in range(rounds):
        for step in (platform.schedule, platform.apply, platform.report):
            again(platform, step)


def broken(platform: Platform) -> tuple[str, ...]:
    with platform.store.reading() as tx:
        return violations(tx)


def outcome(platform: Platform) -> tuple:
    domains = {each.spec.instance.name: each.pid is not None for each in platform.world.domains.values()}
    states = sorted((each.name, each.state.value) for each in platform.all_instances())
    return domains, states, len(platform.world.volumes)


EXPECTED = ({"serve": True}, [("serve", "running")], 1)
#: Units of work of one life, and a few more; the count is checked by the test below.
COMMITS = 34


def test_without_a_fault(platform):
    watcher = Crashing(platform.store, 10_000, after=False)
    life(platform)
    assert outcome(platform) == EXPECTED
    assert broken(platform) == ()
    assert 10_000 - watcher._left <= COMMITS + 30


@pytest.mark.parametrize("after", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("number", range(1, COMMITS + 1))
def test_a_crash_at_any_commit_converges(sqlite_platform, number, after):
    crashing = Crashing(sqlite_platform.store, number, after=after)
    life(sqlite_platform)
    run(sqlite_platform)

    assert crashing.met
    assert outcome(sqlite_platform) == EXPECTED
    assert broken(sqlite_platform) == ()


#: Nothing runs; the second volume is left, where it was written.
EXPECTED_OF_VOLUMES = ({}, [], 1)
COMMITS_OF_VOLUMES = 22


def test_volumes_without_a_fault(platform):
    watcher = Crashing(platform.store, 10_000, after=False)
    life_of_volumes(platform)
    assert outcome(platform) == EXPECTED_OF_VOLUMES
    assert broken(platform) == ()
    assert 10_000 - watcher._left == COMMITS_OF_VOLUMES


@pytest.mark.parametrize("after", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("number", range(1, COMMITS_OF_VOLUMES + 1))
def test_a_crash_at_any_commit_loses_no_volume(sqlite_platform, number, after):
    crashing = Crashing(sqlite_platform.store, number, after=after)
    life_of_volumes(sqlite_platform)
    run(sqlite_platform)

    assert crashing.met
    assert outcome(sqlite_platform) == EXPECTED_OF_VOLUMES
    more = sqlite_platform.seen_volume(sqlite_platform.acme, "more")
    assert (more.state, more.host_id) == (VolumeState.AVAILABLE, sqlite_platform.host_id)
    assert broken(sqlite_platform) == ()


GPUS, CLAIMS, HOSTS, QUOTA, INSTANCES = (
    table_of(row) for row in (GpuRow, ClaimRow, HostRow, QuotaRow, InstanceRow)
)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (delete(CLAIMS).where(CLAIMS.c.kind == "gpu"), "I1"),
        (update(GPUS).where(GPUS.c.instance_id.is_not(None)).values(tenancy=0), "I10"),
        (
            update(GPUS).where(GPUS.c.instance_id.is_not(None)).values(previous="clean", state="claimed"),
            "I10",
        ),
        (update(HOSTS).values(used_disk_gib=7), "I6"),
        (update(QUOTA).values(used_gpus=3), "I6"),
        (update(INSTANCES).values(state="pending"), "I3"),
        (update(INSTANCES).values(state="deleted"), "I3"),
    ],
    ids=[
        "claim lost",
        "no tenancy",
        "not exposed",
        "disk miscounted",
        "quota miscounted",
        "waits for nothing",
        "orphans",
    ],
)
def test_the_checker_notices(sqlite_platform, spoil, told):
    platform = sqlite_platform
    platform.create(platform.acme, "train")
    platform.settle()
    assert broken(platform) == ()

    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(spoil)

    assert any(each.startswith(f"{told} ") for each in broken(platform))

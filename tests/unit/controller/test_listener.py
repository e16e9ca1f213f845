"""What one controller commits wakes who waits at another, over one PostgreSQL; after a broken connection too.

Nobody here looks again by himself before minutes are over, so that only a ring can end a wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.controller import doctor, hosts
from orchestrator.controller.control import Control, ControlSettings, join
from orchestrator.controller.instances import new_revision
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.protocol import MAX_WAIT_S
from orchestrator.store.engine import Database
from orchestrator.store.listener import Listener
from orchestrator.store.store import Store
from tests.api.deployment import Deployment, app_over, deploy, key
from tests.databases import fresh_database
from tests.unit.controller.platform import Platform
from tests.unit.controller.test_agents_api import Ground
from tests.unit.link.listener import eventually

#: For what never comes; longer than any wait below.
LONG_S = 180.0


class Other:
    """A second controller on the same database; only its bell and its store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.control: Control = join(Store(Database(url)), pepper=b"p" * 32, ca_fingerprint="sha256:x")
        self.rings: list[frozenset[str]] = []
        self.alls = 0
        self.heard: set[str] = set()
        self.listener = Listener(self.control.store.database, self._ring, self._ring_all)

    def _ring(self, topics: frozenset[str]) -> None:
        self.rings.append(topics)
        self.control.bell(topics)

    def _ring_all(self) -> None:
        self.alls += 1
        self.control.bell.ring_all()

    def hears(self, topic: str) -> threading.Thread:
        """A thread that ends when the topic rings here."""
        joined = threading.Event()

        def wait() -> None:
            with self.control.bell.listen(topic) as ear:
                joined.set()
                if ear.wait(LONG_S):
                    self.heard.add(topic)

        thread = threading.Thread(target=wait, name=topic)
        thread.start()
        assert joined.wait(LONG_S)
        return thread

    def has_heard(self, *waiting: threading.Thread) -> None:
        """Demand that each of them was woken by its topic, and forget it."""
        for each in waiting:
            each.join(2 * LONG_S)
            self.heard.remove(each.name)


@pytest.fixture
def url(postgres, request, tmp_path) -> Iterator[str]:
    with fresh_database("postgresql", request, tmp_path) as url:
        yield url


@pytest.fixture
def platform(url, tmp_path) -> Iterator[Platform]:
    """Controller A."""
    database = Database(url)
    yield Platform(Store(database), tmp_path)
    database.dispose()


@pytest.fixture
def other(url) -> Iterator[Other]:
    """Controller B, listening."""
    made = Other(url)
    made.listener.start()
    eventually(lambda: made.alls == 1, within_s=LONG_S)
    yield made
    made.listener.stop()
    made.control.store.database.dispose()


def test_each_thing_that_somebody_waits_for_is_told(platform, other):
    waiting = other.hears("scheduler")
    operation = platform.create(platform.acme, "train")
    other.has_heard(waiting)

    waiting = [
        other.hears(topic) for topic in (f"host:{platform.host_id}", f"stream:{platform.acme.tenant_id}")
    ]
    platform.schedule()
    other.has_heard(*waiting)

    waiting = other.hears(f"operation:{operation.id}")
    platform.apply()
    platform.report()
    other.has_heard(waiting)

    waiting = other.hears(f"host:{platform.host_id}")
    with platform.store.unit_of_work(CONTROLLER) as tx:
        doctor.ask(tx, platform.host())
    other.has_heard(waiting)

    waiting = other.hears("scheduler")
    platform.ask(platform.acme, "remove", "train")
    platform.apply()
    platform.report()
    other.has_heard(waiting)


def test_what_is_not_committed_is_not_told(platform, other):
    def undone() -> None:
        with platform.store.unit_of_work(CONTROLLER) as tx:
            tx.record("test.nothing", ("test", "x"), tenant=None)
            tx.finish()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        undone()
    before = len(other.rings)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.record("test.something", ("test", "x"), tenant=platform.acme.tenant_id)

    eventually(lambda: frozenset({f"stream:{platform.acme.tenant_id}"}) in other.rings[before:])
    assert frozenset({"stream:platform"}) not in other.rings[before:]


def test_ones_own_commits_ring_once(platform, other):
    """Its own store has rung already."""
    with other.control.store.unit_of_work(CONTROLLER) as tx:
        tx.record("test.own", ("test", "x"), tenant=None)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        tx.record("test.others", ("test", "x"), tenant=platform.acme.tenant_id)

    eventually(lambda: other.rings)
    assert frozenset({"stream:platform"}) not in other.rings


def test_a_broken_connection_is_made_anew_and_everybody_looks_once(platform, other, postgres):
    waiting = other.hears("anything at all")
    # The listener's alone: nothing else of this database waits after a LISTEN.
    postgres.command(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{other.url.split('/')[3].split('?')[0]}' AND query LIKE 'LISTEN%'"
    )
    other.has_heard(waiting)
    assert other.alls == 2

    waiting = other.hears("scheduler")
    platform.create(platform.acme, "train")
    other.has_heard(waiting)


def test_it_ends_while_the_database_is_gone(url):
    made = Other(url.replace("/bh-pg-", "/nowhere-"))
    made.listener.start()
    made.listener.stop()
    assert made.alls == 0


def test_an_agents_long_poll_at_the_other_controller_wakes(platform, url, tmp_path):
    database = Database(url)
    (tmp_path / "b").mkdir()
    second = Platform.__new__(Platform)
    second.store = Store(database)
    ground = Ground(second, tmp_path / "b")
    listener = Listener(database, ground.control.bell, ground.control.bell.ring_all)
    listener.start()
    tls = ground.client(ground.join_token("node2"))
    with platform.store.unit_of_work(CONTROLLER) as tx:
        host = hosts.get(tx, "node2")
    answers: list[int] = []
    path = f"/agent/v1/assignment?after_epoch=1&after_revision={host.revision}&wait_s={MAX_WAIT_S}"
    with ground.listener:
        poll = threading.Thread(
            target=lambda: answers.append(ground.get(tls, path, timeout=LONG_S).status_code)
        )
        poll.start()
        asked = time.monotonic()
        eventually(lambda: ground.control.bell.listeners)
        with platform.store.unit_of_work(CONTROLLER) as tx:
            new_revision(tx, host.id)
            tx.record("test.revision", ("host", host.id), tenant=None)
        poll.join(LONG_S)
        # It was woken: at its end a poll does not look.
        assert time.monotonic() - asked < MAX_WAIT_S
    listener.stop()
    database.dispose()
    assert answers == [200]


def test_a_wait_for_an_operation_at_the_other_controller_ends(url):
    """Asked over the API at B, done at A."""
    first, second = Database(url), Database(url)
    one: Deployment = deploy(Store(first), settings={"look_again_s": LONG_S})
    two: Control = join(
        Store(second),
        pepper=b"p" * 32,
        ca_fingerprint="sha256:x",
        settings=ControlSettings(look_again_s=LONG_S),
    )
    two.store.clock = one.clock
    listener = Listener(second, two.bell, two.bell.ring_all)
    listener.start()
    body = {"name": "train", "type": "small", "image": "debian", "networks": []}
    path = "/v1/tenants/acme/instances"
    made = one.client("acme-member").post(path, json=body, headers=key())
    assert made.status_code == 202, made.text

    there = Deployment(two, one.clock, app_over(two), one.people, one.tenants)
    states: list[str] = []

    def wait() -> None:
        answer = there.client("acme-member").get(made.headers["location"] + "?wait=50s")
        states.append(answer.json()["state"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: two.bell.listeners)
    cancelled = one.client("acme-member").post(made.headers["location"] + "/actions/cancel")
    assert cancelled.status_code == 200, cancelled.text
    waiting.join(LONG_S)
    listener.stop()
    first.dispose()
    second.dispose()
    assert states == ["cancelled"]

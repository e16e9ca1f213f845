"""The connection: opened when needed, once more when it died, not for other failures, closed for good."""

from __future__ import annotations

import re
import threading

import libvirt
import pytest

from orchestrator.agent.libvirt import connection as module
from orchestrator.agent.libvirt.connection import Connection
from orchestrator.model.errors import HostError
from tests.unit.libvirt.conftest import HOST, refusal

DEAD = refusal(libvirt.VIR_ERR_RPC, "client socket is closed")


class Mortal:
    """A real connection of the test driver that can die as a remote one does."""

    def __init__(self, inner) -> None:
        self.inner, self.dead = inner, False

    def isAlive(self):
        return 0 if self.dead else self.inner.isAlive()

    def getHostname(self):
        if self.dead:
            raise DEAD
        return self.inner.getHostname()

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Daemon:
    """Stands where `libvirt.open` is."""

    def __init__(self, uri: str, real) -> None:
        self.uri, self.real = uri, real
        self.opened: list[Mortal] = []
        self.down_for = 0

    def open(self, uri: str) -> Mortal:
        assert uri == self.uri
        if self.down_for > 0:
            self.down_for -= 1
            raise refusal(libvirt.VIR_ERR_SYSTEM_ERROR, "Failed to connect socket: Connection refused")
        self.opened.append(Mortal(self.real(uri)))
        return self.opened[-1]


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    (tmp_path / "host.xml").write_text(HOST)
    made = Daemon(f"test://{tmp_path}/host.xml", libvirt.open)
    monkeypatch.setattr(libvirt, "open", made.open)
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    return made


@pytest.fixture
def connection(daemon):
    made = Connection(daemon.uri, open_deadline_s=30)
    yield made
    made.close()


def test_opened_on_the_first_call_and_kept(daemon, connection):
    assert daemon.opened == []
    assert connection.call(lambda c: c) is connection.call(lambda c: c)
    assert len(daemon.opened) == 1


def test_dead_one_is_replaced_before_the_next_call(daemon, connection):
    connection.call(lambda c: c.getHostname())
    daemon.opened[0].dead = True
    connection.call(lambda c: c.getHostname())
    assert len(daemon.opened) == 2


def test_call_whose_connection_dies_is_made_once_more(daemon, connection):
    tried = []

    def work(c):
        tried.append(c)
        if len(tried) == 1:
            c.dead = True
        return c.getHostname()

    assert connection.call(work)
    assert tried == daemon.opened
    assert len(tried) == 2


def test_call_that_kills_each_connection_is_not_made_for_ever(daemon, connection):
    tried = []

    def work(c):
        tried.append(c)
        c.dead = True
        c.getHostname()

    with pytest.raises(libvirt.libvirtError, match="client socket is closed"):
        connection.call(work)
    assert len(tried) == 2


def test_other_failures_are_not_repeated(daemon, connection):
    tried = []

    def work(c):
        tried.append(c)
        c.lookupByName("vm_unknown")

    with pytest.raises(libvirt.libvirtError):
        connection.call(work)
    assert (len(tried), len(daemon.opened)) == (1, 1)


def test_connection_that_cannot_even_say_whether_it_lives_is_dead(daemon, connection, monkeypatch):
    connection.call(lambda c: c)

    def silent(self):
        raise DEAD

    first = daemon.opened[0]
    monkeypatch.setattr(first, "isAlive", lambda: silent(first), raising=False)
    connection.call(lambda c: c)
    assert len(daemon.opened) == 2


def test_libvirtd_may_come_back_late(daemon, connection):
    daemon.down_for = 5
    assert connection.call(lambda c: c.getHostname())
    assert daemon.down_for == 0


def test_libvirtd_that_does_not_come_is_told(daemon):
    daemon.down_for = 10**9
    with pytest.raises(HostError, match=re.escape("[hypervisor.unreachable]")) as caught:
        Connection(daemon.uri, open_deadline_s=0.05).call(lambda c: c)
    assert caught.value.retryable
    assert "Connection refused" in caught.value.message
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)


def test_change_wakes_whoever_asked_for_it_also_on_a_new_connection(daemon, connection):
    woken = threading.Event()
    connection.on_change(woken.set)
    for _ in range(2):
        connection.call(lambda c: c.lookupByName("test").suspend())
        assert woken.wait(60)
        daemon.opened[-1].dead = True
        connection.call(lambda c: c.getHostname())
        woken.clear()


def test_closing_leaves_nothing_registered(daemon, connection, monkeypatch):
    connection.call(lambda c: c)
    first, left = daemon.opened[0], []

    def deregister(number):
        left.append(number)
        return first.inner.domainEventDeregisterAny(number)

    monkeypatch.setattr(first, "domainEventDeregisterAny", deregister, raising=False)
    connection.close()
    connection.close()
    assert len(left) == 1
    woken = threading.Event()
    connection.on_change(woken.set)
    assert connection.call(lambda c: c) is not first

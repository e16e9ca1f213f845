"""The whole way over real TLS: hosts enrol, poll, fetch keys, report; the loops place; tenants see it run."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from sqlalchemy import select, update

from api.agents import Heartbeats, agents_app
from orchestrator.agent.link.certificates import FreshKey, trusting
from orchestrator.agent.link.client import Link
from orchestrator.agent.link.pace import Pace
from orchestrator.agent.sim.doctor import SOUND
from orchestrator.agent.sim.fleet import FleetThread, SimulatedFleet
from orchestrator.controller import doctor, enrolment, hosts, instances
from orchestrator.controller.authority import Authority
from orchestrator.controller.control import Control, join
from orchestrator.controller.keyring import Keyring
from orchestrator.controller.loops import Loops
from orchestrator.keys.files import FileTenantKeys
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.doctor_message import DoctorReport
from orchestrator.model.errors import InvalidInputError, UnauthenticatedError
from orchestrator.model.evidence import Status
from orchestrator.model.join_token import JoinSecret, make_join_token
from orchestrator.model.protocol import MAX_WAIT_S
from orchestrator.model.states import HostState, InstanceState
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.keys import HostCertificateRow, JoinTokenRow, WrappedKeyRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.link.listener import Listener, agents_listener, eventually

NOW = dt.datetime.now(dt.UTC)
HEADERS = {"Bulkhead-Protocol": "1"}


class Ground:
    """A controller with its agents' listener, and hosts that may come in."""

    def __init__(self, platform, folder: Path) -> None:
        self.platform = platform
        self.folder = folder
        self.authority = Authority.create(folder / "authority", NOW)
        keys = folder / "keys"
        keys.mkdir(mode=0o700)
        self.control: Control = join(
            platform.store,
            pepper=b"p" * 32,
            ca_fingerprint=self.authority.fingerprint,
            keyring=Keyring(FileTenantKeys(keys)),
        )
        self.heartbeats = Heartbeats()
        app = agents_app(self.control, self.authority, self.heartbeats)
        self.listener: Listener = agents_listener(app, self.authority, folder / "tls")
        self.loops = Loops(self.control, self.heartbeats, "controller-1")

    def join_token(self, name: str) -> str:
        """What an operator gets for a new host."""
        secret = name.encode().ljust(32, b"x")
        with self.platform.store.unit_of_work(CONTROLLER) as tx:
            token = hosts.add_join_token(tx, hosts.create(tx, name, 1000), secret)
        return make_join_token(JoinSecret(token.id, secret, self.authority.fingerprint))

    def enrol(self, token: str, key: FreshKey) -> enrolment.Enrolled:
        with self.platform.store.unit_of_work(CONTROLLER) as tx:
            return enrolment.enrol(tx, self.authority, token, key.csr_pem)

    def client(self, token: str) -> ssl.SSLContext:
        """A TLS context that shows the certificate of a freshly enrolled host."""
        key = FreshKey.make()
        made = self.enrol(token, key)
        path = self.folder / f"{made.host_id}.pem"
        path.write_bytes(key.with_certificate(x509.load_pem_x509_certificate(made.certificate_pem.encode())))
        tls = trusting(self.authority.certificate_pem)
        tls.load_cert_chain(path)
        return tls

    def get(self, tls: ssl.SSLContext, path: str, **more: object) -> httpx2.Response:
        with httpx2.Client(verify=tls, base_url=self.listener.url, headers=HEADERS, timeout=60) as client:
            return client.request(more.pop("method", "GET"), path, **more)


@pytest.fixture
def ground(platform, tmp_path) -> Iterator[Ground]:
    made = Ground(platform, tmp_path)
    with made.listener:
        yield made


def test_instances_run_on_hosts_that_came_in_by_token(ground):
    platform = ground.platform
    tokens = [ground.join_token(f"node{number}") for number in (2, 3)]

    async def link(number: int) -> Link:
        return Link(ground.listener.url, ground.client(tokens[number]))

    with platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, "node1", "cordon", "it has no agent here")
    ground.loops.start()
    try:
        with FleetThread(SimulatedFleet(2, 2, link)) as running:
            eventually(lambda: all(h.state.value == "ready" for h in _hosts(platform, "node2", "node3")))
            for number in range(3):
                platform.create(platform.acme, f"a{number}")
            eventually(lambda: _states(platform) == ["running"] * 3)
            with platform.store.unit_of_work(platform.acme.actor) as tx:
                instances.remove(tx, platform.acme, "a0", "op_gone")
            eventually(lambda: _states(platform) == ["running"] * 2)
            worlds = [host.world for host in running.fleet.hosts]
            assert sum(len(world.domains) for world in worlds) == 2
            assert sum(len(world.volumes) for world in worlds) == 2
    finally:
        ground.loops.stop()
    with platform.store.reading() as tx:
        kinds = [row.kind for row in tx.all(select(table_of(AuditRecordRow).c.kind))]
        wrapped = tx.all(select(table_of(WrappedKeyRow)))
    assert kinds.count("volume.key") >= 3
    assert len(wrapped) == 2


def test_the_doctor_of_a_host_is_heard_asked_and_obeyed_over_the_wire(ground):
    platform = ground.platform
    token = ground.join_token("node2")

    async def link(_number: int) -> Link:
        return Link(ground.listener.url, ground.client(token))

    def host():
        return _hosts(platform, "node2")[0]

    fleet = SimulatedFleet(1, 2, link, pace=Pace(heartbeat_s=0.05))
    with FleetThread(fleet):
        eventually(lambda: host().state is HostState.READY)
        assert host().doctor["failed"] == []
        assert host().doctor["counts"]["pass"] == len(SOUND)
        swap = dataclasses.replace(SOUND[0], id="K7", status=Status.FAIL, read="/dev/sda2", mend="swapoff -a")
        for findings, state in (((swap,), HostState.CORDONED), (SOUND, HostState.READY)):
            fleet.hosts[0].findings = findings
            with platform.store.unit_of_work(CONTROLLER) as tx:
                doctor.ask(tx, host())
            eventually(lambda state=state: host().state is state and host().doctor_asked_ms is None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version":2}', b" " * (1 << 20) + b"{}"])
def test_bad_words_of_a_doctor_are_refused(ground, body):
    tls = ground.client(ground.join_token("node2"))
    answer = ground.get(tls, "/agent/v1/doctor", method="POST", content=body)
    assert answer.status_code in (413, 422)
    assert answer.json()["code"].startswith("protocol.")
    assert _hosts(ground.platform, "node2")[0].doctor is None


def _hosts(platform, *names: str):
    with platform.store.reading() as tx:
        return [hosts.get(tx, name) for name in names]


def _states(platform) -> list[str]:
    return sorted(each.state.value for each in platform.all_instances())


def test_a_join_token_works_once_and_not_after_its_day(ground):
    token = ground.join_token("node2")
    ground.enrol(token, FreshKey.make())
    with pytest.raises(UnauthenticatedError) as told:
        ground.enrol(token, FreshKey.make())
    assert told.value.code == "join_token.invalid"

    late = ground.join_token("node3")
    tokens = table_of(JoinTokenRow)
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        tx.execute(update(tokens).values(expires_ms=1))
        tx.record("test.change", ("test", "x"), tenant=None)
    with pytest.raises(UnauthenticatedError):
        ground.enrol(late, FreshKey.make())


def test_a_request_that_cannot_be_signed_leaves_the_token_good(ground):
    token = ground.join_token("node2")
    with pytest.raises(InvalidInputError), ground.platform.store.unit_of_work(CONTROLLER) as tx:
        enrolment.enrol(tx, ground.authority, token, "no request")
    assert ground.enrol(token, FreshKey.make()).host_id.startswith("hst_")


def test_a_fenced_host_gets_nothing_any_more(ground):
    tls = ground.client(ground.join_token("node2"))
    path = "/agent/v1/assignment?after_epoch=0&after_revision=0&wait_s=0"
    assert ground.get(tls, path).status_code == 200
    for verb in ("cordon", "fence"):
        with ground.platform.store.unit_of_work(CONTROLLER) as tx:
            if verb == "cordon":
                tx.note(_ready("node2"))
            hosts.change_state(tx, "node2", verb, "stolen")

    answer = ground.get(tls, path)

    assert (answer.status_code, answer.json()["code"]) == (401, "certificate.revoked")


class OpenPoll:
    """A poll of a host that is held while nothing is new."""

    def __init__(self, ground: Ground, tls: ssl.SSLContext, name: str) -> None:
        self.answers: list[httpx2.Response] = []
        host = _hosts(ground.platform, name)[0]
        path = f"/agent/v1/assignment?after_epoch=1&after_revision={host.revision}&wait_s={MAX_WAIT_S}"
        self._thread = threading.Thread(
            target=lambda: self.answers.append(ground.get(tls, path, timeout=120)), daemon=True
        )
        self._thread.start()
        eventually(lambda: host.id in ground.heartbeats.ages_s())

    def over(self) -> tuple[int, str]:
        self._thread.join(MAX_WAIT_S / 2)
        assert self.answers, "nothing woke it"
        return self.answers[0].status_code, self.answers[0].json()["code"]


def _beat(ground: Ground, tls: ssl.SSLContext) -> int:
    return ground.get(tls, "/agent/v1/heartbeat", method="POST", json={"boot_id": "x"}).status_code


OUT = (401, "certificate.revoked")


def test_a_poll_that_waits_while_its_host_is_fenced_is_refused_at_once(ground):
    tls = ground.client(ground.join_token("node2"))
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(_ready("node2"))
        hosts.change_state(tx, "node2", "cordon", "stolen")
    poll = OpenPoll(ground, tls, "node2")
    assert _beat(ground, tls) == 204
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        hosts.change_state(tx, "node2", "fence", "stolen")
    assert poll.over() == OUT
    assert _beat(ground, tls) == 401


def test_a_poll_that_waits_is_refused_when_another_machine_comes_in_as_its_host(ground):
    tls = ground.client(ground.join_token("node2"))
    poll = OpenPoll(ground, tls, "node2")
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        token = hosts.add_join_token(tx, hosts.get(tx, "node2"), b"y" * 32)
    again = make_join_token(JoinSecret(token.id, b"y" * 32, ground.authority.fingerprint))
    new = ground.client(again)
    assert poll.over() == OUT
    assert (_beat(ground, tls), _beat(ground, new)) == (401, 204)


def test_a_heartbeat_is_believed_only_while_a_poll_with_its_certificate_waits(ground):
    tls = ground.client(ground.join_token("node2"))
    poll = OpenPoll(ground, tls, "node2")
    host = _hosts(ground.platform, "node2")[0]
    # As another controller would have done it whose word is lost: nobody is rung for.
    with ground.platform.store.database.writing() as connection:
        connection.execute(update(table_of(HostCertificateRow)).values(revoked_ms=1))
    assert _beat(ground, tls) == 204
    ground.control.bell(frozenset({f"host:{host.id}"}))
    assert poll.over() == OUT
    assert _beat(ground, tls) == 401


def test_a_heartbeat_tells_that_the_doctor_is_asked_while_a_poll_waits(ground):
    tls = ground.client(ground.join_token("node2"))
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(_ready("node2"))
    OpenPoll(ground, tls, "node2")
    assert _beat(ground, tls) == 204
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        doctor.ask(tx, hosts.get(tx, "node2"))
    eventually(lambda: _beat(ground, tls) == 200)
    said = DoctorReport("boot", "test", (), SOUND)
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        doctor.taken_in(tx, hosts.get(tx, "node2").id, said)
    eventually(lambda: _beat(ground, tls) == 204)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "after_epoch=0&after_revision=0",
        "after_epoch=0&after_revision=0&wait_s=nan",
        "after_epoch=0&after_revision=0&wait_s=-1",
        "after_epoch=0&after_revision=0&wait_s=56",
        "after_epoch=-1&after_revision=0&wait_s=0",
        "after_epoch=0&after_revision=9223372036854775808&wait_s=0",
        "after_epoch=0&after_epoch=1&after_revision=0&wait_s=0",
        "after_epoch=0&after_revision=x&wait_s=0",
        "after_epoch=0&after_revision=0&wait_s=0&more=1",
    ],
)
def test_a_poll_that_cannot_be_read_is_refused(ground, query):
    tls = ground.client(ground.join_token("node2"))
    answer = ground.get(tls, f"/agent/v1/assignment?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "protocol.bad_message")


def _ready(name: str):
    from orchestrator.store.tables.fleet import HostRow

    return update(table_of(HostRow)).where(table_of(HostRow).c.name == name).values(state="ready")


def test_a_certificate_that_no_row_knows_counts_for_nothing(ground):
    tls = ground.client(ground.join_token("node2"))
    with ground.platform.store.unit_of_work(CONTROLLER) as tx:
        tx.execute(update(table_of(HostCertificateRow)).values(fingerprint="0" * 64))
        tx.record("test.change", ("test", "x"), tenant=None)
    assert ground.get(tls, "/agent/v1/assignment?after_epoch=0&after_revision=0&wait_s=0").status_code == 401


def test_another_version_of_the_protocol_is_refused(ground):
    tls = ground.client(ground.join_token("node2"))
    for version in ("3", ""):
        answer = ground.get(
            tls,
            "/agent/v1/heartbeat",
            method="POST",
            json={"boot_id": "x"},
            headers={"Bulkhead-Protocol": version},
        )
        assert (answer.status_code, answer.json()["code"]) == (426, "protocol.version")


def test_an_agent_of_the_next_version_is_heard(ground):
    """What it adds is left aside; it is told our version, and writes to us as we read it."""
    tls = ground.client(ground.join_token("node2"))
    body = {"boot_id": "x", "of_next_version": 1}
    for version, status in (("2", 204), ("1", 422)):
        headers = {"Bulkhead-Protocol": version}
        answer = ground.get(tls, "/agent/v1/heartbeat", method="POST", json=body, headers=headers)
        assert (answer.status_code, answer.headers["Bulkhead-Protocol"]) == (status, "1")
    path = Path(__file__).parents[1] / "link/recorded/report-next.json"
    for version, code in (("2", "report.foreign"), ("1", "protocol.bad_message")):
        headers = {"Bulkhead-Protocol": version}
        answer = ground.get(
            tls, "/agent/v1/report", method="POST", content=path.read_bytes(), headers=headers
        )
        # It is read; only what it speaks of is another deployment.
        assert answer.json()["code"] == code


def test_a_host_gets_no_key_of_what_is_not_assigned_to_it(ground):
    platform = ground.platform
    platform.create(platform.acme, "train")
    platform.settle()
    volume = platform.assignment().instances[0].volumes[0]
    stranger = ground.client(ground.join_token("node2"))

    answer = ground.get(
        stranger, "/agent/v1/keys", method="POST", json={"volume": volume.id, "generation": volume.generation}
    )

    assert (answer.status_code, answer.json()["code"]) == (403, "keys.not_assigned")
    assert platform.instance(platform.acme, "train").state is InstanceState.RUNNING


def test_a_poll_wakes_when_something_is_assigned(ground):
    tls = ground.client(ground.join_token("node2"))
    host = _hosts(ground.platform, "node2")[0]
    began = time.monotonic()
    empty = ground.get(tls, f"/agent/v1/assignment?after_epoch=1&after_revision={host.revision}&wait_s=0.3")
    assert empty.status_code == 204
    assert time.monotonic() - began >= 0.3


def test_a_poll_for_what_comes_after_an_order_that_never_was_is_shown_once(ground):
    tls = ground.client(ground.join_token("node2"))
    path = "/agent/v1/assignment?after_epoch=1&after_revision=99&wait_s=0"
    for _ in range(2):
        assert ground.get(tls, path).status_code == 204
    host = _hosts(ground.platform, "node2")[0]

    assert host.error["code"] == "host.ahead"
    assert "epoch 1 revision 99" in host.error["message"]
    assert "bulkhead controller restored" in host.error["hint"]
    with ground.platform.store.reading() as tx:
        kinds = [row.kind for row in tx.all(select(table_of(AuditRecordRow).c.kind))]
    assert kinds.count("host.error") == 1


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"boot_id":1}', b'{"boot_id":"x","more":1}', b"\xff" * 100_000]
)
def test_bad_words_of_a_host_are_refused(ground, body):
    tls = ground.client(ground.join_token("node2"))
    answer = ground.get(tls, "/agent/v1/heartbeat", method="POST", content=body)
    assert answer.status_code in (413, 422)
    assert answer.json()["code"].startswith("protocol.")

"""Join tokens and hosts' certificates over real TLS: once, in time, of this deployment, and taken back."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select

from api.agents import Heartbeats, agents_app
from orchestrator.agent.link.certificates import Certificates, FreshKey
from orchestrator.agent.link.client import Link
from orchestrator.agent.link.upkeep import renew_if_due
from orchestrator.controller import counts, enrolment, expiry, host_removal, hosts
from orchestrator.controller.authority import HOST_DAYS, Authority
from orchestrator.controller.control import join
from orchestrator.controller.enrolment import Enrolled
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import BulkheadError, ConflictError, HostError, UnauthenticatedError
from orchestrator.model.join_token import JoinSecret, make_join_token
from orchestrator.model.protocol import EnrolAnswer, Heartbeat
from orchestrator.model.states import HostState
from orchestrator.store.store import wall_ms
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.keys import HostCertificateRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform
from tests.unit.link.listener import Listener, agents_listener, eventually

_CERTIFICATES = table_of(HostCertificateRow)
DAY_MS = 86_400_000


class Gate:
    """A controller's agents' listener, and operators who let hosts in."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.store = platform.store
        self.folder = folder
        self.authority = Authority.create(folder / "authority", dt.datetime.now(dt.UTC))
        control = join(self.store, pepper=b"p" * 32, ca_fingerprint=self.authority.fingerprint)
        app = agents_app(control, self.authority, Heartbeats())
        self.listener: Listener = agents_listener(app, self.authority, folder / "tls")

    def token(self, name: str, *, fingerprint: str | None = None) -> str:
        secret = name.encode().ljust(32, b"x")
        with self.store.unit_of_work(CONTROLLER) as tx:
            try:
                host = hosts.get(tx, name)
            except BulkheadError:
                host = hosts.create(tx, name, 1000)
            made = hosts.add_join_token(tx, host, secret)
        return make_join_token(JoinSecret(made.id, secret, fingerprint or self.authority.fingerprint))

    def enrol(self, token: str, key: FreshKey) -> Enrolled:
        with self.store.unit_of_work(CONTROLLER) as tx:
            return enrolment.enrol(tx, self.authority, token, key.csr_pem)

    def host(self, name: str, label: str = "first") -> Certificates:
        """A machine that comes in with a new token."""
        key = FreshKey.make()
        made = self.enrol(self.token(name), key)
        answer = EnrolAnswer(
            certificate_pem=made.certificate_pem,
            ca_pem=self.authority.certificate_pem,
            host=made.host_id,
            deployment=made.deployment,
            agents_url=self.listener.url,
        )
        found = Certificates(self.folder / f"{name}-{label}")
        found.enrol(key, answer, self.authority.certificate_pem)
        return found

    def status(self, tls: ssl.SSLContext) -> tuple[int, str]:
        headers = {"Bulkhead-Protocol": "1", "Content-Type": "application/json"}
        with httpx2.Client(verify=tls, base_url=self.listener.url, headers=headers, timeout=60) as client:
            return said(client)


def said(client: httpx2.Client) -> tuple[int, str]:
    answer = client.post("/agent/v1/heartbeat", content=Heartbeat(boot_id="boot-1").model_dump_json())
    return answer.status_code, answer.json()["code"] if answer.content else ""


@pytest.fixture
def gate(platform: Platform, tmp_path: Path) -> Iterator[Gate]:
    made = Gate(platform, tmp_path)
    with made.listener:
        yield made


IN, OUT = (204, ""), (401, "certificate.revoked")


def state(gate: Gate, name: str) -> HostState:
    with gate.store.reading() as tx:
        return hosts.get(tx, name).state


def test_of_many_who_show_one_token_at_once_exactly_one_gets_in(gate: Gate):
    token, keys = gate.token("node2"), [FreshKey.make() for _ in range(6)]
    together = threading.Barrier(len(keys))
    got: list[Enrolled] = []
    refused: list[str] = []

    def come_in(key: FreshKey) -> None:
        together.wait()
        try:
            got.append(gate.enrol(token, key))
        except BulkheadError as exc:
            refused.append(exc.code)

    threads = [threading.Thread(target=come_in, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert refused == ["join_token.invalid"] * (len(keys) - 1)
    with gate.store.reading() as tx:
        assert len(tx.all(select(_CERTIFICATES))) == 1


def test_a_token_ends_with_its_day(gate: Gate):
    begun = wall_ms()
    gate.store.clock = lambda: begun
    in_time, late = gate.token("node2"), gate.token("node3")
    gate.store.clock = lambda: begun + DAY_MS - 1
    assert gate.enrol(in_time, FreshKey.make())
    gate.store.clock = lambda: begun + DAY_MS
    with pytest.raises(UnauthenticatedError) as told:
        gate.enrol(late, FreshKey.make())
    assert told.value.code == "join_token.invalid"


def test_a_token_of_another_deployment_lets_nobody_in(gate: Gate):
    for token in (
        gate.token("node2", fingerprint="sha256:" + "0" * 64),
        make_join_token(JoinSecret("jt_elsewhere", b"x" * 32, gate.authority.fingerprint)),
    ):
        with pytest.raises(UnauthenticatedError) as told:
            gate.enrol(token, FreshKey.make())
        assert told.value.code == "join_token.invalid"
    with gate.store.reading() as tx:
        assert tx.all(select(_CERTIFICATES)) == []


def test_a_wrong_secret_leaves_the_token_good(gate: Gate):
    token = gate.token("node2")
    with pytest.raises(UnauthenticatedError):
        gate.enrol(token[:-70] + ("A" if token[-70] != "A" else "E") + token[-69:], FreshKey.make())
    assert gate.enrol(token, FreshKey.make())


def test_a_newer_token_ends_the_older(gate: Gate):
    older = gate.token("node2")
    newer = gate.token("node2")
    with pytest.raises(UnauthenticatedError):
        gate.enrol(older, FreshKey.make())
    assert gate.enrol(newer, FreshKey.make())


def test_a_certificate_is_renewed_in_time_and_the_old_one_ends(gate: Gate):
    # Issued long ago, so that little of its life is left by everybody's clock, TLS's too.
    left_s = 10
    gate.store.clock = lambda: wall_ms() - HOST_DAYS * DAY_MS + left_s * 1000
    certificates = gate.host("node2")
    gate.store.clock = wall_ms
    old = certificates.tls()
    ends = certificates.identity().not_after

    async def renew() -> bool:
        link = Link(gate.listener.url, certificates.tls())
        try:
            renewed = await renew_if_due(certificates, link, dt.datetime.now(dt.UTC))
            await link.heartbeat("boot-1")
            return renewed
        finally:
            await link.close()

    # An open connection has shown its certificate once; it is looked at with each call all the same.
    headers = {"Bulkhead-Protocol": "1", "Content-Type": "application/json"}
    with httpx2.Client(verify=old, base_url=gate.listener.url, headers=headers, timeout=60) as open_one:
        assert said(open_one) == IN
        assert asyncio.run(renew()) is True
        # An answer that got lost must not lock a host out: the old one counts until its end.
        assert gate.status(old) == IN
        # Asked again and again, since a connection that is silent for seconds is closed.
        while dt.datetime.now(dt.UTC) < ends:
            assert said(open_one) in (IN, OUT)
            time.sleep(0.3)
        assert said(open_one) == OUT
        eventually(lambda: dt.datetime.now(dt.UTC) > ends + dt.timedelta(seconds=1))
    with pytest.raises(httpx2.HTTPError):
        gate.status(old)

    # The agent's own words for it: one line, and the way on.
    async def late() -> None:
        link = Link(gate.listener.url, old, not_after=ends)
        try:
            await link.heartbeat("boot-1")
        finally:
            await link.close()

    with pytest.raises(HostError) as ended:
        asyncio.run(late())
    assert ended.value.code == "certificate.ended"
    assert "bulkhead agent enrol --again" in ended.value.hint
    assert gate.status(certificates.tls()) == IN
    assert certificates.identity().not_after > ends + dt.timedelta(days=HOST_DAYS - 1)
    assert asyncio.run(renew()) is False


@pytest.mark.parametrize("how", ["fence", "remove"])
def test_a_host_that_is_out_gets_in_and_renews_no_more(gate: Gate, how: str):
    gate.store.clock = lambda: wall_ms() - 25 * DAY_MS
    certificates = gate.host("node2")
    gate.store.clock = wall_ms
    assert gate.status(certificates.tls()) == IN
    with gate.store.unit_of_work(CONTROLLER) as tx:
        if how == "remove":
            host_removal.remove(tx, "node2", "sold")
        else:
            tx.note(ready("node2"))
            hosts.change_state(tx, "node2", "cordon", "stolen")
            hosts.change_state(tx, "node2", "fence", "stolen")
    assert gate.status(certificates.tls()) == OUT

    async def renew() -> None:
        link = Link(gate.listener.url, certificates.tls())
        try:
            await renew_if_due(certificates, link, dt.datetime.now(dt.UTC))
        finally:
            await link.close()

    before = certificates.identity()
    with pytest.raises(HostError):
        asyncio.run(renew())
    assert certificates.identity() == before


def test_a_renewal_that_passed_a_fence_on_its_way_is_refused(gate: Gate):
    host_id = gate.host("node2").identity().host
    with gate.store.unit_of_work(CONTROLLER) as tx:
        tx.note(ready("node2"))
        hosts.change_state(tx, "node2", "cordon", "stolen")
        hosts.change_state(tx, "node2", "fence", "stolen")
    for who in (host_id, "hst_a2b3c4d5e6f7g2h3i4j5"):
        with pytest.raises(UnauthenticatedError), gate.store.unit_of_work(CONTROLLER) as tx:
            enrolment.renew(tx, gate.authority, who, FreshKey.make().csr_pem)


def test_a_new_machine_under_an_old_name_takes_the_place_of_the_old_one(gate: Gate):
    first = gate.host("node2")
    second = gate.host("node2", "second")
    assert gate.status(first.tls()) == OUT
    assert gate.status(second.tls()) == IN


def test_a_fenced_host_comes_back_by_a_new_token_alone(gate: Gate):
    first = gate.host("node2")
    with gate.store.unit_of_work(CONTROLLER) as tx:
        tx.note(ready("node2"))
        hosts.change_state(tx, "node2", "cordon", "stolen")
        hosts.change_state(tx, "node2", "fence", "stolen")
    second = gate.host("node2", "second")
    assert state(gate, "node2") is HostState.ENROLLING
    assert gate.status(second.tls()) == IN
    assert gate.status(first.tls()) == OUT


def test_what_is_too_late_is_not_even_asked_for(gate: Gate):
    gate.store.clock = lambda: wall_ms() - (HOST_DAYS + 1) * DAY_MS
    certificates = gate.host("node2")

    async def renew() -> None:
        await renew_if_due(certificates, None, dt.datetime.now(dt.UTC))

    with pytest.raises(HostError) as ended:
        asyncio.run(renew())
    assert ended.value.code == "certificate.ended"


def test_revoking_shuts_a_host_out_at_once_and_a_token_lets_it_in_again(gate: Gate):
    first, unused = gate.host("node2"), gate.token("node2")
    with gate.store.unit_of_work(CONTROLLER) as tx:
        hosts.revoke(tx, "node2", "its key leaked")
    assert gate.status(first.tls()) == OUT
    assert state(gate, "node2") is HostState.ENROLLING
    with pytest.raises(UnauthenticatedError):
        gate.enrol(unused, FreshKey.make())
    with pytest.raises(ConflictError) as nothing, gate.store.unit_of_work(CONTROLLER) as tx:
        hosts.revoke(tx, "node2", "again")
    assert nothing.value.code == "host.no_certificate"

    key = FreshKey.make()
    made = gate.enrol(gate.token("node2"), key)
    answer = EnrolAnswer(
        certificate_pem=made.certificate_pem,
        ca_pem=gate.authority.certificate_pem,
        host=made.host_id,
        deployment=made.deployment,
        agents_url=gate.listener.url,
    )
    first.enrol(key, answer, gate.authority.certificate_pem, again=True)
    assert gate.status(first.tls()) == IN


@pytest.mark.parametrize("how", ["revoke", "remove", "fence"])
def test_a_poll_that_waits_is_answered_no_more(gate: Gate, how: str):
    tls = gate.host("node2").tls()
    got: list[tuple[int, str]] = []

    def poll() -> None:
        path = "/agent/v1/assignment?after_epoch=9&after_revision=9&wait_s=50"
        headers = {"Bulkhead-Protocol": "1"}
        with httpx2.Client(verify=tls, base_url=gate.listener.url, headers=headers, timeout=60) as client:
            answer = client.get(path)
        got.append((answer.status_code, answer.json()["code"] if answer.content else ""))

    waiting = threading.Thread(target=poll, daemon=True)
    waiting.start()
    # The poll notes that the host is ahead of this database before it waits.
    eventually(lambda: _host(gate).error is not None)
    began = time.monotonic()
    with gate.store.unit_of_work(CONTROLLER) as tx:
        if how == "revoke":
            hosts.revoke(tx, "node2", "x")
        elif how == "remove":
            host_removal.remove(tx, "node2", "x")
        else:
            tx.note(ready("node2"))
            hosts.change_state(tx, "node2", "cordon", "x")
            hosts.change_state(tx, "node2", "fence", "x")
    waiting.join(40)
    assert got == [OUT]
    assert time.monotonic() - began < 40


def _host(gate: Gate):
    with gate.store.reading() as tx:
        return hosts.get(tx, "node2")


def told(gate: Gate) -> list[str]:
    records = table_of(AuditRecordRow)
    with gate.store.reading() as tx:
        wanted = select(records.c.kind).where(records.c.kind.like("host.certificate_%"))
        return [row.kind for row in tx.all(wanted.order_by(records.c.seq))]


def watch(gate: Gate, day: float) -> dict[str, int]:
    """The controller looks on some day after now; what the metrics say then."""
    gate.store.clock = lambda: wall_ms() + int(day * DAY_MS)
    with gate.store.unit_of_work(CONTROLLER) as tx:
        expiry.turn(tx)
    with gate.store.reading() as tx:
        return expiry.standing(tx, gate.store.clock())


def test_the_end_of_a_certificate_is_said_in_time_and_once(gate: Gate):
    gate.host("node2")
    assert watch(gate, HOST_DAYS * 5 / 6 - 0.1) == {"good": 1, "ending": 0, "ended": 0}
    assert told(gate) == []
    for day in (HOST_DAYS * 5 / 6 + 0.1, HOST_DAYS - 0.1):
        assert watch(gate, day) == {"good": 0, "ending": 1, "ended": 0}
        assert told(gate) == ["host.certificate_ending"]
    assert _host(gate).error is None
    for day in (HOST_DAYS + 0.1, HOST_DAYS + 9):
        assert watch(gate, day) == {"good": 0, "ending": 0, "ended": 1}
        assert told(gate) == ["host.certificate_ending", "host.certificate_ended"]
    error = _host(gate).error
    assert error["code"] == "certificate.ended"
    assert "bulkhead host join-token node2" in error["hint"]

    # The next certificate counts instead of it; the first report takes the error away.
    gate.host("node2", "second")
    assert watch(gate, HOST_DAYS + 10) == {"good": 1, "ending": 0, "ended": 0}
    with gate.store.reading() as tx:
        ends = expiry.of_host(tx, _host(gate).id)
        assert counts.by_state(tx)["host_certificate", "good"] == 1
    assert ends > wall_ms() + HOST_DAYS * DAY_MS


def test_what_was_renewed_or_shut_out_is_not_told(gate: Gate):
    certificates = gate.host("node2")
    gate.store.clock = lambda: wall_ms() + 21 * DAY_MS
    with gate.store.unit_of_work(CONTROLLER) as tx:
        enrolment.renew(tx, gate.authority, certificates.identity().host, FreshKey.make().csr_pem)
    assert watch(gate, HOST_DAYS + 1) == {"good": 1, "ending": 0, "ended": 0}
    with gate.store.unit_of_work(CONTROLLER) as tx:
        host_removal.remove(tx, "node2", "sold")
    assert watch(gate, HOST_DAYS * 3) == {"good": 0, "ending": 0, "ended": 0}
    assert told(gate) == []


def ready(name: str):
    from sqlalchemy import update

    from orchestrator.store.tables.fleet import HostRow

    table = table_of(HostRow)
    return update(table).where(table.c.name == name).values(state="ready")

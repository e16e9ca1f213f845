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
from orchestrator.controller import enrolment, hosts
from orchestrator.controller.authority import HOST_DAYS, Authority
from orchestrator.controller.control import join
from orchestrator.controller.enrolment import Enrolled
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import BulkheadError, HostError, UnauthenticatedError
from orchestrator.model.join_token import JoinSecret, make_join_token
from orchestrator.model.protocol import EnrolAnswer, Heartbeat
from orchestrator.model.states import HostState
from orchestrator.store.store import wall_ms
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
            hosts.remove(tx, "node2")
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


def ready(name: str):
    from sqlalchemy import update

    from orchestrator.store.tables.fleet import HostRow

    table = table_of(HostRow)
    return update(table).where(table.c.name == name).values(state="ready")

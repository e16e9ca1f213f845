"""The only way to change the database carries its audit records, or changes nothing. On both databases."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from orchestrator.audit.record import commitment
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import HostError
from orchestrator.model.states import GpuState, HostState
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.unit_of_work import AuditMissingError, table_of
from orchestrator.store.violations import violated

RECORDS, HOSTS, GPUS = table_of(AuditRecordRow), table_of(HostRow), table_of(GpuRow)


def write_and_fail(store: Store) -> None:
    with store.unit_of_work(CONTROLLER) as tx:
        add_host(tx, "one")
        tx.record("host.create", ("host", "hst_one"), tenant=None)
        tx.wake("scheduler")
        raise ZeroDivisionError


def add_host(tx, name: str) -> None:
    tx.add(HostRow, id=f"hst_{name}", name=name, state=HostState.READY, disk_gib=10, created_ms=tx.now_ms)


def names(store: Store) -> list[str]:
    with store.reading() as tx:
        return [row.name for row in tx.all(select(HOSTS.c.name).order_by(HOSTS.c.name))]


def test_a_change_without_a_record_is_refused_and_leaves_nothing(store):
    with pytest.raises(AuditMissingError, match="host"), store.unit_of_work(CONTROLLER) as tx:
        add_host(tx, "one")

    assert names(store) == []


def test_a_change_with_a_record_is_committed_with_its_exact_bytes(store):
    with store.unit_of_work(CONTROLLER) as tx:
        add_host(tx, "one")
        tx.record("host.create", ("host", "hst_one"), tenant=None)

    with store.reading() as tx:
        (row,) = tx.all(select(RECORDS))
    assert names(store) == ["one"]
    assert (row.stream, row.seq, row.kind, row.subject_id) == ("platform", 0, "host.create", "hst_one")
    assert row.commitment == commitment(row.salt, row.body)


def test_an_error_takes_change_and_record_back_and_leaves_no_gap(store):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store)
    with store.unit_of_work(CONTROLLER) as tx:
        add_host(tx, "two")
        tx.record("host.create", ("host", "hst_two"), tenant=None)

    with store.reading() as tx:
        assert [row.seq for row in tx.all(select(RECORDS))] == [0]
    assert names(store) == ["two"]


def test_many_writers_leave_no_gap_and_no_double(store):
    def write(number: int) -> None:
        for turn in range(10):
            with store.unit_of_work(CONTROLLER) as tx:
                add_host(tx, f"h{number}x{turn}")
                tx.record("host.create", ("host", f"hst_h{number}x{turn}"), tenant=None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with store.reading() as tx:
        assert [row.seq for row in tx.all(select(RECORDS.c.seq).order_by(RECORDS.c.seq))] == list(range(40))
    assert len(names(store)) == 40


@pytest.mark.parametrize("statement", [update(RECORDS).values(kind="other"), delete(RECORDS)])
def test_records_are_never_changed(store, statement):
    with store.unit_of_work(CONTROLLER) as tx:
        tx.record("host.create", ("host", "hst_one"), tenant=None)

    with pytest.raises(DBAPIError, match="never changed"), store.unit_of_work(CONTROLLER) as tx:
        tx.execute(statement)

    with store.reading() as tx:
        assert [row.kind for row in tx.all(select(RECORDS))] == ["host.create"]


def test_the_bell_rings_after_the_commit_and_never_for_what_was_taken_back(store):
    heard: list[frozenset[str]] = []
    store.bell = heard.append
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store)
    assert heard == []

    with store.unit_of_work(CONTROLLER) as tx:
        tx.record("x.y", ("host", "hst_one"), tenant=None)
        tx.wake("scheduler")
        assert heard == []

    assert heard == [frozenset({"scheduler", "stream:platform"})]


def test_the_database_refuses_any_step_of_a_gpu_that_is_no_edge(store):
    with store.unit_of_work(CONTROLLER) as tx:
        add_host(tx, "one")
        tx.add(
            GpuRow, id="gpu_one", host_id="hst_one", address="0000:21:00.0", vendor="1234", device="1111",
            node=0, previous=GpuState.DISCOVERED, state=GpuState.DISCOVERED, created_ms=tx.now_ms,
        )  # fmt: skip
        tx.record("host.create", ("host", "hst_one"), tenant=None)

    with pytest.raises(IntegrityError) as refused, store.unit_of_work(CONTROLLER) as tx:
        tx.execute(update(GPUS).values(previous=GPUS.c.state, state=GpuState.CLEAN))
    assert violated(refused.value) in ("gpu_step", "foreign_key")

    with store.unit_of_work(CONTROLLER) as tx:
        tx.execute(update(GPUS).values(previous=GPUS.c.state, state=GpuState.DIRTY))
        tx.record("gpu.dirty", ("gpu", "gpu_one"), tenant=None)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"used_disk_gib": 11}, "host_disk"),
        ({"used_disk_gib": -1}, "host_disk"),
        ({"name": "two"}, "host_name"),
    ],
)
def test_a_broken_rule_is_known_by_its_name(store, values, rule):
    with store.unit_of_work(CONTROLLER) as tx:
        add_host(tx, "one")
        add_host(tx, "two")
        tx.record("host.create", ("host", "hst_one"), tenant=None)

    with pytest.raises(IntegrityError) as refused, store.unit_of_work(CONTROLLER) as tx:
        tx.execute(update(HOSTS).where(HOSTS.c.name == "one").values(**values))

    assert violated(refused.value).removesuffix("_key").startswith(rule)


def test_a_transaction_that_stood_still_too_long_is_over_and_says_so(postgres):
    url = f"{postgres.make()}&options=-c%20idle_in_transaction_session_timeout%3D100"
    database = Database(url)
    gone = Store(database)

    def stand_still() -> None:
        with gone.unit_of_work(CONTROLLER) as tx:
            add_host(tx, "one")
            tx.record("host.create", ("host", "hst_one"), tenant=None)
            time.sleep(1.0)
            add_host(tx, "two")

    for _ in range(3):
        with pytest.raises(HostError) as told:
            stand_still()
        assert told.value.code == "store.unavailable"
    with gone.reading() as tx:
        assert tx.all(select(HOSTS)) == []
    database.dispose()

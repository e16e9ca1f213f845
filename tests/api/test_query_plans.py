"""The questions that are asked all the time find their rows by an index, in tables as large as they may get.

Each is asked the way the product asks it; the statements that it sent are explained by the database itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text, update

from orchestrator.controller import assignments, audit_log, enrolment, reports, snapshot
from orchestrator.controller.snapshot import FleetCache
from orchestrator.model.actor import Actor
from orchestrator.model.report import HostReport
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import table_of
from tests.api.deployment import Deployment, deploy, key
from tests.databases import KINDS, fresh_database

HOSTS, GPUS_EACH, INSTANCES, WAITING, TENANTS = 1000, 10, 100_000, 500, 10
#: Tables that grow with what tenants do or with the fleet's GPUs: none of them may be read from end to end.
BIG = ("instance", "request", "operation", "volume", "claim", "gpu", "audit_record", "removal")
#: More rows than that are not put in order for one page.
SORTED = 1000
T = "/v1/tenants/t3"
_FILL = f"""
INSERT INTO tenant (id, name, state, generation, key_version, created_ms)
  SELECT 'ten_' || n, 't' || n, 'active', 1, 0, n FROM numbers WHERE n < {TENANTS};
INSERT INTO quota (tenant_id, generation, {{zeros}})
  SELECT 'ten_' || n, 1, {{values}} FROM numbers WHERE n < {TENANTS};
INSERT INTO audit_stream (id, next_seq)
  SELECT 'ten_' || n, {INSTANCES // TENANTS} FROM numbers WHERE n < {TENANTS};
INSERT INTO host (id, name, state, generation, revision, applied_epoch, applied_revision, boot_id,
    agent_version, reason, cordoned_by, disk_gib, used_disk_gib, created_ms, strays)
  SELECT 'hst_' || n, 'big' || n, 'ready', 1, 1, 0, 0, '', '', '', '', 1000, 0, n, '[]' FROM numbers
  WHERE n < {HOSTS};
INSERT INTO gpu (id, host_id, address, vendor, device, serial, node, previous, state, tenancy, reason,
    generation, created_ms)
  SELECT 'gpu_' || n, 'hst_' || (n % {HOSTS}), '0000:' || n, '10de', '2330', '', 0, 'verifying', 'clean', 0,
    '', 1, n FROM numbers WHERE n < {HOSTS * GPUS_EACH};
INSERT INTO instance (id, tenant_id, name, generation, state, desired, type_name, image_id, vcpus, memory_mib,
    page_size_kib, threads_per_core, gpus, disk_gib, isolation, firmware, user_data_bytes, host_id, failures,
    on_drain, operation_id, created_ms, updated_ms)
  SELECT 'vm_' || n, 'ten_' || (n % {TENANTS}), 'vm-' || n, 1,
    CASE WHEN n < {WAITING} THEN 'pending' WHEN n < 8000 THEN 'running' ELSE 'deleted' END,
    CASE WHEN n < 8000 THEN 'running' ELSE 'deleted' END, 'small', (SELECT id FROM image LIMIT 1), 1, 256,
    2048, 1, 1, 1, 'dedicated', 'uefi', 0, CASE WHEN n < {WAITING} THEN NULL ELSE 'hst_' || (n % {HOSTS}) END,
    0, 'stop', 'op_' || n, n, n FROM numbers;
INSERT INTO request (id, tenant_id, instance_id, state, on_no_capacity, submitted_ms)
  SELECT 'req_' || n, 'ten_' || (n % {TENANTS}), 'vm_' || n,
    CASE WHEN n < {WAITING} THEN 'waiting' ELSE 'placed' END, 'wait', n FROM numbers;
INSERT INTO operation (id, tenant_id, kind, subject_kind, subject_id, state, steps, principal_id, request_id,
    created_ms)
  SELECT 'op_' || n, 'ten_' || (n % {TENANTS}), 'instance.create', 'instance', 'vm_' || n, 'running', '[]',
    'usr_1', '', n FROM numbers;
INSERT INTO volume (id, tenant_id, name, size_gib, state, generation, host_id, instance_id, boot, created_ms)
  SELECT 'vol_' || n, 'ten_' || (n % {TENANTS}), 'vm-' || n || '-boot', 1,
    CASE WHEN n < 8000 THEN 'in_use' ELSE 'deleted' END, 1,
    CASE WHEN n < {WAITING} THEN NULL ELSE 'hst_' || (n % {HOSTS}) END, 'vm_' || n, {{true}}, n FROM numbers;
INSERT INTO claim (id, host_id, kind, unit, tenant_id, instance_id)
  SELECT 'clm_' || n, 'hst_' || (n % {HOSTS}), 'cpu', '' || n, 'ten_' || (n % {TENANTS}), 'vm_' || n
  FROM numbers WHERE n BETWEEN {WAITING} AND 8000;
INSERT INTO removal (id, host_id, kind, subject_id, generation, tenant_id, ordered_ms, done_ms)
  SELECT 'rem_' || n, 'hst_' || (n % {HOSTS}), 'instance', 'vm_' || n, 2, 'ten_' || (n % {TENANTS}), n, n
  FROM numbers WHERE n >= 8000;
INSERT INTO audit_record (stream, seq, at_ms, kind, subject_id, salt, body, commitment)
  SELECT 'ten_' || (n % {TENANTS}), n / {TENANTS}, n, 'instance.create', 'vm_' || n, {{blob}}, {{blob}},
    {{blob}}
  FROM numbers;
"""


def _filled(database: Database) -> None:
    """Fill the tables by the database's own loop, and let it look at what it has."""
    names = ("instances", "vcpus", "memory_mib", "gpus", "volumes", "disk_gib", "networks")
    zeros = [f"{kind}_{name}" for kind in ("limit", "used") for name in names]
    values = [f"{1000 if name.startswith('limit') else 0}" for name in zeros]
    sqlite = database.kind == "sqlite"
    words = _FILL.format(
        zeros=", ".join(zeros),
        values=", ".join(values),
        true=1 if sqlite else "true",
        blob="x'00'" if sqlite else "'\\x00'::bytea",
    )
    numbers = (
        "CREATE TABLE numbers AS WITH RECURSIVE counted(n) AS "
        f"(SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n < {INSTANCES - 1}) SELECT n FROM counted"
    )
    with database.writing() as connection:
        connection.execute(text(numbers))
        for statement in words.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement.replace("%", "%%") if not sqlite else statement)
        connection.execute(text("DROP TABLE numbers"))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


@pytest.fixture(scope="module", params=KINDS)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with fresh_database(request.param, request, tmp_path_factory.mktemp("large")) as url:
        database = Database(url)
        deployed = deploy(Store(database))
        _filled(database)
        deployed.tenants["t3"] = "ten_3"
        deployed.person("member", "t3", "member")
        member = deployed.client("member")
        made = member.post(f"{T}/networks", json={"name": "lan", "cidr": "10.0.0.0/16"}, headers=key())
        assert made.status_code == 201
        yield deployed
        database.dispose()


Said = list[tuple[str, Any]]


@contextmanager
def heard(deployed: Deployment) -> Iterator[Said]:
    """The statements that are sent meanwhile, with their values."""
    found: Said = []
    database = deployed.store.database
    engines = {database._reading, database._writing}

    def statement(_connection, _cursor, words, parameters, _context, many):
        if words.startswith(("SELECT", "UPDATE", "DELETE")) and not many:
            found.append((words, parameters))

    for engine in engines:
        event.listen(engine, "before_cursor_execute", statement)
    try:
        yield found
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", statement)


def faults(database: Database, said: Said) -> list[str]:
    """What the database would read from end to end, or put in order, to answer these."""
    found = []
    with database.reading() as connection:
        for words, parameters in said:
            if database.kind == "sqlite":
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}", parameters).all()
                steps = [row[-1] for row in rows]
                wrong = [
                    step
                    for step in steps
                    if (step.startswith("SCAN") and "INDEX" not in step and step.split()[1] in BIG)
                    or ("TEMP B-TREE FOR ORDER BY" in step and "LIMIT" in words)
                ]
            else:
                plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {words}", parameters).scalar()
                wrong = list(_wrong((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))
            found += [f"{step} in {' '.join(words.split())[:300]}" for step in wrong]
    return found


def _wrong(node: dict[str, Any]) -> Iterator[str]:
    kind, table = node["Node Type"], node.get("Relation Name")
    if kind == "Seq Scan" and table in BIG:
        yield f"Seq Scan of {table}"
    if kind == "Sort" and node["Plan Rows"] > SORTED:
        yield f"Sort of {node['Plan Rows']} rows"
    for each in node.get("Plans", ()):
        yield from _wrong(each)


def _poll(deployed: Deployment, _said: Said) -> None:
    store = deployed.store
    with store.reading() as tx:
        for asked in (enrolment._KNOWN, assignments._STANDING):
            assert tx.first(asked, {"shown": "0" * 64, "now_ms": 1}) is None
        found = assignments.compiled(tx, "hst_7")
    assert found is not None


def _report(deployed: Deployment, _said: Said) -> None:
    with deployed.store.reading() as tx:
        ours = assignments.compiled(tx, "hst_7")
    assert ours is not None
    report = HostReport(ours.deployment, "hst_7", ours.epoch, ours.revision, (), (), (), "", changed=False)
    said = reports.Said("boot", "test", None, report, None)
    with deployed.store.unit_of_work(Actor(kind="host", id="hst_7")) as tx:
        reports.received(tx, "hst_7", said)


def _schedule(deployed: Deployment, said: Said) -> None:
    cache, hosts = FleetCache(), table_of(HostRow)
    with deployed.store.reading() as tx:
        cache.look(tx)
    with deployed.store.database.writing() as connection:
        connection.execute(update(hosts).where(hosts.c.id.in_(["hst_1", "hst_2"])).values(generation=2))
    # The first look reads all there is; each later one, what has changed.
    said.clear()
    with deployed.store.reading() as tx:
        assert len(snapshot.waiting(tx)) >= WAITING
        cache.look(tx)


def _lists(deployed: Deployment, _said: Said) -> None:
    member, operator = deployed.client("member"), deployed.client("operator")
    for client, path in (
        (member, f"{T}/instances"),
        (member, f"{T}/volumes"),
        (member, f"{T}/operations"),
        (member, f"{T}/requests"),
        (operator, "/v1/requests"),
        (operator, "/v1/gpus"),
    ):
        first = client.get(path)
        assert first.status_code == 200, first.text
        token = first.json()["next_page_token"]
        assert token is not None, path
        assert client.get(path, params={"page_token": token}).json()["items"]


def _events(deployed: Deployment, _said: Said) -> None:
    with deployed.store.reading() as tx:
        assert audit_log.next_seq(tx, "ten_3") > 1000
        assert len(audit_log.records(tx, "ten_3", first=5000, end=None, most=200)) == 200


def _create(deployed: Deployment, _said: Said) -> None:
    member = deployed.client("member")
    made = {"name": "new", "type": "small", "image": "debian", "networks": ["lan"]}
    answer = member.post(f"{T}/instances", json=made, headers={**key()})
    assert answer.status_code == 202, answer.text
    member.get(f"{T}/operations/{answer.json()['id']}").raise_for_status()
    member.delete(f"{T}/instances/new", headers=key()).raise_for_status()


HOT: dict[str, Callable[[Deployment, Said], None]] = {
    "a poll": _poll,
    "a report": _report,
    "a pass of the scheduler": _schedule,
    "a page of each list": _lists,
    "a batch of events": _events,
    "a create, a look at it and a delete": _create,
}


@pytest.mark.parametrize("asked", HOT)
def test_no_hot_question_reads_a_big_table_from_end_to_end(large: Deployment, asked: str):
    with heard(large) as said:
        HOT[asked](large, said)
    assert len(said) > 1
    assert faults(large.store.database, said) == []


def test_a_scan_and_a_sort_are_noticed(large: Deployment):
    scan = ("SELECT count(*) FROM instance WHERE type_name = 'small'", ())
    ordered = ("SELECT id FROM operation ORDER BY finished_ms, request_id LIMIT 5", ())
    database = large.store.database
    assert len(faults(database, [scan])) == 1
    assert faults(database, [ordered])
    assert faults(database, [("SELECT id FROM instance WHERE id = 'vm_7'", ())]) == []


def test_it_is_as_large_as_it_says(large: Deployment, tmp_path: Path):
    with large.store.database.reading() as connection:
        for table, count in (("instance", INSTANCES), ("request", INSTANCES), ("gpu", HOSTS * GPUS_EACH)):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() >= count

"""One process with one front door: `python -m tests.bench.controller.front_door ours|bare URL`.

`ours` is the product's public app. `bare` is what a create costs at least: a FastAPI endpoint that writes the
same rows in one transaction with SQLAlchemy Core, through the same engine, and checks nothing. Prints its
port.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import insert, select, update

from api.app import public_app
from orchestrator.controller import control
from orchestrator.controller.control import ControlSettings
from orchestrator.controller.gate import RateSettings
from orchestrator.controller.rates import Rate
from orchestrator.processes import logs
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from orchestrator.store.tables.audit import AuditRecordRow, AuditStreamRow
from orchestrator.store.tables.catalog import ImageRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.tables.networks import NetworkRow, PortRow
from orchestrator.store.tables.operations import IdempotencyRow, OperationRow
from orchestrator.store.tables.tenants import QuotaRow, TenantRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import table_of
from tests.api.deployment import FINGERPRINT, PEPPER


class Wanted(BaseModel):
    name: str
    type: str
    image: str
    networks: list[str]


def ours(database: Database) -> FastAPI:
    """The product, with limits that nobody meets."""
    plenty = Rate(per_s=1_000_000, burst=1_000_000)
    settings = ControlSettings(rates=RateSettings(token=plenty, tenant=plenty))
    return public_app(
        control.join(Store(database), pepper=PEPPER, ca_fingerprint=FINGERPRINT, settings=settings)
    )


def bare(database: Database) -> FastAPI:
    """The same rows and nothing else."""
    app = FastAPI()
    with database.reading() as tx:
        tenant = tx.execute(
            select(table_of(TenantRow).c.id).where(table_of(TenantRow).c.name == "acme")
        ).scalar_one()
        image = tx.execute(select(table_of(ImageRow).c.id)).scalar_one()

    @app.post("/v1/tenants/acme/instances", status_code=202)
    def create(wanted: Wanted) -> dict[str, Any]:
        ids = {name: f"{name}_{secrets.token_hex(10)}" for name in ("vm", "vol", "prt", "req", "op")}
        with database.writing() as tx:
            for row, values in _rows(tx, tenant, image, wanted, ids):
                tx.execute(insert(table_of(row)), values)
        return {"id": ids["op"], "subject_id": ids["vm"], "state": "running", "steps": _STEPS}

    return app


_STEPS = [
    {"name": name, "state": "pending", "at_ms": None}
    for name in ("accepted", "placed", "provisioning", "running")
]


def _rows(tx: Any, tenant: str, image: str, wanted: Wanted, ids: dict[str, str]) -> Any:
    """Update what an accepted create updates; return the rows that it inserts."""
    quotas, networks, streams = table_of(QuotaRow), table_of(NetworkRow), table_of(AuditStreamRow)
    now, used = int(time.time() * 1000), ("instances", "vcpus", "gpus", "volumes", "disk_gib")
    tx.execute(
        update(quotas)
        .where(quotas.c.tenant_id == tenant)
        .values({f"used_{name}": quotas.c[f"used_{name}"] + 1 for name in used})
    )
    network, offset = tx.execute(
        update(networks)
        .where(networks.c.name == wanted.networks[0], networks.c.tenant_id == tenant)
        .values(next_offset=networks.c.next_offset + 1)
        .returning(networks.c.id, networks.c.next_offset)
    ).one()
    seq = tx.execute(
        update(streams)
        .where(streams.c.id == tenant)
        .values(next_seq=streams.c.next_seq + 1)
        .returning(streams.c.next_seq)
    ).scalar_one()
    born = {"created_ms": now}
    mine = {"tenant_id": tenant}
    operation = {"operation_id": ids["op"]}
    subject = {"subject_id": ids["vm"]}
    instance = {"instance_id": ids["vm"]}
    body = json.dumps({"kind": "instance.create", **wanted.model_dump(), **mine, **subject}).encode()
    return (
        (
            IdempotencyRow,
            mine | subject | operation | born
            | {"principal_id": "usr_1", "route": "create", "key": ids["op"], "body_mac": "0" * 64},
        ),
        (
            InstanceRow,
            mine | operation | born
            | {
                "id": ids["vm"], "name": wanted.name, "generation": 1, "state": "pending",
                "desired": "running", "type_name": wanted.type, "image_id": image, "vcpus": 1,
                "memory_mib": 256, "page_size_kib": 2048, "threads_per_core": 1, "gpus": 1, "disk_gib": 1,
                "isolation": "dedicated", "firmware": "uefi", "failures": 0, "user_data_bytes": 0,
                "on_drain": "stop", "updated_ms": now,
            },
        ),
        (
            VolumeRow,
            mine | instance | born
            | {
                "id": ids["vol"], "name": f"{wanted.name}-boot", "size_gib": 1, "image_id": image,
                "state": "creating", "generation": 1, "boot": True,
            },
        ),
        (
            PortRow,
            mine | instance | born
            | {
                "id": ids["prt"], "network_id": network, "mac": secrets.token_hex(8), "prefix_length": 16,
                "address": f"10.1.{offset // 256}.{offset % 256}",
            },
        ),
        (
            RequestRow,
            mine | instance
            | {"id": ids["req"], "state": "waiting", "on_no_capacity": "wait", "submitted_ms": now},
        ),
        (
            OperationRow,
            mine | subject | born
            | {
                "id": ids["op"], "kind": "instance.create", "subject_kind": "instance", "state": "running",
                "steps": _STEPS, "principal_id": "usr_1", "request_id": "0" * 32,
            },
        ),
        (
            AuditRecordRow,
            subject
            | {
                "stream": tenant, "seq": seq - 1, "at_ms": now, "kind": "instance.create",
                "salt": os.urandom(32), "body": body, "commitment": os.urandom(32),
            },
        ),
    )  # fmt: skip


def main() -> None:
    """Serve until killed."""
    kind, url = sys.argv[1:]
    logs.configure()
    app = {"ours": ours, "bare": bare}[kind](Database(url))
    bound = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{bound.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        # A client that had to wait for the machine finds its connection still there.
        timeout_keep_alive=120,
    )
    uvicorn.Server(config).run([bound])


if __name__ == "__main__":
    main()

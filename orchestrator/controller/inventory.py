"""What a host's probe read becomes rows: memory by node, GPUs by slot. What a tenant holds is not touched.

A GPU that is not there any more, or is another than before, is `missing`; its row stays, and with it the
history of the slot.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select, update

from orchestrator.controller.gpus import move, readmit
from orchestrator.model import gpus
from orchestrator.model.fleet import FleetHost, GpuRecord
from orchestrator.model.host import HostFacts, PciFunction
from orchestrator.model.states import GpuState
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import GPUS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import GpuRow, HostFactsRow, HostMemoryRow, HostRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

#: As much as a GPU's row takes.
_MAX_REASON = 512
_GONE = "not at its slot, or another device is"

_HOSTS, _GPUS, _MEMORY = table_of(HostRow), table_of(GpuRow), table_of(HostMemoryRow)
_FACTS = table_of(HostFactsRow)


def take(tx: UnitOfWork, host: FleetHost, facts: HostFacts) -> None:
    """Write what changed since the last look; the scheduler sees it by the host's new generation."""
    known = facts_document(facts)
    before = facts_of(tx, host.id)
    if before == known and host.boot_id == facts.boot_id:
        return
    _memory(tx, host, facts)
    changes = _gpus(tx, host, facts)
    if before is None:
        tx.add(HostFactsRow, host_id=host.id, topology=_topology(known), facts=known)
    elif before != known:
        tx.execute(
            update(_FACTS).where(_FACTS.c.host_id == host.id).values(topology=_topology(known), facts=known)
        )
    tx.execute(update(_HOSTS).where(_HOSTS.c.id == host.id).values(generation=_HOSTS.c.generation + 1))
    tx.record(
        "host.inventory",
        ("host", host.id),
        tenant=None,
        stage="outcome",
        details={"cpus": len(facts.cpus), "nodes": len(facts.nodes), **changes},
    )
    tx.wake("scheduler")


def facts_of(tx: Reader, host_id: str) -> Mapping[str, Any] | None:
    """What a host's probe read last, as `facts_document`; None before its first report."""
    row = tx.first(select(_FACTS.c.facts).where(_FACTS.c.host_id == host_id))
    return None if row is None else row.facts


def _topology(known: Mapping[str, Any]) -> str:
    """Name what `snapshot` makes cores of: two hosts with one name have the same."""
    said = json.dumps([known["cpus"], known["host_cpus"]], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def facts_document(facts: HostFacts) -> dict[str, Any]:
    """The lasting part of a look as JSON: no drivers, no free pages, no group numbers."""
    return {
        "cpus": [
            {"cpu": cpu.cpu, "socket": cpu.socket, "core": cpu.core, "node": cpu.node,
             "siblings": sorted(cpu.siblings)}
            for cpu in facts.cpus
        ],
        "nodes": [
            {
                "node": node.node,
                "memory_mib": node.memory_mib,
                "hugepages": {str(size): pages.total for size, pages in sorted(node.hugepages.items())},
                "distances": list(node.distances),
            }
            for node in facts.nodes
        ],
        "host_cpus": sorted(facts.host_cpus),
        "functions": [
            {"address": each.address, "vendor": each.vendor, "device": each.device,
             "class_code": each.class_code, "node": each.node, "serial": each.serial,
             "parent": each.parent, "root_complex": each.root_complex, "subsystem": each.subsystem,
             "virtual_functions_max": each.virtual_functions_max}
            for each in facts.functions
            if not each.is_bridge
        ],
        "bridges": [
            {"address": each.address, "parent": each.parent, "root_complex": each.root_complex,
             "acs": None if each.acs is None else list(each.acs)}
            for each in facts.functions
            if each.is_bridge
        ],
        "caches": [
            {"level": each.level, "kind": each.kind, "size_kib": each.size_kib, "cpus": sorted(each.cpus)}
            for each in facts.caches
        ],
        "firmware": dict(sorted(facts.firmware.items())),
        "gpu_models": list(facts.gpu_models),
        # Of what looks like a GPU and is not handed out: why.
        "ignored": gpus.ignored(facts),
    }  # fmt: skip


def _memory(tx: UnitOfWork, host: FleetHost, facts: HostFacts) -> None:
    had = {
        (row.node, row.page_size_kib): row.total
        for row in tx.all(select(_MEMORY).where(_MEMORY.c.host_id == host.id))
    }
    seen = {
        (node.node, size): pages.total
        for node in facts.nodes
        for size, pages in node.hugepages.items()
        if pages.total or (node.node, size) in had
    }
    new = [
        {"host_id": host.id, "node": node, "page_size_kib": size, "total": total, "used": 0}
        for (node, size), total in sorted(seen.items())
        if (node, size) not in had
    ]
    if new:
        tx.execute(insert(_MEMORY), new)
    for (node, size), total in sorted(had.items()):
        now = seen.get((node, size), 0)
        if now != total:
            # Never below what tenants hold: the agent refuses to start what does not fit, and says so.
            held = select(_MEMORY.c.used).where(
                _MEMORY.c.host_id == host.id, _MEMORY.c.node == node, _MEMORY.c.page_size_kib == size
            )
            now = max(now, int(tx.scalar(held) or 0))
            tx.execute(
                update(_MEMORY)
                .where(_MEMORY.c.host_id == host.id, _MEMORY.c.node == node, _MEMORY.c.page_size_kib == size)
                .values(total=now)
            )


def _gpus(tx: UnitOfWork, host: FleetHost, facts: HostFacts) -> dict[str, Any]:
    had = {each.address: each for each in GPUS.where(tx, PLATFORM, _GPUS.c.host_id == host.id)}
    here = {each.address: each for each in gpus.pool(facts)}
    present = {each.address: each for each in facts.functions}
    changes: dict[str, Any] = {"gpus_new": 0, "gpus_missing": 0, "gpus_changed": 0}
    for address, function in sorted(here.items()):
        if address not in had:
            _discover(tx, host, function)
            changes["gpus_new"] += 1
    for address, gpu in sorted(had.items()):
        seen = present.get(address)
        if seen is None or not _same(gpu, seen):
            changes["gpus_missing" if seen is None else "gpus_changed"] += _lose(tx, gpu, _GONE)
        elif gpu.instance_id is None and (why := gpus.not_allowed(seen, facts.gpu_models)):
            changes["gpus_missing"] += _lose(tx, gpu, f"not handed out: {why}"[:_MAX_REASON])
        elif gpu.state is GpuState.MISSING and gpu.instance_id is None:
            move(tx, gpu.id, GpuState.DIRTY, reason="")
            readmit(tx, gpu.id)
    return changes


def _discover(tx: UnitOfWork, host: FleetHost, function: PciFunction) -> None:
    made = GpuRecord(
        id=new_id("gpu"),
        host_id=host.id,
        address=function.address,
        vendor=function.vendor,
        device=function.device,
        serial=function.serial,
        node=function.node,
        state=GpuState.DISCOVERED,
        tenancy=0,
        tenant_id=None,
        instance_id=None,
        evidence=None,
        reason="",
        generation=1,
        created_ms=tx.now_ms,
    )
    tx.add(GpuRow, **dataclasses.asdict(made), previous=GpuState.DISCOVERED)
    move(tx, made.id, GpuState.DIRTY)
    readmit(tx, made.id)


def _same(gpu: GpuRecord, seen: PciFunction) -> bool:
    return (gpu.vendor, gpu.device, gpu.serial) == (seen.vendor, seen.device, seen.serial)


def _lose(tx: UnitOfWork, gpu: GpuRecord, why: str) -> int:
    if gpu.state is GpuState.MISSING:
        return 0
    move(tx, gpu.id, GpuState.MISSING, reason=why)
    return 1

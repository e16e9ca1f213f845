"""One look at the fleet for the scheduler: only hosts whose generation changed are read again.

Nothing decided on a stale look can be committed: each commit compares the host's generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import select

from orchestrator.model.capacity import Demand, GpuCapacity, HostCapacity, PageCapacity, cores_of
from orchestrator.model.fleet import FleetHost
from orchestrator.model.host import HostCpu
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.states import GpuState, HostState, RequestState
from orchestrator.placement.snapshot import Fleet
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM, to_value
from orchestrator.store.tables.fleet import GpuRow, HostMemoryRow, HostRow
from orchestrator.store.tables.instances import ClaimRow, InstanceRow, RequestRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, table_of

_HOSTS, _GPUS, _MEMORY, _CLAIMS = (table_of(row) for row in (HostRow, GpuRow, HostMemoryRow, ClaimRow))
_REQUESTS, _INSTANCES, _VOLUMES = table_of(RequestRow), table_of(InstanceRow), table_of(VolumeRow)


class FleetCache:
    """What the last looks saw."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostCapacity] = {}
        self._fleet = Fleet.of(())

    def look(self, tx: Reader) -> Fleet:
        """Return the fleet as it is now. Cost: one row per host, and all rows of those that changed."""
        now = {row.id: row.generation for row in tx.all(select(_HOSTS.c.id, _HOSTS.c.generation))}
        gone = self._hosts.keys() - now.keys()
        stale = [
            key for key, gen in now.items() if key not in self._hosts or self._hosts[key].generation != gen
        ]
        if not gone and not stale:
            return self._fleet
        renewed = _capacities(tx, stale)
        known = self._hosts.keys() - gone
        rebuilt = bool(gone) or any(key not in known for key in stale)
        self._hosts = {key: host for key, host in self._hosts.items() if key in known} | renewed
        if rebuilt:
            self._fleet = Fleet.of(self._hosts.values())
        else:
            for host in renewed.values():
                self._fleet = self._fleet.with_host(host)
        return self._fleet


class Waits(NamedTuple):
    """A request that waits, with its instance; `reason_ms` is when it was last told why."""

    demand: Demand
    instance: InstanceRecord
    reason_ms: int | None


def waiting(tx: Reader) -> list[Waits]:
    """Return every request that waits."""
    rows = tx.all(
        select(
            _REQUESTS.c.id.label("request_id"),
            _REQUESTS.c.on_no_capacity,
            _REQUESTS.c.submitted_ms,
            _REQUESTS.c.reason_ms,
            _INSTANCES,
        )
        .join(_INSTANCES, _INSTANCES.c.id == _REQUESTS.c.instance_id)
        .where(_REQUESTS.c.state == RequestState.WAITING)
        .order_by(_REQUESTS.c.submitted_ms, _REQUESTS.c.id)
    )
    if not rows:
        return []
    disks = _disks(tx, [row.id for row in rows])
    found = []
    for row in rows:
        instance = to_value(InstanceRecord, row._mapping)
        found.append(Waits(_demand(row, instance, disks[instance.id]), instance, row.reason_ms))
    return found


def _demand(row: Any, instance: InstanceRecord, disks: _Disks) -> Demand:
    return Demand(
        request=row.request_id,
        tenant=instance.tenant_id,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        page_size_kib=instance.page_size_kib,
        gpus=instance.gpus,
        gpu_model=instance.gpu_model,
        disk_gib=disks.new_gib,
        isolation=instance.isolation,
        threads_per_core=instance.threads_per_core,
        pinned_host=disks.host,
        on_no_capacity=row.on_no_capacity,
        submitted_ms=row.submitted_ms,
    )


@dataclass
class _Disks:
    """What an instance's volumes ask of placement: room for the new ones, and the host of the rest."""

    new_gib: int = 0
    host: str | None = None


def _disks(tx: Reader, instances: Sequence[str]) -> Mapping[str, _Disks]:
    """The volumes of these instances, by instance."""
    found: dict[str, _Disks] = defaultdict(_Disks)
    # SQLite takes a bounded number of parameters.
    for at in range(0, len(instances), 500):
        wanted = _VOLUMES.c.instance_id.in_(instances[at : at + 500])
        for row in tx.all(
            select(_VOLUMES.c.instance_id, _VOLUMES.c.host_id, _VOLUMES.c.size_gib).where(wanted)
        ):
            disks = found[row.instance_id]
            if row.host_id is None:
                disks.new_gib += row.size_gib
            else:
                disks.host = row.host_id
    return found


def _capacities(tx: Reader, keys: Iterable[str]) -> dict[str, HostCapacity]:
    wanted = list(keys)
    grouped: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    hosts: list[FleetHost] = []
    # SQLite takes a bounded number of parameters.
    for at in range(0, len(wanted), 500):
        some = wanted[at : at + 500]
        hosts += HOSTS.where(tx, PLATFORM, _HOSTS.c.id.in_(some))
        for table in (_GPUS, _MEMORY, _CLAIMS):
            for row in tx.all(select(table).where(table.c.host_id.in_(some))):
                grouped[row.host_id][table.name].append(row)
    return {
        host.id: _capacity(
            host, grouped[host.id]["gpu"], grouped[host.id]["host_memory"], grouped[host.id]["claim"]
        )
        for host in hosts
    }


def _capacity(host: FleetHost, gpus: list[Any], memory: list[Any], claims: list[Any]) -> HostCapacity:
    facts = host.facts or {"cpus": [], "host_cpus": []}
    cpus = [
        HostCpu(cpu["cpu"], cpu["socket"], cpu["core"], cpu["node"], frozenset(cpu["siblings"]))
        for cpu in facts["cpus"]
    ]
    kept = frozenset(facts["host_cpus"])
    cores = cores_of(cpus, kept)
    owner = {int(row.unit): row.tenant_id for row in claims if row.kind == "cpu"}
    return HostCapacity(
        id=host.id,
        name=host.name,
        # What is not as it should be takes nothing new.
        state=host.state if host.error is None else HostState.CORDONED,
        generation=host.generation,
        cores=cores,
        host_cpus=tuple(sorted(kept & {cpu.cpu for cpu in cpus})),
        pages=tuple(
            PageCapacity(row.node, row.page_size_kib, row.total, row.used)
            for row in sorted(memory, key=lambda each: (each.node, each.page_size_kib))
            if row.total
        ),
        gpus=tuple(
            GpuCapacity(
                row.id, row.address, row.vendor, row.device, f"{row.vendor}:{row.device}", row.serial,
                row.node, GpuState(row.state),
            )
            for row in sorted(gpus, key=lambda each: each.address)
        ),
        disk_gib=host.disk_gib,
        used_disk_gib=host.used_disk_gib,
        taken=frozenset((row.kind, row.unit) for row in claims),
        core_tenants={
            core.threads[0]: owner[next(cpu for cpu in core.threads if cpu in owner)]
            for core in cores
            if any(cpu in owner for cpu in core.threads)
        },
    )  # fmt: skip

"""One look at the fleet for the scheduler: only hosts whose generation changed are read again.

Nothing decided on a stale look can be committed: each commit compares the host's generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, bindparam, select

from orchestrator.model.capacity import (
    CoreCapacity,
    Demand,
    GpuCapacity,
    HostCapacity,
    PageCapacity,
    cores_of,
)
from orchestrator.model.fleet import FleetHost
from orchestrator.model.host import HostCpu
from orchestrator.model.states import GpuState, HostState, RequestState
from orchestrator.placement.snapshot import Fleet
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import GpuRow, HostFactsRow, HostMemoryRow, HostRow
from orchestrator.store.tables.instances import ClaimRow, InstanceRow, RequestRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, table_of

_HOSTS, _GPUS, _MEMORY, _CLAIMS = (table_of(row) for row in (HostRow, GpuRow, HostMemoryRow, ClaimRow))
_REQUESTS, _INSTANCES, _VOLUMES = table_of(RequestRow), table_of(InstanceRow), table_of(VolumeRow)
_FACTS = table_of(HostFactsRow)
#: Every pass asks these; written once.
_GENERATIONS = select(_HOSTS.c.id, _HOSTS.c.generation).where(_HOSTS.c.state != HostState.REMOVED)
_WAITING = (
    select(
        _REQUESTS.c.id.label("request_id"),
        _REQUESTS.c.on_no_capacity,
        _REQUESTS.c.submitted_ms,
        _REQUESTS.c.reason_ms,
        _INSTANCES.c.id,
        _INSTANCES.c.tenant_id,
        _INSTANCES.c.vcpus,
        _INSTANCES.c.memory_mib,
        _INSTANCES.c.page_size_kib,
        _INSTANCES.c.threads_per_core,
        _INSTANCES.c.gpus,
        _INSTANCES.c.gpu_model,
        _INSTANCES.c.isolation,
        _INSTANCES.c.operation_id,
        _INSTANCES.c.error,
    )
    .join(_INSTANCES, _INSTANCES.c.id == _REQUESTS.c.instance_id)
    .where(_REQUESTS.c.state == RequestState.WAITING)
    .order_by(_REQUESTS.c.submitted_ms, _REQUESTS.c.id)
)
_SOME: BindParameter[str] = bindparam("some", expanding=True)
_SOME_HOSTS = HOSTS.wanting(PLATFORM, _HOSTS.c.id.in_(_SOME))
_KINDS = select(_FACTS.c.host_id, _FACTS.c.topology).where(_FACTS.c.host_id.in_(_SOME))
_PARTS = {table.name: select(table).where(table.c.host_id.in_(_SOME)) for table in (_GPUS, _MEMORY, _CLAIMS)}
_FACTS_OF = select(_FACTS.c.topology, _FACTS.c.facts).where(_FACTS.c.host_id == bindparam("host"))
_DISKS_OF = select(_VOLUMES.c.instance_id, _VOLUMES.c.host_id, _VOLUMES.c.size_gib).where(
    _VOLUMES.c.instance_id.in_(_SOME)
)
#: SQLite takes a bounded number of parameters.
_AT_ONCE = 500


#: Topologies that are kept; more than a fleet has kinds of hosts.
_MAX_TOPOLOGIES = 256


@dataclass(frozen=True)
class _Topology:
    """The cores of a kind of host; all hosts of it share them."""

    cores: tuple[CoreCapacity, ...] = ()
    host_cpus: tuple[int, ...] = ()


class FleetCache:
    """What the last looks saw."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostCapacity] = {}
        self._topologies: dict[str, _Topology] = {}
        #: None when hosts came or went since it was made.
        self._fleet: Fleet | None = None

    def look(self, tx: Reader) -> Fleet:
        """Return the fleet as it is now. Cost: one row per host, and all rows of those that changed."""
        self._read(tx, None)
        if self._fleet is None:
            self._fleet = Fleet.of(self._hosts.values())
        return self._fleet

    def warm(self, tx: Reader, most: int) -> None:
        """Read at most so many hosts that changed, so that the next look finds few.

        A first look at a thousand hosts takes seconds; who asks for an instance then need not wait for it.
        """
        if self._read(tx, most) and self._fleet is None:
            self._fleet = Fleet.of(self._hosts.values())

    def _read(self, tx: Reader, most: int | None) -> bool:
        """Read hosts that changed; return whether all of them were."""
        now = {row.id: row.generation for row in tx.all(_GENERATIONS)}
        gone = self._hosts.keys() - now.keys()
        stale = [
            key for key, gen in now.items() if key not in self._hosts or self._hosts[key].generation != gen
        ]
        chosen = stale if most is None else stale[:most]
        renewed = self._capacities(tx, chosen) if chosen else {}
        if gone or any(key not in self._hosts for key in chosen):
            self._fleet = None
            self._hosts = {key: host for key, host in self._hosts.items() if key not in gone}
        self._hosts |= renewed
        if self._fleet is not None:
            for host in renewed.values():
                self._fleet = self._fleet.with_host(host)
        return len(chosen) == len(stale)

    def _capacities(self, tx: Reader, wanted: Sequence[str]) -> dict[str, HostCapacity]:
        grouped: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        hosts: list[FleetHost] = []
        kinds: dict[str, str] = {}
        for at in range(0, len(wanted), _AT_ONCE):
            some = {"some": wanted[at : at + _AT_ONCE]}
            hosts += HOSTS.found(tx, _SOME_HOSTS, some)
            kinds |= {row.host_id: row.topology for row in tx.all(_KINDS, some)}
            for name, statement in _PARTS.items():
                for row in tx.all(statement, some):
                    grouped[row.host_id][name].append(row)
        return {
            host.id: _capacity(host, self._topology(tx, host.id, kinds.get(host.id)), grouped[host.id])
            for host in hosts
        }

    def _topology(self, tx: Reader, host_id: str, name: str | None) -> _Topology:
        if name is None:
            # It never said what it is made of.
            return _Topology()
        found = self._topologies.get(name)
        if found is None:
            if len(self._topologies) >= _MAX_TOPOLOGIES:
                self._topologies.clear()
            # Both from one row: with PostgreSQL it may be another by now than a moment ago.
            row = tx.first(_FACTS_OF, {"host": host_id})
            if row is None:
                return _Topology()
            found = self._topologies[row.topology] = _topology(row.facts)
        return found


class Waits(NamedTuple):
    """A request that waits, and what its instance's row says of it now; `reason_ms`: when it was told why."""

    demand: Demand
    instance: str
    operation: str | None
    error: dict[str, Any] | None
    reason_ms: int | None


def waiting(tx: Reader) -> list[Waits]:
    """Return every request that waits. No more is read than the planner asks: there may be many."""
    rows = tx.all(_WAITING)
    if not rows:
        return []
    disks = _disks(tx, [row.id for row in rows])
    return [
        Waits(_demand(row, disks[row.id]), row.id, row.operation_id, row.error, row.reason_ms) for row in rows
    ]


def _demand(row: Any, disks: _Disks) -> Demand:
    return Demand(
        request=row.request_id,
        tenant=row.tenant_id,
        vcpus=row.vcpus,
        memory_mib=row.memory_mib,
        page_size_kib=row.page_size_kib,
        gpus=row.gpus,
        gpu_model=row.gpu_model,
        disk_gib=disks.new_gib,
        isolation=row.isolation,
        threads_per_core=row.threads_per_core,
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
    for at in range(0, len(instances), _AT_ONCE):
        for row in tx.all(_DISKS_OF, {"some": instances[at : at + _AT_ONCE]}):
            disks = found[row.instance_id]
            if row.host_id is None:
                disks.new_gib += row.size_gib
            else:
                disks.host = row.host_id
    return found


def _topology(facts: Mapping[str, Any]) -> _Topology:
    cpus = [
        HostCpu(cpu["cpu"], cpu["socket"], cpu["core"], cpu["node"], frozenset(cpu["siblings"]))
        for cpu in facts["cpus"]
    ]
    kept = frozenset(facts["host_cpus"])
    return _Topology(cores_of(cpus, kept), tuple(sorted(kept & {cpu.cpu for cpu in cpus})))


def _capacity(host: FleetHost, made_of: _Topology, rows: Mapping[str, list[Any]]) -> HostCapacity:
    cores, claims = made_of.cores, rows["claim"]
    owner = {int(row.unit): row.tenant_id for row in claims if row.kind == "cpu"}
    return HostCapacity(
        id=host.id,
        name=host.name,
        # What is not as it should be takes nothing new.
        state=host.state if host.error is None else HostState.CORDONED,
        generation=host.generation,
        cores=cores,
        host_cpus=made_of.host_cpus,
        pages=tuple(
            PageCapacity(row.node, row.page_size_kib, row.total, row.used)
            for row in sorted(rows["host_memory"], key=lambda each: (each.node, each.page_size_kib))
            if row.total
        ),
        gpus=tuple(
            GpuCapacity(
                row.id, row.address, row.vendor, row.device, f"{row.vendor}:{row.device}", row.serial,
                row.node, GpuState(row.state),
            )
            for row in sorted(rows["gpu"], key=lambda each: each.address)
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

"""The invariants of DESIGN §5, as far as the database alone can show them; asked after faults, and any time.

Reads only, and shares no code with what it checks. `isolation.invariants` asks the same of hosts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select

from orchestrator.audit.record import commitment
from orchestrator.model.quota import DIMENSIONS
from orchestrator.model.states import GpuState, InstanceState, VolumeState
from orchestrator.store.tables.audit import AuditRecordRow, AuditStreamRow
from orchestrator.store.tables.consoles import ConsoleTicketRow, StreamOrderRow
from orchestrator.store.tables.fleet import GpuRow, HostFactsRow, HostMemoryRow, HostRow, StaleInstanceRow
from orchestrator.store.tables.instances import ClaimRow, InstanceRow, RequestRow
from orchestrator.store.tables.keys import UserDataRow, WrappedKeyRow
from orchestrator.store.tables.networks import NetworkRow, PortRow
from orchestrator.store.tables.tenants import QuotaRow, TenantRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, table_of

#: Classes of evidence that something was done (DESIGN §4).
_CLEANED = frozenset({"firmware_flag", "fill_and_verify", "overwrite_and_read_back", "reset_only"})
#: States of instances whose host does not know their devices yet, or never will.
_NOT_HANDED_OUT = (InstanceState.SCHEDULED, InstanceState.DELETING)
_HELD = (GpuState.CLAIMED, GpuState.EXPOSED, GpuState.RELEASING)
_USABLE = (VolumeState.CREATING, VolumeState.AVAILABLE, VolumeState.IN_USE)
#: States of instances that hold a place on a host.
_PLACED = frozenset(InstanceState) - {InstanceState.PENDING, InstanceState.DELETED, InstanceState.ERROR}


def violations(tx: Reader) -> tuple[str, ...]:
    """Return every broken invariant, one line each, its number first; none is what there should be."""
    rows = {row: tx.all(select(table_of(row))) for row in _ROWS}
    found: list[str] = []
    for check in (_gpus, _cores, _orphans, _sums, _quota, _log, _operations, _deleted):
        found += check(rows)
    return tuple(found)


_ROWS = (
    AuditRecordRow, AuditStreamRow, ClaimRow, ConsoleTicketRow, GpuRow, HostFactsRow, HostMemoryRow, HostRow,
    InstanceRow, NetworkRow, PortRow, QuotaRow, RequestRow, StaleInstanceRow, StreamOrderRow, TenantRow,
    UserDataRow,
    VolumeRow, WrappedKeyRow,
)  # fmt: skip
_Rows = dict[Any, Any]


def _live(rows: _Rows) -> dict[str, Any]:
    return {each.id: each for each in rows[InstanceRow] if each.state != InstanceState.DELETED}


def _stale(rows: _Rows) -> dict[tuple[str, str], Any]:
    """What hosts hold for instances that live elsewhere, by host and instance."""
    return {(each.host_id, each.instance_id): each for each in rows[StaleInstanceRow]}


def _gpus(rows: _Rows) -> Iterator[str]:
    live, stale = _live(rows), _stale(rows)
    claimed = {claim.unit: claim for claim in rows[ClaimRow] if claim.kind == "gpu"}
    for gpu in rows[GpuRow]:
        left = stale.get((gpu.host_id, gpu.instance_id))
        # The instance may run elsewhere by now; here the GPU is held for what is left of it.
        holder = None if left is not None else live.get(gpu.instance_id)
        yield from _held(gpu, holder, left, claimed)
        yield from _cleaned(gpu, holder)
    for instance in live.values():
        yield from _placed(claimed, instance.id, instance.host_id, instance.placement)
    for (host_id, instance_id), left in stale.items():
        yield from _placed(claimed, instance_id, host_id, left.placement)


def _held(gpu: Any, holder: Any, left: Any, claimed: dict[str, Any]) -> Iterator[str]:
    """Whoever has a GPU is there, on its host, of the same tenant, and claims it."""
    held = gpu.state in _HELD
    if held and holder is None and left is None:
        yield f"I1 {gpu.id} is {gpu.state} for an instance that is not there"
    if holder is not None and holder.tenant_id != gpu.tenant_id:
        yield f"I1 {gpu.id} is with {gpu.tenant_id}, its instance with {holder.tenant_id}"
    if left is not None and left.tenant_id != gpu.tenant_id:
        yield f"I1 {gpu.id} is with {gpu.tenant_id}, what is stale there with {left.tenant_id}"
    if holder is not None and holder.host_id != gpu.host_id:
        yield f"I1 {gpu.id} is on {gpu.host_id}, its instance on {holder.host_id}"
    if held != (gpu.id in claimed) and gpu.state not in (GpuState.QUARANTINED, GpuState.MISSING):
        yield f"I1 {gpu.id} is {gpu.state} and {'not ' if held else ''}claimed"


def _cleaned(gpu: Any, holder: Any) -> Iterator[str]:
    """Nothing is exposed, or called clean, without evidence of its present tenancy."""
    if gpu.state == GpuState.CLAIMED and holder is not None and holder.state not in _NOT_HANDED_OUT:
        yield f"I10 {gpu.id} is only claimed while {holder.id} is {holder.state}"
    if gpu.state == GpuState.EXPOSED and gpu.tenancy < 1:
        yield f"I10 {gpu.id} is exposed in no tenancy"
    shown = gpu.evidence or {}
    done = shown.get("tenancy") == gpu.tenancy and shown.get("class") in _CLEANED
    if gpu.state == GpuState.EXPOSED and holder is not None and holder.state == "running" and not done:
        yield f"I10 {holder.id} runs with {gpu.id}, which nobody cleaned for tenancy {gpu.tenancy}"
    if gpu.state == GpuState.CLEAN and shown.get("tenancy") != gpu.tenancy:
        yield f"I10 {gpu.id} is clean without evidence of tenancy {gpu.tenancy}"


def _placed(claimed: dict[str, Any], instance_id: str, host_id: str | None, placement: Any) -> Iterator[str]:
    """An instance holds on a host just the GPUs that it is placed on there."""
    placed = {each["id"] for each in (placement or {}).get("devices", ())}
    owned = {
        unit
        for unit, claim in claimed.items()
        if (claim.instance_id, claim.host_id) == (instance_id, host_id)
    }
    if placed != owned:
        yield f"I1 {instance_id} is placed on {sorted(placed)} and holds {sorted(owned)}"


def _cores(rows: _Rows) -> Iterator[str]:
    siblings: dict[tuple[str, int], tuple[int, ...]] = {}
    for host in rows[HostFactsRow]:
        for cpu in host.facts["cpus"]:
            siblings[host.host_id, cpu["cpu"]] = tuple(sorted({cpu["cpu"], *cpu["siblings"]}))
    owners: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
    for claim in rows[ClaimRow]:
        if claim.kind == "cpu":
            core = siblings.get((claim.host_id, int(claim.unit)), (int(claim.unit),))
            owners[claim.host_id, core].add(claim.tenant_id)
    for (host_id, core), tenants in sorted(owners.items()):
        if len(tenants) > 1:
            yield f"I2 core {core} of {host_id} is shared by {sorted(tenants)}"
    for mac, count in Counter(port.mac for port in rows[PortRow]).items():
        if count > 1:
            yield f"I2 MAC {mac} stands {count} times"


def _orphans(rows: _Rows) -> Iterator[str]:
    live, stale = _live(rows), _stale(rows)
    for claim in rows[ClaimRow]:
        holder = live.get(claim.instance_id)
        here = holder is not None and holder.host_id == claim.host_id
        if here == ((claim.host_id, claim.instance_id) in stale):
            yield f"I3 a claim on {claim.host_id} belongs to {claim.instance_id}, which is not there"
    for noun, table in (("port", PortRow), ("user data", UserDataRow)):
        for each in rows[table]:
            if each.instance_id not in live:
                yield f"I3 a {noun} belongs to {each.instance_id}, which is not there"
    for volume in rows[VolumeRow]:
        if volume.state != VolumeState.DELETED:
            yield from _volume(volume, live.get(volume.instance_id))
    volumes = {each.id: each for each in rows[VolumeRow]}
    for key in rows[WrappedKeyRow]:
        if volumes[key.volume_id].state == VolumeState.DELETED:
            yield f"I3 the key of the deleted {key.volume_id} is still there"


def _volume(volume: Any, holder: Any) -> Iterator[str]:
    """What must hold between a volume and the instance that has it."""
    if volume.boot and holder is None:
        yield f"I3 boot volume {volume.id} has no instance"
    if volume.instance_id is not None and holder is None:
        yield f"I3 volume {volume.id} belongs to {volume.instance_id}, which is not there"
    free = volume.state == VolumeState.AVAILABLE
    if free != (volume.instance_id is None) and volume.state in _USABLE:
        yield f"I3 volume {volume.id} is {volume.state} and belongs to {volume.instance_id}"
    if volume.state == VolumeState.IN_USE and volume.host_id is None:
        yield f"I3 volume {volume.id} is in use on no host"
    if holder is not None and holder.tenant_id != volume.tenant_id:
        yield f"I4 volume {volume.id} of {volume.tenant_id} is in an instance of {holder.tenant_id}"
    if holder is not None and holder.host_id not in (None, volume.host_id):
        yield f"I3 volume {volume.id} lives on {volume.host_id}, its instance on {holder.host_id}"


def _sums(rows: _Rows) -> Iterator[str]:
    pages: Counter[tuple[str, int, int]] = Counter()
    disk: Counter[str] = Counter()
    for instance in _live(rows).values():
        if instance.host_id is None or instance.placement is None:
            continue
        for cell in instance.placement["cells"]:
            key = (instance.host_id, cell["node"], instance.page_size_kib)
            pages[key] += cell["memory_mib"] * 1024 // instance.page_size_kib
    for left in rows[StaleInstanceRow]:
        disk[left.host_id] += left.disk_gib
        for cell in left.placement["cells"]:
            key = (left.host_id, cell["node"], left.page_size_kib)
            pages[key] += cell["memory_mib"] * 1024 // left.page_size_kib
    for row in rows[HostMemoryRow]:
        wanted = pages.pop((row.host_id, row.node, row.page_size_kib), 0)
        if row.used != wanted:
            yield f"I6 node {row.node} of {row.host_id} counts {row.used} pages used, its instances {wanted}"
    for volume in rows[VolumeRow]:
        if volume.state != VolumeState.DELETED and volume.host_id is not None:
            disk[volume.host_id] += volume.size_gib
    for host in rows[HostRow]:
        if host.used_disk_gib != disk[host.id]:
            yield f"I6 {host.id} counts {host.used_disk_gib} GiB used, its volumes {disk[host.id]}"


def _quota(rows: _Rows) -> Iterator[str]:
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for each in _live(rows).values():
        used[each.tenant_id].update(
            instances=1, vcpus=each.vcpus, memory_mib=each.memory_mib, gpus=each.gpus, disk_gib=0
        )
    for each in rows[VolumeRow]:
        if each.state != VolumeState.DELETED:
            used[each.tenant_id].update(volumes=1, disk_gib=each.size_gib)
    for each in rows[NetworkRow]:
        used[each.tenant_id].update(networks=1)
    for quota in rows[QuotaRow]:
        for name in DIMENSIONS:
            counted, wanted = getattr(quota, f"used_{name}"), used[quota.tenant_id][name]
            if counted != wanted:
                yield f"I6 {quota.tenant_id} counts {counted} {name} used, and has {wanted}"
            if counted > getattr(quota, f"limit_{name}"):
                yield f"I6 {quota.tenant_id} is over its quota of {name}"


def _log(rows: _Rows) -> Iterator[str]:
    seen: dict[str, list[int]] = defaultdict(list)
    for record in rows[AuditRecordRow]:
        seen[record.stream].append(record.seq)
        if commitment(record.salt, record.body) != record.commitment:
            yield f"I7 record {record.seq} of {record.stream} is not what was committed to"
    for stream in rows[AuditStreamRow]:
        if sorted(seen[stream.id]) != list(range(stream.next_seq)):
            yield f"I7 the log of {stream.id} has a gap"


def _operations(rows: _Rows) -> Iterator[str]:
    waiting = {each.instance_id for each in rows[RequestRow] if each.state == "waiting"}
    for instance in _live(rows).values():
        if (instance.state == InstanceState.PENDING) != (instance.id in waiting):
            what = "waits" if instance.id in waiting else "waits for nothing"
            yield f"I3 {instance.id} is {instance.state} and {what}"
        if (
            instance.state in _PLACED
            and instance.state != InstanceState.DELETING
            and instance.host_id is None
        ):
            yield f"I3 {instance.id} is {instance.state} on no host"


def _deleted(rows: _Rows) -> Iterator[str]:
    gone = {each.id for each in rows[TenantRow] if each.state == "deleted"}
    for each in rows[TenantRow]:
        if (each.keys_destroyed_ms is not None) != (each.id in gone):
            yield f"I9 {each.id} is {each.state} and its keys are {'' if each.id in gone else 'not '}there"
    rows_of_tenants = (NetworkRow, PortRow, ClaimRow, QuotaRow, WrappedKeyRow, UserDataRow, ConsoleTicketRow)
    for table in (*rows_of_tenants, StreamOrderRow, StaleInstanceRow):
        for each in rows[table]:
            if each.tenant_id in gone:
                yield f"I9 the deleted {each.tenant_id} still has a row in {table_of(table).name}"

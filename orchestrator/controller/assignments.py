"""A host's assignment, compiled from rows: always the whole truth of this moment, never a difference.

An instance stands in it from the moment its devices are `exposed` until its deletion is ordered; then its
removal does, until the host says that it is gone. What its host says it removed already is in it no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, exists, select, update

from orchestrator.controller import deployment, enrolment, stale
from orchestrator.controller.authority import HostCertificate
from orchestrator.controller.gpus import move
from orchestrator.controller.operations import advance
from orchestrator.model.assignment import ASSIGNMENT_VERSION, Assignment, Power
from orchestrator.model.fleet import FleetHost
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.placement import Placement
from orchestrator.model.states import Desired, GpuState, InstanceState
from orchestrator.store.nouns import HOSTS, INSTANCES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.catalog import ImageRow
from orchestrator.store.tables.fleet import GpuRow, HostRow, RemovalRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.tables.networks import NetworkRow, PortRow
from orchestrator.store.tables.tenants import DeploymentRow
from orchestrator.store.tables.volumes import VolumeRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_INSTANCES, _VOLUMES, _IMAGES = table_of(InstanceRow), table_of(VolumeRow), table_of(ImageRow)
_PORTS, _NETWORKS, _REMOVALS = table_of(PortRow), table_of(NetworkRow), table_of(RemovalRow)
_GPUS, _HOSTS, _DEPLOYMENT = table_of(GpuRow), table_of(HostRow), table_of(DeploymentRow)
#: States in which an instance is not, or no longer, part of what its host must run.
OUTSIDE = (InstanceState.PENDING, InstanceState.SCHEDULED, InstanceState.DELETING, InstanceState.DELETED)

_MAY_ACT = ~select(_DEPLOYMENT.c.observe_only).scalar_subquery()
#: Every poll of every host asks this, and what follows is asked on each instance's way; written once.
_STANDING = enrolment.asking(
    _HOSTS.c.revision,
    _HOSTS.c.doctor_asked_ms,
    select(_DEPLOYMENT.c.epoch).scalar_subquery().label("epoch"),
    (
        exists().where(_INSTANCES.c.host_id == _HOSTS.c.id, _INSTANCES.c.state == InstanceState.SCHEDULED)
        & _MAY_ACT
    ).label("due"),
)
_SCHEDULED = INSTANCES.wanting(
    PLATFORM,
    _INSTANCES.c.host_id == bindparam("host"),
    _INSTANCES.c.state == InstanceState.SCHEDULED,
    _MAY_ACT,
)
_CLAIMED = (
    select(_GPUS.c.id, _GPUS.c.tenancy)
    .where(_GPUS.c.instance_id == bindparam("instance"), _GPUS.c.state == GpuState.CLAIMED)
    .order_by(_GPUS.c.id)
)
_PROVISION = (
    update(_INSTANCES)
    .where(_INSTANCES.c.id == bindparam("instance"), _INSTANCES.c.state == InstanceState.SCHEDULED)
    .values(state=InstanceState.PROVISIONING)
)
_REVISE = update(_HOSTS).where(_HOSTS.c.id == bindparam("host")).values(revision=_HOSTS.c.revision + 1)
_THERE = INSTANCES.wanting(PLATFORM, _INSTANCES.c.host_id == bindparam("host"))
_THEIR_VOLUMES = (
    select(_VOLUMES, _IMAGES.c.digest, _IMAGES.c.size_bytes)
    .outerjoin(_IMAGES, _IMAGES.c.id == _VOLUMES.c.image_id)
    .where(_VOLUMES.c.instance_id.in_(bindparam("instances", expanding=True)), _VOLUMES.c.state != "deleted")
    # The boot volume is first, the rest as they were made.
    .order_by(_VOLUMES.c.boot.desc(), _VOLUMES.c.created_ms, _VOLUMES.c.id)
)
_THEIR_PORTS = (
    select(_PORTS, _NETWORKS.c.vlan)
    .join(_NETWORKS, _NETWORKS.c.id == _PORTS.c.network_id)
    .where(_PORTS.c.instance_id.in_(bindparam("instances", expanding=True)))
    .order_by(_PORTS.c.created_ms, _PORTS.c.id)
)
_ORDERED_AWAY = (
    select(_REMOVALS)
    .where(_REMOVALS.c.host_id == bindparam("host"), _REMOVALS.c.done_ms.is_(None))
    .order_by(_REMOVALS.c.kind, _REMOVALS.c.subject_id)
)


@dataclass(frozen=True)
class Standing:
    """How a host's assignment stands, without compiling it.

    Args:
        due: instances wait to be handed to their host for the first time, and may be.
        version: epoch and revision.
        asked: somebody waits for the host's doctor.
    """

    due: bool
    version: tuple[int, int]
    asked: bool


def standing(tx: Reader, shown: HostCertificate, now_ms: int) -> Standing:
    """Say how the assignment of the host with this certificate stands. Cost: one statement.

    Raises:
        UnauthenticatedError: `certificate.revoked`.
    """
    row = enrolment.known(tx, shown, now_ms, _STANDING)
    return Standing(bool(row.due), (row.epoch, row.revision), row.doctor_asked_ms is not None)


def hand_out(tx: UnitOfWork, host_id: str) -> None:
    """Put what was scheduled into the host's assignment; from now on its GPUs are exposed to the tenant.

    While the deployment only observes, nothing is.
    """
    scheduled = INSTANCES.found(tx, _SCHEDULED, {"host": host_id})
    for instance in scheduled:
        for row in tx.all(_CLAIMED, {"instance": instance.id}):
            move(tx, row.id, GpuState.EXPOSED, tenancy=row.tenancy + 1)
        tx.execute(_PROVISION, {"instance": instance.id, "updated_ms": tx.now_ms})
        advance(tx, instance.operation_id, "placed")
        tx.record(
            "instance.provision",
            ("instance", instance.id),
            tenant=instance.tenant_id,
            details={"host": host_id, "generation": instance.generation},
        )
    if scheduled:
        tx.execute(_REVISE, {"host": host_id})


def compiled(tx: Reader, host_id: str) -> Assignment | None:
    """Return the host's assignment as it stands; None for a host that is not there.

    Its instances have no user data: `user_data.opened` puts that in, when this transaction is over.
    """
    host = HOSTS.get(tx, PLATFORM, host_id)
    if host is None:
        return None
    ours = deployment.get(tx)
    instances = [
        each
        for each in INSTANCES.found(tx, _THERE, {"host": host_id})
        if each.state not in OUTSIDE and each.placement is not None and not each.gone
    ]
    volumes, ports = _volumes(tx, instances), _ports(tx, instances)
    return Assignment.model_validate(
        {
            "version": ASSIGNMENT_VERSION,
            "deployment": ours.id,
            "host": host_id,
            "epoch": ours.epoch,
            "revision": host.revision,
            "observe_only": ours.observe_only,
            "instances": [_instance(each, volumes[each.id], ports[each.id]) for each in instances],
            # What only looks is told nothing that it could remove.
            "absent": [] if ours.observe_only else _absent(tx, host),
            # What was rebuilt elsewhere must not answer for its addresses from here.
            "closed": [
                {"id": each.instance_id, "generation": each.generation} for each in stale.of_host(tx, host_id)
            ],
        }
    )


def _instance(
    instance: InstanceRecord, volumes: list[dict[str, Any]], ports: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": instance.id,
        "generation": instance.generation,
        "tenant": instance.tenant_id,
        "name": instance.name,
        "power": Power.RUNNING if instance.desired is Desired.RUNNING else Power.STOPPED,
        "isolation": instance.isolation,
        "firmware": instance.firmware,
        **Placement.from_dict(instance.placement or {}).assignment_parts(),
        "volumes": volumes,
        "ports": ports,
    }


def _volumes(tx: Reader, instances: Iterable[InstanceRecord]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in tx.all(_THEIR_VOLUMES, {"instances": [each.id for each in instances]}):
        image = None if row.digest is None else {"digest": row.digest, "size_bytes": row.size_bytes}
        found[row.instance_id].append(
            {"id": row.id, "generation": row.generation, "size_gib": row.size_gib, "image": image}
        )
    return found


def _ports(tx: Reader, instances: Iterable[InstanceRecord]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in tx.all(_THEIR_PORTS, {"instances": [each.id for each in instances]}):
        found[row.instance_id].append(
            {
                "id": row.id,
                "network": row.network_id,
                "vlan": row.vlan,
                "mac": row.mac,
                "addresses": [{"address": row.address, "prefix_length": row.prefix_length}],
            }
        )
    return found


def _absent(tx: Reader, host: FleetHost) -> list[dict[str, Any]]:
    rows = tx.all(_ORDERED_AWAY, {"host": host.id})
    return [{"kind": row.kind, "id": row.subject_id, "generation": row.generation} for row in rows]

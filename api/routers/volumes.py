"""A tenant's volumes."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.calls import IN_TENANT, Changing, Looking, Making, Pages, page_token
from api.long_work import DRY_RUN, accepted, same_operation
from api.schemas.common import Page, Reference
from api.schemas.things import VolumeIn, VolumeOut
from api.schemas.work import OperationOut
from orchestrator.controller import instances, volumes
from orchestrator.controller.caller import Caller
from orchestrator.model.states import VolumeState
from orchestrator.store.nouns import VOLUMES
from orchestrator.store.unit_of_work import Reader

router = APIRouter(prefix="/v1/tenants/{tenant}/volumes", tags=["volumes"], dependencies=[IN_TENANT])


@router.get("", operation_id="list_volumes")
def list_volumes(
    ask: Looking, pages: Pages, state: VolumeState | None = None, instance: Reference | None = None
) -> Page[VolumeOut]:
    """List a tenant's volumes, boot volumes included."""

    def work(tx: Reader, caller: Caller) -> Page[VolumeOut]:
        holder = None if instance is None else instances.get(tx, caller, instance).id
        wanted = VOLUMES.like(state=state, instance_id=holder)
        found, after = VOLUMES.page(tx, caller.scope, pages, wanted)
        return Page(items=[VolumeOut.of(each, caller) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("", operation_id="create_volume", status_code=201)
def create_volume(ask: Making, body: VolumeIn) -> VolumeOut:
    """Make an empty volume."""
    return ask.make(
        lambda tx, caller, _operation: VolumeOut.of(
            volumes.create(tx, caller, body.name, body.size_gib), caller
        ),
        lambda tx, caller, made: VolumeOut.of(volumes.get(tx, caller, made.subject_id), caller),
        identify=lambda made: made.id,
    )


@router.get("/{volume}", operation_id="get_volume")
def get_volume(ask: Looking, volume: Reference) -> VolumeOut:
    """Show a volume."""
    return ask.look(lambda tx, caller: VolumeOut.of(volumes.get(tx, caller, volume), caller))


@router.delete("/{volume}", operation_id="delete_volume", status_code=202, responses=DRY_RUN)
def delete_volume(ask: Changing, volume: Reference, response: Response) -> OperationOut:
    """Erase a volume that no instance has."""
    begun = ask.make(
        lambda tx, caller, operation: volumes.remove(tx, caller, volume, operation), same_operation
    )
    return accepted(ask, response, begun)

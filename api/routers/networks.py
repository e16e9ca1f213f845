"""A tenant's networks."""

from __future__ import annotations

from fastapi import APIRouter

from api.calls import IN_TENANT, Changing, Looking, Making, Pages, page_token
from api.schemas.common import Page, Reference
from api.schemas.things import NetworkIn, NetworkOut
from orchestrator.controller import networks
from orchestrator.controller.caller import Caller
from orchestrator.store.nouns import NETWORKS
from orchestrator.store.unit_of_work import Reader

router = APIRouter(prefix="/v1/tenants/{tenant}/networks", tags=["networks"], dependencies=[IN_TENANT])


@router.get("", operation_id="list_networks")
def list_networks(ask: Looking, pages: Pages) -> Page[NetworkOut]:
    """List a tenant's networks."""

    def work(tx: Reader, caller: Caller) -> Page[NetworkOut]:
        found, after = NETWORKS.page(tx, caller.scope, pages)
        return Page(items=[NetworkOut.of(each, caller) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("", operation_id="create_network", status_code=201)
def create_network(ask: Making, body: NetworkIn) -> NetworkOut:
    """Make a network."""
    vlans = ask.control.settings.vlans
    return ask.make(
        lambda tx, caller, _operation: NetworkOut.of(
            networks.create(tx, caller, body.name, body.cidr, vlans), caller
        ),
        lambda tx, caller, made: NetworkOut.of(networks.get(tx, caller, made.subject_id), caller),
        identify=lambda made: made.id,
    )


@router.get("/{network}", operation_id="get_network")
def get_network(ask: Looking, network: Reference) -> NetworkOut:
    """Show a network."""
    return ask.look(lambda tx, caller: NetworkOut.of(networks.get(tx, caller, network), caller))


@router.delete("/{network}", operation_id="delete_network", status_code=204)
def delete_network(ask: Changing, network: Reference) -> None:
    """Delete a network that no instance is on."""
    ask.change(lambda tx, caller: networks.remove(tx, caller, network))

"""Instance types and images: what everybody may choose from."""

from __future__ import annotations

from fastapi import APIRouter

from api.calls import Changing, Looking, Making, Pages, page_token
from api.schemas.catalog import ImageIn, ImageOut, InstanceTypeIn, InstanceTypeOut
from api.schemas.common import Page, Reference
from orchestrator.controller import catalog, tenants
from orchestrator.controller.caller import Caller
from orchestrator.store.nouns import TYPES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/instance-types", operation_id="list_instance_types")
def list_instance_types(ask: Looking, pages: Pages) -> Page[InstanceTypeOut]:
    """List the shapes that instances can have."""

    def work(tx: Reader, _caller: Caller) -> Page[InstanceTypeOut]:
        found, after = TYPES.page(tx, PLATFORM, pages)
        return Page(items=[InstanceTypeOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("/instance-types", operation_id="create_instance_type", status_code=201)
def create_instance_type(ask: Making, body: InstanceTypeIn) -> InstanceTypeOut:
    """Offer a shape."""
    return ask.make(
        lambda tx, _caller, _operation: InstanceTypeOut.of(catalog.create_type(tx, **body.shape())),
        lambda tx, _caller, made: InstanceTypeOut.of(catalog.get_type(tx, made.subject_id)),
        identify=lambda made: made.id,
    )


@router.get("/instance-types/{instance_type}", operation_id="get_instance_type")
def get_instance_type(ask: Looking, instance_type: Reference) -> InstanceTypeOut:
    """Show a shape."""
    return ask.look(lambda tx, _caller: InstanceTypeOut.of(catalog.get_type(tx, instance_type)))


@router.delete("/instance-types/{instance_type}", operation_id="delete_instance_type", status_code=204)
def delete_instance_type(ask: Changing, instance_type: Reference) -> None:
    """Offer a shape no longer; what has it keeps it."""
    ask.change(lambda tx, _caller: catalog.remove_type(tx, instance_type))


@router.get("/images", operation_id="list_images")
def list_images(ask: Looking, pages: Pages) -> Page[ImageOut]:
    """List the images that are everybody's or the caller's own tenant's."""

    def work(tx: Reader, caller: Caller) -> Page[ImageOut]:
        found, after = catalog.page_images(tx, caller, pages)
        return Page(items=[ImageOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("/images", operation_id="create_image", status_code=201)
def create_image(ask: Making, body: ImageIn) -> ImageOut:
    """Register an image by its content."""

    def work(tx: UnitOfWork, _caller: Caller, _operation: str) -> ImageOut:
        tenant = None if body.tenant is None else tenants.get(tx, body.tenant).id
        made = catalog.create_image(
            tx,
            name=body.name,
            digest=body.digest,
            size_bytes=body.size_bytes,
            firmware=body.firmware,
            tenant_id=tenant,
        )
        return ImageOut.of(made)

    return ask.make(
        work,
        lambda tx, caller, made: ImageOut.of(catalog.get_image(tx, caller, made.subject_id)),
        identify=lambda made: made.id,
    )


@router.get("/images/{image}", operation_id="get_image")
def get_image(ask: Looking, image: Reference) -> ImageOut:
    """Show an image."""
    return ask.look(lambda tx, caller: ImageOut.of(catalog.get_image(tx, caller, image)))


@router.delete("/images/{image}", operation_id="delete_image", status_code=204)
def delete_image(ask: Changing, image: Reference) -> None:
    """Forget an image that nothing was ever made of."""
    ask.change(lambda tx, caller: catalog.remove_image(tx, caller, image))

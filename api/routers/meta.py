"""The API itself: what it can, whether it lives, whether it is ready, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from api import metrics, problems
from api.calls import Looking
from api.schemas.common import Out
from orchestrator import __version__
from orchestrator.controller import counts
from orchestrator.controller.control import Control
from orchestrator.model.errors import HostError

router = APIRouter(tags=["api"])
#: What was added to v1; a client looks here before it relies on something.
FEATURES = ("audit-export", "dry-run", "events", "idempotency-key", "operation-wait")


class ApiOut(Out):
    """This API."""

    version: str
    software: str
    features: list[str]


@router.get("/v1", operation_id="get_api")
def get_api(ask: Looking) -> ApiOut:
    """Show what this API can."""
    return ask.look(lambda _tx, _caller: ApiOut(version="v1", software=__version__, features=list(FEATURES)))


@router.get("/livez", include_in_schema=False)
async def livez() -> JSONResponse:
    """Answer as long as the process does."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", include_in_schema=False)
def readyz(request: Request) -> JSONResponse:
    """Answer well when the database does and its schema is ours."""
    control: Control = request.app.state.control
    if not _ready(control):
        raise HostError("api.not_ready", "the database does not answer, or its schema is of another version")
    return JSONResponse({"status": "ok"})


@router.get("/metrics", include_in_schema=False)
def get_metrics(request: Request) -> Response:
    """Show this process's numbers, to the addresses that may see them; to all others it is not there."""
    control: Control = request.app.state.control
    address = request.client.host if request.client else ""
    if address not in control.settings.metrics_from:
        raise HTTPException(404)
    with control.store.reading() as tx:
        found = counts.by_state(tx)
    return Response(metrics.written(found), media_type="text/plain; version=0.0.4")


def _ready(control: Control) -> bool:
    try:
        return control.ready()
    except Exception as exc:
        problems.log.warning("database.unready", kind=type(exc).__name__)
        return False

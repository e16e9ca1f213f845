"""The public API as one ASGI app: routers by noun, errors as problems, the layers around them.

Decides nothing. `processes` serves it, tests call it. What the action table does not list is refused by
the gate, and what is no route at all is a problem like any other.
"""

from __future__ import annotations

from fastapi import FastAPI

from api import middleware, openapi_document, problems
from api.calls import Verifier
from api.routers import (
    catalog,
    console,
    deployment,
    fleet,
    instances,
    log,
    meta,
    networks,
    operations,
    operators,
    people,
    tenants,
    volumes,
)
from orchestrator import __version__
from orchestrator.controller.control import Control

#: In the order in which they are tried: the most asked for first.
ROUTERS = (
    instances.router,
    operations.of_tenant,
    log.of_tenant,
    volumes.router,
    networks.router,
    meta.router,
    people.router,
    tenants.router,
    tenants.of_tenant,
    catalog.router,
    deployment.router,
    fleet.router,
    fleet.of_tenant,
    operators.router,
    operations.router,
    log.router,
    people.of_tenant,
    console.router,
)


def routes_only() -> FastAPI:
    """The app without anything behind it: enough to say what its routes are."""
    app = FastAPI(
        title="Bulkhead",
        version=__version__,
        summary="Virtual machines with GPUs, isolated in hardware",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    for router in ROUTERS:
        app.include_router(router)
    openapi_document.install(app)
    return app


def public_app(control: Control, verifier: Verifier | None = None) -> FastAPI:
    """The public API over a control.

    Args:
        verifier: verifies tokens of identity providers; None takes our own tokens only.
    """
    app = routes_only()
    app.state.control = control
    app.state.verifier = verifier
    problems.install(app)
    # The one added last stands outermost.
    app.add_middleware(middleware.BodyLimit)
    app.add_middleware(middleware.Outermost)
    return app

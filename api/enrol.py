"""The one route of the public listener that an agent calls: to come in with its join token.

Nobody is known yet who calls it; the token is the right. It stands outside of the public OpenAPI. Called by
`processes`, which adds it to the public app.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.controller import enrolment
from orchestrator.controller.authority import Authority
from orchestrator.controller.control import Control
from orchestrator.controller.rates import Rate
from orchestrator.model.actor import Actor
from orchestrator.model.errors import BulkheadError, TooLargeError
from orchestrator.model.protocol import (
    MAX_SMALL_BYTES,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    EnrolAnswer,
    EnrolRequest,
    check_version,
    parse_message,
)

#: Guesses at join tokens from one address; a rack that comes up at once stays below.
_RATE = Rate(per_s=2, burst=100)


def enrol_router(control: Control, authority: Authority, agents_url: str) -> APIRouter:
    """Make the route."""
    router = APIRouter()

    @router.post("/v1/enrol", include_in_schema=False)
    async def enrol(request: Request) -> Response:
        peer = check_version(request.headers.get(PROTOCOL_HEADER))
        raw = await request.body()
        if len(raw) > MAX_SMALL_BYTES:
            raise TooLargeError("protocol.too_large", f"more than {MAX_SMALL_BYTES} bytes")
        asked = parse_message(EnrolRequest, raw, peer=peer)
        address = request.client.host if request.client else ""
        made = await run_in_threadpool(_enrol, control, authority, asked, address)
        answer = EnrolAnswer(
            certificate_pem=made.certificate_pem,
            ca_pem=authority.certificate_pem,
            host=made.host_id,
            deployment=made.deployment,
            agents_url=agents_url,
        )
        headers = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
        return Response(answer.model_dump_json(), 200, headers, media_type="application/json")

    return router


def _enrol(control: Control, authority: Authority, asked: EnrolRequest, address: str) -> enrolment.Enrolled:
    control.rates.take(f"enrol:{address}", _RATE)
    actor = Actor(kind="anonymous", id="", address=address)
    try:
        with control.store.unit_of_work(actor) as tx:
            return enrolment.enrol(tx, authority, asked.token, asked.csr_pem)
    except BulkheadError as exc:
        control.denials.record(actor, "enrol", None, exc)
        raise

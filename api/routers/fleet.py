"""Hosts, GPUs and the queue of requests, for the platform's people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.calls import IN_TENANT, Asking, Changing, Looking, Making, NamePrefix, Pages, page_token
from api.fresh_secrets import draw_join_secret, join_token_text
from api.long_work import DRY_RUN, accepted
from api.schemas.common import PCI_MODEL, Page, ReasonIn, Reference
from api.schemas.fleet import (
    DrainIn,
    FenceIn,
    GpuOut,
    HostDetailOut,
    HostDoctorOut,
    HostEvidenceOut,
    HostIn,
    HostMadeOut,
    HostOut,
    JoinTokenOut,
    RemoveHostIn,
    RemoveStrayIn,
)
from api.schemas.work import OperationOut, RequestOut
from orchestrator.controller import (
    doctor,
    drain,
    evacuate,
    expiry,
    gpus,
    host_removal,
    hosts,
    inventory,
    stale,
    strays,
)
from orchestrator.controller.caller import Caller
from orchestrator.model.operation import Operation
from orchestrator.model.states import GpuState, HostState, RequestState
from orchestrator.store.ids import new_id
from orchestrator.store.nouns import GPUS, HOSTS, REQUESTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1", tags=["fleet"])
of_tenant = APIRouter(prefix="/v1/tenants/{tenant}", tags=["requests"], dependencies=[IN_TENANT])


@router.get("/hosts", operation_id="list_hosts")
def list_hosts(
    ask: Looking, pages: Pages, state: HostState | None = None, name_prefix: NamePrefix = None
) -> Page[HostOut]:
    """List all hosts."""

    def work(tx: Reader, _caller: Caller) -> Page[HostOut]:
        found, after = HOSTS.page(tx, PLATFORM, pages, HOSTS.like(state=state, name_prefix=name_prefix))
        return Page(items=[HostOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("/hosts", operation_id="create_host", status_code=201)
def create_host(ask: Making, body: HostIn) -> HostMadeOut:
    """Let a host in: its agent enrols with the join token, which is shown this once and works for a day."""

    def work(tx: UnitOfWork, _caller: Caller, _operation: str) -> HostMadeOut:
        host, secret = hosts.create(tx, body.name, body.disk_gib), draw_join_secret()
        token = hosts.add_join_token(tx, host, secret)
        # A token that is not kept lets nobody in.
        shown = None if ask.dry_run else join_token_text(token.id, secret, ask.control.ca_fingerprint)
        return HostMadeOut.made(host, shown, token)

    return ask.make(
        work,
        lambda tx, _caller, made: HostMadeOut.made(hosts.get(tx, made.subject_id), None, None),
        identify=lambda made: made.id,
    )


@router.get("/hosts/{host}", operation_id="get_host")
def get_host(ask: Looking, host: Reference) -> HostDetailOut:
    """Show a host with what its agent found it to be made of."""

    def work(tx: Reader, _caller: Caller) -> HostDetailOut:
        found = hosts.get(tx, host)
        return HostDetailOut.told(
            found,
            inventory.facts_of(tx, found.id),
            stale.of_host(tx, found.id),
            expiry.of_host(tx, found.id),
        )

    return ask.look(work)


@router.get("/hosts/{host}/evidence", operation_id="get_host_evidence")
def get_host_evidence(ask: Looking, host: Reference) -> HostEvidenceOut:
    """Show what a host checked of itself as a whole last; each instance has evidence of its own."""
    return ask.look(lambda tx, _caller: HostEvidenceOut.of(hosts.get(tx, host)))


@router.get("/hosts/{host}/doctor", operation_id="get_host_doctor")
def get_host_doctor(ask: Looking, host: Reference) -> HostDoctorOut:
    """Show what a host's doctor found last: every check, what it read, and what mends it."""

    def work(tx: Reader, _caller: Caller) -> HostDoctorOut:
        found = hosts.get(tx, host)
        return HostDoctorOut.of(found, doctor.last(tx, found))

    return ask.look(work)


@router.post("/hosts/{host}/actions/examine", operation_id="examine_host")
def examine_host(ask: Changing, host: Reference) -> HostDoctorOut:
    """Have a host's doctor look at once; `asked_at` is null again as soon as it has."""

    def work(tx: UnitOfWork, _caller: Caller) -> HostDoctorOut:
        doctor.ask(tx, hosts.get(tx, host, lock=True))
        found = hosts.get(tx, host)
        return HostDoctorOut.of(found, doctor.last(tx, found))

    return ask.change(work)


@router.post("/hosts/{host}/actions/remove", operation_id="remove_host")
def remove_host(ask: Changing, host: Reference, body: RemoveHostIn) -> HostOut:
    """Take a host out for good that is drained or fenced and holds nothing, or that never came in."""
    return ask.change(
        lambda tx, _caller: HostOut.of(host_removal.remove(tx, host, body.reason, lost=body.lost))
    )


@router.post("/hosts/{host}/actions/revoke", operation_id="revoke_host")
def revoke_host(ask: Changing, host: Reference, body: ReasonIn) -> HostOut:
    """Take back a host's certificates: its agent is shut out until it enrols anew, its instances run on."""
    return ask.change(lambda tx, _caller: HostOut.of(hosts.revoke(tx, host, body.reason)))


@router.post("/hosts/{host}/actions/join-token", operation_id="create_join_token", status_code=201)
def create_join_token(ask: Making, host: Reference) -> JoinTokenOut:
    """Let a host's agent enrol, or enrol anew: the token is shown this once and works for a day.

    Earlier tokens of it stop working now, its certificates when the token is used.
    """

    def work(tx: UnitOfWork, _caller: Caller, _operation: str) -> JoinTokenOut:
        found, secret = hosts.get(tx, host, lock=True), draw_join_secret()
        token = hosts.add_join_token(tx, found, secret)
        shown = None if ask.dry_run else join_token_text(token.id, secret, ask.control.ca_fingerprint)
        return JoinTokenOut.made(found, shown, token)

    return ask.make(
        work,
        lambda tx, _caller, made: JoinTokenOut.made(hosts.get(tx, made.subject_id), None, None),
        identify=lambda made: made.host_id,
    )


@router.post("/hosts/{host}/actions/cordon", operation_id="cordon_host")
def cordon_host(ask: Changing, host: Reference, body: ReasonIn) -> HostOut:
    """Place nothing new on it; what runs there goes on."""
    return _change_host(ask, host, "cordon", body)


@router.post("/hosts/{host}/actions/uncordon", operation_id="uncordon_host")
def uncordon_host(ask: Changing, host: Reference, body: ReasonIn) -> HostOut:
    """Place new instances on it again."""
    return _change_host(ask, host, "uncordon", body)


@router.post("/hosts/{host}/actions/drain", operation_id="drain_host", status_code=202, responses=DRY_RUN)
def drain_host(ask: Changing, host: Reference, body: DrainIn, response: Response) -> OperationOut:
    """Place nothing new on it and stop what runs, or wait for it; uncordon or cordon ends that."""

    def work(tx: UnitOfWork, caller: Caller) -> Operation:
        return drain.begin(
            tx,
            caller,
            host,
            policy=body.policy,
            deadline_s=body.deadline_s,
            reason=body.reason,
            operation_id=new_id("op"),
        )

    return accepted(ask, response, ask.change(work))


@router.post("/hosts/{host}/actions/fence", operation_id="fence_host")
def fence_host(ask: Changing, host: Reference, body: FenceIn) -> HostOut:
    """Shut a host out that is switched off: its certificates open nothing any more."""
    return _change_host(ask, host, "fence", body)


@router.post(
    "/hosts/{host}/actions/evacuate", operation_id="evacuate_host", status_code=202, responses=DRY_RUN
)
def evacuate_host(ask: Changing, host: Reference, body: ReasonIn, response: Response) -> OperationOut:
    """Rebuild a fenced host's instances elsewhere from their images; what lived on it is lost.

    Tenants read the reason on their instances.
    """

    def work(tx: UnitOfWork, caller: Caller) -> Operation:
        return evacuate.begin(tx, caller, host, reason=body.reason, operation_id=new_id("op"))

    return accepted(ask, response, ask.change(work))


@router.post("/hosts/{host}/actions/remove-stray", operation_id="remove_stray")
def remove_stray(ask: Changing, host: Reference, body: RemoveStrayIn) -> HostOut:
    """Order a host to take away, for good, one thing that it reported and that the database does not know."""
    return ask.change(
        lambda tx, _caller: HostOut.of(strays.remove(tx, host, body.kind, body.id, body.reason))
    )


@router.get("/gpus", operation_id="list_gpus")
def list_gpus(
    ask: Looking,
    pages: Pages,
    state: GpuState | None = None,
    host: Reference | None = None,
    model: Annotated[
        str | None, Query(pattern=PCI_MODEL, max_length=9, description="PCI ids, vendor:device.")
    ] = None,
) -> Page[GpuOut]:
    """List the GPUs of the pool."""

    def work(tx: Reader, _caller: Caller) -> Page[GpuOut]:
        where = None if host is None else hosts.get(tx, host).id
        vendor, device = (None, None) if model is None else model.split(":")
        wanted = GPUS.like(state=state, host_id=where, vendor=vendor, device=device)
        found, after = GPUS.page(tx, PLATFORM, pages, wanted)
        return Page(items=[GpuOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.get("/gpus/{gpu}", operation_id="get_gpu")
def get_gpu(ask: Looking, gpu: Reference) -> GpuOut:
    """Show a GPU."""
    return ask.look(lambda tx, _caller: GpuOut.of(gpus.get(tx, gpu)))


@router.post("/gpus/{gpu}/actions/quarantine", operation_id="quarantine_gpu")
def quarantine_gpu(ask: Changing, gpu: Reference, body: ReasonIn) -> GpuOut:
    """Take a GPU out of the pool until it is released; who has it keeps it."""
    return ask.change(lambda tx, _caller: GpuOut.of(gpus.quarantine(tx, gpu, body.reason)))


@router.post("/gpus/{gpu}/actions/release", operation_id="release_gpu")
def release_gpu(ask: Changing, gpu: Reference, body: ReasonIn) -> GpuOut:
    """Let a quarantined GPU come back, to be shown clean first."""
    return ask.change(lambda tx, _caller: GpuOut.of(gpus.release(tx, gpu, body.reason)))


@router.get("/requests", operation_id="list_requests")
def list_requests(ask: Looking, pages: Pages, state: RequestState | None = None) -> Page[RequestOut]:
    """List the requests for capacity of all tenants, oldest first."""

    def work(tx: Reader, _caller: Caller) -> Page[RequestOut]:
        found, after = REQUESTS.page(tx, PLATFORM, pages, REQUESTS.like(state=state))
        return Page(items=[RequestOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@of_tenant.get("/requests", operation_id="list_tenant_requests")
def list_tenant_requests(ask: Looking, pages: Pages, state: RequestState | None = None) -> Page[RequestOut]:
    """List a tenant's requests for capacity, oldest first."""

    def work(tx: Reader, caller: Caller) -> Page[RequestOut]:
        found, after = REQUESTS.page(tx, caller.scope, pages, REQUESTS.like(state=state))
        return Page(items=[RequestOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


def _change_host(ask: Asking, host: str, verb: str, body: ReasonIn | FenceIn) -> HostOut:
    return ask.change(lambda tx, _caller: HostOut.of(hosts.change_state(tx, host, verb, body.reason)))

"""From an HTTP request to a call that the gate lets in: who shows what, for which action, with which key.

A route's operation id is its action. Decides no right. Routers declare one of `Looking`, `Changing` and
`Making`, and hand their work to it; the blocking part runs in the thread that runs the route.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import Depends, Header, Query, Request, WebSocket
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from api import problems
from api.problems import BadRequestError
from api.schemas.common import Reference
from orchestrator.access.tokens import ParsedToken, parse_token
from orchestrator.controller.caller import Caller
from orchestrator.controller.control import Control
from orchestrator.controller.gate import Call, Subject
from orchestrator.controller.idempotency import Made, Sent, check_key
from orchestrator.model.actor import Actor
from orchestrator.model.errors import InvalidInputError, PreconditionError, StaleError, UnauthenticatedError
from orchestrator.store.rows import After, Part
from orchestrator.store.unit_of_work import Reader, UnitOfWork

T = TypeVar("T")
_PAGE_TOKEN = re.compile(r"^([0-9]{1,15})\.([a-z0-9_]{1,44})$")
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_TAGS = re.compile(rf"{_TAG.pattern}(?:\s*,\s*{_TAG.pattern})*")
_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9._~+/-]{1,8192}=*)")
_OURS = "bh_"


class Identity(Protocol):
    """What a provider vouches for."""

    @property
    def issuer(self) -> str:
        """The provider."""

    @property
    def subject(self) -> str:
        """Whom it vouches for."""


class Verifier(Protocol):
    """Verifies the tokens of identity providers."""

    def verify(self, token: str) -> Identity:
        """Say who a token is about.

        Raises:
            BulkheadError: `token.invalid`, `oidc.keys_unavailable`.
        """


@dataclass(frozen=True)
class Asking:
    """One request as its route sees it.

    Args:
        authorization: every header of that name, as it came.
        sent: what an idempotency key of this call stands for; None where it carries none.
    """

    control: Control
    verifier: Verifier | None
    action: str
    tenant: str | None
    authorization: tuple[str, ...]
    address: str
    request_id: str
    sent: Sent | None = None
    dry_run: bool = False

    def look(self, work: Callable[[Reader, Caller], T]) -> T:
        """Answer without changing anything. Blocks."""
        return self.control.gate.look(self._call(), work)

    def change(self, work: Callable[[UnitOfWork, Caller], T]) -> T:
        """Change something. Blocks."""
        return self.control.gate.change(self._call(), work)

    def make(
        self,
        work: Callable[[UnitOfWork, Caller, str], T],
        again: Callable[[Reader, Caller, Made], T],
        identify: Callable[[T], str] | None = None,
    ) -> T:
        """Make something once for each idempotency key, if there is one. Blocks."""
        return self.control.gate.make(self._call(), work, again, identify)

    def _call(self) -> Call:
        return Call(
            action=self.action,
            tenant=self.tenant,
            credential=self._credential(),
            address=self.address,
            request_id=self.request_id,
            sent=self.sent,
            dry_run=self.dry_run,
        )

    @property
    def shows_something(self) -> bool:
        """Tell whether there is one header that may hold a token; who it is, the gate finds out."""
        return len(self.authorization) == 1 and _BEARER.fullmatch(self.authorization[0]) is not None

    def _credential(self) -> ParsedToken | Subject | None:
        if not self.authorization:
            return None
        try:
            return self._shown()
        except UnauthenticatedError as exc:
            # The gate never sees this call, so its denial is written down here.
            actor = Actor(kind="anonymous", id="", address=self.address, request_id=self.request_id)
            self.control.denials.record(actor, self.action, self.tenant, exc)
            raise

    def _shown(self) -> ParsedToken | Subject:
        found = _BEARER.fullmatch(self.authorization[0]) if len(self.authorization) == 1 else None
        if found is None:
            raise UnauthenticatedError(
                "token.malformed", "one header is needed: Authorization: Bearer and a token"
            )
        if self.verifier is None or found[1].startswith(_OURS):
            return parse_token(found[1])
        identity = self.verifier.verify(found[1])
        return Subject(identity.issuer, identity.subject)


#: The form stands here for the document alone: what is wrong with a key, the controller says.
_Key = Header(
    description="Makes a repeated call harmless.", json_schema_extra={"pattern": r"^[\x21-\x7e]{1,128}$"}
)


async def _looking(request: Request) -> Asking:
    """Turn away who shows no token before anything that they sent is judged: what is no parameter, too."""
    ask = _asked(request, request.scope["route"].operation_id)
    if not ask.shows_something:
        await run_in_threadpool(ask.look, lambda _tx, _caller: None)
    _refuse_unknown(request)
    return ask


def _refuse_unknown(request: Request) -> None:
    """A filter that is spelled wrong must not give a whole list."""
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = _query_names(route.dependant)
    for name in request.query_params:
        if name not in known:
            shown = name if name.isascii() and name.isprintable() and len(name) <= 40 else "of that name"
            raise InvalidInputError(
                "field.unknown",
                f"there is no parameter {shown}",
                field=shown,
                hint=f"there are {', '.join(sorted(known))}" if known else "this takes none",
            )


def beside_ticket(socket: WebSocket) -> Asking:
    """Whose token, if any, comes with a WebSocket whose ticket alone opens it."""
    return _asked(socket, "get_whoami")


def _asked(request: HTTPConnection, action: str) -> Asking:
    return Asking(
        control=request.app.state.control,
        verifier=request.app.state.verifier,
        action=action,
        tenant=request.path_params.get("tenant"),
        authorization=tuple(request.headers.getlist("authorization")),
        address=request.client.host if request.client else "",
        request_id=problems.request_id_of(request),
    )


def _query_names(dependant: Dependant) -> set[str]:
    names = {each.alias for each in dependant.query_params}
    return names.union(*(_query_names(each) for each in dependant.dependencies))


#: For what changes nothing.
Looking = Annotated[Asking, Depends(_looking)]


async def _changing(
    request: Request,
    ask: Looking,
    dry_run: Annotated[bool, Query(description="Do everything, keep nothing.")] = False,
    idempotency_key: Annotated[str | None, _Key] = None,
) -> Asking:
    sent = None if idempotency_key is None else await _sent(request, check_key(idempotency_key))
    return replace(ask, sent=sent, dry_run=dry_run)


async def _making(
    request: Request,
    ask: Looking,
    dry_run: Annotated[bool, Query(description="Do everything, keep nothing.")] = False,
    idempotency_key: Annotated[str | None, _Key] = None,
) -> Asking:
    if idempotency_key is None:
        raise BadRequestError(
            "idempotency.missing",
            "what makes something needs an Idempotency-Key",
            field="Idempotency-Key",
            hint="send a new random one with each new request, and the same when you repeat it",
        )
    return await _changing(request, ask, dry_run, idempotency_key)


#: For what changes something; for what makes something, which needs a key.
Changing = Annotated[Asking, Depends(_changing)]
Making = Annotated[Asking, Depends(_making)]


async def _in_tenant(tenant: Reference) -> None:
    """The gate finds out which one it is."""


#: For routers whose paths name a tenant.
IN_TENANT = Depends(_in_tenant)


async def _sent(request: Request, key: str) -> Sent:
    # The same key on another thing's path is another request; which tenant it is stands beside it already.
    path = {name: value for name, value in request.path_params.items() if name != "tenant"}
    seed = json.dumps(path, sort_keys=True).encode() + b"\n" + await request.body()
    mac = hmac.new(request.app.state.control.pepper, seed, hashlib.sha256).hexdigest()
    return Sent(request.scope["route"].operation_id, key, mac)


_PageToken = Query(
    max_length=100, description="From the page before.", json_schema_extra={"pattern": _PAGE_TOKEN.pattern}
)


async def _paging(
    request: Request,
    page_size: Annotated[int | None, Query(ge=1, le=1000, description="100 when it is not named.")] = None,
    page_token: Annotated[str | None, _PageToken] = None,
    order: Annotated[
        Literal["oldest", "newest"], Query(description="What comes first; the same on each page.")
    ] = "oldest",
) -> Part:
    after = None if page_token is None else _after(page_token)
    settings = request.app.state.control.settings
    size = min(page_size or settings.page_size, settings.max_page_size)
    return Part(after, size, newest=order == "newest")


Pages = Annotated[Part, Depends(_paging)]


#: How names begin, for a list of those that do.
NamePrefix = Annotated[str | None, Query(pattern=r"^[a-z][a-z0-9-]{0,62}$", max_length=63)]


def page_token(after: After | None) -> str | None:
    """The token of the next page; clients only send it back, so that it may become something else."""
    if after is None:
        return None
    return f"{after.born_ms}.{after.id}"


def _after(token: str) -> After:
    found = _PAGE_TOKEN.fullmatch(token)
    if found is None:
        raise InvalidInputError(
            "page.token",
            "that is no page token of ours",
            field="page_token",
            hint="start with the first page",
        )
    return After(int(found[1]), found[2])


_TAG_LIST = r'^(?:\*|"[\x21\x23-\x7e]*"(?:, ?"[\x21\x23-\x7e]*")*)$'
IfMatch = Annotated[
    str | None,
    Header(
        max_length=1000, description="The ETag of what was read.", json_schema_extra={"pattern": _TAG_LIST}
    ),
]


def demand_match(sent: str | None, current: str) -> None:
    """Go on only if the caller means the version that there is.

    Args:
        sent: the `If-Match` header.
        current: the thing's tag, without quotes.

    Raises:
        PreconditionError: `if_match.missing`.
        StaleError: `if_match.stale`.
        BadRequestError: `if_match.malformed`.
    """
    if sent is None:
        raise PreconditionError(
            "if_match.missing",
            "say which version you mean",
            field="If-Match",
            hint="send its ETag as If-Match",
        )
    if sent.strip() == "*":
        return
    # A tag may hold a comma: they are taken one by one, not split.
    if not _TAGS.fullmatch(sent.strip()):
        raise BadRequestError("if_match.malformed", 'If-Match is "TAG", or *', field="If-Match")
    # A weak tag never matches: RFC 9110 §13.1.1.
    if current not in [found[2] for found in _TAG.finditer(sent) if found[1] is None]:
        raise StaleError("if_match.stale", "it was changed since you read it", hint="read it again")


def tag(version: int | str) -> str:
    """An `ETag`."""
    return f'"{version}"'

"""The platform's own people, and their tokens."""

from __future__ import annotations

from fastapi import APIRouter

from api.calls import Changing, Looking, Making, Pages, page_token
from api.schemas.common import Page, Reference
from api.schemas.people import OperatorIn, OperatorTokenIn, TokenMadeOut, TokenOut, UserOut
from api.token_making import make_token
from orchestrator.controller import people, tokens
from orchestrator.controller.caller import Caller
from orchestrator.controller.people import NewPrincipal
from orchestrator.store.unit_of_work import Reader, UnitOfWork

router = APIRouter(prefix="/v1/operators", tags=["operators"])


@router.get("", operation_id="list_operators")
def list_operators(ask: Looking, pages: Pages) -> Page[UserOut]:
    """List the platform's own people."""

    def work(tx: Reader, _caller: Caller) -> Page[UserOut]:
        found, after = people.page(tx, None, pages)
        return Page(items=[UserOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("", operation_id="create_operator", status_code=201)
def create_operator(ask: Making, body: OperatorIn) -> UserOut:
    """Let somebody in as one of the platform's."""
    wanted = NewPrincipal(body.name, body.kind, tuple(body.roles), body.issuer, body.subject)
    return ask.make(
        lambda tx, _caller, _operation: UserOut.of(people.create(tx, None, wanted)),
        lambda tx, _caller, made: UserOut.of(people.get(tx, None, made.subject_id)),
        identify=lambda made: made.id,
    )


@router.delete("/{operator}", operation_id="delete_operator", status_code=204)
def delete_operator(ask: Changing, operator: Reference) -> None:
    """Shut somebody out at once, tokens and all."""
    ask.change(lambda tx, _caller: people.remove(tx, None, operator))


@router.get("/{operator}/tokens", operation_id="list_operator_tokens")
def list_operator_tokens(ask: Looking, operator: Reference, pages: Pages) -> Page[TokenOut]:
    """List the tokens of one of the platform's people."""

    def work(tx: Reader, caller: Caller) -> Page[TokenOut]:
        owner = people.get(tx, None, operator)
        found, after = tokens.page(tx, caller, None, pages, owner=owner.id)
        return Page(items=[TokenOut.of(each) for each in found], next_page_token=page_token(after))

    return ask.look(work)


@router.post("/{operator}/tokens", operation_id="create_operator_token", status_code=201)
def create_operator_token(ask: Making, operator: Reference, body: OperatorTokenIn) -> TokenMadeOut:
    """Make a token of one of the platform's people; its text is shown this once."""

    return make_token(ask, body, lambda tx, _caller: people.get(tx, None, operator))


@router.delete("/{operator}/tokens/{token}", operation_id="delete_operator_token", status_code=204)
def delete_operator_token(ask: Changing, operator: Reference, token: Reference) -> None:
    """Stop a token at once."""

    def work(tx: UnitOfWork, _caller: Caller) -> None:
        people.revoke(tx, people.get(tx, None, operator), token)

    ask.change(work)

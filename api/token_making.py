"""How a token is made, for tenants' people and operators alike."""

from __future__ import annotations

from collections.abc import Callable

from api.calls import Asking
from api.fresh_secrets import FreshToken
from api.schemas.people import OperatorTokenIn, TokenMadeOut
from orchestrator.controller import people, tokens
from orchestrator.controller.caller import Caller
from orchestrator.controller.idempotency import Made
from orchestrator.controller.people import NewToken
from orchestrator.model.principal import Principal
from orchestrator.store.unit_of_work import Reader, UnitOfWork


def make_token(
    ask: Asking, body: OperatorTokenIn, owner: Callable[[UnitOfWork, Caller], Principal]
) -> TokenMadeOut:
    """Make a token of whom `owner` finds; its text leaves with this answer and with no other.

    Raises:
        ForbiddenError: `token.scopes`.
    """
    fresh = FreshToken.draw(ask.control.pepper)
    wanted = NewToken(fresh.key_id, fresh.secret_hash, body.name, tuple(body.scopes), body.days)

    def work(tx: UnitOfWork, caller: Caller, _operation: str) -> TokenMadeOut:
        tokens.check_scopes(caller, body.scopes)
        # A token that is not kept opens nothing; showing it would only mislead.
        shown = None if ask.dry_run else fresh.text
        return TokenMadeOut.made(people.add_token(tx, owner(tx, caller), wanted), shown)

    def again(tx: Reader, caller: Caller, made: Made) -> TokenMadeOut:
        tenant = None if caller.tenant is None else caller.tenant.id
        return TokenMadeOut.made(tokens.get(tx, caller, tenant, made.subject_id), None)

    return ask.make(work, again, identify=lambda made: made.key_id)

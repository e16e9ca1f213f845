"""Users, service accounts, operators and their tokens."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from api.schemas.common import In, Name, Out, Reference, Whole, at, maybe_at
from orchestrator.controller.caller import Caller
from orchestrator.controller.people import MAX_TOKEN_DAYS
from orchestrator.model.principal import Principal, Token

TenantRole = Literal["tenant-admin", "member", "auditor"]
PlatformRole = Literal["operator", "auditor"]
Scope = Literal["read", "write", "admin", "audit"]
#: Of an OIDC token; printable, since it stands in logs.
Claim = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]+$", max_length=255)]
_Roles = Field(min_length=1, max_length=3)


class _Claims(In):
    """Whom an identity provider may vouch for; both parts or none."""

    model_config = ConfigDict(
        json_schema_extra={"dependentRequired": {"issuer": ["subject"], "subject": ["issuer"]}}
    )
    issuer: Claim = ""
    subject: Claim = ""


class UserIn(_Claims):
    """Somebody to be let into a tenant."""

    name: Name
    kind: Literal["user", "service"] = "user"
    roles: Annotated[list[TenantRole], _Roles]


class OperatorIn(_Claims):
    """Somebody to be let in as one of the platform's."""

    name: Name
    kind: Literal["user", "service"] = "user"
    roles: Annotated[list[PlatformRole], _Roles]


class RolesIn(In):
    """All roles that somebody has from now on."""

    roles: Annotated[list[TenantRole], _Roles]


class UserOut(Out):
    """Somebody who may ask; `tenant_id` null is one of the platform's."""

    id: str
    tenant_id: str | None
    kind: str
    name: str
    roles: list[str]
    issuer: str
    subject: str
    created_at: str

    @classmethod
    def of(cls, who: Principal) -> UserOut:
        """From its value."""
        return cls(
            id=who.id,
            tenant_id=who.tenant_id,
            kind=who.kind,
            name=who.name,
            roles=list(who.roles),
            issuer=who.issuer,
            subject=who.subject,
            created_at=at(who.created_ms),
        )


def roles_tag(who: Principal) -> str:
    """The version of somebody's roles, for `ETag`: they are their own version."""
    return hashlib.sha256("\n".join(sorted(who.roles)).encode()).hexdigest()[:16]


class OperatorTokenIn(In):
    """A token to be made."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)]
    days: Whole = Field(default=90, ge=1, le=MAX_TOKEN_DAYS)


class TokenIn(OperatorTokenIn):
    """A token to be made; without a user it is the caller's own."""

    user: Reference | None = None


class TokenOut(Out):
    """A token as it is kept: never its secret."""

    key_id: str
    user_id: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str
    revoked_at: str | None

    @classmethod
    def of(cls, token: Token) -> TokenOut:
        """From its value."""
        return cls(**_token(token))


class TokenMadeOut(TokenOut):
    """A token just made. `token` is shown this once; null when the same call was answered before."""

    token: str | None

    @classmethod
    def made(cls, token: Token, shown: str | None) -> TokenMadeOut:
        """From its value and its text."""
        return cls(**_token(token), token=shown)


class WhoamiOut(Out):
    """Who asks, and what the token shown may be used for."""

    id: str
    kind: str
    name: str
    tenant_id: str | None
    roles: list[str]
    scopes: list[str]
    key_id: str | None

    @classmethod
    def of(cls, caller: Caller) -> WhoamiOut:
        """From the caller."""
        who = caller.principal
        return cls(
            id=who.id,
            kind=who.kind,
            name=who.name,
            tenant_id=who.tenant_id,
            roles=list(who.roles),
            scopes=sorted(caller.scopes),
            key_id=caller.actor.token or None,
        )


def _token(token: Token) -> dict[str, object]:
    return {
        "key_id": token.key_id,
        "user_id": token.principal_id,
        "name": token.name,
        "scopes": list(token.scopes),
        "created_at": at(token.created_ms),
        "expires_at": at(token.expires_ms),
        "revoked_at": maybe_at(token.revoked_ms),
    }

"""People and programs that may ask for things, and the tokens they show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """A user or service account; `tenant_id` None is the platform's own.

    Args:
        kind: `user` or `service`.
        roles: names of `orchestrator.access.roles`.
        issuer, subject: what an OIDC token must say to be this principal; empty for tokens only.
    """

    id: str
    tenant_id: str | None
    kind: str
    name: str
    roles: tuple[str, ...]
    issuer: str
    subject: str
    disabled: bool
    created_ms: int


@dataclass(frozen=True)
class Token:
    """An API token as it is kept: never the secret, only its keyed hash."""

    key_id: str
    principal_id: str
    name: str
    scopes: tuple[str, ...]
    secret_hash: bytes
    created_ms: int
    expires_ms: int
    revoked_ms: int | None

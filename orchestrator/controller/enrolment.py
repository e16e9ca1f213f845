"""How a host's agent comes in: once by a join token, from then on by a certificate that is renewed in time.

A certificate counts while its row says so: a fenced host's rows are revoked, whatever the certificate says.
Called by the public API (enrol) and the agents' API (who is this, renew).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import ssl
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, bindparam, select, update

from orchestrator.controller.authority import Authority, HostCertificate, host_of
from orchestrator.model.errors import UnauthenticatedError
from orchestrator.model.join_token import parse_join_token
from orchestrator.model.states import HostState
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.keys import HostCertificateRow, JoinTokenRow
from orchestrator.store.tables.tenants import DeploymentRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TOKENS, _CERTIFICATES = table_of(JoinTokenRow), table_of(HostCertificateRow)
_HOSTS, _DEPLOYMENT = table_of(HostRow), table_of(DeploymentRow)

#: States in which no certificate counts, whatever its own row says.
_SHUT_OUT = (HostState.FENCED, HostState.REMOVED)


@dataclass(frozen=True)
class Enrolled:
    """What a host is told when it comes in."""

    host_id: str
    deployment: str
    certificate_pem: str


def enrol(tx: UnitOfWork, authority: Authority, token: str, csr_pem: str) -> Enrolled:
    """Let one host in; its token works once.

    Whoever had this host's certificates before has none that counts any more: an operator who gives a token
    for a host that was in means another machine, or the same one set up anew. A fenced host is let in again.

    Raises:
        UnauthenticatedError: `join_token.invalid`: unknown, wrong, used, expired, or of another deployment;
            all look the same.
        InvalidInputError: `csr.*`: the token stays good.
    """
    shown = parse_join_token(token)
    row = tx.first(select(_TOKENS).where(_TOKENS.c.id == shown.id))
    given = hashlib.sha256(shown.secret).digest()
    ours = shown.ca_fingerprint == authority.fingerprint
    proven = row is not None and hmac.compare_digest(given, row.secret_hash)
    if row is None or not (ours and proven) or row.expires_ms <= tx.now_ms:
        raise _refused()
    used = tx.execute(
        update(_TOKENS)
        .where(_TOKENS.c.id == row.id, _TOKENS.c.used_ms.is_(None))
        .values(used_ms=tx.now_ms)
        .returning(_TOKENS.c.host_id)
    ).scalar()
    if used is None:
        raise _refused()
    revoked = revoke(tx, row.host_id)
    begin_anew(tx, row.host_id)
    certificate = _sign(tx, authority, row.host_id, csr_pem)
    details = {"join_token": row.id, "certificates_revoked": revoked}
    tx.record("host.enrol", ("host", row.host_id), tenant=None, details=details)
    deployment = tx.scalar(select(_DEPLOYMENT.c.id))
    return Enrolled(row.host_id, str(deployment), certificate)


def begin_anew(tx: UnitOfWork, host_id: str) -> None:
    """Let a fenced host come in again, perhaps as another machine: what its doctor said counts for nothing.

    The caller records it.
    """
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host_id, _HOSTS.c.state == HostState.FENCED)
        .values(
            state=HostState.ENROLLING,
            reason="",
            doctor=None,
            doctor_asked_ms=None,
            generation=_HOSTS.c.generation + 1,
        )
    )


def renew(tx: UnitOfWork, authority: Authority, host_id: str, csr_pem: str) -> str:
    """Give a known host its next certificate; the present one keeps working until it ends.

    Raises:
        UnauthenticatedError: `certificate.revoked`: it was fenced or removed meanwhile.
        InvalidInputError: `csr.*`.
    """
    state = tx.scalar(select(_HOSTS.c.state).where(_HOSTS.c.id == host_id).with_for_update())
    if state in (None, *_SHUT_OUT):
        raise _out()
    certificate = _sign(tx, authority, host_id, csr_pem)
    tx.record("host.renew", ("host", host_id), tenant=None)
    return certificate


def asking(*more: Any) -> Select[Any]:
    """The statement that asks whether a certificate counts, with more columns of its host; written once."""
    return (
        select(_CERTIFICATES.c.host_id, _HOSTS.c.state, *more)
        .join(_HOSTS, _HOSTS.c.id == _CERTIFICATES.c.host_id)
        .where(
            _CERTIFICATES.c.fingerprint == bindparam("shown"),
            _CERTIFICATES.c.revoked_ms.is_(None),
            _CERTIFICATES.c.not_after_ms > bindparam("now_ms"),
        )
    )


#: Every call of every host asks this, or what `asking` makes of it.
_KNOWN = asking()


def known(tx: Reader, shown: HostCertificate, now_ms: int, asked: Select[Any] = _KNOWN) -> Row[Any]:
    """Return what was asked of the host whose certificate this is; TLS has checked who signed it.

    Args:
        shown: by `authority.host_of`.
        asked: made by `asking`.

    Raises:
        UnauthenticatedError: `certificate.revoked`.
    """
    row = tx.first(asked, {"shown": shown.fingerprint, "now_ms": now_ms})
    if row is None or row.host_id != shown.host or row.state in _SHUT_OUT:
        raise _out()
    return row


def revoke(tx: UnitOfWork, host_id: str) -> int:
    """Take back every certificate of a host; how many there were that counted.

    A poll that one of them opened is woken, looks, and is refused.
    """
    tx.wake(f"host:{host_id}")
    done = tx.execute(
        update(_CERTIFICATES)
        .where(_CERTIFICATES.c.host_id == host_id, _CERTIFICATES.c.revoked_ms.is_(None))
        .values(revoked_ms=tx.now_ms)
    )
    return int(done.rowcount)


def _sign(tx: UnitOfWork, authority: Authority, host_id: str, csr_pem: str) -> str:
    now = dt.datetime.fromtimestamp(tx.now_ms / 1000, dt.UTC)
    certificate = authority.sign_host(csr_pem, host_id, now)
    shown = host_of(_der(certificate))
    tx.add(
        HostCertificateRow,
        fingerprint=shown.fingerprint,
        host_id=host_id,
        not_after_ms=int(shown.not_after.timestamp() * 1000),
        issued_ms=tx.now_ms,
        revoked_ms=None,
    )
    return certificate


def _der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem)


def _out() -> UnauthenticatedError:
    return UnauthenticatedError(
        "certificate.revoked",
        "this certificate does not count any more",
        hint="an operator can let the host in again with a new join token",
    )


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError(
        "join_token.invalid",
        "the join token is not valid: unknown, used or expired",
        hint="make a new one: bulkhead host join-token NAME",
    )

"""Wrapped data keys, host certificates, join tokens: nothing here opens anything alone."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, blob, id_key, refers


class WrappedKeyRow(SQLModel, table=True):
    """A volume's data key under its tenant's key; deleting the row is what erases the volume."""

    __tablename__ = "wrapped_key"
    volume_id: str = Field(primary_key=True, foreign_key="volume.id", max_length=44)
    generation: int = big(primary_key=True)
    tenant_id: str = refers("tenant.id")
    key_version: int
    nonce: bytes = blob()
    ciphertext: bytes = blob()


class UserDataRow(SQLModel, table=True):
    """An instance's user data, sealed under a key of its own that its tenant's key wraps."""

    __tablename__ = "user_data"
    instance_id: str = Field(primary_key=True, foreign_key="instance.id", max_length=44)
    tenant_id: str = refers("tenant.id")
    key_version: int
    key_nonce: bytes = blob()
    key_ciphertext: bytes = blob()
    nonce: bytes = blob()
    ciphertext: bytes = blob()


class HostCertificateRow(SQLModel, table=True):
    """A certificate that a host may show; the newest is not the only one while it is renewed."""

    __tablename__ = "host_certificate"
    #: SHA-256 of the DER form, hex.
    fingerprint: str = Field(primary_key=True, max_length=64)
    host_id: str = refers("host.id")
    not_after_ms: int = big()
    issued_ms: int = big()
    revoked_ms: int | None = big(None, nullable=True)
    #: What was said of its end: nothing, `ending` or `ended`.
    told: str = Field(default="", max_length=8)


class JoinTokenRow(SQLModel, table=True):
    """A single-use token that lets one host enrol."""

    __tablename__ = "join_token"
    id: str = id_key()
    host_id: str = refers("host.id")
    secret_hash: bytes = blob()
    expires_ms: int = big()
    used_ms: int | None = big(None, nullable=True)

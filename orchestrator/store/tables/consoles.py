"""Console tickets, and streams that a host is to dial. Both live for seconds, and are swept away after."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, blob, id_key, refers


class ConsoleTicketRow(SQLModel, table=True):
    """A one-time ticket for one instance's console; the secret is shown once and kept nowhere."""

    __tablename__ = "console_ticket"
    id: str = id_key()
    tenant_id: str = refers("tenant.id")
    instance_id: str = refers("instance.id")
    principal_id: str = Field(max_length=44)
    #: The token that its maker showed; empty for one whom an identity provider vouches for.
    token_id: str = Field(max_length=44)
    secret_hash: bytes = blob()
    expires_ms: int = big(index=True)
    used_ms: int | None = big(None, nullable=True)


class StreamOrderRow(SQLModel, table=True):
    """A stream that somebody waits for and its host has not dialled yet; dialling deletes it."""

    __tablename__ = "stream_order"
    id: str = id_key()
    tenant_id: str = refers("tenant.id")
    instance_id: str = refers("instance.id")
    host_id: str = refers("host.id")
    kind: str = Field(max_length=16)
    last_bytes: int
    request_id: str = Field(max_length=64)
    #: Where the controller that holds the other end listens for agents; empty is where they poll.
    url: str = Field(max_length=512)
    expires_ms: int = big(index=True)

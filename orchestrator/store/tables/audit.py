"""The audit log: one gapless stream per tenant plus `platform`; rows are never changed (triggers refuse)."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big, blob


class AuditStreamRow(SQLModel, table=True):
    """The counter of one stream, moved in the transaction that writes the records."""

    __tablename__ = "audit_stream"
    id: str = Field(primary_key=True, max_length=44)
    next_seq: int = big(0)


class AuditRecordRow(SQLModel, table=True):
    """One record: exact bytes, salt and the commitment over both (docs and `orchestrator.audit`)."""

    __tablename__ = "audit_record"
    stream: str = Field(primary_key=True, max_length=44)
    seq: int = big(primary_key=True)
    at_ms: int = big(index=True)
    kind: str = Field(max_length=63)
    subject_id: str = Field(max_length=44, index=True)
    salt: bytes = blob()
    body: bytes = blob()
    commitment: bytes = blob()

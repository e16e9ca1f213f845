"""Leases of the loops, and the rate limits' memory."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from orchestrator.store.tables.columns import big


class LeaseRow(SQLModel, table=True):
    """Who runs a loop now. The fence grows with each holder, and every write of a loop names it."""

    __tablename__ = "lease"
    name: str = Field(primary_key=True, max_length=63)
    owner: str = Field(max_length=63)
    until_ms: int = big()
    fence: int = big()


class RateBucketRow(SQLModel, table=True):
    """A token bucket as it was last written behind; thousandths of a call."""

    __tablename__ = "rate_bucket"
    id: str = Field(primary_key=True, max_length=63)
    level_milli: int = big()
    at_ms: int = big()

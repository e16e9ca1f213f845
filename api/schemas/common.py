"""Parts that all schemas share: names, references, texts, times, pages. Bounds stand here once.

`In` is what may be sent: whatever is unknown, too long or out of range is refused whole. `Out` is what comes
back. Pure.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from orchestrator.model.errors import InvalidInputError

T = TypeVar("T")


def _whole(sent: object) -> object:
    return int(sent) if isinstance(sent, float) and sent.is_integer() and abs(sent) < 2**53 else sent


#: Names hold no underscore and ids hold one, so that one text means either (`store.rows`).
NAME_PATTERN = r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=63)]
#: A name or an id, in a path or a field.
Reference = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", max_length=63)]
#: A GPU's vendor and device, as PCI numbers them.
PCI_MODEL = r"^[0-9a-f]{4}:[0-9a-f]{4}$"
#: One line for people: no control characters, and something to read.
Reason = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$", max_length=400)
]
#: Anything but what a database or a terminal cannot bear; tabs and line ends are text.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]
#: A whole number, however it is spelled: to JSON, 1.0 is one. Neither true nor "1" is.
Whole = Annotated[int, BeforeValidator(_whole)]
#: As many as nobody will ever have, and far from any overflow.
Amount = Annotated[int, Field(ge=0, le=10**9), BeforeValidator(_whole)]
#: How long something may take: a week at most.
Seconds = Annotated[int, Field(ge=1, le=7 * 86_400), BeforeValidator(_whole)]


class RuleError(InvalidInputError, ValueError):
    """A rule between fields is broken; a value error, since that is what a schema may raise."""


class In(BaseModel):
    """Something sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Out(BaseModel):
    """Something answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Out, Generic[T]):
    """Some of a list, oldest first; `next_page_token` fetches what follows, null says that this was all."""

    items: list[T]
    next_page_token: str | None


class ReasonIn(In):
    """Why an operator does something that others will ask about."""

    reason: Reason


class ErrorOut(Out):
    """What went wrong, as a part of something else."""

    code: str
    message: str
    retryable: bool
    hint: str | None = None

    @classmethod
    def of(cls, error: object) -> ErrorOut | None:
        """What of an error's JSON form is for everybody."""
        if not isinstance(error, dict):
            return None
        hint = error.get("hint")
        return cls(
            code=str(error.get("code", "")),
            message=str(error.get("message", "")),
            retryable=bool(error.get("retryable")),
            hint=None if hint is None else str(hint),
        )


class FieldProblemOut(Out):
    """What is wrong with one field."""

    field: str
    code: str
    message: str


class ProblemOut(BaseModel):
    """An error as RFC 9457 says it."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: bool
    request_id: str
    field: str | None = None
    hint: str | None = None
    errors: list[FieldProblemOut] = Field(default_factory=list)


def at(ms: int) -> str:
    """A time as RFC 3339 with milliseconds, in UTC."""
    moment = dt.datetime.fromtimestamp(ms // 1000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def maybe_at(ms: int | None) -> str | None:
    """A time that may not have come."""
    return None if ms is None else at(ms)

"""The one error tree: every failure Bulkhead reports is a `BulkheadError`.

A code is stable for ever, dotted, and says the noun first (`device.bind_timeout`). Foreign errors are
translated where they arise (`raise DeviceError(...) from exc`) and keep their cause. Whoever shows an error
prints `explain()`.
"""

from __future__ import annotations

from typing import ClassVar


class BulkheadError(Exception):
    """A failure with a code, a sentence for people and a next step.

    Args:
        code: stable dotted code, noun first.
        message: one sentence: what was wrong, with the values that show it. Never a secret.
        field: where in the input it stands (`instances[0].cpus.vcpus[1].host_cpu`), if input is to blame.
        hint: what to do next, if there is something to do.
    """

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint

    def explain(self) -> str:
        """Say it on one or two lines for a terminal."""
        where = f" at {self.field}" if self.field else ""
        then = f"\n  next: {self.hint}" if self.hint else ""
        return f"{self.code}{where}: {self.message}{then}"

    def as_dict(self) -> dict[str, object]:
        """Return the JSON form used in reports and problem documents."""
        found: dict[str, object] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        if self.field is not None:
            found["field"] = self.field
        if self.hint is not None:
            found["hint"] = self.hint
        return found

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


class InvalidInputError(BulkheadError):
    """The input is wrong; nothing was changed."""

    http_status = 422
    exit_code = 2


class FencedError(BulkheadError):
    """An older or foreign order was refused; nothing was changed.

    Args:
        held_generation: of what is here, or up to which it was removed, where that is why.
    """

    http_status = 409
    exit_code = 5

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        held_generation: int | None = None,
    ) -> None:
        super().__init__(code, message, field=field, hint=hint)
        self.held_generation = held_generation


class ConflictError(BulkheadError):
    """What exists contradicts what was asked for."""

    http_status = 409
    exit_code = 5


class NotFoundError(BulkheadError):
    """The named thing does not exist."""

    http_status = 404
    exit_code = 3


class CapacityError(BulkheadError):
    """The host has not enough of something, now."""

    http_status = 507
    exit_code = 6


class HostError(BulkheadError):
    """The host or one of its services failed; trying again may work."""

    http_status = 503
    exit_code = 8
    retryable = True


class DeviceError(HostError):
    """A device did not do what it was told; it must not reach a tenant until it is looked at."""

    retryable = False


class EvidenceError(HostError):
    """What runs is not what was ordered: isolation is not proven, so the instance must not be used."""

    retryable = False


class UnauthenticatedError(BulkheadError):
    """Nobody knows who asks; nothing was changed and nothing is told."""

    http_status = 401
    exit_code = 4


class ForbiddenError(BulkheadError):
    """Whoever asks may not do this; nothing was changed."""

    http_status = 403
    exit_code = 4


class QuotaError(BulkheadError):
    """The tenant would use more than it may; nothing was changed."""

    http_status = 409
    exit_code = 6


class StaleError(BulkheadError):
    """The thing was changed since it was read; nothing was changed now."""

    http_status = 412
    exit_code = 5


class TooLargeError(BulkheadError):
    """More was sent than is read; nothing was changed."""

    http_status = 413
    exit_code = 2


class PreconditionError(BulkheadError):
    """A change must say which version of the thing it means, and did not."""

    http_status = 428
    exit_code = 2


class RateLimitedError(BulkheadError):
    """Too many calls; the same call works a little later.

    Args:
        retry_after_s: when to try again, in whole seconds from now.
    """

    http_status = 429
    exit_code = 6
    retryable = True

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        retry_after_s: int = 1,
    ) -> None:
        super().__init__(code, message, field=field, hint=hint)
        self.retry_after_s = retry_after_s


class KeysError(HostError):
    """A key cannot be used, or not safely; no data was opened with it."""

    retryable = False

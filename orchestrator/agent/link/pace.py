"""How often an agent speaks and looks, and how it slows down while nobody answers. Values without a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Seconds between things.

    Args:
        poll_wait_s: how long the controller may hold a poll.
        look_s: between two looks at a host that is as ordered.
        heartbeat_s: between two signs of life.
        retry_first_s: before the first try after a failure; each further one waits twice as long.
        retry_longest_s: and never longer than this.
        doctor_s: between two examinations of the host by its doctor.
        doctor_tell_s: so long after it was said last, what the doctor found is said again unchanged.
        doctor_limit_s: an examination that takes longer has failed.
    """

    poll_wait_s: float = 25.0
    look_s: float = 30.0
    heartbeat_s: float = 10.0
    retry_first_s: float = 0.5
    retry_longest_s: float = 30.0
    doctor_s: float = 3600.0
    doctor_tell_s: float = 6 * 3600.0
    doctor_limit_s: float = 180.0


class Backoff:
    """Doubling delays with jitter, so that a thousand agents do not come back in one instant.

    Args:
        pace: first and longest delay.
        jitter: a number from 0 to 1, drawn anew each time; the delay is half to all of the doubled one.
    """

    def __init__(self, pace: Pace, jitter: Callable[[], float]) -> None:
        self._pace = pace
        self._jitter = jitter
        self._failures = 0

    def after_failure(self) -> float:
        """Return how long to wait now, in seconds."""
        # 2**30 times half a second is a lifetime: more doublings only make large numbers.
        doubled = self._pace.retry_first_s * float(1 << min(self._failures, 30))
        self._failures += 1
        return min(doubled, self._pace.retry_longest_s) * (0.5 + 0.5 * self._jitter())

    def reset(self) -> None:
        """It worked: the next failure starts anew."""
        self._failures = 0

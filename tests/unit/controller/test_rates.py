"""Rate limits: exact in one process, remembered over a restart, shared within a second. On both databases."""

from __future__ import annotations

import pytest

from orchestrator.controller.rates import Rate, RateLimits, sweep
from orchestrator.model.errors import RateLimitedError

TEN = Rate(per_s=10, burst=20)


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def allowed(limits: RateLimits, tries: int, name: str = "token:a") -> int:
    done = 0
    for _ in range(tries):
        try:
            limits.take(name, TEN)
        except RateLimitedError:
            continue
        done += 1
    return done


def test_a_burst_then_the_rate(store, clock):
    limits = RateLimits(store, clock=clock)
    assert allowed(limits, 50) == 20
    clock.now_ms += 1000
    assert allowed(limits, 50) == 10
    assert allowed(limits, 5, "token:b") == 5


def test_the_refusal_says_when(store, clock):
    limits = RateLimits(store, clock=clock)
    allowed(limits, 20)
    with pytest.raises(RateLimitedError) as told:
        limits.take("token:a", TEN)
    assert told.value.retry_after_s == 1


def test_a_restart_forgets_nothing_that_was_written(store, clock):
    first = RateLimits(store, clock=clock)
    allowed(first, 20)
    first.write_behind()
    assert allowed(RateLimits(store, clock=clock), 50) == 0


def test_two_controllers_share_a_bucket_within_a_write(store, clock):
    one, two = RateLimits(store, clock=clock), RateLimits(store, clock=clock)
    assert allowed(one, 8) == 8
    assert allowed(two, 8) == 8
    one.write_behind()
    two.write_behind()
    assert allowed(two, 50) == 4
    two.write_behind()
    # The one has not written since, so it learns of it with its next call and write.
    allowed(one, 1)
    one.write_behind()
    assert allowed(one, 50) == 0


def test_a_clock_that_jumps_back_gives_nothing(store, clock):
    limits = RateLimits(store, clock=clock)
    allowed(limits, 20)
    clock.now_ms -= 60_000
    assert allowed(limits, 5) == 0


def test_full_buckets_are_forgotten_everywhere(store, clock):
    limits = RateLimits(store, clock=clock)
    allowed(limits, 3)
    limits.write_behind()
    clock.now_ms += 10_000
    limits.write_behind()
    assert limits._buckets == {}
    sweep(store, clock.now_ms + 4_000_000)
    assert allowed(limits, 50) == 20

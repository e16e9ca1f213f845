"""What this process tells Prometheus: requests by operation and status, their times, how many are open.

Labels are bounded: operation ids of the action table and statuses, never a tenant. Who may read it is the
app's to check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()
_REQUESTS = Counter("bulkhead_requests", "Requests answered", ("operation", "status"), registry=REGISTRY)
_TOOK = Histogram("bulkhead_request_seconds", "How long requests took", ("operation",), registry=REGISTRY)
_OPEN = Gauge("bulkhead_requests_open", "Requests being answered, streams included", registry=REGISTRY)
_THINGS = Gauge("bulkhead_things", "Things by state", ("kind", "state"), registry=REGISTRY)


def count(operation: str, status: int, took_s: float) -> None:
    """Count one answered request."""
    _REQUESTS.labels(operation, str(status)).inc()
    _TOOK.labels(operation).observe(took_s)


@contextlib.contextmanager
def in_flight() -> Iterator[None]:
    """Count a request as open."""
    _OPEN.inc()
    try:
        yield
    finally:
        _OPEN.dec()


def written(counts: dict[tuple[str, str], int]) -> bytes:
    """Everything in Prometheus' text format.

    Args:
        counts: how many things of each kind are in each state now.
    """
    _THINGS.clear()
    for (kind, state), number in counts.items():
        _THINGS.labels(kind, state).set(number)
    return generate_latest(REGISTRY)

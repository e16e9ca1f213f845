"""A thousand hosts that poll: how soon an instance runs, and what the controller holds meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.bench.controller import cluster
from tests.bench.controller.cluster import Cluster
from tests.bench.controller.measuring import FOUND, Found

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3000)]

#: Fewer while working on the bench itself; figures are of a thousand.
HOSTS = int(os.environ.get("BULKHEAD_BENCH_HOSTS", "1000"))
#: What starting a VM takes on a simulated host; each create starts one.
START_S = 0.2
CREATES = 40
ABOVE_MS_WANTED = 50.0
THREADS_WANTED = 60


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("fleet")
    with cluster.running(folder, "", HOSTS, {"start": START_S}) as made:
        yield made


def test_agents_that_poll_hold_no_thread_each(fleet: Cluster):
    threads = fleet.controller.threads()
    FOUND.append(
        Found(f"threads with {HOSTS} polling agents", f"{threads}", wanted=f"below {THREADS_WANTED}")
    )
    FOUND.append(Found(f"memory with {HOSTS} polling agents", f"{fleet.controller.rss_mib():.0f} MiB"))
    assert all(host.running for host in fleet.fleet.hosts)
    assert threads < THREADS_WANTED


def test_from_accepted_to_running(fleet: Cluster):
    client = fleet.client()
    took_ms = []
    used = fleet.controller.cpu_s()
    for number in range(CREATES):
        operation = client.create(f"soon-{number}")
        accepted = time.monotonic()
        client.over(operation)
        took_ms.append((time.monotonic() - accepted - START_S) * 1000)
    used = (fleet.controller.cpu_s() - used) / CREATES * 1000
    p50, p95 = statistics.median(took_ms), statistics.quantiles(took_ms, n=20)[-1]
    FOUND.append(
        Found(
            f"accepted to running on {HOSTS} idle hosts, p50 above the simulated {START_S * 1000:.0f} ms",
            f"{p50:.0f} ms",
            wanted=f"at most {ABOVE_MS_WANTED:.0f} ms",
        )
    )
    FOUND.append(Found("the same, p95", f"{p95:.0f} ms"))
    FOUND.append(Found("processor time of the controller for one", f"{used:.0f} ms"))

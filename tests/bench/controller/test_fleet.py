"""A thousand hosts that poll: how soon an instance runs, and what the controller holds meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.controller import cluster
from tests.bench.controller.cluster import GPUS, Cluster, Tenant
from tests.bench.controller.measuring import FOUND, Found, durable_ms, own_cpu_s

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3000)]

#: Fewer while working on the bench itself; figures are of a thousand.
HOSTS = int(os.environ.get("BULKHEAD_BENCH_HOSTS", "1000"))
#: What starting a VM takes on a simulated host; each create starts one.
START_S = 0.2
CREATES = 40
ABOVE_MS_WANTED = 50.0
#: First reports are taken in, then nothing is asked for.
SETTLE_S, IDLE_S = 10.0, 30.0
#: From one create and delete to the next.
REST_S = 0.5
THREADS_WANTED = 60


@dataclass(frozen=True)
class Background:
    """Shares of a core."""

    controller: float
    fleet: float


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


@pytest.fixture(scope="module")
def background(fleet: Cluster) -> Background:
    """What polls and heartbeats take while nothing else is asked."""
    time.sleep(SETTLE_S)
    began, ours, theirs = time.monotonic(), fleet.controller.cpu_s(), own_cpu_s()
    time.sleep(IDLE_S)
    took_s = time.monotonic() - began
    return Background((fleet.controller.cpu_s() - ours) / took_s, (own_cpu_s() - theirs) / took_s)


def test_what_agents_that_poll_take_of_a_core(fleet: Cluster, background: Background):
    FOUND.append(
        Found(
            f"processor of the controller with {HOSTS} polling agents",
            f"{background.controller:.1%} of a core",
        )
    )
    assert all(host.running for host in fleet.fleet.hosts)


def above_ms(client: Tenant, name: str) -> float:
    """Create an instance; return the time from accepted to running, less what is simulated."""
    operation = client.create(name)
    accepted = time.monotonic()
    client.over(operation)
    return (time.monotonic() - accepted - START_S) * 1000


def test_from_accepted_to_running_on_an_idle_fleet(fleet: Cluster, background: Background):
    client = fleet.client()
    took_ms = []
    for number in range(CREATES):
        took_ms.append(above_ms(client, f"idle-{number}"))
        client.over(client.delete(f"idle-{number}"))
        # The next one finds all idle again: the host looks once more when its order is over.
        time.sleep(REST_S)
    FOUND.append(
        Found(
            f"accepted to running on {HOSTS} idle hosts, p50 above the simulated {START_S * 1000:.0f} ms",
            f"{statistics.median(took_ms):.0f} ms",
            wanted=f"at most {ABOVE_MS_WANTED:.0f} ms",
        )
    )
    FOUND.append(_spread(took_ms))


def _spread(took_ms: list[float]) -> Found:
    p95 = statistics.quantiles(took_ms, n=20)[-1]
    return Found("  the same, least, first, p95", f"{min(took_ms):.0f}, {took_ms[0]:.0f}, {p95:.0f} ms")


def test_from_accepted_to_running_while_hosts_fill(fleet: Cluster, background: Background, tmp_path: Path):
    client = fleet.client()
    began, ours, theirs = time.monotonic(), fleet.controller.cpu_s(), own_cpu_s()
    took_ms = [above_ms(client, f"soon-{number}") for number in range(CREATES)]
    took_s = time.monotonic() - began
    ours = fleet.controller.cpu_s() - ours - background.controller * took_s
    theirs = own_cpu_s() - theirs - background.fleet * took_s
    load = os.getloadavg()[0]
    # Each VM that a host has is examined with each change there.
    what = f"the same while first fit fills hosts with {GPUS} VMs each"
    FOUND.append(Found(what, f"{statistics.median(took_ms):.0f} ms"))
    FOUND.append(_spread(took_ms))
    FOUND.append(Found("  processor time of the controller for one", f"{ours / CREATES * 1000:.0f} ms"))
    FOUND.append(
        Found("  of the simulated fleet and the client for one", f"{theirs / CREATES * 1000:.0f} ms")
    )
    FOUND.append(Found("  one durable write on this disk", f"{durable_ms(tmp_path):.1f} ms"))
    FOUND.append(Found("  load of the machine meanwhile", f"{load:.1f} on {os.cpu_count()} cores"))

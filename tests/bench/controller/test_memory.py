"""What the controller keeps of instances: its memory, read from the kernel, as they come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.processes import heap
from tests.bench.controller import cluster
from tests.bench.controller.cluster import Cluster, T
from tests.bench.controller.measuring import FOUND, Found

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3000)]

#: As many GPUs as instances that run at once, and some more.
HOSTS, FIRST, MANY, AT_ONCE = 130, 100, 1000, 8
KIB_EACH_WANTED, MIB_KEPT_WANTED = 20.0, 10.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster.running(tmp_path_factory.mktemp("memory"), "", HOSTS, {}) as made:
        yield made


def _all(fleet: Cluster, names: list[str], *, delete: bool) -> None:
    """Create or delete all of these, and wait until each is over."""

    def some(mine: list[str]) -> None:
        client = fleet.client()
        begun = [
            str(client.ask("DELETE", f"{T}/instances/{name}")["id"]) if delete else client.create(name)
            for name in mine
        ]
        for operation in begun:
            client.over(operation)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(some, [names[at::AT_ONCE] for at in range(AT_ONCE)]))


def test_memory_as_instances_come_and_go(fleet: Cluster):
    levels = []
    for count, lead in ((FIRST, "first"), (MANY, "many")):
        names = [f"{lead}-{number}" for number in range(count)]
        for delete in (False, True):
            _all(fleet, names, delete=delete)
            time.sleep(heap.GIVE_BACK_S + 5)
            levels.append(fleet.controller.rss_mib())
    first, running, after = levels[1], levels[2], levels[3]
    each_kib, kept_mib = (running - first) * 1024 / MANY, after - first
    FOUND.append(
        Found(
            f"memory for each of {MANY} running instances",
            f"{each_kib:.1f} KiB",
            wanted=f"at most {KIB_EACH_WANTED:.0f} KiB",
        )
    )
    FOUND.append(
        Found(
            f"memory after {MANY} came and went, above that after {FIRST}",
            f"{kept_mib:.1f} MiB",
            f"{first:.0f} MiB",
            wanted=f"at most {MIB_KEPT_WANTED:.0f} MiB",
        )
    )
    assert each_kib <= KIB_EACH_WANTED
    assert kept_mib <= MIB_KEPT_WANTED

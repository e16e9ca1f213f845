"""Why there is no place: each reason by its code, how many hosts, how near, and the sentence for tenants."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.model.capacity import HostCapacity
from orchestrator.model.states import GpuState, HostState
from orchestrator.placement.first_fit import place
from orchestrator.placement.refusal import CODES, Refusal, Shortage
from tests.unit.placement.hosts import make_host, want


def refused(*hosts: HostCapacity, **fields: Any) -> Refusal:
    found = place(want(**fields), hosts)
    assert isinstance(found, Refusal), found
    return found


def busy(host: HostCapacity, **changes: Any) -> HostCapacity:
    return dataclasses.replace(host, **changes)


def cpus_taken(host: HostCapacity, *cpus: int) -> HostCapacity:
    return busy(host, taken=host.taken | {("cpu", str(cpu)) for cpu in cpus})


SMALL = make_host("a", nodes=1, cores=3, gpus=2)
SMT = make_host("a", nodes=1, cores=3, threads=2)
PAIRS = {"threads_per_core": 2}


@pytest.mark.parametrize(
    ("host", "fields", "short"),
    [
        (SMALL, {"gpus": 3}, Shortage("gpu.short", 1, 3, 2, "GPUs")),
        (SMALL, {"gpus": 1, "gpu_model": "10de:2330"}, Shortage("gpu.model", 1, 1, 0, "GPU 10de:2330")),
        (SMALL, {"vcpus": 3}, Shortage("cpu.short", 1, 3, 2, "whole cores")),
        (SMT, {"vcpus": 6, **PAIRS}, Shortage("cpu.short", 1, 3, 2, "whole cores of 2 threads")),
        (SMALL, {"vcpus": 2, **PAIRS}, Shortage("cpu.short", 1, 1, 0, "whole core of 2 threads")),
        (SMALL, {"memory_mib": 802}, Shortage("memory.short", 1, 802, 800, "MiB in 2048 KiB pages")),
        (
            SMALL,
            {"memory_mib": 1024, "page_size_kib": 1048576},
            Shortage("memory.short", 1, 1024, 0, "MiB in 1048576 KiB pages"),
        ),
        (SMALL, {"page_size_kib": 4}, Shortage("memory.short", 1, 256, 0, "MiB in 4 KiB pages")),
        (SMALL, {"disk_gib": 1001}, Shortage("disk.short", 1, 1001, 1000, "GiB")),
        (busy(SMALL, state=HostState.DRAINED), {}, Shortage("host.cordoned", 1, 1, 0, "host")),
        (SMALL, {"pinned_host": "hst_z"}, Shortage("host.pinned", 1, 1, 0, "host")),
        (SMALL, {"isolation": "fabric"}, Shortage("isolation.unsupported", 1, 1, 0, "fabric")),
    ],
)  # fmt: skip
def test_each_reason(host: HostCapacity, fields: dict[str, Any], short: Shortage) -> None:
    refusal = refused(host, **fields)

    assert refusal.shortages == (short,)
    assert refusal.code == short.code


def test_gpu_of_the_model_that_is_busy_is_short_and_not_unknown() -> None:
    host = busy(SMALL, gpus=tuple(busy_gpu(gpu) for gpu in SMALL.gpus))

    assert refused(host, gpus=1, gpu_model="1234:1111").code == "gpu.short"
    assert refused(host, gpus=3, gpu_model="1234:1111").code == "gpu.model"


def busy_gpu(gpu: Any) -> Any:
    return dataclasses.replace(gpu, state=GpuState.EXPOSED)


def test_cores_and_memory_on_different_nodes_are_told() -> None:
    """Node 0 has the cores, node 1 the memory: both sums suffice and together nothing does."""
    host = cpus_taken(make_host("a", nodes=2, cores=3), 4, 5)
    host = busy(
        host,
        pages=tuple(dataclasses.replace(p, used=p.total if p.node == 0 else 0) for p in host.pages),
    )

    assert refused(host, vcpus=2).shortages == (
        Shortage("cpu.short", 1, 2, 0, "whole cores beside its memory"),
    )


def test_memory_too_small_to_divide_is_told() -> None:
    """Cores of two nodes are needed, and 64 MiB make one cell only."""
    host = cpus_taken(make_host("a", nodes=2, cores=2, gpus=0))

    assert refused(host, vcpus=2, memory_mib=64).shortages == (
        Shortage("cpu.short", 1, 2, 1, "whole cores beside its memory"),
    )


def test_memory_beside_enough_cores_is_told() -> None:
    """Node 0 has the only cores and little memory; the rest would make a second cell below the least."""
    host = make_host("a", nodes=2, cores=2, gpus=0)
    host = cpus_taken(host, 3)
    host = busy(
        host,
        pages=tuple(dataclasses.replace(p, used=p.total - 35 if p.node == 0 else 0) for p in host.pages),
    )

    assert refused(host, memory_mib=100).shortages == (
        Shortage("memory.short", 1, 100, 70, "MiB in 2048 KiB pages beside its CPUs"),
    )


def test_nearest_miss_and_count_are_over_all_hosts() -> None:
    hosts = [
        make_host("a", gpus=1),
        cpus_taken(make_host("b", gpus=0), *range(8)),
        busy(make_host("c"), state=HostState.CORDONED),
        make_host("d", gpus=2),
    ]

    refusal = refused(*hosts, gpus=5)

    assert refusal.hosts == 4
    assert refusal.shortages == (
        Shortage("gpu.short", 3, 5, 4, "GPUs"),
        Shortage("cpu.short", 1, 1, 0, "whole core"),
        Shortage("host.cordoned", 1, 1, 0, "host"),
    )
    assert refused(*hosts[::-1], gpus=5) == refusal


def test_pinned_host_tells_its_own_shortage_first() -> None:
    refusal = refused(make_host("a"), make_host("b"), make_host("c"), pinned_host="hst_b", gpus=5)

    assert refusal.code == "gpu.short"
    assert refusal.shortages == (
        Shortage("gpu.short", 1, 5, 4, "GPUs"),
        Shortage("host.pinned", 2, 1, 0, "host"),
    )


def test_sentence_names_what_is_short_and_no_host() -> None:
    fenced = busy(make_host("secret-b"), state=HostState.FENCED)
    refusal = refused(make_host("secret-a", gpus=0, cores=2), fenced, gpus=1, vcpus=3)

    assert refusal.sentence == (
        "no host has room: GPUs are short on 1 of 2 hosts (1 GPU needed, at most 0 free on one); "
        "CPUs are short on 1 of 2 hosts (3 whole cores needed, at most 2 free on one); "
        "1 of 2 hosts takes no new instances"
    )
    assert "secret" not in str(refusal.as_dict())


def test_no_host_at_all_is_told() -> None:
    refusal = refused()

    assert refusal.code == "host.none"
    assert refusal.sentence == "no host has room: there is no host yet"


def test_json_form_is_an_error_with_counts() -> None:
    found = refused(SMALL, gpus=3).as_dict()

    assert found["code"] == "gpu.short"
    assert found["hosts"] == 1
    assert found["shortages"] == [{"code": "gpu.short", "hosts": 1, "need": 3, "have": 2, "unit": "GPUs"}]
    assert refused(SMALL, gpus=3).as_error().exit_code == 6


def test_every_code_has_words() -> None:
    for code in CODES:
        words = Refusal(2, (Shortage(code, 1, 2, 1, "units"),)).sentence
        assert words.startswith("no host has room: ")
        assert words != Refusal(2, ()).sentence

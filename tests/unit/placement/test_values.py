"""Demands, capacities and placements as values: what they refuse, and that JSON loses nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from orchestrator.model.capacity import CoreCapacity, PageCapacity
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.host import HostCpu, Hugepages
from orchestrator.model.placement import Placement
from orchestrator.placement.first_fit import place
from tests.unit.placement.hosts import facts_of, host_of, make_host, placed, want


def test_capacity_has_cores_with_siblings_and_the_host_s_share() -> None:
    host = make_host(nodes=2, cores=2, threads=2)

    assert host.cores == (
        CoreCapacity(0, 0, (0, 4), True),
        CoreCapacity(0, 0, (1, 5), False),
        CoreCapacity(1, 1, (2, 6), True),
        CoreCapacity(1, 1, (3, 7), False),
    )
    assert host.host_cpus == (0, 2, 4, 6)
    assert host.pages == (PageCapacity(0, 2048, 400, 0), PageCapacity(1, 2048, 400, 0))
    assert host.taken == frozenset()


def test_one_kept_thread_keeps_its_core() -> None:
    facts = dataclasses.replace(facts_of(nodes=1, cores=2, threads=2), host_cpus=frozenset({1}))

    host = host_of(facts)

    assert [core.host_share for core in host.cores] == [False, True]
    assert host.host_cpus == (1,)


def test_sibling_that_is_offline_is_no_thread() -> None:
    facts = facts_of(nodes=1, cores=2, threads=2)
    facts = dataclasses.replace(facts, cpus=tuple(cpu for cpu in facts.cpus if cpu.cpu != 3))

    assert host_of(facts).cores[1].threads == (1,)


def test_each_page_size_counts_by_itself_and_empty_ones_not_at_all() -> None:
    facts = facts_of(nodes=1)
    sizes = {2048: Hugepages(10, 10), 1048576: Hugepages(3, 1), 64: Hugepages(0, 0)}
    facts = dataclasses.replace(facts, nodes=(dataclasses.replace(facts.nodes[0], hugepages=sizes),))

    # What is free now says nothing: running VMs that are ordered hold the rest.
    assert host_of(facts).pages == (PageCapacity(0, 2048, 10, 0), PageCapacity(0, 1048576, 3, 0))


def test_order_of_facts_does_not_matter() -> None:
    facts = facts_of(threads=2)
    turned = dataclasses.replace(facts, cpus=facts.cpus[::-1], nodes=facts.nodes[::-1])

    assert host_of(turned) == host_of(facts)
    assert host_of(dataclasses.replace(facts, cpus=(HostCpu(0, 0, 0, 0, frozenset({0})),))) != host_of(facts)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"vcpus": 0}, "demand.bounds", "vcpus"),
        ({"vcpus": 513}, "demand.bounds", "vcpus"),
        ({"memory_mib": 62}, "demand.bounds", "memory_mib"),
        ({"gpus": -1}, "demand.bounds", "gpus"),
        ({"gpus": 65}, "demand.bounds", "gpus"),
        ({"disk_gib": -1}, "demand.bounds", "disk_gib"),
        ({"threads_per_core": 3}, "demand.bounds", "threads_per_core"),
        ({"page_size_kib": 64}, "demand.bounds", "page_size_kib"),
        ({"vcpus": 3, "threads_per_core": 2}, "demand.half_core", "vcpus"),
        ({"memory_mib": 257}, "demand.broken_page", "memory_mib"),
        ({"memory_mib": 1536, "page_size_kib": 1048576}, "demand.broken_page", "memory_mib"),
    ],
)
def test_demand_that_no_host_can_run_is_refused(fields: dict[str, int], code: str, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        want(**fields)

    assert (caught.value.code, caught.value.field) == (code, field)


def test_shape_leaves_out_who_and_when_and_nothing_else() -> None:
    plain = want()
    other: dict[str, Any] = {
        "request": "req_2", "tenant": "ten_b", "vcpus": 2, "memory_mib": 512, "page_size_kib": 4,
        "gpus": 1, "gpu_model": "1:2", "disk_gib": 1, "isolation": "fabric", "threads_per_core": 2,
        "pinned_host": "hst_b", "on_no_capacity": "fail", "submitted_ms": 5,
    }  # fmt: skip
    assert set(other) == {each.name for each in dataclasses.fields(plain)}

    same = {
        name
        for name, value in other.items()
        # Two threads need an even number of vCPUs.
        if dataclasses.replace(plain, vcpus=4, **({name: value} if name != "vcpus" else {})).shape
        == dataclasses.replace(plain, vcpus=4).shape
    }

    assert same - {"vcpus"} == {"request", "tenant", "on_no_capacity", "submitted_ms"}
    assert dataclasses.replace(plain, vcpus=2).shape != plain.shape


def spanning() -> Placement:
    """A placement with more than one of everything."""
    host = make_host(nodes=2, cores=3, threads=2)
    return placed(place(want(vcpus=6, memory_mib=1024, gpus=3, threads_per_core=2), [host]))


def test_placement_comes_back_from_json() -> None:
    placement = spanning()

    assert Placement.from_dict(json.loads(json.dumps(placement.as_dict()))) == placement
    assert len(placement.cells) == 2
    assert len(placement.devices) == 3


def test_placement_claims_whole_cores_and_gpus() -> None:
    placement = spanning()

    # Six vCPUs on both threads of three cores; GPUs by id, since slots can change hands.
    assert placement.claims == (
        *(("cpu", str(cpu)) for cpu in (1, 2, 4, 7, 8, 10)),
        *(("gpu", gpu.id) for gpu in placement.devices),
    )


@pytest.mark.parametrize("missing", sorted(spanning().as_dict()))
def test_placement_with_a_part_missing_is_refused(missing: str) -> None:
    kept = spanning().as_dict()
    del kept[missing]

    with pytest.raises(InvalidInputError, match=f"'{missing}' is missing") as caught:
        Placement.from_dict(kept)
    assert caught.value.code == "placement.malformed"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("host",), 1),
        (("host_generation",), "1"),
        (("host_generation",), True),
        (("pins",), None),
        (("pins", 0, "vcpu"), 1.5),
        (("emulator",), [None]),
        (("cells", 0), []),
        (("cells", 1, "vcpus"), 3),
        (("devices", 0, "serial"), None),
    ],
)
def test_placement_of_wrong_types_is_refused(path: tuple[Any, ...], value: object) -> None:
    kept = copy.deepcopy(spanning().as_dict())
    here = kept
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value

    with pytest.raises(InvalidInputError) as caught:
        Placement.from_dict(kept)
    assert caught.value.code == "placement.malformed"

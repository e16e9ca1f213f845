"""Where an instance is put: order of hosts, nearness of GPUs, whole cores, and when nodes are spanned."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.model.capacity import HostCapacity
from orchestrator.model.placement import Cell, Pin, Placement
from orchestrator.model.states import GpuState, HostState
from orchestrator.placement.first_fit import place, place_from
from orchestrator.placement.nodes import spread
from orchestrator.placement.refusal import Refusal
from orchestrator.placement.snapshot import Fleet
from orchestrator.placement.validate import violations
from tests.unit.placement.hosts import MODEL, everyday_host, make_host, placed, want


def on(host: HostCapacity, **fields: Any) -> Placement:
    """The place on this host, which the validator likes too."""
    demand = want(**fields)
    found = placed(place(demand, [host]))
    assert violations(found, demand, host) == ()
    return found


def without_gpus(host: HostCapacity, *nodes: int) -> HostCapacity:
    """The host with the GPUs of these nodes dirty."""
    return dataclasses.replace(
        host,
        gpus=tuple(
            dataclasses.replace(gpu, state=GpuState.DIRTY) if gpu.node in nodes else gpu for gpu in host.gpus
        ),
    )


def with_cpus_taken(host: HostCapacity, *cpus: int) -> HostCapacity:
    return dataclasses.replace(host, taken=host.taken | {("cpu", str(cpu)) for cpu in cpus})


def with_pages_left(host: HostCapacity, **left: int) -> HostCapacity:
    """`n0=5` leaves 5 pages on node 0."""
    return dataclasses.replace(
        host,
        pages=tuple(
            dataclasses.replace(page, used=page.total - left[f"n{page.node}"])
            if f"n{page.node}" in left
            else page
            for page in host.pages
        ),
    )


def test_everything_is_near_the_gpu() -> None:
    found = on(without_gpus(everyday_host(), 0), vcpus=2, gpus=1)

    assert found.pins == (Pin(0, 4), Pin(1, 5))
    assert found.cells == (Cell(1, 256, (0, 1)),)
    assert [gpu.node for gpu in found.devices] == [1]
    # CPU 3 is what the host keeps of node 1.
    assert found.emulator == (3,)
    assert found.host_generation == 1


def test_hosts_go_by_name_whatever_their_order() -> None:
    hosts = [make_host("c"), make_host("b"), make_host("a")]

    assert placed(place(want(), hosts)).host == "hst_a"
    assert placed(place(want(), hosts[:2])).host == "hst_b"
    cordoned = [*hosts[:2], dataclasses.replace(hosts[2], state=HostState.CORDONED)]
    assert placed(place(want(), cordoned)).host == "hst_b"


def test_search_goes_on_where_it_is_told() -> None:
    fleet = Fleet.of(make_host(f"{number:03}") for number in range(100))
    pinned = want(pinned_host="hst_050")

    for start in (0, 1, 31, 32, 33, 64, 99):
        found = place_from(want(), fleet, start)
        assert found is not None
        assert (found[0], found[1].host) == (start, f"hst_{start:03}")
    assert place_from(want(), fleet, 100) is None
    assert place_from(pinned, fleet, 51) is None
    assert place_from(pinned, fleet, 50) is not None


@pytest.mark.parametrize("state", [state for state in HostState if state is not HostState.READY])
def test_only_ready_hosts_take_something(state: HostState) -> None:
    assert isinstance(place(want(), [dataclasses.replace(make_host(), state=state)]), Refusal)


@pytest.mark.parametrize("state", [state for state in GpuState if state is not GpuState.CLEAN])
def test_only_clean_gpus_are_given(state: GpuState) -> None:
    host = make_host(nodes=1, gpus=1)
    host = dataclasses.replace(host, gpus=(dataclasses.replace(host.gpus[0], state=state),))

    assert isinstance(place(want(gpus=1), [host]), Refusal)


def test_gpu_that_is_claimed_is_not_given_though_it_is_clean() -> None:
    host = make_host(nodes=1, gpus=1)

    assert isinstance(
        place(want(gpus=1), [dataclasses.replace(host, taken=frozenset({("gpu", host.gpus[0].id)}))]), Refusal
    )


def test_only_gpus_of_the_model_are_given() -> None:
    host = make_host(nodes=1, gpus=2)
    other = dataclasses.replace(host.gpus[0], model="10de:2330", vendor="10de", device="2330")
    host = dataclasses.replace(host, gpus=(other, host.gpus[1]))

    assert on(host, gpus=1, gpu_model=MODEL).devices[0].id == host.gpus[1].id
    assert on(host, gpus=1).devices[0].id == other.id
    assert isinstance(place(want(gpus=2, gpu_model=MODEL), [host]), Refusal)


def test_two_threads_make_one_core_of_the_guest() -> None:
    found = on(make_host(nodes=1, cores=3, threads=2), vcpus=4, threads_per_core=2)

    assert found.pins == (Pin(0, 1), Pin(1, 4), Pin(2, 2), Pin(3, 5))
    assert found.held_cpus == (1, 2, 4, 5)


def test_one_thread_per_core_holds_the_sibling_too() -> None:
    found = on(make_host(nodes=1, cores=3, threads=2), vcpus=2)

    assert found.pins == (Pin(0, 1), Pin(1, 2))
    assert found.held_cpus == (1, 2, 4, 5)


def test_core_is_not_free_when_one_thread_is_taken() -> None:
    host = with_cpus_taken(make_host(nodes=1, cores=3, threads=2), 4)

    assert on(host).pins == (Pin(0, 2),)
    assert isinstance(place(want(vcpus=2), [host]), Refusal)


def test_core_is_not_free_when_a_tenant_holds_it() -> None:
    host = dataclasses.replace(make_host(nodes=1, cores=3, threads=2), core_tenants={1: "ten_globex"})

    assert on(host).pins == (Pin(0, 2),)


def test_emulator_runs_on_own_cpus_where_the_host_keeps_none() -> None:
    assert on(make_host(kept=0), vcpus=2).emulator == (0, 1)


def test_emulator_runs_elsewhere_on_the_host_s_cpus_where_the_node_has_none() -> None:
    host = make_host(nodes=2, cores=2)
    host = dataclasses.replace(host, host_cpus=(2,))
    host = dataclasses.replace(
        host, cores=tuple(dataclasses.replace(core, host_share=core.threads == (2,)) for core in host.cores)
    )

    found = on(host)

    assert found.cells[0].node == 0
    assert found.emulator == (2,)


def test_gpus_of_two_nodes_bring_cpus_and_memory_of_both() -> None:
    found = on(make_host(nodes=2, cores=8), vcpus=4, memory_mib=512, gpus=4)

    assert found.cells == (Cell(0, 256, (0, 1)), Cell(1, 256, (2, 3)))
    assert [pin.host_cpu for pin in found.pins] == [1, 2, 9, 10]


def test_nodes_are_spanned_only_when_one_is_too_small() -> None:
    host = make_host(nodes=2, cores=4)

    assert len(on(host, vcpus=3).cells) == 1
    assert on(host, vcpus=4).cells == (Cell(0, 128, (0, 1)), Cell(1, 128, (2, 3)))
    # 400 pages are 800 MiB.
    assert len(on(host, memory_mib=800).cells) == 1
    assert on(host, memory_mib=802).cells == (Cell(0, 402, (0,)), Cell(1, 400, ()))


def test_uneven_nodes_are_filled_as_evenly_as_they_allow() -> None:
    host = with_pages_left(with_cpus_taken(make_host(nodes=2, cores=4), 2, 3), n1=40)

    found = on(host, vcpus=4, memory_mib=256)

    assert found.cells == (Cell(0, 176, (0,)), Cell(1, 80, (1, 2, 3)))


def test_node_without_memory_lends_no_cores() -> None:
    host = with_pages_left(make_host(nodes=2, cores=3), n0=31)

    assert on(host, vcpus=2).cells == (Cell(1, 256, (0, 1)),)
    assert isinstance(place(want(vcpus=3), [host]), Refusal)
    # 32 pages are 64 MiB, the least that makes a cell.
    assert len(on(with_pages_left(host, n0=32), vcpus=3).cells) == 2


def test_far_gpu_is_better_than_none() -> None:
    host = with_cpus_taken(without_gpus(make_host(nodes=2, cores=3), 1), 1, 2)

    found = on(host, vcpus=2, gpus=1)

    # No memory goes where no CPU works on it.
    assert found.cells == (Cell(1, 256, (0, 1)),)
    assert [gpu.node for gpu in found.devices] == [0]
    nowhere = dataclasses.replace(host, gpus=(dataclasses.replace(host.gpus[0], node=-1),))
    assert on(nowhere, vcpus=2, gpus=1).devices[0].node == -1


def test_gpus_come_from_one_node_though_a_lower_one_has_some() -> None:
    host = make_host(nodes=2, cores=4, gpus=2)
    taken = dataclasses.replace(host, taken=frozenset({("gpu", host.gpus[0].id)}))

    assert {gpu.node for gpu in on(taken, gpus=2).devices} == {1}
    # The CPUs need both nodes; the GPUs still need one only.
    assert {gpu.node for gpu in on(taken, vcpus=5, gpus=2).devices} == {1}


def test_node_with_more_given_than_it_has_left_takes_nothing_from_others() -> None:
    """Pages can be lost while tenants hold them: at the next boot the kernel found fewer."""
    host = with_pages_left(make_host(nodes=2, cores=3), n0=-100)

    assert on(host, memory_mib=800).cells == (Cell(1, 800, (0,)),)
    assert isinstance(place(want(memory_mib=802), [host]), Refusal)


def test_gigabyte_pages_come_in_gigabytes() -> None:
    host = make_host(nodes=2, pages=3, page_kib=1048576)

    assert on(host, memory_mib=4096, page_size_kib=1048576).cells == (Cell(0, 2048, (0,)), Cell(1, 2048, ()))
    assert isinstance(place(want(memory_mib=256), [host]), Refusal)


def test_volumes_tie_an_instance_to_their_host() -> None:
    hosts = [make_host("a"), make_host("b")]

    assert placed(place(want(pinned_host="hst_b"), hosts)).host == "hst_b"
    assert isinstance(place(want(pinned_host="hst_z"), hosts), Refusal)
    full = dataclasses.replace(hosts[1], state=HostState.DRAINING)
    assert isinstance(place(want(pinned_host="hst_b"), [hosts[0], full]), Refusal)


def test_disk_counts() -> None:
    host = dataclasses.replace(make_host(), disk_gib=100, used_disk_gib=90)

    assert on(host, disk_gib=10).host == host.id
    assert isinstance(place(want(disk_gib=11), [host]), Refusal)


def test_other_isolation_classes_are_not_passed_off_as_whole_devices() -> None:
    assert isinstance(place(want(gpus=1, isolation="mig-vgpu"), [make_host()]), Refusal)


@pytest.mark.parametrize(
    ("total", "caps", "shares"),
    [
        (4, [4, 4], [2, 2]),
        (5, [4, 4], [3, 2]),
        (5, [1, 9], [1, 4]),
        (5, [9, 1], [4, 1]),
        (0, [3, 3], [0, 0]),
        (1, [0, 3], [0, 1]),
        (9, [3, 3, 3], [3, 3, 3]),
        (10, [2, 3, 9], [2, 3, 5]),
    ],
)
def test_spread(total: int, caps: list[int], shares: list[int]) -> None:
    assert spread(total, caps) == shares


def test_host_of_many_nodes_is_looked_at_within_bounds() -> None:
    """Sixteen nodes make 65,535 sets; those of the richest nodes are tried, and the answer is right."""
    host = make_host(nodes=16, cores=2, gpus=1)

    found = on(host, vcpus=3, gpus=3)

    assert len(found.cells) == 3
    assert {gpu.node for gpu in found.devices} == {cell.node for cell in found.cells}

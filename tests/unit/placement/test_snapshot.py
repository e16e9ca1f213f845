"""The fleet as a value: what one placement changes, and that nothing else does."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from orchestrator.model.errors import BulkheadError
from orchestrator.model.states import GpuState, HostState
from orchestrator.placement.first_fit import place
from orchestrator.placement.free import free_of
from orchestrator.placement.refusal import Refusal
from orchestrator.placement.snapshot import Fleet
from tests.unit.placement.hosts import make_host, placed, want


def code_of(caught: pytest.ExceptionInfo[BulkheadError]) -> str:
    return caught.value.code


def test_placed_thing_is_held() -> None:
    before = Fleet.of([make_host(threads=2)])
    demand = want(vcpus=2, threads_per_core=2, gpus=1, memory_mib=256, disk_gib=10)
    placement = placed(place(demand, before))

    after = before.with_placed(placement, demand)

    host, was = after.host("hst_a"), before.host("hst_a")
    assert host.taken == {("cpu", "1"), ("cpu", "9"), ("gpu", placement.devices[0].id)}
    assert dict(host.core_tenants) == {1: "ten_acme"}
    assert [page.used for page in host.pages] == [128, 0]
    assert [gpu.state for gpu in host.gpus] == [GpuState.CLAIMED, *3 * [GpuState.CLEAN]]
    assert host.used_disk_gib == 10
    assert host.generation == was.generation + 1
    # The old fleet is as it was, and what is counted free is what would be counted anew.
    assert (was.taken, was.used_disk_gib) == (frozenset(), 0)
    assert after.free(0) == free_of(host)


def test_fleet_fills_to_the_last_core_and_no_further() -> None:
    fleet = Fleet.of([make_host("a"), make_host("b")])
    hosts = []
    for number in range(12):
        demand = want(f"req_{number:02}")
        placement = placed(place(demand, fleet))
        hosts.append(placement.host)
        fleet = fleet.with_placed(placement, demand)

    assert hosts == 6 * ["hst_a"] + 6 * ["hst_b"]
    assert isinstance(place(want(), fleet), Refusal)


def test_order_of_hosts_does_not_matter() -> None:
    hosts = [make_host(f"{number:02}") for number in range(70)]
    one, other = Fleet.of(hosts), Fleet.of(hosts[::-1])

    assert [free.host.id for free in one.frees()] == [free.host.id for free in other.frees()]
    assert len(one) == 70
    assert [one.position(host.id) for host in hosts] == list(range(70))
    assert [free.host.name for free in one.frees(33)] == [host.name for host in hosts[33:]]


def test_same_name_is_ordered_by_id() -> None:
    twins = [dataclasses.replace(make_host(), id=identity) for identity in ("hst_y", "hst_x")]

    assert [free.host.id for free in Fleet.of(twins).frees()] == ["hst_x", "hst_y"]


def test_one_change_shares_the_rest() -> None:
    fleet = Fleet.of(make_host(f"{number:03}") for number in range(100))
    cordoned = dataclasses.replace(fleet.host("hst_050"), state=HostState.CORDONED)

    changed = fleet.with_host(cordoned)

    same = [mine is other for mine, other in zip(fleet.frees(), changed.frees(), strict=True)]
    assert [at for at, kept in enumerate(same) if not kept] == [50]
    assert (fleet.free(50).ready, changed.free(50).ready) == (True, False)


def test_change_does_not_look_at_other_hosts() -> None:
    """Counted in calls, not in time: as many for a large fleet as for a small one."""
    demand = want()

    def calls(count: int) -> int:
        fleet = Fleet.of(make_host(f"{number:04}", cores=2, gpus=1) for number in range(count))
        placement = placed(place(demand, fleet))
        made = 0

        def watch(_frame: object, event: str, _arg: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        sys.setprofile(watch)
        try:
            fleet.with_placed(placement, demand)
        finally:
            sys.setprofile(None)
        return made

    assert calls(1) == calls(500)


def test_placement_for_another_generation_is_refused() -> None:
    fleet = Fleet.of([make_host()])
    placement = placed(place(want(), fleet))
    fleet = fleet.with_placed(placement, want())

    with pytest.raises(BulkheadError) as caught:
        fleet.with_placed(placement, want("req_2"))
    assert code_of(caught) == "placement.stale"


def test_unknown_and_doubled_hosts_are_refused() -> None:
    fleet = Fleet.of([make_host()])

    with pytest.raises(BulkheadError) as caught:
        fleet.host("hst_z")
    assert code_of(caught) == "host.unknown"
    with pytest.raises(BulkheadError) as caught:
        Fleet.of([make_host(), make_host("b"), make_host()])
    assert code_of(caught) == "host.named_twice"
    with pytest.raises(BulkheadError) as caught:
        fleet.with_host(dataclasses.replace(make_host(), name="z"))
    assert code_of(caught) == "host.renamed"

"""Whatever the fleet and the queue: placements are right by the validator and by admission, nothing is given
twice, order of input does not matter, a refusal is never wrong, and a placement spoilt is noticed."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.agent.sim import everyday_world
from orchestrator.isolation.admission import problems
from orchestrator.model.assignment import Assignment, Instance
from orchestrator.model.capacity import Demand, HostCapacity
from orchestrator.model.host import HostFacts, Hugepages
from orchestrator.model.placement import Pin, PlacedGpu, Placement
from orchestrator.model.states import GpuState, HostState
from orchestrator.placement.first_fit import place
from orchestrator.placement.refusal import CODES, Refusal
from orchestrator.placement.snapshot import Fleet
from orchestrator.placement.validate import violations
from orchestrator.scheduling.queue import Plan, plan
from tests.unit.placement.hosts import MODEL, facts_of, host_of, want

#: A host as placement sees it, and the facts that it was made of.
Known = tuple[HostCapacity, HostFacts]


@st.composite
def all_facts(draw: st.DrawFn) -> HostFacts:
    """The simulated host in some size, or another make; nodes may have few pages, GPUs an unknown node."""
    nodes, cores, gpus = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(0, 3))
    if draw(st.booleans()):
        facts = everyday_world(nodes=nodes, cores_per_node=cores, gpus_per_node=gpus).facts()
    else:
        facts = facts_of(
            nodes=nodes,
            cores=cores,
            threads=draw(st.integers(1, 2)),
            gpus=gpus,
            kept=draw(st.integers(0, 1)),
        )
    pages = draw(st.lists(st.sampled_from([0, 31, 64, 400, 400, 700, 700]), min_size=nodes, max_size=nodes))
    unknown = draw(st.sets(st.sampled_from([each.address for each in facts.functions]))) if gpus else set()
    return dataclasses.replace(
        facts,
        nodes=tuple(
            dataclasses.replace(node, hugepages={2048: Hugepages(count, count)})
            for node, count in zip(facts.nodes, pages, strict=True)
        ),
        functions=tuple(
            dataclasses.replace(each, node=-1) if each.address in unknown else each
            for each in facts.functions
        ),
    )


@st.composite
def all_hosts(draw: st.DrawFn, name: str) -> Known:
    """A host that has something taken and some GPUs in other states; nearly always ready."""
    facts = draw(all_facts())
    host = host_of(facts, name, disk_gib=draw(st.integers(0, 40)))
    cpus = [str(cpu) for core in host.cores if not core.host_share for cpu in core.threads]
    taken = draw(st.sets(st.sampled_from(cpus), max_size=3)) if cpus else set()
    clean = st.sampled_from([*5 * [GpuState.CLEAN], GpuState.DIRTY, GpuState.QUARANTINED])
    return (
        dataclasses.replace(
            host,
            state=draw(st.sampled_from([*7 * [HostState.READY], HostState.CORDONED])),
            generation=draw(st.integers(1, 9)),
            taken=frozenset(("cpu", cpu) for cpu in taken),
            gpus=tuple(dataclasses.replace(gpu, state=draw(clean)) for gpu in host.gpus),
        ),
        facts,
    )


@st.composite
def all_demands(draw: st.DrawFn, request: str) -> Demand:
    threads = draw(st.sampled_from([1, 1, 1, 2]))
    return want(
        request,
        tenant=draw(st.sampled_from(["ten_acme", "ten_globex", "ten_initech"])),
        vcpus=threads * draw(st.sampled_from([1, 1, 2, 3, 5])),
        threads_per_core=threads,
        memory_mib=2 * draw(st.sampled_from([32, 33, 64, 100, 128, 400, 600])),
        gpus=draw(st.sampled_from([0, 0, 1, 1, 2, 3])),
        gpu_model=draw(st.sampled_from([None, None, MODEL, MODEL, "10de:2330"])),
        disk_gib=draw(st.integers(0, 9)),
        isolation=draw(st.sampled_from([*15 * ["dedicated"], "mig-vgpu"])),
        pinned_host=draw(st.sampled_from([*9 * [None], "hst_h0", "hst_h1", "hst_gone"])),
        on_no_capacity=draw(st.sampled_from(["wait", "wait", "fail"])),
        submitted_ms=draw(st.integers(0, 3)),
    )


@st.composite
def all_fleets(draw: st.DrawFn) -> tuple[Known, ...]:
    return tuple(draw(all_hosts(f"h{number}")) for number in range(draw(st.sampled_from([0, 1, 1, 2, 3, 4]))))


@st.composite
def all_queues(draw: st.DrawFn) -> tuple[Demand, ...]:
    return tuple(draw(all_demands(f"req_{number}")) for number in range(draw(st.integers(1, 12))))


@st.composite
def roomy_hosts(draw: st.DrawFn) -> HostCapacity:
    """A host that can run any of `all_demands`."""
    kept = draw(st.integers(0, 2))
    nodes = draw(st.integers(1, 4))
    return host_of(facts_of(nodes=nodes, cores=kept + 5, threads=2, pages=700, gpus=3, kept=kept), "h1")


def instance_of(demand: Demand, placement: Placement) -> Instance:
    """The assignment's instance that this placement becomes."""
    name = demand.request.removeprefix("req_")
    return Instance.model_validate(
        {
            "id": f"vm_{name}",
            "generation": 1,
            "tenant": demand.tenant,
            "name": f"vm-{name}",
            "isolation": demand.isolation,
            **placement.assignment_parts(),
            "volumes": [{"id": f"vol_{name}", "generation": 1, "size_gib": 1}],
        }
    )


def refusals(found: Plan) -> list[tuple[Demand, Refusal]]:
    return [*found.waiting, *found.failed]


@given(all_fleets(), all_queues())
def test_placements_are_right_by_the_validator_and_by_admission(
    known: tuple[Known, ...], demands: tuple[Demand, ...]
) -> None:
    fleet = Fleet.of(host for host, _ in known)
    found = plan(demands, fleet)
    on_host: dict[str, list[Instance]] = {}

    for demand, placement in found.placements:
        assert violations(placement, demand, fleet.host(placement.host)) == ()
        assert Placement.from_dict(placement.as_dict()) == placement
        fleet = fleet.with_placed(placement, demand)
        on_host.setdefault(placement.host, []).append(instance_of(demand, placement))

    for host, facts in known:
        assignment = Assignment(
            version=1,
            deployment="dep_test",
            host=host.id,
            epoch=1,
            revision=1,
            instances=tuple(on_host.get(host.id, ())),
        )
        assert problems(assignment, facts) == ()


@given(all_fleets(), all_queues())
def test_each_request_is_decided_once_and_nothing_is_given_twice(
    known: tuple[Known, ...], demands: tuple[Demand, ...]
) -> None:
    found = plan(demands, Fleet.of(host for host, _ in known))

    decided = [each.demand.request for each in (*found.placements, *found.waiting, *found.failed)]
    assert sorted(decided) == sorted(each.request for each in demands)
    given_out = [(each.placement.host, claim) for each in found.placements for claim in each.placement.claims]
    before = [(host.id, claim) for host, _ in known for claim in host.taken]
    assert len({*given_out, *before}) == len(given_out) + len(before)
    assert all(each.demand.on_no_capacity == "fail" for each in found.failed)
    assert all(each.demand.on_no_capacity == "wait" for each in found.waiting)
    for host, _ in known:
        after = found.fleet.host(host.id)
        assert all(0 <= page.used <= page.total for page in after.pages)
        assert after.used_disk_gib <= after.disk_gib


@given(all_fleets(), all_queues(), st.integers())
def test_order_of_input_does_not_matter(
    known: tuple[Known, ...], demands: tuple[Demand, ...], seed: int
) -> None:
    hosts, mixed = [host for host, _ in known], list(demands)
    found = plan(mixed, Fleet.of(hosts))
    chance = random.Random(seed)
    chance.shuffle(hosts)
    chance.shuffle(mixed)

    again = plan(mixed, Fleet.of(hosts))

    assert (again.placements, again.waiting, again.failed) == (found.placements, found.waiting, found.failed)


@given(all_fleets(), all_queues())
def test_refusal_tells_what_is_short_everywhere(
    known: tuple[Known, ...], demands: tuple[Demand, ...]
) -> None:
    found = plan(demands, Fleet.of(host for host, _ in known))

    for _, refusal in refusals(found):
        assert refusal.hosts == len(known)
        # Every host has at least one reason, and each reason is one: it has less than is needed.
        assert sum(each.hosts for each in refusal.shortages) >= len(known)
        assert all(each.have < each.need and 0 < each.hosts <= len(known) for each in refusal.shortages)
        codes = [each.code for each in refusal.shortages]
        assert codes == sorted(codes, key=CODES.index)
        assert refusal.code in codes or not known


def could_fit(demand: Demand, host: HostCapacity) -> bool:
    """Try every division of cores and memory over a host's two nodes: slow and plain."""
    cores, memory = [0, 0], [0, 0]
    for core in host.cores:
        free = not core.host_share and not any(("cpu", str(cpu)) in host.taken for cpu in core.threads)
        cores[core.node] += free and len(core.threads) >= demand.threads_per_core
    for page in host.pages:
        memory[page.node] += 2 * (page.total - page.used)
    gpus = sum(gpu.state is GpuState.CLEAN and demand.gpu_model in (None, gpu.model) for gpu in host.gpus)
    needed = demand.vcpus // demand.threads_per_core
    if gpus < demand.gpus or host.disk_gib < demand.disk_gib or host.state is not HostState.READY:
        return False
    for first_cores, first_mib in itertools.product(range(needed + 1), range(0, demand.memory_mib + 1, 2)):
        parts = ((first_cores, first_mib, 0), (needed - first_cores, demand.memory_mib - first_mib, 1))
        if all(
            count <= cores[node]
            and mib <= memory[node]
            # Cores need memory near them, and a cell has 64 MiB at least.
            and (mib >= 64 or (mib == 0 and count == 0))
            for count, mib, node in parts
        ):
            return True
    return False


@given(all_hosts("h1"), all_demands("req_1"))
def test_it_is_placed_when_it_can_be(known: Known, demand: Demand) -> None:
    host, facts = known
    assume(len(facts.nodes) <= 2)
    demand = dataclasses.replace(demand, isolation="dedicated", pinned_host=None)

    assert isinstance(place(demand, [host]), Placement) == could_fit(demand, host)


def _other_cpu(placement: Placement, host: HostCapacity) -> Placement:
    others = {cpu for core in host.cores for cpu in core.threads} - set(placement.held_cpus)
    pins = (Pin(0, min(others, default=8000)), *placement.pins[1:])
    return dataclasses.replace(placement, pins=pins)


def _with_cell(placement: Placement, **changes: Any) -> Placement:
    return dataclasses.replace(
        placement, cells=(placement.cells[0]._replace(**changes), *placement.cells[1:])
    )


def _with_gpus(placement: Placement, host: HostCapacity) -> Placement:
    """One GPU less, or one more than none."""
    gpu = host.gpus[0]
    spare = (PlacedGpu(gpu.id, gpu.address, gpu.vendor, gpu.device, gpu.node, gpu.serial),)
    devices = placement.devices[1:] if placement.devices else spare
    return dataclasses.replace(placement, devices=devices)


#: One way each to spoil any placement.
SPOILT: dict[str, Callable[[Placement, HostCapacity], Placement]] = {
    "host": lambda p, _: dataclasses.replace(p, host="hst_other"),
    "generation": lambda p, _: dataclasses.replace(p, host_generation=p.host_generation + 1),
    "page size": lambda p, _: dataclasses.replace(p, page_size_kib=1048576),
    "threads": lambda p, _: dataclasses.replace(p, threads_per_core=3 - p.threads_per_core),
    "vCPU": lambda p, _: dataclasses.replace(p, pins=(*p.pins[:-1], Pin(len(p.pins), p.pins[-1].host_cpu))),
    "vCPU gone": lambda p, _: dataclasses.replace(p, pins=p.pins[:-1]),
    "CPU": _other_cpu,
    "held less": lambda p, _: dataclasses.replace(p, held_cpus=p.held_cpus[1:]),
    "held twice": lambda p, _: dataclasses.replace(p, held_cpus=(*p.held_cpus, p.held_cpus[0])),
    "no emulator": lambda p, _: dataclasses.replace(p, emulator=()),
    "emulator": lambda p, _: dataclasses.replace(p, emulator=(*p.emulator, 8000)),
    "more memory": lambda p, _: _with_cell(p, memory_mib=p.cells[0].memory_mib + 2),
    "far memory": lambda p, _: _with_cell(p, node=99),
    "vCPU twice": lambda p, _: _with_cell(p, vcpus=(*p.cells[0].vcpus, 0)),
    "cell twice": lambda p, _: dataclasses.replace(p, cells=(*p.cells, p.cells[0])),
    "GPUs": _with_gpus,
}


@given(roomy_hosts(), all_demands("req_1"))
def test_spoilt_placement_is_noticed(host: HostCapacity, demand: Demand) -> None:
    demand = dataclasses.replace(demand, isolation="dedicated", pinned_host=None, gpu_model=None)
    found = place(demand, [host])
    assert isinstance(found, Placement)

    assert violations(found, demand, host) == ()
    unseen = [name for name, spoil in SPOILT.items() if not violations(spoil(found, host), demand, host)]
    assert unseen == []

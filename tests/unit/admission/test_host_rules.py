"""Rules that need a host of another make than the everyday one: siblings, groups, odd nodes, many VMs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

import pytest

from orchestrator.agent.sim import everyday_world
from orchestrator.isolation.admission import problems
from orchestrator.model.assignment import Assignment
from orchestrator.model.host import HostCpu, HostFacts, Hugepages, NumaNode, PciFunction
from orchestrator.model.parsing import parse_assignment
from tests.unit.admission.cases import good, raw

EVERYDAY = everyday_world().facts()


def assignment(*, change: Iterable[tuple[str, object]] = (), instances: int = 2) -> Assignment:
    """The good assignment with some fields of instances set (`0/cpus/emulator`)."""
    tree = good()
    for path, value in change:
        *parents, last = path.split("/")
        here = tree["instances"]
        for part in parents:
            here = here[int(part) if part.isdigit() else part]
        here[int(last) if last.isdigit() else last] = value
    tree["instances"] = tree["instances"][:instances]
    return parse_assignment(raw(tree))


def told(found: Assignment, facts: HostFacts) -> list[tuple[str, str | None]]:
    return [(problem.code, problem.field) for problem in problems(found, facts)]


def smt_facts(*, host_cpus: frozenset[int] = frozenset({0, 4})) -> HostFacts:
    """One node, four cores of two threads (n and n + 4, as Linux numbers them); the first is the host's."""
    cpus = tuple(HostCpu(n, 0, n % 4, 0, frozenset({n % 4, n % 4 + 4})) for n in range(8))
    node = NumaNode(0, frozenset(range(8)), 4096, {2048: Hugepages(1000, 1000)})
    return dataclasses.replace(EVERYDAY, cpus=cpus, nodes=(node,), host_cpus=host_cpus)


def on_smt(*cpus: int, other: tuple[int, ...] = (), threads: int = 1, emulator: int = 0) -> Assignment:
    """Acme on these CPUs and, if wanted, globex on others; no devices."""

    def part(index: int, mine: tuple[int, ...], per_core: int) -> list[tuple[str, object]]:
        pins = [{"vcpu": n, "host_cpu": cpu} for n, cpu in enumerate(mine)]
        cells = [{"node": 0, "memory_mib": 256, "vcpus": list(range(len(mine)))}]
        return [
            (f"{index}/cpus", {"pins": pins, "emulator": [emulator], "threads_per_core": per_core}),
            (f"{index}/memory", {"page_size_kib": 2048, "cells": cells}),
            (f"{index}/devices", []),
        ]

    change = part(0, cpus, threads) + (part(1, other, 1) if other else [])
    return assignment(change=change, instances=2 if other else 1)


def test_siblings_of_one_core_side_by_side_are_fine() -> None:
    assert told(on_smt(1, 5, 2, 6, threads=2), smt_facts()) == []


def test_siblings_that_are_not_side_by_side_are_refused() -> None:
    assert told(on_smt(1, 2, 5, 6, threads=2), smt_facts()) == [
        ("cpu.not_siblings", "instances[0].cpus.pins[1].host_cpu"),
        ("cpu.not_siblings", "instances[0].cpus.pins[3].host_cpu"),
    ]


def test_half_a_core_is_refused() -> None:
    assert ("cpu.half_core", "instances[0].cpus.threads_per_core") in told(
        on_smt(1, 5, 2, threads=2), smt_facts()
    )


def test_two_tenants_on_siblings_are_refused_and_on_cores_of_their_own_fine() -> None:
    shared = told(on_smt(1, other=(5,)), smt_facts())
    apart = told(on_smt(1, other=(2,)), smt_facts())

    assert shared == [("cpu.core_shared", "instances[1].cpus.pins[0].host_cpu")]
    assert apart == []


def test_two_instances_of_one_tenant_may_share_a_core_but_no_cpu() -> None:
    both = on_smt(1, other=(5,))
    mine = both.model_copy(
        update={"instances": (both.instances[0], both.instances[1].model_copy(update={"tenant": "ten_acme"}))}
    )
    network = mine.instances[0].ports[0]
    assert told(mine, smt_facts()) == []
    assert network.vlan == 101


def test_core_that_the_host_shares_is_refused() -> None:
    assert told(on_smt(5), smt_facts(host_cpus=frozenset({0, 1, 4}))) == [
        ("cpu.core_shared", "instances[0].cpus.pins[0].host_cpu")
    ]


def test_emulator_on_a_sibling_of_another_tenants_core_is_refused() -> None:
    fine = on_smt(1, other=(2,), emulator=0)
    near = fine.instances[1].model_copy(
        update={"cpus": fine.instances[1].cpus.model_copy(update={"emulator": (5,)})}
    )
    spoiled = fine.model_copy(update={"instances": (fine.instances[0], near)})

    assert told(fine, smt_facts()) == []
    assert told(spoiled, smt_facts()) == [("cpu.core_shared", "instances[1].cpus.emulator[0]")]


def test_two_tenants_emulators_on_one_core_outside_the_hosts_share_are_refused() -> None:
    assert told(on_smt(1, other=(2,), emulator=3), smt_facts()) == [
        ("cpu.core_shared", "instances[1].cpus.emulator[0]")
    ]


def test_emulator_on_its_own_vcpu_is_allowed() -> None:
    assert told(on_smt(1, emulator=1), smt_facts()) == []


def test_memory_of_a_node_without_cpus_may_be_anybodys() -> None:
    far = NumaNode(2, frozenset(), 2048, {2048: Hugepages(400, 400)})
    cells = [
        {"node": 0, "memory_mib": 256, "vcpus": [0]},
        {"node": 2, "memory_mib": 256, "vcpus": [1]},
    ]
    spread = assignment(change=[("0/memory/cells", cells)])

    assert told(spread, dataclasses.replace(EVERYDAY, nodes=(*EVERYDAY.nodes, far))) == []
    near = dataclasses.replace(far, cpus=frozenset({9}))
    assert told(spread, dataclasses.replace(EVERYDAY, nodes=(*EVERYDAY.nodes, near))) == [
        ("memory.vcpu_far", "instances[0].memory.cells[1].vcpus[0]")
    ]


def test_memory_of_stopped_instances_counts_and_the_sum_is_told_once() -> None:
    tree = on_smt(1, other=(2,)).model_dump(mode="json")
    for instance in tree["instances"]:
        instance["power"] = "stopped"
        instance["memory"]["cells"][0]["memory_mib"] = 1002
    both = parse_assignment(raw(tree))

    assert told(both, smt_facts()) == [("memory.too_little", "instances[1].memory.cells[0].memory_mib")]
    only = both.model_copy(update={"instances": both.instances[:1]})
    assert told(only, smt_facts()) == []


def test_ordinary_pages_come_from_what_hugepages_leave() -> None:
    # 4096 MiB, of which 2000 are hugepages.
    def wanted(memory_mib: int) -> Assignment:
        cells = [{"node": 0, "memory_mib": memory_mib, "vcpus": [0]}]
        base = on_smt(1).model_dump(mode="json")
        base["instances"][0]["memory"] = {"page_size_kib": 4, "cells": cells}
        return parse_assignment(raw(base))

    assert told(wanted(2096), smt_facts()) == []
    assert told(wanted(2097), smt_facts()) == [
        ("memory.too_little", "instances[0].memory.cells[0].memory_mib")
    ]


GPU, AUDIO = "0000:21:00.0", "0000:21:00.1"


def with_audio(**change: object) -> HostFacts:
    """The first stand-in gets a second function in its group."""
    gpu = EVERYDAY.function(GPU)
    assert gpu is not None
    audio = dataclasses.replace(gpu, address=AUDIO, class_code="040300", driver="snd_hda_intel", **change)
    return dataclasses.replace(EVERYDAY, functions=(*EVERYDAY.functions, audio))


def test_group_is_refused_with_every_member_named_unless_all_go_together() -> None:
    alone = assignment()
    together = alone.model_dump(mode="json")
    together["instances"][0]["devices"].append(
        {**together["instances"][0]["devices"][0], "id": "gpu_audio", "address": AUDIO}
    )

    (problem,) = problems(alone, with_audio())

    assert (problem.code, problem.field) == (
        "device.group_not_isolated",
        "instances[0].devices[0].address",
    )
    for word in (GPU, AUDIO, "040300", "snd_hda_intel", "038000", "bochs-drm"):
        assert word in problem.message
    assert told(parse_assignment(raw(together)), with_audio()) == []
    assert told(alone, with_audio(group=77)) == []


def test_bridge_in_the_group_spoils_nothing() -> None:
    bridge = PciFunction("0000:20:00.0", "8086", "3420", "060400", 0, "pcieport", 1)
    assert EVERYDAY.function(GPU).group == 1

    facts = dataclasses.replace(EVERYDAY, functions=(bridge, *EVERYDAY.functions))

    assert told(assignment(), facts) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"group": None}, "device.no_iommu"),
        ({"class_code": "060400"}, "device.is_bridge"),
        ({"class_code": "0c0500"}, "device.host_critical"),
        ({"reset_methods": ()}, "device.no_reset"),
        ({"serial": "00-11"}, None),
    ],
)
def test_device_rules_are_asked_about_the_host(change: dict[str, object], code: str | None) -> None:
    functions = tuple(dataclasses.replace(f, **change) if f.address == GPU else f for f in EVERYDAY.functions)
    found = told(assignment(), dataclasses.replace(EVERYDAY, functions=functions))

    assert found == ([] if code is None else [(code, "instances[0].devices[0].address")])


def test_problems_come_in_one_order() -> None:
    spoiled = assignment(
        change=[
            ("0/isolation", "fabric"),
            ("1/isolation", "fabric"),
            ("1/volumes/0/id", "vol_acme"),
            ("0/cpus/emulator", [99]),
        ]
    )

    found = told(spoiled, EVERYDAY)

    assert found == told(spoiled, EVERYDAY)
    assert [code for code, _ in found] == [
        "instance.isolation_unsupported",
        "instance.isolation_unsupported",
        "cpu.unknown",
        "volume.given_twice",
    ]


def test_lower_generation_may_go_while_a_higher_one_comes() -> None:
    tree = good()
    tree["absent"] = [
        {"kind": "instance", "id": "vm_acme", "generation": 1},
        {"kind": "device", "id": "gpu_other", "generation": 1},
    ]

    assert told(parse_assignment(raw(tree)), EVERYDAY) == []


def test_a_thousand_instances_on_a_host(capsys: pytest.CaptureFixture[str]) -> None:
    world = everyday_world(nodes=4, cores_per_node=520, gpus_per_node=0)
    nodes = tuple(
        dataclasses.replace(node, memory_mib=1 << 20, hugepages={2048: Hugepages(1 << 18, 0)})
        for node in world.facts().nodes
    )
    facts = dataclasses.replace(world.facts(), nodes=nodes)
    free = [cpu.cpu for cpu in facts.cpus if cpu.cpu not in facts.host_cpus]
    first = good()["instances"][0]
    tree = good()
    tree["instances"] = []
    for index in range(1000):
        name = f"vm_{index}"
        mine = free[2 * index : 2 * index + 2]
        tree["instances"].append(
            {
                **first,
                "id": name,
                "tenant": f"ten_{index}",
                "cpus": {
                    "pins": [{"vcpu": n, "host_cpu": cpu} for n, cpu in enumerate(mine)],
                    "emulator": [0],
                },
                "memory": {
                    "page_size_kib": 2048,
                    "cells": [{"node": mine[n] // 520, "memory_mib": 256, "vcpus": [n]} for n in range(2)]
                    if mine[0] // 520 != mine[1] // 520
                    else [{"node": mine[0] // 520, "memory_mib": 256, "vcpus": [0, 1]}],
                },
                "devices": [],
                "volumes": [{"id": f"vol_{index}", "generation": 1, "size_gib": 1}],
                "ports": [
                    {
                        **first["ports"][0],
                        "id": f"prt_{index}",
                        "network": f"net_{index}",
                        "vlan": 1 + index,
                        "mac": f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}",
                    }
                ],
            }
        )
    many = parse_assignment(raw(tree))

    began = time.perf_counter()
    found = problems(many, facts)
    took_s = time.perf_counter() - began

    assert found == ()
    with capsys.disabled():
        print(f"\nadmit 1000 instances: {took_s:.3f} s")

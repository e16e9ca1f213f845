"""The validator notices each rule broken, one at a time, and has nothing against a right placement."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.model.capacity import Demand, HostCapacity
from orchestrator.model.placement import Pin, Placement
from orchestrator.model.states import GpuState, HostState
from orchestrator.placement import validate
from orchestrator.placement.first_fit import place
from orchestrator.placement.validate import violations
from tests.unit.placement.hosts import make_host, placed, want

#: Two nodes of three cores with two threads: 0/6 1/7 2/8, 3/9 4/10 5/11; the first of each is the host's.
HOST = make_host(nodes=2, cores=3, threads=2)
DEMAND = want(
    vcpus=6,
    threads_per_core=2,
    memory_mib=512,
    gpus=2,
    gpu_model="1234:1111",
    disk_gib=10,
    pinned_host="hst_a",
)
GOOD = placed(place(DEMAND, [HOST]))
SINGLE = want(vcpus=2)
GOOD_SINGLE = placed(place(SINGLE, [HOST]))

Trio = tuple[Placement, Demand, HostCapacity]


def placement(**changes: Any) -> Trio:
    return dataclasses.replace(GOOD, **changes), DEMAND, HOST


def demand(**changes: Any) -> Trio:
    return GOOD, dataclasses.replace(DEMAND, **changes), HOST


def host(**changes: Any) -> Trio:
    return GOOD, DEMAND, dataclasses.replace(HOST, **changes)


def pin(at: int, host_cpu: int, held: tuple[int, ...] = GOOD.held_cpus) -> Trio:
    pins = [*GOOD.pins]
    pins[at] = Pin(at, host_cpu)
    return placement(pins=tuple(pins), held_cpus=held)


def cell(at: int, **changes: Any) -> Trio:
    cells = [*GOOD.cells]
    cells[at] = cells[at]._replace(**changes)
    return placement(cells=tuple(cells))


def gpu(**changes: Any) -> Trio:
    return placement(devices=(GOOD.devices[0]._replace(**changes), GOOD.devices[1]))


def own_gpu(**changes: Any) -> Trio:
    first = GOOD.devices[0].id
    return host(
        gpus=tuple(dataclasses.replace(each, **changes) if each.id == first else each for each in HOST.gpus)
    )


def test_fixtures_are_what_the_cases_take_them_for() -> None:
    assert [each.host_cpu for each in GOOD.pins] == [1, 7, 2, 8, 4, 10]
    assert [(each.node, each.memory_mib, each.vcpus) for each in GOOD.cells] == [
        (0, 256, (0, 1, 2, 3)),
        (1, 256, (4, 5)),
    ]
    assert violations(GOOD, DEMAND, HOST) == ()
    assert violations(GOOD_SINGLE, SINGLE, HOST) == ()


CASES: dict[str, tuple[Callable[[], Trio], tuple[str, ...]]] = {
    "another host": (lambda: placement(host="hst_b"), ("it is for hst_b, not for hst_a",)),
    "another generation": (
        lambda: host(generation=2),
        ("it is for generation 1; the host is at 2",),
    ),
    "host not ready": (lambda: host(state=HostState.CORDONED), ("the host is cordoned",)),
    "volumes elsewhere": (lambda: demand(pinned_host="hst_b"), ("its volumes live on hst_b",)),
    "other isolation": (
        lambda: demand(isolation="fabric"),
        ("whole devices are not isolation class fabric",),
    ),
    "disk": (lambda: host(used_disk_gib=991), ("10 GiB of disk are wanted; 9 are free",)),
    "vCPUs missing": (
        lambda: demand(vcpus=8),
        ("vCPUs are [0, 1, 2, 3, 4, 5]; they must be 0 to 7, in order",),
    ),
    "vCPU numbers": (
        lambda: placement(pins=(*GOOD.pins[:5], Pin(6, 10))),
        (
            "vCPUs are [0, 1, 2, 3, 4, 6]; they must be 0 to 5, in order",
            "vCPUs 4 and 5 are not on one core",
            "cells name vCPUs [0, 1, 2, 3, 4, 5]; each must stand in one",
        ),
    ),
    "threads per core": (
        lambda: placement(threads_per_core=1),
        ("it has 1 threads per core; 2 are wanted",),
    ),
    "CPU that is not there": (
        lambda: (
            dataclasses.replace(
                GOOD_SINGLE, pins=(GOOD_SINGLE.pins[0], Pin(1, 99)), held_cpus=(1, 7)
            ),
            SINGLE,
            HOST,
        ),
        ("the host has no CPU 99", "vCPU 1 is on CPU 99, which is not of its cell's node 0"),
    ),
    "CPU for two vCPUs": (lambda: pin(1, 1), ("CPU 1 has 2 vCPUs",)),
    "CPU held twice": (
        lambda: placement(held_cpus=(1, *GOOD.held_cpus)),
        ("CPU 1 is held 2 times",),
    ),
    "CPU of the host": (
        lambda: (
            dataclasses.replace(GOOD_SINGLE, pins=(Pin(0, 0), Pin(1, 1)), held_cpus=(0, 1, 6, 7)),
            SINGLE,
            HOST,
        ),
        ("CPU 0 is on a core of the host's share", "CPU 6 is on a core of the host's share"),
    ),
    "CPU taken": (lambda: host(taken=frozenset({("cpu", "10")})), ("CPU 10 is taken",)),
    "sibling taken": (
        lambda: (GOOD_SINGLE, SINGLE, dataclasses.replace(HOST, taken=frozenset({("cpu", "7")}))),
        ("CPU 7 is taken",),
    ),
    "core of a tenant": (
        lambda: host(core_tenants={2: "ten_globex"}),
        ("the core of CPU 2 is held by ten_globex",),
    ),
    "sibling not held": (
        lambda: (dataclasses.replace(GOOD_SINGLE, held_cpus=(1, 2, 8)), SINGLE, HOST),
        ("it holds CPUs [1, 2, 8]; its whole cores are [1, 2, 7, 8]",),
    ),
    "foreign core held": (
        lambda: placement(held_cpus=(*GOOD.held_cpus, 5)),
        ("it holds CPUs [1, 2, 4, 5, 7, 8, 10]; its whole cores are [1, 2, 4, 7, 8, 10]",),
    ),
    "two vCPUs on a core that is for one": (
        lambda: (
            dataclasses.replace(GOOD_SINGLE, pins=(Pin(0, 1), Pin(1, 7)), held_cpus=(1, 7)),
            SINGLE,
            HOST,
        ),
        ("the core of CPU 1 has vCPUs [0, 1], more than 1",),
    ),
    "guest core over two cores": (
        lambda: placement(
            pins=(Pin(0, 1), Pin(1, 2), Pin(2, 7), Pin(3, 8), *GOOD.pins[4:]),
        ),
        ("vCPUs 0 and 1 are not on one core", "vCPUs 2 and 3 are not on one core"),
    ),
    "no emulator CPU": (lambda: placement(emulator=()), ("its emulator threads have no CPU",)),
    "emulator on a vCPU": (
        lambda: placement(emulator=(0, 1)),
        ("its emulator threads may not run on CPU 1",),
    ),
    "page size": (
        lambda: placement(page_size_kib=4),
        (
            "pages are 4 KiB; 2048 KiB are wanted",
            "node 0 has 0 pages free; 262144 KiB are wanted",
            "node 1 has 0 pages free; 262144 KiB are wanted",
        ),
    ),
    "two cells of a node": (
        lambda: cell(1, node=0),
        (
            "node 0 has 2 cells",
            "vCPU 4 is on CPU 4, which is not of its cell's node 0",
            "vCPU 5 is on CPU 10, which is not of its cell's node 0",
        ),
    ),
    "too little memory": (
        lambda: cell(1, memory_mib=254),
        ("its cells have 510 MiB; 512 are wanted",),
    ),
    "cell too small": (
        lambda: placement(
            cells=(GOOD.cells[0]._replace(memory_mib=450), GOOD.cells[1]._replace(memory_mib=62))
        ),
        ("the cell of node 1 has 62 MiB; 64 are the least",),
    ),
    "broken page": (
        lambda: placement(
            cells=(GOOD.cells[0]._replace(memory_mib=255), GOOD.cells[1]._replace(memory_mib=257))
        ),
        (
            "the cell of node 0 is no whole number of pages",
            "the cell of node 1 is no whole number of pages",
        ),
    ),
    "vCPU in no cell": (
        lambda: cell(1, vcpus=(4,)),
        ("cells name vCPUs [0, 1, 2, 3, 4]; each must stand in one",),
    ),
    "vCPU in two cells": (
        lambda: cell(0, vcpus=(0, 1, 2, 3, 3)),
        ("cells name vCPUs [0, 1, 2, 3, 3, 4, 5]; each must stand in one",),
    ),
    "vCPU far from its cell": (
        lambda: placement(
            cells=(
                GOOD.cells[0]._replace(vcpus=(0, 1, 2)),
                GOOD.cells[1]._replace(vcpus=(3, 4, 5)),
            )
        ),
        ("vCPU 3 is on CPU 8, which is not of its cell's node 1",),
    ),
    "pages taken": (
        lambda: host(pages=(dataclasses.replace(HOST.pages[0], used=273), HOST.pages[1])),
        ("node 0 has 127 pages free; 262144 KiB are wanted",),
    ),
    "too few GPUs": (
        lambda: placement(devices=GOOD.devices[:1]),
        ("it has 1 GPUs; 2 are wanted",),
    ),
    "GPU twice": (
        lambda: placement(devices=(GOOD.devices[0], GOOD.devices[0])),
        (f"{GOOD.devices[0].id} is given 2 times",),
    ),
    "GPU of another host": (lambda: gpu(id="gpu_b_1"), ("the host has no gpu_b_1",)),
    **{
        f"GPU with another {field}": (
            lambda field=field, value=value: gpu(**{field: value}),  # type: ignore[misc]
            (f"{GOOD.devices[0].id} is another GPU than the host has",),
        )
        for field, value in (
            ("address", "0000:99:00.0"),
            ("vendor", "10de"),
            ("device", "2330"),
            ("node", 1),
            ("serial", "other"),
        )
    },
    **{
        f"GPU {state.value}": (
            lambda state=state: own_gpu(state=state),  # type: ignore[misc]
            (f"{GOOD.devices[0].id} is {state.value}, not clean",),
        )
        for state in GpuState
        if state is not GpuState.CLEAN
    },
    "GPU taken": (
        lambda: host(taken=frozenset({("gpu", GOOD.devices[0].id)})),
        (f"{GOOD.devices[0].id} is taken",),
    ),
    "GPU of another model": (
        lambda: own_gpu(model="10de:2330"),
        (f"{GOOD.devices[0].id} is a 10de:2330; 1234:1111 is wanted",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_broken_rule_is_noticed(name: str) -> None:
    make, sentences = CASES[name]

    assert violations(*make()) == sentences


def test_every_sentence_of_the_validator_has_a_case() -> None:
    """Counted in its source: each `yield` is reached by some case, so none can rot unseen."""
    tree = ast.parse(inspect.getsource(validate))
    yields = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Yield)}
    reached: set[int] = set()

    def watch(frame: Any, event: str, _arg: object) -> Any:
        if frame.f_code.co_filename != validate.__file__:
            return None
        if event == "line":
            reached.add(frame.f_lineno)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        for make, _ in CASES.values():
            violations(*make())
    finally:
        sys.settrace(before)
    assert len(yields) > 25
    assert yields - reached == set()


def test_emulator_on_own_cpus_is_fine_where_the_host_keeps_none() -> None:
    bare = make_host(kept=0)
    wanted = want(vcpus=2)
    found = placed(place(wanted, [bare]))

    assert violations(found, wanted, bare) == ()
    assert violations(dataclasses.replace(found, emulator=(2,)), wanted, bare) == (
        "its emulator threads may not run on CPU 2",
    )


def test_validator_shares_nothing_with_what_it_checks() -> None:
    imports = {
        node.module
        for node in ast.walk(ast.parse(inspect.getsource(validate)))
        if isinstance(node, ast.ImportFrom)
    }

    assert {name for name in imports if name and "placement" in name} == {"orchestrator.model.placement"}

"""Each invariant of a whole host: holds on a healthy one, and notices its one flipped fact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from images.labhost.tenants import assignment_of, everything_absent
from orchestrator.isolation.flows import FlowProgram
from orchestrator.isolation.invariants import (
    HostState,
    PoolEntry,
    PortClaim,
    Violation,
    expected_flows,
    violations,
)
from orchestrator.model.host import HostCpu
from orchestrator.model.observed import (
    DomainState,
    ObservedSecret,
    ObservedSeed,
)
from tests.unit.agent.fleet import Fleet
from tests.unit.agent.world_view import broken_invariants, look

ACME, GLOBEX = "vm_acme_train", "vm_globex_serve"
GPU, OTHER_GPU, THIRD_GPU = "0000:21:00.0", "0000:41:00.0", "0000:22:00.0"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> HostState:
    """Two tenants run; a value, so no test can spoil it for another."""
    fleet = Fleet(tmp_path_factory.mktemp("host"))
    assignment = fleet.two_tenants()
    assert fleet.apply(assignment).ok
    return look(fleet, assignment)


def domain(state: HostState, name: str, /, **change: Any) -> HostState:
    """Change one domain."""
    domains = tuple(dataclasses.replace(d, **change) if d.instance == name else d for d in state.domains)
    return dataclasses.replace(state, domains=domains)


def port(state: HostState, name: str, /, **change: Any) -> HostState:
    """Change one port of the switch."""
    ports = tuple(dataclasses.replace(p, **change) if p.port == name else p for p in state.switch.ports)
    return dataclasses.replace(state, switch=dataclasses.replace(state.switch, ports=ports))


def claim(state: HostState, name: str, /, **change: Any) -> HostState:
    """Change what one port may speak as."""
    claims = tuple(dataclasses.replace(c, **change) if c.port == name else c for c in state.claims)
    return dataclasses.replace(state, claims=claims)


def pool(state: HostState, address: str, /, **change: Any) -> HostState:
    """Change one device of the pool."""
    entries = tuple(dataclasses.replace(e, **change) if e.address == address else e for e in state.pool)
    return dataclasses.replace(state, pool=entries)


def facts(state: HostState, /, **change: Any) -> HostState:
    """Change the host."""
    return dataclasses.replace(state, facts=dataclasses.replace(state.facts, **change))


def function(state: HostState, address: str, /, **change: Any) -> HostState:
    """Change one PCI function."""
    found = tuple(
        dataclasses.replace(f, **change) if f.address == address else f for f in state.facts.functions
    )
    return facts(state, functions=found)


def smt(state: HostState) -> HostState:
    """CPUs 1 (acme's) and 4 (globex's) become siblings."""
    core = frozenset({1, 4})
    cpus = tuple(
        HostCpu(c.cpu, c.socket, c.core, c.node, core) if c.cpu in core else c for c in state.facts.cpus
    )
    return facts(state, cpus=cpus)


#: What holds at every moment: name, change, invariant, subject.
ALWAYS: list[tuple[str, Callable[[HostState], HostState], str, str]] = [
    ("device in two VMs", lambda s: domain(s, GLOBEX, devices=(GPU, OTHER_GPU)), "I1", GPU),
    ("device that nobody holds", lambda s: pool(s, GPU, instance=None), "I1", GPU),
    ("device that is not in the pool", lambda s: dataclasses.replace(s, pool=s.pool[1:]), "I1", GPU),
    ("device that another VM holds", lambda s: pool(s, GPU, instance=GLOBEX), "I1", GPU),
    ("group of two VMs", lambda s: function(s, OTHER_GPU, group=1), "I1", OTHER_GPU),
    ("device without IOMMU", lambda s: function(s, GPU, group=None), "I1", GPU),
    ("CPU in two VMs", lambda s: domain(s, GLOBEX, cpus=frozenset({1})), "I2", "cpu 1"),
    ("core of two tenants", smt, "I2", "cpu 4"),
    ("core with the host", lambda s: facts(s, host_cpus=frozenset({0, 1, 3})), "I2", "cpu 1"),
    ("CPU unknown to the host", lambda s: domain(s, ACME, cpus=frozenset({77})), "I2", "cpu 77"),
    ("VLAN of two tenants", lambda s: claim(s, "prt_globex_serve", vlan=101), "I2", "vlan 101"),
    ("address twice", lambda s: claim(s, "prt_globex_serve", vlan=101), "I2", "10.0.0.10"),
    (
        "MAC twice",
        lambda s: claim(s, "prt_globex_serve", mac=next(c.mac for c in s.claims if c.instance == ACME)),
        "I2",
        "mac",
    ),
    (
        "volume in the clear",
        lambda s: dataclasses.replace(s, protection={**s.protection, ("volume", "vol_acme_train"): "plain"}),
        "I4",
        "vol_acme_train",
    ),
    (
        "volume that nobody looked at",
        lambda s: dataclasses.replace(
            s, protection={k: v for k, v in s.protection.items() if k[0] != "volume"}
        ),
        "I4",
        "vol_globex_serve",
    ),
    (
        "seed on a disk",
        lambda s: dataclasses.replace(s, protection={**s.protection, ("seed", ACME): "ext4"}),
        "I4",
        ACME,
    ),
    (
        "log on a disk",
        lambda s: dataclasses.replace(s, protection={**s.protection, ("log", ACME): "ext4"}),
        "I4",
        ACME,
    ),
    (
        "volume of another tenant",
        lambda s: domain(s, GLOBEX, volumes=("vol_globex_serve", "vol_acme_train")),
        "I4",
        "vol_acme_train",
    ),
    (
        "bridge that fails open",
        lambda s: dataclasses.replace(s, switch=dataclasses.replace(s.switch, fail_mode="standalone")),
        "I5",
        "bridge",
    ),
    ("open port with another tag", lambda s: port(s, "prt_acme_train", vlan=102), "I5", "prt_acme_train"),
    ("open port as a trunk", lambda s: port(s, "prt_acme_train", trunks=(1,)), "I5", "prt_acme_train"),
    ("open port of another VM", lambda s: port(s, "prt_acme_train", instance=GLOBEX), "I5", "prt_acme_train"),
    ("open port without a claim", lambda s: dataclasses.replace(s, claims=()), "I5", "prt_acme_train"),
    ("closed port with its tag", lambda s: port(s, "prt_acme_train", open=False), "I5", "prt_acme_train"),
    (
        "flow too many",
        lambda s: dataclasses.replace(s, flow_drift=("-cookie=0xb1,table=0,priority=9 actions=NORMAL",)),
        "I5",
        "flows",
    ),
    ("exposed without evidence", lambda s: pool(s, GPU, evidence=""), "I10", GPU),
    ("exposed and not counted", lambda s: pool(s, GPU, tenancy=0), "I10", GPU),
    ("in a VM and only clean", lambda s: pool(s, GPU, state="clean"), "I10", GPU),
]

CLOSED: dict[str, Any] = {"open": False, "vlan_mode": "trunk", "vlan": None, "trunks": (4095,)}

#: What holds once things settle.
SETTLED: list[tuple[str, Callable[[HostState], HostState], str, str]] = [
    (
        "secret left",
        lambda s: dataclasses.replace(s, secrets=(ObservedSecret("vol_acme_train"),)),
        "I3",
        "vol_acme_train",
    ),
    (
        "volume unfinished",
        lambda s: dataclasses.replace(
            s, volumes=(dataclasses.replace(s.volumes[0], complete=False), *s.volumes[1:])
        ),
        "I3",
        "vol_acme_train",
    ),
    (
        "seed left",
        lambda s: dataclasses.replace(
            s,
            seeds=(*s.seeds, ObservedSeed("vm_gone", 1)),
            protection={**s.protection, ("seed", "vm_gone"): "tmpfs"},
        ),
        "I3",
        "vm_gone",
    ),
    (
        "port left",
        lambda s: port(s, "prt_acme_train", **CLOSED, instance="vm_gone"),
        "I3",
        "prt_acme_train",
    ),
    (
        "interface that is nobody's",
        lambda s: dataclasses.replace(s, switch=dataclasses.replace(s.switch, foreign=("tap9",))),
        "I3",
        "tap9",
    ),
    (
        "claim left",
        lambda s: dataclasses.replace(
            s, claims=(*s.claims, PortClaim("prt_gone", "vm_gone", 9, "02:00:00:00:00:99", ("10.0.0.9",)))
        ),
        "I3",
        "prt_gone",
    ),
    (
        "device kept for nobody",
        lambda s: dataclasses.replace(
            s, pool=(*s.pool, PoolEntry("gpu_x", THIRD_GPU, "dirty", 1, "vm_gone", ""))
        ),
        "I3",
        THIRD_GPU,
    ),
    (
        "device taken and forgotten",
        lambda s: dataclasses.replace(s, taken=s.taken | {THIRD_GPU}),
        "I3",
        THIRD_GPU,
    ),
    (
        "flow missing",
        lambda s: dataclasses.replace(s, flow_drift=("+cookie=0xb1,table=0,priority=0 actions=drop",)),
        "I5",
        "flows",
    ),
]


def test_a_healthy_host_breaks_nothing(healthy: HostState) -> None:
    assert violations(healthy, settled=True) == ()
    assert len(healthy.domains) == len(healthy.pool) == len(healthy.claims) == 2
    assert healthy.taken == {GPU, OTHER_GPU}


@pytest.mark.parametrize(
    ("_name", "change", "invariant", "subject"), ALWAYS, ids=[each[0] for each in ALWAYS]
)
@pytest.mark.parametrize("settled", [False, True])
def test_broken_at_every_moment(
    healthy: HostState,
    _name: str,
    change: Callable[[HostState], HostState],
    invariant: str,
    subject: str,
    settled: bool,
) -> None:
    found = violations(change(healthy), settled=settled)

    if subject == "mac":
        subject = next(c.mac for c in healthy.claims if c.instance == ACME)
    assert (invariant, subject) in {(v.invariant, v.subject) for v in found}
    assert all(v.sentence for v in found)


@pytest.mark.parametrize(
    ("_name", "change", "invariant", "subject"), SETTLED, ids=[each[0] for each in SETTLED]
)
def test_broken_once_settled(
    healthy: HostState, _name: str, change: Callable[[HostState], HostState], invariant: str, subject: str
) -> None:
    spoiled = change(healthy)

    assert [(v.invariant, v.subject) for v in violations(spoiled, settled=True)] == [(invariant, subject)]
    assert violations(spoiled, settled=False) == ()


def test_what_was_ordered_away_is_away(healthy: HostState) -> None:
    def after(generation: int) -> tuple[Violation, ...]:
        orders = tuple(
            each.model_copy(update={"generation": generation})
            for each in everything_absent(healthy.assignment.instances[:1])
        )
        order = assignment_of(healthy.assignment.instances[1:], revision=9, absent=orders)
        return violations(dataclasses.replace(healthy, assignment=order), settled=True)

    device = healthy.assignment.instances[0].devices[0].id
    assert {v.subject for v in after(1)} == {ACME, "vol_acme_train", device}
    newer = domain(healthy, ACME, generation=5)
    assert newer.assignment is not None
    order = assignment_of([], revision=9, absent=everything_absent(healthy.assignment.instances[:1])[:1])
    assert violations(dataclasses.replace(newer, assignment=order), settled=True) == ()


def test_a_stopped_vm_shares_nothing(healthy: HostState) -> None:
    off = domain(healthy, GLOBEX, cpus=frozenset({1}), devices=(GPU,), state=DomainState.SHUTOFF)
    crashed = domain(healthy, GLOBEX, cpus=frozenset({1}), devices=(GPU,), state=DomainState.OTHER)

    assert {v.invariant for v in violations(off, settled=False)} == set()
    assert {v.invariant for v in violations(crashed, settled=False)} == {"I1", "I2"}


def test_one_tenants_vms_may_share_a_core_a_vlan_but_no_address(healthy: HostState) -> None:
    mine = domain(smt(healthy), GLOBEX, tenant="ten_acme", volumes=())
    same_vlan = claim(mine, "prt_globex_serve", vlan=101)

    assert violations(mine, settled=False) == ()
    assert {v.subject for v in violations(same_vlan, settled=False) if v.invariant == "I2"} == {"10.0.0.10"}


def test_cookies_of_another_program_are_no_difference(healthy: HostState) -> None:
    flow = "table=0,priority=0 actions=drop"
    renamed = dataclasses.replace(healthy, flow_drift=(f"-cookie=0xb1,{flow}", f"+cookie=0xb2,{flow}"))

    assert violations(renamed, settled=True) == ()


def test_expected_flows_leave_out_every_port_that_is_not_as_claimed(healthy: HostState) -> None:
    whole = expected_flows(healthy)
    names = [f"in_port={p.ofport}," for p in healthy.switch.ports]
    assert all(any(name in flow for flow in whole.flows) for name in names)

    for change in ({"open": False}, {"vlan": 102}, {"instance": GLOBEX}, {"ofport": None}):
        less = expected_flows(port(healthy, "prt_acme_train", **change))
        gone = next(f"in_port={p.ofport}," for p in healthy.switch.ports if p.port == "prt_acme_train")
        assert not any(gone in flow for flow in less.flows), change
        assert isinstance(less, FlowProgram)


def test_order_is_by_invariant_and_subject(healthy: HostState) -> None:
    spoiled = pool(domain(healthy, GLOBEX, cpus=frozenset({1})), GPU, evidence="", instance=None)

    found = violations(spoiled, settled=False)

    assert [(v.invariant, v.subject) for v in found] == [
        ("I1", GPU),
        ("I2", "cpu 1"),
        ("I2", "cpu 1"),
        ("I10", GPU),
    ]


def test_the_simulated_host_is_read_whole(tmp_path) -> None:
    fleet = Fleet(tmp_path)
    fleet.apply(fleet.two_tenants())
    assert broken_invariants(fleet, settled=True) == ()

    fleet.world.volume_keys.pop("vol_acme_train")
    fleet.world.overrides[THIRD_GPU] = "vfio-pci"
    fleet.world.flows = FlowProgram((*fleet.world.flows.flows, "table=0,priority=9 actions=NORMAL"))

    found = {v.invariant for v in broken_invariants(fleet, settled=True)}
    assert found == {"I3", "I4", "I5"}

"""The flow compiler by itself: its exact words, its refusals, and what no program may ever hold."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.agent.network.openflow import FlowTable
from orchestrator.isolation.flows import (
    MAX_OFPORT,
    TABLES,
    FlowPort,
    FlowProgram,
    compile_flows,
    link_local,
    solicited_node_mac,
)
from orchestrator.model.errors import InvalidInputError
from tests.unit.network.conftest import DummyVswitch

GOLDEN = Path(__file__).with_name("golden")
A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
#: One network on both sides of the uplink, and a second with the same MAC and address.
SMALL = (
    FlowPort("prt_a", 1, 101, A, ("10.0.0.1", "fd00::1")),
    FlowPort("prt_b", 2, 101, B, ("10.0.0.2",)),
    FlowPort("prt_c", 3, 102, A, ("10.0.0.1",)),
)
UPLINK = 9


def many(count: int) -> tuple[FlowPort, ...]:
    """Ports of fifty tenants, each with an address of either family."""
    return tuple(
        FlowPort(
            f"prt_{index}",
            index + 1,
            1 + index % 50,
            f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}",
            (f"10.0.{index >> 8}.{index & 255}", f"fd00::{index + 1:x}"),
        )
        for index in range(count)
    )


def parts(flow: str) -> tuple[int, int, str, str]:
    """Table, priority, match and actions of a flow."""
    match, actions = flow.split(" actions=")
    words = [word for word in match.split(",") if not word.startswith("cookie=")]
    table, priority = (int(word.partition("=")[2]) for word in words[:2])
    return table, priority, ",".join(words[2:]), actions


@pytest.mark.parametrize(("name", "uplink"), [("alone", None), ("uplink", UPLINK)])
def test_program_is_the_golden_text(name: str, uplink: int | None) -> None:
    """Each line of the golden files was read and agreed to; a change of one is a change of policy."""
    assert compile_flows(SMALL, uplink).text() == (GOLDEN / f"{name}.flows").read_text()


@pytest.mark.parametrize("uplink", [None, UPLINK])
def test_order_of_input_does_not_matter(uplink: int | None) -> None:
    wanted = compile_flows(SMALL, uplink)
    turned = [FlowPort(p.port, p.ofport, p.vlan, p.mac, p.addresses[::-1]) for p in SMALL]
    for seed in range(6):
        random.Random(seed).shuffle(turned)
        again = compile_flows(turned, uplink)
        assert again == wanted
        assert again.digest() == wanted.digest()


def test_spelling_of_an_address_does_not_matter() -> None:
    long = FlowPort("prt_a", 1, 101, A, ("fd00:0000::0001",))
    assert compile_flows([long]) == compile_flows([FlowPort("prt_a", 1, 101, A, ("fd00::1",))])


def test_hash_seed_does_not_matter() -> None:
    code = (
        "from tests.unit.network.test_flows import SMALL, UPLINK, compile_flows;"
        "print(compile_flows(SMALL, UPLINK).digest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "77")
    }
    assert told == {compile_flows(SMALL, UPLINK).digest()}


def test_digest_is_of_the_text() -> None:
    program = compile_flows(SMALL)
    assert program.digest() == "sha256:" + hashlib.sha256(program.text().encode()).hexdigest()


def test_cookie_names_the_policy() -> None:
    def cookies(program: FlowProgram) -> set[str]:
        return {flow.split(",")[0] for flow in program.flows}

    (first,) = cookies(compile_flows(SMALL))
    (second,) = cookies(compile_flows(SMALL[:2]))
    assert first != second
    assert first.startswith("cookie=0xb")


@pytest.mark.parametrize("ports", [(), SMALL, many(60)])
@pytest.mark.parametrize("uplink", [None, 60000])
def test_every_table_ends_in_a_drop_and_nothing_floods(
    ports: tuple[FlowPort, ...], uplink: int | None
) -> None:
    flows = [parts(flow) for flow in compile_flows(ports, uplink).flows]
    assert sorted((table, actions) for table, _, match, actions in flows if not match) == [
        (table, "drop") for table in TABLES
    ]
    assert {table for table, *_ in flows} == set(TABLES)
    known = {f"output:{port.ofport}" for port in ports} | {f"output:{uplink}"}
    simple = ("drop", "goto_table:", "set_field:", "push_vlan:0x8100", "pop_vlan")
    for table, priority, match, actions in flows:
        assert match or priority == 0
        for action in actions.split(","):
            assert action in known or action.startswith(simple), action
        jump = [
            int(action.partition(":")[2]) for action in actions.split(",") if action.startswith("goto_table")
        ]
        assert all(target in TABLES and target > table for target in jump)
        assert all(field not in actions for field in ("->reg6,goto_table:50", "->in_port", "->dl_"))


@pytest.mark.parametrize("ports", [SMALL, many(60)])
def test_output_names_the_network_it_is_for(ports: tuple[FlowPort, ...]) -> None:
    network = {f"output:{port.ofport}": f"reg6={port.vlan:#x}" for port in ports}
    found = [parts(flow) for flow in compile_flows(ports).flows if "output:" in flow]
    assert len(found) == len(ports)
    assert all(table == 50 and network[actions] in match.split(",") for table, _, match, actions in found)


def test_no_two_flows_have_the_same_match() -> None:
    """The switch would keep the last one only."""
    flows = [parts(flow)[:3] for flow in compile_flows(many(60), 60000).flows]
    assert len(set(flows)) == len(flows)


def changed(**fields: object) -> FlowPort:
    given = {
        "port": "prt_x",
        "ofport": 7,
        "vlan": 101,
        "mac": "02:00:00:00:00:07",
        "addresses": ("10.0.0.7",),
    }
    return FlowPort(**{**given, **fields})  # type: ignore[arg-type]


BAD = {
    "no number": ({"ofport": 0}, "network.bad_ofport"),
    "failed number": ({"ofport": -1}, "network.bad_ofport"),
    "IN_PORT, ANY and the like": ({"ofport": MAX_OFPORT + 1}, "network.bad_ofport"),
    "LOCAL": ({"ofport": 0xFFFE}, "network.bad_ofport"),
    "VLAN 0": ({"vlan": 0}, "network.bad_vlan"),
    "dead VLAN": ({"vlan": 4095}, "network.bad_vlan"),
    "no VLAN": ({"vlan": 4096}, "network.bad_vlan"),
    "group MAC": ({"mac": "03:00:00:00:00:07"}, "network.bad_mac"),
    "broadcast MAC": ({"mac": "ff:ff:ff:ff:ff:ff"}, "network.bad_mac"),
    "upper case MAC": ({"mac": "02:00:00:00:00:0A"}, "network.bad_mac"),
    "MAC with a tail": ({"mac": "02:00:00:00:00:07,actions=NORMAL"}, "network.bad_mac"),
    "MAC with a line": ({"mac": "02:00:00:00:00:07\n"}, "network.bad_mac"),
    "prefix": ({"addresses": ("10.0.0.7/24",)}, "network.bad_address"),
    "text": ({"addresses": ("10.0.0.7 actions=NORMAL",)}, "network.bad_address"),
    "scope": ({"addresses": ("fe80::7%eth0",)}, "network.bad_address"),
    "multicast": ({"addresses": ("224.0.0.7",)}, "network.bad_address"),
    "IPv6 multicast": ({"addresses": ("ff02::7",)}, "network.bad_address"),
    "unspecified": ({"addresses": ("0.0.0.0",)}, "network.bad_address"),
    "IPv6 unspecified": ({"addresses": ("::",)}, "network.bad_address"),
    "loopback": ({"addresses": ("127.0.0.1",)}, "network.bad_address"),
    "broadcast": ({"addresses": ("255.255.255.255",)}, "network.bad_address"),
    "IPv4 inside IPv6": ({"addresses": ("::ffff:10.0.0.7",)}, "network.bad_address"),
    "same id": ({"port": "prt_a"}, "network.duplicate_port"),
    "same number": ({"ofport": 1}, "network.duplicate_ofport"),
    "the uplink's number": ({"ofport": UPLINK}, "network.duplicate_ofport"),
    "same MAC": ({"mac": A}, "network.duplicate_mac"),
    "same address": ({"addresses": ("10.0.0.1",)}, "network.duplicate_address"),
    "same IPv6 address, other spelling": ({"addresses": ("fd00:0::1",)}, "network.duplicate_address"),
    "another's link-local address": ({"addresses": (link_local(A),)}, "network.duplicate_address"),
}


@pytest.mark.parametrize("name", [*BAD])
def test_bad_port_is_refused(name: str) -> None:
    fields, code = BAD[name]
    compile_flows([*SMALL, changed()], UPLINK)
    for ports in ([*SMALL, changed(**fields)], [changed(**fields), *SMALL]):
        with pytest.raises(InvalidInputError) as caught:
            compile_flows(ports, UPLINK)
        assert caught.value.code == code


@pytest.mark.parametrize("uplink", [0, -1, MAX_OFPORT + 1, 0xFFFE])
def test_bad_uplink_is_refused(uplink: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        compile_flows(SMALL, uplink)
    assert caught.value.code == "network.bad_ofport"


def test_same_mac_and_address_in_another_network_is_fine() -> None:
    assert compile_flows([*SMALL, changed(vlan=103, mac=A, addresses=("10.0.0.1", "fd00::1"))])


def test_derived_addresses() -> None:
    """By the examples of RFC 4291 appendix A and §2.7.1."""
    assert link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"
    assert solicited_node_mac("4037::01:800:200e:8c6c") == "33:33:ff:0e:8c:6c"


def test_thousand_ports(shared_vswitch: DummyVswitch, capsys: pytest.CaptureFixture[str]) -> None:
    """As many flows per port whatever the number of ports; the switch takes them all. Times are only told."""
    sizes = {}
    for count in (250, 500, 1000):
        began = time.perf_counter()
        program = compile_flows(many(count), 60000)
        sizes[count] = len(program.flows)
        with capsys.disabled():
            print(f"\n{count} ports: {sizes[count]} flows in {time.perf_counter() - began:.3f} s", end="")
    assert sizes[1000] - sizes[500] == 2 * (sizes[500] - sizes[250])
    assert sizes[1000] <= 25 * 1000
    shared_vswitch.add_bridge("br-many", [])
    try:
        table = FlowTable("br-many", str(shared_vswitch.home))
        table.replace(program)
        assert table.difference(program) == ()
        assert len(table.difference(FlowProgram(()))) == sizes[1000]
    finally:
        shared_vswitch.vsctl("del-br", "br-many")

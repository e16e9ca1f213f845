"""What holds for the flows of any ports and any frame."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.isolation.flows import FlowPort, FlowProgram, compile_flows
from orchestrator.isolation.reachability import Delivery, Frame, deliveries
from tests.property.interpreter import read, run
from tests.unit.network.frames import UPLINK, VLANS, frames, port_sets
from tests.unit.network.test_pipeline import CASES, PORTS, UPLINK_CASES, A

uplinks = st.sampled_from((None, UPLINK))
sent_frames = st.lists(frames(), min_size=10, max_size=20)


def crossings(
    ports: Sequence[FlowPort], program: FlowProgram, sent: Sequence[Frame], uplink: int | None
) -> list[tuple[Frame, Delivery]]:
    """Frames that leave the network in which they came; one from nowhere leaves it wherever it goes."""
    networks = {port.ofport: port.vlan for port in ports}
    rules, found = read(program.flows), []
    for frame in sent:
        source = frame.vlan if frame.in_port == uplink else networks.get(frame.in_port)
        for delivery in run(rules, frame):
            target = delivery.vlan if delivery.ofport == uplink else networks.get(delivery.ofport)
            if source is None or source != target:
                found.append((frame, delivery))
    return found


@pytest.mark.parametrize("name", [*CASES])
def test_interpreter_reads_as_the_hand_written_table_says(name: str) -> None:
    frame, wanted = CASES[name]
    assert run(read(compile_flows(PORTS).flows), frame) == wanted


@pytest.mark.parametrize("name", [*UPLINK_CASES])
def test_interpreter_reads_the_uplink_as_the_table_says(name: str) -> None:
    frame, wanted = UPLINK_CASES[name]
    assert run(read(compile_flows(PORTS, UPLINK).flows), frame) == wanted


@given(ports=port_sets(), uplink=uplinks, sent=sent_frames)
def test_flows_and_model_agree(ports: tuple[FlowPort, ...], uplink: int | None, sent: list[Frame]) -> None:
    rules = read(compile_flows(ports, uplink).flows)
    for frame in sent:
        assert run(rules, frame) == deliveries(ports, frame, uplink), frame


@given(ports=port_sets(), uplink=uplinks, sent=sent_frames)
def test_no_frame_leaves_its_network(
    ports: tuple[FlowPort, ...], uplink: int | None, sent: list[Frame]
) -> None:
    assert crossings(ports, compile_flows(ports, uplink), sent, uplink) == []


@given(ports=port_sets(), uplink=uplinks, sent=sent_frames)
def test_delivered_frames_look_as_they_should(
    ports: tuple[FlowPort, ...], uplink: int | None, sent: list[Frame]
) -> None:
    """One receiver at most, never the sender, no tag towards a tenant and always one towards the fabric."""
    rules = read(compile_flows(ports, uplink).flows)
    for frame in sent:
        found = run(rules, frame)
        assert len(found) <= 1
        for delivery in found:
            assert delivery.ofport != frame.in_port
            assert (delivery.vlan is None) == (delivery.ofport != uplink)


@given(ports=port_sets(), uplink=uplinks, sent=sent_frames, vlan=st.sampled_from(VLANS))
def test_other_networks_change_nothing(
    ports: tuple[FlowPort, ...], uplink: int | None, sent: list[Frame], vlan: int
) -> None:
    """What a network's frames reach does not depend on who else is on the host."""
    own = [port for port in ports if port.vlan == vlan]
    with_all, alone = read(compile_flows(ports, uplink).flows), read(compile_flows(own, uplink).flows)
    numbers = {port.ofport for port in own}
    for frame in sent:
        of_ours = frame.in_port in numbers or (own and frame.in_port == uplink and frame.vlan == vlan)
        if of_ours:
            assert run(with_all, frame) == run(alone, frame)


@given(ports=port_sets(), uplink=uplinks, shuffled=st.randoms(use_true_random=False))
def test_order_does_not_matter(ports: tuple[FlowPort, ...], uplink: int | None, shuffled: object) -> None:
    turned = list(ports)
    shuffled.shuffle(turned)  # type: ignore[attr-defined]
    assert compile_flows(turned, uplink).text() == compile_flows(ports, uplink).text()


@given(ports=port_sets(), uplink=uplinks, sent=sent_frames)
def test_a_port_that_closes_takes_only_its_own_away(
    ports: tuple[FlowPort, ...], uplink: int | None, sent: list[Frame]
) -> None:
    """Without the first port nothing reaches it, and it reaches nobody; the host's others lose nothing."""
    gone, rest = ports[:1], ports[1:]
    before, after = read(compile_flows(ports, uplink).flows), read(compile_flows(rest, uplink).flows)
    closed = {port.ofport for port in gone}
    for frame in sent:
        now = run(after, frame)
        assert not closed & {delivery.ofport for delivery in now}
        if frame.in_port in closed:
            assert now == frozenset()
        else:
            local = {each for each in run(before, frame) if each.ofport not in closed | {uplink}}
            assert local <= now


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"reg6=0x66,(dl_dst=02:00:00:00:00:04|reg7=0x4)", r"\1"),
        (r"(in_port=3,\S* actions=\S*)0x66->reg6", r"\g<1>0x65->reg6"),
        (r"output:4$", "output:1"),
    ],
)
def test_a_crossing_would_be_seen(pattern: str, replacement: str) -> None:
    """The same search finds the leak once a network is left out of a flow."""
    text = compile_flows(PORTS).text()
    broken = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    assert broken != text
    sent = [frame for frame, _ in CASES.values()]
    sent += [dataclasses.replace(frame, in_port=3) for frame in sent if frame.source == A]
    assert crossings(PORTS, compile_flows(PORTS), sent, None) == []
    assert crossings(PORTS, FlowProgram(tuple(broken.splitlines())), sent, None)

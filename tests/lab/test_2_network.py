"""Who reaches whom, seen from inside the guests: acme's two reach each other, acme and globex never.

The same questions are asked of a sabotaged switch, which must turn the answers.
"""

from __future__ import annotations

import pytest

from orchestrator.isolation.flows import FlowPort, compile_flows
from tests.lab.scripts import ping

pytestmark = pytest.mark.lab

BRIDGE = "br-bulkhead"
#: UDP port of the frame that ends a conversation: what was sent before it has come, or never will.
LAST = 4242


@pytest.fixture(scope="module", autouse=True)
def _running(lab_host):
    report = lab_host.session.apply(lab_host.order(lab_host.all))
    assert report["ok"], [each["error"] for each in report["instances"]]


def mac(instance) -> str:
    return instance.ports[0].mac


def address(instance) -> str:
    return instance.ports[0].addresses[0].address


def reaches(lab_host, source, target: str, tries: int = 10) -> bool:
    code, _output = lab_host.run(source, ping(target, tries))
    return code == 0


def heard(lab_host, listener, speaker, frames: list[str], *, wait_s: int = 4) -> list[str]:
    """All that the listener's NIC gets while the speaker sends: until the last one, or for `wait_s`."""
    code, output = lab_host.run(
        listener,
        "killall -q listenframe; listenframe eth0 300 >/tmp/heard 2>&1 & "
        "for i in $(seq 200); do grep -q '# listening' /tmp/heard && exit 0; sleep 0.1; done; exit 1",
    )
    assert code == 0, output
    code, output = lab_host.run(speaker, " && ".join(f"sendframe eth0 {frame}" for frame in frames))
    assert code == 0, output
    _code, output = lab_host.run(
        listener,
        f"for i in $(seq {wait_s * 10}); do grep -q '>{LAST}$' /tmp/heard && break; sleep 0.1; done; "
        "killall listenframe; cat /tmp/heard",
    )
    lines = output.splitlines()
    assert lines[0] == "# listening", output
    return [line for line in lines if not line.startswith("#")]


def leaks(lab_host) -> list[str]:
    """What of acme's frames arrives at globex, which has the same addresses."""
    acme, globex = lab_host.acme, lab_host.globex
    frames = [
        "--spa 10.0.0.10 --tpa 10.0.0.99 --op request arp",
        f"--dst {mac(globex)} --sip 10.0.0.10 --dip 10.0.0.99 echo",
        f"--dst {mac(globex)} --vlan {globex.ports[0].vlan} --sip 10.0.0.10 --dip 10.0.0.10 echo",
        f"--src {mac(globex)} --sip 10.0.0.10 --dip 255.255.255.255 --sport 9 --dport 9 udp",
    ]
    return [line for line in heard(lab_host, globex, acme, frames) if mac(acme) in line]


def ports_in_one_network(lab_host) -> list[FlowPort]:
    """A wrong policy: everybody in acme's network, globex under an address of its own."""
    return [flow_port(lab_host, each, vlan=101, own=own) for each, own in zip(
        lab_host.all, ("10.0.0.10", "10.0.0.11", "10.0.0.99"), strict=True
    )]  # fmt: skip


def flow_port(lab_host, instance, *, vlan: int | None = None, own: str | None = None) -> FlowPort:
    port = instance.ports[0]
    number = lab_host.sh(
        f"ovs-vsctl --bare --columns=ofport find interface external_ids:bulkhead-port={port.id}"
    )
    return FlowPort(port.id, int(number), vlan or port.vlan, port.mac, (own or address(instance),))


def load_flows(lab_host, ports: list[FlowPort]) -> None:
    text = compile_flows(ports).text().encode()
    lab_host.host.ssh(f"ovs-ofctl -O OpenFlow14 --bundle replace-flows {BRIDGE} -", input=text)


def tap_of(lab_host, instance) -> str:
    marks = f"external_ids:bulkhead-port={instance.ports[0].id}"
    return lab_host.sh(f"ovs-vsctl --bare --columns=name find interface {marks}")


def failed_checks(report) -> set[str]:
    verdicts = [v for each in report["instances"] for v in each["verdicts"]] + report["verdicts"]
    return {v["id"] for v in verdicts if v["status"] != "pass"}


def test_same_tenant_reaches_each_other(lab_host):
    assert reaches(lab_host, lab_host.acme, address(lab_host.helper))
    assert reaches(lab_host, lab_host.helper, address(lab_host.acme))


def test_other_tenant_with_the_same_subnet_is_never_reached(lab_host):
    assert address(lab_host.acme) == address(lab_host.globex)
    assert not reaches(lab_host, lab_host.globex, address(lab_host.helper), tries=2)
    assert leaks(lab_host) == []


def test_spoofed_frames_are_dropped_and_the_honest_one_arrives(lab_host):
    acme, helper = lab_host.acme, lab_host.helper
    own, peer = mac(acme), mac(helper)
    to_peer = f"--dst {peer} --sip 10.0.0.10 --dip 10.0.0.11 --sport 9"
    reply = f"--dst {peer} --op reply --tha {peer} --tpa 10.0.0.11"
    spoofed = {
        "MAC": f"--src 02:66:66:66:66:66 {to_peer} --dport 1 udp",
        "IP": f"--dst {peer} --sip 10.0.0.66 --dip 10.0.0.11 --sport 9 --dport 2 udp",
        "ARP": f"{reply} --spa 10.0.0.66 arp",
        "ARP's MAC": f"{reply} --sha 02:66:66:66:66:66 --spa 10.0.0.10 arp",
        "tag": f"--vlan 101 {to_peer} --dport 3 udp",
        "two tags": f"--vlan 101 --vlan 102 {to_peer} --dport 4 udp",
        "DHCP": "--yip 10.0.0.12 --sip 10.0.0.10 dhcp-offer",
        "router": "--sip fe80::66 --prefix 2001:db8:: --dst 33:33:00:00:00:01 ra",
    }
    honest = f"{to_peer} --dport {LAST} udp"

    received = heard(lab_host, helper, acme, [*spoofed.values(), honest], wait_s=20)

    # Its kernel may answer for its own address meanwhile; that is no lie.
    true_arp = f"sha {own} spa 10.0.0.10 "
    from_acme = [line for line in received if (own in line or "02:66:66" in line) and true_arp not in line]
    assert len(from_acme) == 1, from_acme
    assert from_acme[0].endswith(f"ip 10.0.0.10>10.0.0.11 udp 9>{LAST}")


def test_wrong_tag_is_noticed_and_mended(lab_host):
    tap = tap_of(lab_host, lab_host.globex)
    lab_host.sh(f"ovs-vsctl set port {tap} tag=101")
    order = lab_host.order(lab_host.all)

    seen = lab_host.session.verify(order)
    report = lab_host.session.apply(order)

    assert failed_checks(seen) == {"port.tag", "switch.flows"}
    assert lab_host.sh(f"ovs-vsctl get port {tap} tag") == "102"
    assert report["changed"]
    assert report["ok"]


def test_closed_port_carries_nothing_and_opening_it_early_shows(lab_host):
    acme, helper, globex = lab_host.all
    tap = tap_of(lab_host, helper)
    lab_host.sh(
        f"ovs-vsctl set port {tap} vlan_mode=trunk trunks=4095 -- clear port {tap} tag "
        f"-- remove interface {tap} external_ids bulkhead-open"
    )
    order = lab_host.order(lab_host.all)
    load_flows(lab_host, [flow_port(lab_host, acme), flow_port(lab_host, globex)])
    assert not reaches(lab_host, acme, address(helper), tries=2)
    assert failed_checks(lab_host.session.verify(order)) == {"port.mode", "port.tag", "port.open"}

    load_flows(lab_host, [flow_port(lab_host, each) for each in lab_host.all])
    assert reaches(lab_host, acme, address(helper)), "the question cannot see an early port"
    assert "switch.flows" in failed_checks(lab_host.session.verify(order))

    assert lab_host.session.apply(order)["ok"]
    assert reaches(lab_host, acme, address(helper))


def test_flows_that_join_two_tenants_would_be_seen_as_a_leak(lab_host):
    load_flows(lab_host, ports_in_one_network(lab_host))
    try:
        assert leaks(lab_host) != []
    finally:
        report = lab_host.session.apply(lab_host.order(lab_host.all))
    assert "replace_flows" in {step["step"] for step in report["steps"]}
    assert leaks(lab_host) == []


def test_no_flow_says_normal_and_bridge_fails_secure(lab_host):
    flows = lab_host.sh(f"ovs-ofctl -O OpenFlow14 dump-flows {BRIDGE}")
    assert "priority=0" in flows
    assert "NORMAL" not in flows
    assert "FLOOD" not in flows
    assert lab_host.sh(f"ovs-vsctl get-fail-mode {BRIDGE}") == "secure"

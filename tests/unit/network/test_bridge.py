"""The bridge: made secure at once, repaired where it strays, refused where it is not ours."""

from __future__ import annotations

import pytest

from orchestrator.agent.network import OvsSwitch
from orchestrator.model.errors import ConflictError
from tests.unit.network.conftest import BRIDGE, DummyVswitch
from tests.unit.network.driving import NOTHING, number_of, refused


def test_bridge_is_secure_from_its_first_transaction(clean: DummyVswitch) -> None:
    clean.switch().ensure_bridge()
    wanted = {
        "fail_mode": "secure",
        "datapath_type": "dummy",
        "protocols": "[OpenFlow13, OpenFlow14]",
        "controller": "[]",
        "other_config": '{disable-in-band="true"}',
        "external_ids": f"{{bulkhead-bridge={BRIDGE}}}",
    }
    for column, value in wanted.items():
        assert clean.vsctl("get", "Bridge", BRIDGE, column) == value


def test_new_bridge_has_no_flow(switch: OvsSwitch) -> None:
    assert switch.drift(NOTHING) == ()


def test_observed_before_and_after(clean: DummyVswitch) -> None:
    switch = clean.switch()
    before = switch.observe()
    assert (before.exists, before.fail_mode, before.ports) == (False, "", ())
    switch.ensure_bridge()
    after = switch.observe()
    assert (after.exists, after.fail_mode, after.ports, after.foreign) == (True, "secure", (), ())
    assert after.uplink_ofport is None


def test_second_time_changes_nothing(clean: DummyVswitch) -> None:
    switch = clean.switch(uplink="up0")
    switch.ensure_bridge()
    before = clean.vsctl("get", "Open_vSwitch", ".", "next_cfg")
    switch.ensure_bridge()
    assert clean.vsctl("get", "Open_vSwitch", ".", "next_cfg") == before


@pytest.mark.parametrize(
    "stray",
    [
        "set Bridge {b} fail_mode=standalone",
        "clear Bridge {b} fail_mode",
        "set Bridge {b} protocols=OpenFlow10",
        "clear Bridge {b} protocols",
        "set Bridge {b} mcast_snooping_enable=true",
        "set Bridge {b} stp_enable=true",
        "set Bridge {b} rstp_enable=true",
        "set Bridge {b} datapath_type=netdev",
        "set Bridge {b} other_config:disable-in-band=false",
        "remove Bridge {b} other_config disable-in-band",
        "set-controller {b} punix:{home}/steer",
        "-- --id=@m create Mirror name=m select-all=true -- set Bridge {b} mirrors=@m",
        '-- --id=@n create NetFlow targets="127.0.0.1:9" -- set Bridge {b} netflow=@n',
        '-- --id=@s create sFlow targets="127.0.0.1:9" -- set Bridge {b} sflow=@s',
        '-- --id=@i create IPFIX targets="127.0.0.1:9" -- set Bridge {b} ipfix=@i',
    ],
)
def test_stray_setting_is_repaired(clean: DummyVswitch, switch: OvsSwitch, stray: str) -> None:
    columns = "fail_mode,protocols,mcast_snooping_enable,stp_enable,rstp_enable,datapath_type,other_config"
    columns += ",controller,mirrors,netflow,sflow,ipfix"

    def settings() -> str:
        return clean.vsctl(f"--columns={columns}", "list", "Bridge", BRIDGE)

    right = settings()
    clean.vsctl("--no-wait", *stray.format(b=BRIDGE, home=clean.home).split())
    assert settings() != right
    switch.ensure_bridge()
    assert settings() == right


def test_other_peoples_configuration_stays(clean: DummyVswitch, switch: OvsSwitch) -> None:
    clean.vsctl("set", "Bridge", BRIDGE, "other_config:hwaddr=02:00:00:00:00:aa", "stp_enable=true")
    clean.vsctl("set", "Bridge", BRIDGE, "other_config:disable-in-band=false")
    switch.ensure_bridge()
    assert clean.vsctl("get", "Bridge", BRIDGE, "other_config:hwaddr") == '"02:00:00:00:00:aa"'


@pytest.mark.parametrize("mark", ["", "external_ids:bulkhead-bridge=br-another"])
def test_foreign_bridge_is_refused_and_left_alone(clean: DummyVswitch, mark: str) -> None:
    clean.vsctl(*f"add-br {BRIDGE} -- set Bridge {BRIDGE} datapath_type=dummy {mark}".split())
    before = clean.vsctl("list", "Bridge", BRIDGE)
    with refused(ConflictError, "network.bridge_foreign", hint=True):
        clean.switch().ensure_bridge()
    assert clean.vsctl("list", "Bridge", BRIDGE) == before


def test_foreign_port_of_the_bridges_name_is_refused(clean: DummyVswitch) -> None:
    clean.add_bridge("br-other", [])
    clean.vsctl("add-port", "br-other", BRIDGE, "--", "set", "Interface", BRIDGE, "type=dummy")
    with refused(ConflictError, "network.bridge_foreign"):
        clean.switch().ensure_bridge()


def test_uplink_on_another_bridge_is_refused_and_nothing_made(clean: DummyVswitch) -> None:
    clean.add_bridge("br-other", [])
    clean.vsctl("add-port", "br-other", "up0", "--", "set", "Interface", "up0", "type=dummy")
    with refused(ConflictError, "network.uplink_foreign", hint=True):
        clean.switch(uplink="up0").ensure_bridge()
    assert clean.vsctl("list-br") == "br-other"
    assert clean.vsctl("list-ports", "br-other") == "up0"


def test_uplink_is_joined_later_and_again_when_lost(clean: DummyVswitch, switch: OvsSwitch) -> None:
    joined = clean.switch(uplink="up0")
    assert joined.observe().uplink_ofport is None
    for _ in range(2):
        joined.ensure_bridge()
        assert joined.observe().uplink_ofport == number_of(clean, "up0")
        assert joined.observe().foreign == ()
        clean.vsctl("del-port", BRIDGE, "up0")

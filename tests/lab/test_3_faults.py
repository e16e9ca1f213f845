"""Faults made for real: killed agents, daemons and a reboot. All converges; running VMs keep their pid."""

from __future__ import annotations

import json

import pytest

from images.labhost.session import ApplyError
from images.labhost.tenants import Tenancy, instance_for
from tests.lab import kernel_view
from tests.lab.scripts import ping

pytestmark = pytest.mark.lab

KILLS = 10
SETTINGS = "/etc/bulkhead/agent.toml"
#: A bind that does not hang takes three of these seconds on a busy machine.
BIND_DEADLINE_S = 15
#: Reading the host, accepting the order and looking at the bystander come first.
FIRST_STEP = 3


@pytest.fixture(scope="module", autouse=True)
def _running(lab_host):
    report = lab_host.session.apply(lab_host.order(lab_host.all))
    assert report["ok"], [each["error"] for each in report["instances"]]


def pids(lab_host, instances) -> dict[str, int]:
    return {each.id: kernel_view.qemu_pid(lab_host, each.id) for each in instances}


def test_empty_lower_and_foreign_assignments_destroy_nothing(lab_host):
    before = pids(lab_host, lab_host.all)
    lower = lab_host.gone(lab_host.all).model_copy(update={"revision": 1})
    foreign = lab_host.gone(lab_host.all).model_copy(update={"deployment": "dep_other"})

    lab_host.session.apply(lab_host.order([]))
    for refused in (lower, foreign):
        with pytest.raises(ApplyError) as told:
            lab_host.session.apply(refused)
        assert told.value.rc == 5

    assert pids(lab_host, lab_host.all) == before
    assert "priority=0" in lab_host.sh("ovs-ofctl -O OpenFlow14 dump-flows br-bulkhead")
    code, _ = lab_host.run(lab_host.acme, ping("10.0.0.11"))
    assert code == 0


def test_ten_sigkills_while_a_vm_goes_and_comes_converge(lab_host):
    """The agent is killed, starts again and is killed again, further on its way every second time."""
    # One stands in the orders and one does not: neither may be touched.
    bystanders = [lab_host.globex]
    before = pids(lab_host, [lab_host.acme, *bystanders])
    killed = 0
    for _ in range(KILLS):
        # Whatever fails here, the tests after it know what the lab host was told.
        lab_host.helper = lab_host.helper.model_copy(update={"generation": lab_host.helper.generation + 1})
        order = lab_host.order([*bystanders, lab_host.helper])
        while killed < KILLS:
            hit, _steps = lab_host.session.apply_and_kill(order, after_steps=FIRST_STEP + killed // 2)
            if not hit:
                break
            killed += 1
    assert killed == KILLS

    report = lab_host.session.apply(lab_host.order([*bystanders, lab_host.helper]))

    assert report["ok"], [each["error"] for each in report["instances"]]
    assert pids(lab_host, [lab_host.acme, *bystanders]) == before
    assert_nothing_leaked(lab_host, lab_host.all)


def test_libvirtd_and_the_switch_killed_and_restarted_midway(lab_host):
    before = pids(lab_host, lab_host.all)
    lab_host.sh(
        "systemctl kill -s KILL libvirtd ovs-vswitchd; sleep 2; "
        "systemctl restart ovs-vswitchd openvswitch-switch; systemctl restart libvirtd",
        timeout_s=240,
    )

    report = lab_host.session.apply(lab_host.order(lab_host.all))

    assert report["ok"], [each["error"] for each in report["instances"]]
    assert pids(lab_host, lab_host.all) == before
    code, _ = lab_host.run(lab_host.acme, ping("10.0.0.11"))
    assert code == 0


def test_hung_unbind_leaves_the_agent_responsive(lab_host):
    """A test module that sleeps in remove holds a stand-in; its instance fails in time, the others stay."""
    stuck = instance_for(Tenancy("initech", "stuck", 0, 103, 12), lab_host.facts, lab_host.image, core=1)
    address = stuck.devices[0].address
    lab_host.sh(
        f"modprobe hangremove && echo hangremove >/sys/bus/pci/devices/{address}/driver_override && "
        f"(echo {address} >/sys/bus/pci/devices/{address}/driver/unbind || true) && "
        f"echo {address} >/sys/bus/pci/drivers_probe"
    )
    assert kernel_view.driver(lab_host, address) == "hangremove"
    lab_host.sh(f"mkdir -p /etc/bulkhead && echo 'bind_deadline_s = {BIND_DEADLINE_S}' >{SETTINGS}")
    before = pids(lab_host, lab_host.all)
    try:
        first = lab_host.session.apply(lab_host.order([*lab_host.all, stuck]), timeout_s=240)
        second = lab_host.session.apply(lab_host.order([*lab_host.all, stuck]), timeout_s=240)
    finally:
        lab_host.sh(f"echo 1 >/sys/module/hangremove/parameters/release; rm {SETTINGS}")

    assert [each["error"]["code"] for each in (first["instances"][-1], second["instances"][-1])] == [
        "device.bind_timeout",
        "device.bind_in_flight",
    ]
    assert pids(lab_host, lab_host.all) == before
    gone = lab_host.gone([stuck]).absent
    report = lab_host.session.apply(lab_host.order(lab_host.all, gone))
    assert report["ok"], report["absent"]


def test_merged_group_is_refused_with_all_members_named(lab_host):
    shared = [
        f
        for f in lab_host.facts["functions"]
        if not f["class_code"].startswith("06") and f["group"] is not None
    ]
    groups: dict[int, list] = {}
    for function in shared:
        groups.setdefault(function["group"], []).append(function)
    merged = next(members for members in groups.values() if len(members) > 1)
    victim = merged[0]
    wanted = lab_host.acme.devices[0].model_copy(
        update={
            "id": "gpu_merged",
            "address": victim["address"],
            "vendor": victim["vendor"],
            "device": victim["device"],
            "node": victim["node"],
        }
    )
    order = lab_host.order([lab_host.helper.model_copy(update={"devices": (wanted,), "id": "vm_merged"})])

    with pytest.raises(ApplyError) as refused:
        lab_host.session.apply(order)

    assert refused.value.rc == 2
    assert "device.group_not_isolated" in refused.value.words
    for member in merged:
        assert member["address"] in refused.value.words


def test_reboot_brings_everything_back(lab_host):
    # Two of them: each start takes a while here, and a third one would show nothing more.
    kept = [lab_host.acme, lab_host.globex]
    assert lab_host.session.apply(lab_host.order(kept, lab_host.gone([lab_host.helper]).absent))["ok"]
    lab_host.host.reboot()

    report = lab_host.settled(lab_host.order(kept))

    assert report["ok"], [each["error"] for each in report["instances"]]
    assert_nothing_leaked(lab_host, kept)


def test_absent_takes_everything_away_without_a_trace(lab_host):
    report = lab_host.session.apply(lab_host.gone(lab_host.all))

    assert report["ok"], report["absent"]
    assert_nothing_leaked(lab_host, [])
    for instance in (lab_host.acme, lab_host.globex):
        assert kernel_view.driver(lab_host, instance.devices[0].address) == "bochs-drm"


def assert_nothing_leaked(lab_host, instances) -> None:
    """Exactly these instances' things exist: looked up by the daemons' own tools."""
    names = sorted(each.id for each in instances)
    assert sorted(lab_host.sh("virsh list --all --name").split()) == names
    assert lab_host.sh("virsh secret-list | tail -n +3").split() == []
    volumes = lab_host.sh("find /var/lib/bulkhead/volumes -type f | wc -l")
    assert int(volumes) >= len(names)
    found = lab_host.sh("ls /var/lib/bulkhead/volumes").split()
    assert sorted(found) == sorted(volume.id for each in instances for volume in each.volumes)
    taps = lab_host.sh("ovs-vsctl list-ports br-bulkhead").split()
    assert len(taps) == sum(len(each.ports) for each in instances)
    assert len(lab_host.sh("ls /run/bulkhead/seeds").split()) == len(names)
    journal = json.loads(lab_host.sh("cat /var/lib/bulkhead/agent/journal.json"))
    assert sorted(journal["uids"]) == names
    assert lab_host.sh("pgrep -c qemu-system || true") == str(len(names))

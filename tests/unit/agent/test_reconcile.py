"""What the agent does, and above all what it leaves alone."""

from __future__ import annotations

import dataclasses

import pytest

from images.labhost.tenants import assignment_of, everything_absent
from orchestrator.agent.sim.drivers import SimKeys
from orchestrator.agent.sim.world import SimPort
from orchestrator.model.assignment import Power
from orchestrator.model.errors import FencedError, HostError
from orchestrator.model.evidence import Status
from orchestrator.model.naming import interface_id
from orchestrator.model.observed import DomainState
from orchestrator.model.parsing import AssignmentRefused
from orchestrator.model.report import Phase
from tests.unit.agent.fleet import ACME, ACME2, GLOBEX, Fleet


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@pytest.fixture
def running(fleet):
    fleet.apply(fleet.two_tenants(revision=3))
    return fleet


def test_create_brings_up_both_tenants_with_all_checks_passed(fleet):
    report = fleet.apply(fleet.two_tenants())

    assert report.ok
    assert report.changed
    assert [each.phase for each in report.instances] == [Phase.RUNNING, Phase.RUNNING]
    assert all(each.verdicts for each in report.instances)
    assert {port.vlan for port in fleet.world.ports if port.open} == {101, 102}
    assert fleet.world.secrets == {}


def test_second_apply_changes_nothing_and_keeps_pids(running):
    before, changes = running.snapshot(), running.world.changes
    pids = {name: domain.pid for name, domain in running.world.domains.items()}

    report = running.apply(running.two_tenants(revision=3))

    assert not report.changed
    assert running.world.changes == changes
    assert running.snapshot() == before
    assert {name: domain.pid for name, domain in running.world.domains.items()} == pids


def test_empty_assignment_destroys_nothing_and_reports_strays(running):
    before = running.snapshot()

    report = running.apply(assignment_of([], revision=4))

    assert running.snapshot() == before
    assert {(s.kind, s.id) for s in report.strays} >= {
        ("instance", "vm_acme_train"),
        ("volume", "vol_acme_train"),
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"revision": 2}, "assignment.stale"),
        ({"epoch": 1, "revision": 1}, "assignment.stale"),
        ({"deployment": "dep_other", "revision": 9}, "assignment.foreign_deployment"),
    ],
)
def test_older_or_foreign_assignment_is_refused_whole(running, change, code):
    before, changes = running.snapshot(), running.world.changes
    removal = assignment_of([], revision=3, absent=everything_absent(running.two_tenants().instances))

    with pytest.raises(FencedError) as refused:
        running.apply(removal.model_copy(update=change))

    assert refused.value.code == code
    assert (running.snapshot(), running.world.changes) == (before, changes)


def test_same_revision_with_other_content_is_refused(running):
    other = running.two_tenants(revision=3).model_copy(update={"instances": ()})

    with pytest.raises(FencedError) as refused:
        running.apply(other)

    assert refused.value.code == "assignment.revision_reused"


def test_assignment_for_another_host_is_refused(running):
    agent = running.agent()
    agent._host_id = "hst_else"

    with pytest.raises(FencedError) as refused:
        agent.apply(running.two_tenants(revision=9))

    assert refused.value.code == "assignment.wrong_host"


def test_higher_epoch_observing_only_touches_nothing(running):
    changes = running.world.changes
    removal = assignment_of(running.two_tenants().instances[:1], revision=1, epoch=2, absent=()).model_copy(
        update={"observe_only": True}
    )

    report = running.apply(removal)

    assert [each.phase for each in report.instances] == [Phase.RUNNING]
    assert all(each.verdicts for each in report.instances)
    assert (report.changed, running.world.changes) == (False, changes)


def test_looking_finds_what_is_not_as_ordered_and_touches_nothing(running):
    assignment = running.two_tenants(revision=3)
    acme, globex = assignment.instances
    running.world.domains[acme.id].pid = None
    running.world.misread["process.uid"] = True
    running.world.restart_switch()
    before, changes = running.snapshot(), running.world.changes

    report = running.agent().look(assignment)

    codes = {each.instance: each.error["code"] for each in report.instances}
    assert codes == {acme.id: "instance.not_running", globex.id: "instance.isolation_not_proven"}
    assert [(v.id, v.status) for v in report.verdicts] == [("switch.flows", Status.FAIL)]
    assert not report.ok
    assert (running.snapshot(), running.world.changes) == (before, changes)


def test_lost_gpu_is_its_instances_trouble_and_holds_up_nobody(running):
    assignment = running.two_tenants(revision=3)
    acme, globex = assignment.instances
    newcomer = running.instance(ACME2, core=1)
    del running.world.functions[acme.devices[0].address]

    report = running.apply(assignment_of([acme, globex, newcomer], revision=4))

    first, *others = report.instances
    assert first.error["code"] == "instance.isolation_not_proven"
    assert not any(port.open for port in running.world.ports if port.instance == acme.id)
    assert [each.phase for each in others] == [Phase.RUNNING, Phase.RUNNING]


def test_gpu_that_was_never_there_refuses_the_whole_order(running):
    acme, globex = running.two_tenants(revision=3).instances
    gone = acme.devices[0].model_copy(update={"address": "0000:99:00.0", "id": "gpu_none"})
    before = running.snapshot()

    with pytest.raises(AssignmentRefused) as refused:
        running.apply(assignment_of([acme.model_copy(update={"devices": (gone,)}), globex], revision=4))

    assert [problem.code for problem in refused.value.problems] == ["device.missing"]
    assert running.snapshot() == before


def test_looking_at_another_order_says_so(running):
    assignment = running.two_tenants(revision=3)
    other = running.instance(ACME, core=1)
    both = assignment_of([other, assignment.instances[1]], revision=4)

    report = running.agent().look(both)

    assert report.instances[0].error["code"] == "instance.not_as_ordered"
    assert report.instances[1].error is None


def test_absent_takes_everything_away_and_gives_the_device_back(running):
    assignment = running.two_tenants()
    fresh = everything_absent(assignment.instances)

    report = running.apply(assignment_of([], revision=4, absent=fresh))

    assert report.ok
    world = running.world
    assert (world.domains, world.volumes, world.volume_keys, world.seeds, world.ports) == ({}, {}, {}, {}, [])
    assert {function.driver for function in world.functions.values()} == {"bochs-drm"}
    assert world.overrides == {}
    state = running.agent()._journal.state
    assert (state.uids, state.pool, state.ports) == ({}, {}, {})


def test_removed_instance_must_not_come_back_under_its_generation(running):
    assignment = running.two_tenants()
    running.apply(assignment_of([], revision=4, absent=everything_absent(assignment.instances)))

    report = running.apply(running.two_tenants(revision=5))

    assert {each.error["code"] for each in report.instances} == {"instance.fenced"}
    assert running.world.domains == {}


def test_volume_of_a_defined_instance_is_not_erased(running):
    volume = everything_absent(running.two_tenants().instances)[1]
    assert volume.kind == "volume"

    report = running.apply(assignment_of([], revision=4, absent=[volume]))

    assert report.absent[0].error["code"] == "volume.in_use"
    assert volume.id in running.world.volumes


def test_device_of_a_running_instance_is_not_given_back(running):
    device = everything_absent(running.two_tenants().instances)[2]
    assert device.kind == "device"

    report = running.apply(assignment_of([], revision=4, absent=[device]))

    assert report.absent[0].error["code"] == "device.in_use"


def test_stop_keeps_volume_definition_and_device_and_start_comes_back(running):
    first, second = running.two_tenants().instances
    stopped = first.model_copy(update={"power": Power.STOPPED})

    report = running.apply(assignment_of([stopped, second], revision=4))
    assert report.instances[0].phase is Phase.STOPPED
    assert running.world.domains[first.id].pid is None
    assert first.volumes[0].id in running.world.volumes
    assert running.world.functions[first.devices[0].address].driver == "vfio-pci"
    assert [port.instance for port in running.world.ports] == [second.id]

    report = running.apply(running.two_tenants(revision=5))
    assert report.ok
    assert running.world.domains[first.id].pid is not None


def test_changed_definition_needs_a_higher_generation(running):
    first, second = running.two_tenants().instances
    moved = running.instance(ACME, core=1)

    report = running.apply(assignment_of([moved, second], revision=4))

    assert report.instances[0].error["code"] == "instance.changed_without_generation"
    assert running.world.domains[first.id].spec.instance.cpus == first.cpus


def test_higher_generation_restarts_with_the_new_definition(running):
    second = running.two_tenants().instances[1]
    moved = running.instance(ACME, core=1, generation=2)

    report = running.apply(assignment_of([moved, second], revision=4))

    assert report.ok
    assert running.world.domains[moved.id].spec.instance.cpus == moved.cpus


def test_running_vm_that_nobody_names_keeps_its_cpus_and_device(running):
    taker = running.instance(dataclasses.replace(ACME, name="taker"))

    report = running.apply(assignment_of([taker], revision=4))

    assert report.instances[0].error["code"] == "instance.cpus_in_use"
    assert taker.id not in {name for name, d in running.world.domains.items() if d.pid}


def test_switch_that_lost_its_flows_gets_them_back(running):
    wanted = running.world.flows
    running.world.restart_switch()
    assert running.world.flows != wanted

    report = running.apply(running.two_tenants(revision=3))

    assert report.changed
    assert running.world.flows == wanted


def test_port_with_a_wrong_tag_is_closed_to_traffic_until_mended(running):
    wanted = running.world.flows
    tap = next(port for port in running.world.ports if port.instance == "vm_acme_train")
    tap.vlan = 102

    running.apply(running.two_tenants(revision=3))

    assert tap.vlan == 101
    assert running.world.flows == wanted


def test_port_opened_by_somebody_else_gets_no_flows(running):
    stranger = SimPort(interface_id("prt_stranger"), "bhstranger", 77)
    stranger.port, stranger.instance, stranger.deployment = "prt_stranger", "vm_stranger", "dep_lab"
    stranger.vlan_mode, stranger.vlan, stranger.trunks, stranger.open = "access", 101, (), True
    running.world.ports.append(stranger)

    report = running.apply(running.two_tenants(revision=3))

    assert not any("in_port=77" in flow or "output:77" in flow for flow in running.world.flows.flows)
    assert ("port", "prt_stranger") in {(s.kind, s.id) for s in report.strays}


def test_failed_check_keeps_the_ports_closed(fleet):
    fleet.world.misread["process.uid"] = True

    report = fleet.apply(fleet.two_tenants())

    assert {each.phase for each in report.instances} == {Phase.ERROR}
    assert {each.error["code"] for each in report.instances} == {"instance.isolation_not_proven"}
    assert not any(port.open for port in fleet.world.ports)


def test_check_that_fails_later_closes_open_ports(running):
    running.world.misread["process.uid"] = True

    running.apply(running.two_tenants(revision=3))

    assert not any(port.open for port in running.world.ports)


def test_hung_bind_fails_its_instance_only_and_is_not_tried_again(fleet):
    assignment = fleet.two_tenants()
    stuck = assignment.instances[0].devices[0].address
    fleet.world.hangs.add(stuck)

    first = fleet.apply(assignment)
    second = fleet.apply(assignment)

    assert first.instances[0].error["code"] == "device.bind_timeout"
    assert second.instances[0].error["code"] == "device.bind_in_flight"
    assert first.instances[1].phase is Phase.RUNNING


def test_wedged_device_never_reaches_a_guest(fleet):
    assignment = fleet.two_tenants()
    fleet.world.wedged.add(assignment.instances[0].devices[0].address)

    report = fleet.apply(assignment)

    assert report.instances[0].error["code"] == "device.unresponsive"
    assert fleet.world.domains.get(assignment.instances[0].id, None) is None or (
        fleet.world.domains[assignment.instances[0].id].pid is None
    )


def test_merged_group_is_refused_with_all_members_named(fleet):
    assignment = fleet.two_tenants()
    first = assignment.instances[0].devices[0].address
    other = assignment.instances[1].devices[0].address
    world = fleet.world
    world.functions[other] = dataclasses.replace(world.functions[other], group=world.functions[first].group)
    changes = world.changes

    with pytest.raises(AssignmentRefused) as refused:
        fleet.apply(assignment)

    found = [p for p in refused.value.problems if p.code == "device.group_not_isolated"]
    assert found
    assert all(first in p.message and other in p.message for p in found)
    assert world.changes == changes


def test_missing_image_fails_with_its_code_and_leaves_nothing_running(fleet):
    fleet.world.images.clear()

    report = fleet.apply(fleet.two_tenants())

    assert {each.error["code"] for each in report.instances} == {"image.not_found"}
    assert not any(domain.pid for domain in fleet.world.domains.values())


def test_libvirt_that_fails_once_is_only_a_report(fleet):
    fleet.world.failures["start"] = [HostError("domain.start_failed", "libvirtd went away")]

    first = fleet.apply(fleet.two_tenants())
    assert first.instances[0].error["code"] == "domain.start_failed"
    assert fleet.world.secrets == {}

    assert fleet.apply(fleet.two_tenants()).ok


def test_reset_is_told_though_the_switch_failed_after_the_start(fleet):
    fleet.world.failures["label_port"] = [HostError("network.switch_down", "ovs-vswitchd did not answer")]

    first = fleet.apply(fleet.two_tenants()).instances[0]
    second = fleet.apply(fleet.two_tenants()).instances[0]

    assert (first.phase, first.error["code"]) == (Phase.ERROR, "network.switch_down")
    assert second.phase is Phase.RUNNING
    assert [(each.address, each.responds) for each in second.resets] == [
        (fleet.instance(ACME).devices[0].address, True)
    ]


def test_start_asks_for_each_key_once(fleet, monkeypatch):
    asked = []
    answer = SimKeys.passphrase

    def counting(keys, volume, generation):
        asked.append(volume)
        return answer(keys, volume, generation)

    monkeypatch.setattr(SimKeys, "passphrase", counting)

    assert fleet.apply(fleet.two_tenants()).ok
    assert sorted(asked) == ["vol_acme_train", "vol_globex_serve"]
    # What runs through needs none.
    assert fleet.apply(fleet.two_tenants()).ok
    assert len(asked) == 2


def test_new_agent_tells_the_reset_of_a_vm_that_ran_through(running):
    told = [each.resets for each in running.apply(running.two_tenants(revision=3)).instances]
    seen = [each.resets for each in running.agent().look(running.two_tenants(revision=3)).instances]

    assert [len(each) for each in told] == [1, 1]
    assert seen == told


def test_domain_of_a_lost_journal_goes_on_the_second_sighting_only(running):
    running.settings.journal_path.unlink()
    orders = [each for each in everything_absent(running.two_tenants().instances) if each.kind == "instance"]
    removal = assignment_of([], revision=4, absent=orders)

    first = running.apply(removal)
    assert {each.phase for each in first.absent} == {Phase.SIGHTED}
    assert not first.ok
    running.now_s += 1
    assert {each.phase for each in running.apply(removal).absent} == {Phase.SIGHTED}
    running.now_s += running.settings.sighting_grace_s
    last = running.apply(removal)

    assert {each.phase for each in last.absent} == {Phase.ABSENT}
    assert running.world.domains == {}


def test_lost_journal_adopts_running_vms(running):
    pids = {name: domain.pid for name, domain in running.world.domains.items()}
    running.settings.journal_path.unlink()

    report = running.apply(running.two_tenants(revision=3))

    assert report.ok
    assert {name: domain.pid for name, domain in running.world.domains.items()} == pids
    # Their resets were in it, and what nobody remembers is not claimed.
    assert [each.resets for each in report.instances] == [(), ()]


def test_two_vms_of_one_tenant_get_uids_of_their_own(fleet):
    instances = [fleet.instance(ACME), fleet.instance(ACME2), fleet.instance(GLOBEX, core=1)]

    report = fleet.apply(assignment_of(instances, revision=1))

    assert report.ok, report
    assert len({each.uid for each in report.instances}) == 3


def test_paused_domain_is_reported_not_touched(running, monkeypatch):
    agent = running.agent()
    real = agent._host.hypervisor.domains
    monkeypatch.setattr(
        agent._host.hypervisor,
        "domains",
        lambda: tuple(dataclasses.replace(d, state=DomainState.OTHER) for d in real()),
    )
    changes = running.world.changes

    report = agent.apply(running.two_tenants(revision=3))

    assert {each.error["code"] for each in report.instances} == {"domain.unexpected_state"}
    assert running.world.changes == changes

"""One instance's whole life over a real database and a simulated host; on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from orchestrator.controller import operations, quotas
from orchestrator.model.errors import ConflictError, HostError, NotFoundError, QuotaError
from orchestrator.model.states import GpuState, InstanceState, OperationState, VolumeState
from orchestrator.store.nouns import GPUS, OPERATIONS, VOLUMES
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostMemoryRow
from orchestrator.store.tables.instances import ClaimRow
from orchestrator.store.tables.networks import PortRow
from orchestrator.store.unit_of_work import table_of


def gpu_states(platform) -> list[str]:
    with platform.store.reading() as tx:
        return sorted(each.state.value for each in GPUS.where(tx, PLATFORM))


def counts(platform) -> dict[str, int]:
    """What instances hold of the host and the network."""
    memory = table_of(HostMemoryRow)
    with platform.store.reading() as tx:
        return {
            "claims": tx.scalar(select(func.count()).select_from(table_of(ClaimRow))),
            "ports": tx.scalar(select(func.count()).select_from(table_of(PortRow))),
            "pages": int(tx.scalar(select(func.sum(memory.c.used)))),
            "disk": platform.host().used_disk_gib,
        }


def test_create_runs_on_the_host_with_everything_claimed(platform):
    operation = platform.create(platform.acme, "train")
    assert platform.instance(platform.acme, "train").state is InstanceState.PENDING

    assert platform.schedule().placed == 1
    assert platform.instance(platform.acme, "train").state is InstanceState.SCHEDULED
    assert gpu_states(platform) == ["claimed", "clean", "clean", "clean"]
    platform.apply()
    assert platform.instance(platform.acme, "train").state is InstanceState.PROVISIONING
    assert gpu_states(platform) == ["clean", "clean", "clean", "exposed"]
    platform.report()

    running = platform.instance(platform.acme, "train")
    assert running.state is InstanceState.RUNNING
    assert {each["status"] for each in running.evidence["verdicts"]} == {"pass"}
    assert platform.world.domains[running.id].pid is not None
    assert counts(platform) == {"claims": 2, "ports": 1, "pages": 128, "disk": 1}
    done = platform.operation(operation)
    assert done.state is OperationState.SUCCEEDED
    assert [step["state"] for step in done.steps] == ["done"] * 4


def test_delete_leaves_nothing(platform):
    platform.create(platform.acme, "train")
    platform.settle()
    operation = platform.ask(platform.acme, "remove", "train")
    assert platform.instance(platform.acme, "train").state is InstanceState.DELETING

    platform.settle()

    with pytest.raises(NotFoundError):
        platform.instance(platform.acme, "train")
    assert (platform.world.domains, platform.world.volumes) == ({}, {})
    assert counts(platform) == {"claims": 0, "ports": 0, "pages": 0, "disk": 0}
    assert gpu_states(platform) == ["clean"] * 4
    with platform.store.reading() as tx:
        used = quotas.read(tx, platform.acme.tenant_id).used
        assert {name: count for name, count in used.items() if count} == {"networks": 1}
        assert VOLUMES.where(tx, PLATFORM) == []
    assert platform.operation(operation).state is OperationState.SUCCEEDED
    assert platform.assignment().absent == ()


def test_stop_and_start_keep_the_claims(platform):
    platform.create(platform.acme, "train")
    platform.settle()
    before, held = platform.instance(platform.acme, "train"), counts(platform)

    stop = platform.ask(platform.acme, "stop", "train")
    platform.settle()
    assert platform.instance(platform.acme, "train").state is InstanceState.STOPPED
    assert platform.operation(stop).state is OperationState.SUCCEEDED
    assert counts(platform) == held
    assert platform.world.domains[before.id].pid is None

    start = platform.ask(platform.acme, "start", "train")
    platform.settle()
    after = platform.instance(platform.acme, "train")
    assert after.state is InstanceState.RUNNING
    assert after.placement == before.placement
    assert platform.operation(start).state is OperationState.SUCCEEDED


def test_what_was_not_handed_to_its_host_yet_is_not_stopped(platform):
    """Stopped then and started later, it would run with a GPU that counts as never exposed."""
    platform.create(platform.acme, "train")
    platform.schedule()
    with pytest.raises(ConflictError) as refused:
        platform.ask(platform.acme, "stop", "train")
    assert refused.value.code == "instance.not_running"
    platform.settle()
    platform.ask(platform.acme, "stop", "train")
    platform.settle()
    assert gpu_states(platform).count("exposed") == 1


def test_six_for_four_gpus_wait_with_the_reason_and_come_when_others_go(platform):
    for number in range(3):
        platform.create(platform.acme, f"a{number}")
        platform.create(platform.globex, f"g{number}")
    platform.settle()

    states = sorted(each.state.value for each in platform.all_instances())
    assert states == ["pending"] * 2 + ["running"] * 4
    waiting = [each for each in platform.all_instances() if each.state is InstanceState.PENDING]
    for each in waiting:
        assert each.error["code"] in ("gpu.short", "cpu.short")
        assert "GPU" in each.error["message"]

    platform.ask(platform.acme, "remove", "a0")
    platform.ask(platform.globex, "remove", "g0")
    platform.settle()
    platform.settle()

    assert [each.state.value for each in platform.all_instances()] == ["running"] * 4


def test_what_waits_says_why_and_counts_its_own_tenants_alone(platform):
    for number in range(4):
        platform.create(platform.globex, f"g{number}")
    other = platform.create(platform.globex, "g4")
    begun = [platform.create(platform.acme, f"a{number}") for number in range(2)]

    def waits() -> list[operations.Waiting | None]:
        with platform.store.reading() as tx:
            found = [OPERATIONS.get(tx, PLATFORM, each.id) for each in (*begun, other)]
            told = operations.waiting(tx, found)
        return [told.get(each.id) for each in found]

    assert [(each.reason, each.ahead) for each in waits()] == [(None, 0), (None, 1), (None, 4)]
    platform.schedule()
    assert [each.ahead for each in waits()] == [0, 1, 0]
    for each in waits():
        assert each.reason["code"] in ("gpu.short", "cpu.short")
    for number in range(4):
        platform.ask(platform.globex, "remove", f"g{number}")
    platform.settle()
    assert waits() == [None] * 3


def test_two_tenants_have_the_same_addresses_and_other_vlans(platform):
    platform.create(platform.acme, "one")
    platform.create(platform.globex, "one")
    platform.settle()

    ports = {each.tenant: each.ports[0] for each in platform.assignment().instances}
    mine, theirs = ports[platform.acme.tenant_id], ports[platform.globex.tenant_id]
    assert mine.addresses == theirs.addresses
    assert mine.vlan != theirs.vlan
    assert mine.mac != theirs.mac


def test_no_capacity_fails_at_once_when_that_was_asked_for(platform):
    for number in range(4):
        platform.create(platform.acme, f"a{number}")
    operation = platform.create(platform.acme, "late", on_no_capacity="fail")
    platform.settle()

    late = platform.instance(platform.acme, "late")
    assert late.state is InstanceState.ERROR
    assert platform.operation(operation).state is OperationState.FAILED
    platform.ask(platform.acme, "remove", "late")
    with pytest.raises(NotFoundError):
        platform.instance(platform.acme, "late")


def test_quota_is_exact_and_a_refusal_changes_nothing(platform):
    with platform.store.unit_of_work(platform.acme.actor) as tx:
        limits = {"gpus": 1}
        quotas.set_limits(tx, platform.acme.tenant_id, limits, 1)
    platform.create(platform.acme, "one")
    with platform.store.reading() as tx:
        before = quotas.read(tx, platform.acme.tenant_id)

    with pytest.raises(QuotaError, match="gpus"):
        platform.create(platform.acme, "two")

    with platform.store.reading() as tx:
        assert quotas.read(tx, platform.acme.tenant_id) == before
    assert [each.name for each in platform.all_instances()] == ["one"]


def test_a_name_is_taken_until_its_holder_is_gone(platform):
    platform.create(platform.acme, "one")
    with pytest.raises(ConflictError, match="one already"):
        platform.create(platform.acme, "one")
    platform.create(platform.globex, "one")

    platform.ask(platform.acme, "remove", "one")
    platform.settle()
    platform.create(platform.acme, "one")


def test_anothers_instance_does_not_exist(platform):
    platform.create(platform.acme, "one")
    for verb in ("remove", "stop", "start"):
        with pytest.raises(NotFoundError) as told:
            platform.ask(platform.globex, verb, platform.instance(platform.acme, "one").id)
        assert told.value.code == "instance.unknown"


def test_a_failing_host_is_told_and_made_good_by_its_next_report(platform):
    platform.create(platform.acme, "train")
    platform.world.failures["start"] = [HostError("domain.start_failed", "no")]
    platform.schedule()
    platform.apply()
    platform.report()
    failed = platform.instance(platform.acme, "train")
    assert failed.state is InstanceState.PROVISIONING
    assert failed.error["code"] == "domain.start_failed"

    platform.settle()

    good = platform.instance(platform.acme, "train")
    assert (good.state, good.error, good.failures) == (InstanceState.RUNNING, None, 0)


def test_a_report_of_an_older_order_says_nothing_about_now(platform):
    platform.create(platform.acme, "train")
    platform.schedule()
    platform.apply()
    old = platform.said
    platform.report()
    platform.ask(platform.acme, "stop", "train")

    platform.said = old
    platform.report()

    assert platform.instance(platform.acme, "train").state is InstanceState.STOPPING


def test_the_same_report_twice_writes_nothing_more(platform):
    platform.create(platform.acme, "train")
    platform.settle()
    with platform.store.reading() as tx:
        from orchestrator.store.tables.audit import AuditRecordRow

        count = select(func.count()).select_from(table_of(AuditRecordRow))
        before = tx.scalar(count)
    platform.report()
    with platform.store.reading() as tx:
        assert tx.scalar(count) == before


def test_a_gpu_that_falls_off_is_missing_and_one_that_comes_back_is_used_again(platform):
    address = sorted(platform.world.functions)[0]
    function = platform.world.functions.pop(address)
    platform.report()
    assert gpu_states(platform).count(GpuState.MISSING.value) == 1

    platform.world.functions[address] = function
    platform.report()
    assert gpu_states(platform) == ["clean"] * 4


def test_volumes_follow_their_instance(platform):
    platform.create(platform.acme, "train")
    platform.settle()
    with platform.store.reading() as tx:
        (boot,) = VOLUMES.where(tx, PLATFORM)
    assert (boot.state, boot.host_id) == (VolumeState.IN_USE, platform.host_id)


def test_a_host_that_removes_one_thing_and_not_yet_the_other_goes_on(platform):
    platform.create(platform.acme, "train")
    platform.settle()
    platform.world.failures["erase_volume"] = [HostError("volume.io_failed", "no")]
    operation = platform.ask(platform.acme, "remove", "train")
    platform.apply()
    platform.report()
    assert platform.instance(platform.acme, "train").state is InstanceState.DELETING

    platform.apply()
    platform.report()

    assert platform.operation(operation).state is OperationState.SUCCEEDED
    assert platform.world.volumes == {}


def test_who_waits_for_an_operation_is_woken_by_its_end_and_not_on_the_way(platform):
    operation, rung = platform.create(platform.acme, "train"), []
    platform.store.bell = rung.append

    platform.schedule()
    platform.apply()
    assert rung
    assert not any(f"operation:{operation.id}" in topics for topics in rung)
    platform.report()

    assert f"operation:{operation.id}" in set().union(*rung)

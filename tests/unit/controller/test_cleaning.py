"""What is written of a GPU's cleaning is what its agent did, when it did it; nothing where it did nothing."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import update

from orchestrator.controller.checks import violations
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.fleet import GpuRecord
from orchestrator.model.report import DeviceReport
from orchestrator.model.states import GpuState
from orchestrator.store.nouns import GPUS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import GpuRow
from orchestrator.store.unit_of_work import table_of
from tests.unit.controller.platform import Platform

_GPUS = table_of(GpuRow)


def gpus(platform: Platform) -> list[GpuRecord]:
    with platform.store.reading() as tx:
        return GPUS.where(tx, PLATFORM)


def the_one(platform: Platform, state: GpuState) -> GpuRecord:
    found = [each for each in gpus(platform) if each.state is state]
    assert len(found) == 1
    return found[0]


def brief(gpu: GpuRecord) -> tuple[object, ...]:
    shown = gpu.evidence or {}
    return shown.get("class"), shown.get("when"), shown.get("tenancy") == gpu.tenancy


def broken(platform: Platform) -> tuple[str, ...]:
    with platform.store.reading() as tx:
        return violations(tx)


def running(platform: Platform) -> GpuRecord:
    platform.create(platform.acme, "train")
    platform.settle()
    return the_one(platform, GpuState.EXPOSED)


def test_a_new_gpu_was_cleaned_by_nobody(platform: Platform):
    assert {brief(each) for each in gpus(platform)} == {("none", "before_next_start", True)}


def test_a_running_one_has_the_reset_before_its_start(platform: Platform):
    gpu = running(platform)
    assert brief(gpu) == ("reset_only", "before_start", True)
    assert gpu.evidence is not None
    assert gpu.evidence["method"]
    assert broken(platform) == ()


def test_a_restart_is_a_cleaning_of_its_own(platform: Platform):
    first = running(platform).evidence
    platform.ask(platform.acme, "stop", "train")
    platform.settle()
    platform.ask(platform.acme, "start", "train")
    platform.settle()
    second = the_one(platform, GpuState.EXPOSED).evidence
    assert first is not None
    assert second is not None
    assert second["count"] > first["count"]


def test_one_that_was_given_back_is_clean_when_its_host_shows_it(platform: Platform):
    used = running(platform)
    platform.ask(platform.acme, "remove", "train")
    said = platform.apply()
    # The removal is told, and the pool shows the device as still dirty in its hands.
    held = tuple(
        dataclasses.replace(each, state="dirty", instance=used.instance_id, evidence_class="", method="")
        for each in said.devices
    )
    platform.said = dataclasses.replace(said, devices=held)
    platform.report()
    assert the_one(platform, GpuState.SANITISING).id == used.id
    assert broken(platform) == ()

    platform.said = said
    platform.report()

    gpu = next(each for each in gpus(platform) if each.id == used.id)
    assert gpu.state is GpuState.CLEAN
    assert brief(gpu) == ("reset_only", "after_release", True)
    assert broken(platform) == ()


def test_one_that_never_came_to_a_vm_was_cleaned_by_nobody(platform: Platform):
    platform.create(platform.acme, "train")
    platform.schedule()
    platform.assignment()
    handed_out = the_one(platform, GpuState.EXPOSED)
    platform.ask(platform.acme, "remove", "train")
    platform.settle()
    gpu = next(each for each in gpus(platform) if each.id == handed_out.id)
    assert gpu.state is GpuState.CLEAN
    assert brief(gpu) == ("none", "before_next_start", True)


def test_a_report_that_was_overtaken_cleans_nothing(platform: Platform):
    used = running(platform)
    before = platform.said
    assert before is not None
    platform.ask(platform.acme, "remove", "train")
    said = platform.apply()
    held = DeviceReport(used.address, "dirty", 1, used.instance_id, "", "")
    platform.said = dataclasses.replace(said, devices=(held,))
    platform.report()
    clean = DeviceReport(used.address, "clean", 1, None, "reset_only", "bus")
    platform.said = dataclasses.replace(before, devices=(clean,))
    platform.report()
    assert the_one(platform, GpuState.SANITISING).id == used.id


@pytest.mark.parametrize(
    "evidence",
    [
        None,
        {"class": "reset_only", "when": "before_start", "tenancy": 0, "at_ms": 1},
        {"class": "none", "when": "before_next_start", "tenancy": 1, "at_ms": 1},
        {"class": "", "tenancy": 1},
    ],
)
def test_the_checker_notices_a_vm_whose_gpu_nobody_cleaned(sqlite_platform: Platform, evidence: object):
    gpu = running(sqlite_platform)
    with sqlite_platform.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(_GPUS).where(_GPUS.c.id == gpu.id).values(evidence=evidence))
    assert [each[:4] for each in broken(sqlite_platform)] == ["I10 "]

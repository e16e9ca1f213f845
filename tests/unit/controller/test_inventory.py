"""A host's rule for what counts as a GPU, as it changes."""

from __future__ import annotations

import dataclasses

from orchestrator.controller import inventory, reports
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.states import GpuState
from orchestrator.store.nouns import GPUS
from orchestrator.store.rows import PLATFORM
from tests.unit.controller.platform import Platform


def told(platform: Platform, *models: str) -> dict[str, tuple[GpuState, str]]:
    facts = dataclasses.replace(platform.world.facts(), gpu_models=models)
    with platform.store.unit_of_work(CONTROLLER) as tx:
        said = reports.Said(facts.boot_id, "0.1.0", facts, None, None)
        reports.received(tx, platform.host_id, said)
    with platform.store.reading() as tx:
        return {each.address: (each.state, each.reason) for each in GPUS.where(tx, PLATFORM)}


def test_what_the_rule_no_longer_allows_leaves_the_pool_and_comes_back(platform: Platform) -> None:
    before = told(platform, "data-centre", "display")
    assert before
    assert GpuState.MISSING not in {state for state, _ in before.values()}
    after = told(platform, "data-centre")
    assert set(after) == set(before)
    assert {state for state, _ in after.values()} == {GpuState.MISSING}
    assert all("1234:1111 is not among the models" in reason for _, reason in after.values())
    with platform.store.reading() as tx:
        facts = inventory.facts_of(tx, platform.host_id)
    assert facts is not None
    assert set(facts["ignored"]) >= set(before)
    assert told(platform, "1234:1111") == before

"""Which functions are GPUs: by class and model, and a reason for each that is left alone."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.model.errors import InvalidInputError
from orchestrator.model.gpus import check_models, ignored, pool
from orchestrator.model.host import HostFacts, PciFunction

H100 = PciFunction("0000:21:00.0", "10de", "2330", "030200", 0, None, 7, ("flr",))
A = H100.address


def facts(*functions: PciFunction, models: tuple[str, ...] = ("data-centre",)) -> HostFacts:
    return HostFacts((), (), functions, frozenset(), "boot", gpu_models=models)


def test_a_data_centre_gpu_is_in_the_pool() -> None:
    assert [each.address for each in pool(facts(H100))] == [A]
    assert ignored(facts(H100)) == {}


def test_an_accelerator_that_is_no_display_controller_is_found_too() -> None:
    mi300x = dataclasses.replace(H100, vendor="1002", device="74a1", class_code="120000")
    assert pool(facts(mi300x)) == (mi300x,)
    other = dataclasses.replace(mi300x, vendor="1da3", device="1020")
    assert "not among the models" in ignored(facts(other, models=("data-centre", "display")))[A]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"device": "2684", "class_code": "030000"}, "10de:2684 is not among the models"),
        ({"physical_function": "0000:21:00.0"}, "a virtual function of"),
        ({"group": None}, "in no IOMMU group"),
        ({"reset_methods": ()}, "no way to reset"),
    ],
)
def test_each_reason_to_leave_one_alone(change: dict[str, object], why: str) -> None:
    hurt = dataclasses.replace(H100, **change)  # type: ignore[arg-type]
    assert pool(facts(hurt)) == ()
    assert why in ignored(facts(hurt))[A]


def test_strangers_in_the_group_are_named_and_bridges_are_none() -> None:
    nic = PciFunction("0000:22:00.0", "8086", "1572", "020000", 0, "i40e", 7)
    bridge = PciFunction("0000:20:00.0", "1022", "1483", "060400", 0, "pcieport", 7)
    assert pool(facts(bridge, H100)) == (H100,)
    assert ignored(facts(bridge, H100, nic)) == {A: "shares IOMMU group 7 with 0000:22:00.0"}


def test_what_is_neither_display_nor_accelerator_is_no_candidate() -> None:
    switch = dataclasses.replace(H100, device="22a3", class_code="068000")
    assert ignored(facts(switch)) == {}
    assert pool(facts(switch, models=("10de:*",))) == ()


def test_the_display_rule_leaves_management_and_console_alone() -> None:
    display = ("display",)
    bochs = dataclasses.replace(H100, vendor="1234", device="1111", class_code="038000")
    assert pool(facts(bochs, models=display)) == (bochs,)
    aspeed = dataclasses.replace(H100, vendor="1a03", device="2000", class_code="030000")
    assert "management" in ignored(facts(aspeed, models=display))[A]
    console = dataclasses.replace(H100, device="2684", class_code="030000", boot_display=True)
    assert "console" in ignored(facts(console, models=display))[A]
    # Who names the model means it.
    assert pool(facts(console, models=("10de:2684",))) == (console,)
    assert pool(facts(console, models=("10de:*",))) == (console,)


def test_nothing_is_allowed_by_an_empty_rule() -> None:
    assert pool(facts(H100, models=())) == ()


@pytest.mark.parametrize("model", ["", "10DE:2330", "10de", "10de:233", "*:*", "gpu", "10de:2330 "])
def test_a_model_that_is_none_is_refused(model: str) -> None:
    with pytest.raises(InvalidInputError, match=r"gpu_models\.invalid"):
        check_models(("data-centre", model))

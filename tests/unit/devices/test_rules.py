"""Each rule of isolation.devices: what it passes, and that flipping its one fact makes it refuse."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.isolation.devices import device_problems
from orchestrator.model.assignment import Device
from orchestrator.model.observed import GroupMember, ObservedDevice

GPU = "0000:21:00.0"
AUDIO = "0000:21:00.1"
WANTED = Device(
    id="gpu_one", address=GPU, vendor="10de", device="2330", node=1, serial="00-11-22-33-44-55-66-77"
)
FINE = ObservedDevice(
    address=GPU,
    vendor="10de",
    device="2330",
    class_code="030200",
    node=1,
    driver="nvidia",
    driver_override=None,
    group=7,
    members=(GroupMember("0000:20:00.0", "060400", "pcieport"), GroupMember(GPU, "030200", "nvidia")),
    reset_methods=("flr", "bus"),
    holders=(),
    serial="00-11-22-33-44-55-66-77",
)
AUDIO_MEMBER = GroupMember(AUDIO, "040300", "snd_hda_intel")


def codes(
    observed: ObservedDevice,
    wanted: Device = WANTED,
    unit: frozenset[str] = frozenset({GPU}),
    pid: int | None = None,
) -> list[str]:
    return [problem.code for problem in device_problems(observed, wanted, unit, instance_pid=pid)]


def test_a_device_alone_with_bridges_in_its_group_is_fine() -> None:
    assert codes(FINE) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"class_code": "060400"}, "device.is_bridge"),
        ({"class_code": "068000"}, "device.is_bridge"),
        ({"class_code": "080600"}, "device.host_critical"),
        ({"class_code": "050000"}, "device.host_critical"),
        ({"class_code": "0b4000"}, "device.host_critical"),
        ({"class_code": "0c0500"}, "device.host_critical"),
        ({"vendor": "1002"}, "device.identity_mismatch"),
        ({"device": "2331"}, "device.identity_mismatch"),
        ({"serial": "00-11-22-33-44-55-66-78"}, "device.identity_mismatch"),
        ({"serial": ""}, "device.identity_mismatch"),
        ({"holders": (4711,)}, "device.in_use"),
        ({"responds": False}, "device.unresponsive"),
        ({"group": None, "members": ()}, "device.no_iommu"),
        ({"members": (*FINE.members, AUDIO_MEMBER)}, "device.group_not_isolated"),
        (
            {"members": (*FINE.members, dataclasses.replace(AUDIO_MEMBER, driver=None))},
            "device.group_not_isolated",
        ),
        (
            {"members": (*FINE.members, dataclasses.replace(AUDIO_MEMBER, driver="vfio-pci"))},
            "device.group_not_isolated",
        ),
        ({"members": (*FINE.members, GroupMember(AUDIO, "unknown", None))}, "device.group_not_isolated"),
        ({"node": 0}, "device.node_mismatch"),
        ({"node": -1}, "device.node_mismatch"),
        ({"reset_methods": ()}, "device.no_reset"),
    ],
)
def test_one_flipped_fact_is_refused_with_its_own_code(change: dict[str, object], code: str) -> None:
    assert codes(dataclasses.replace(FINE, **change)) == [code]  # type: ignore[arg-type]


def test_usb_companions_are_not_the_smbus() -> None:
    assert codes(dataclasses.replace(FINE, class_code="0c0330")) == []


def test_a_merged_group_names_every_member_with_class_and_driver() -> None:
    merged = dataclasses.replace(
        FINE, members=(*FINE.members, AUDIO_MEMBER, GroupMember("0000:21:00.2", "0c0330", None))
    )
    (problem,) = device_problems(merged, WANTED, frozenset({GPU}))
    assert "IOMMU group 7" in problem.message
    for part in (
        "0000:20:00.0 (class 060400, driver pcieport)",
        "0000:21:00.0 (class 030200, driver nvidia)",
        "0000:21:00.1 (class 040300, driver snd_hda_intel)",
        "0000:21:00.2 (class 0c0330, driver none)",
    ):
        assert part in problem.message


def test_a_whole_group_may_go_to_one_instance_but_not_a_part_of_it() -> None:
    three = dataclasses.replace(
        FINE, members=(*FINE.members, AUDIO_MEMBER, GroupMember("0000:21:00.2", "0c0330", None))
    )
    assert codes(three, unit=frozenset({GPU, AUDIO, "0000:21:00.2"})) == []
    assert codes(three, unit=frozenset({GPU, AUDIO})) == ["device.group_not_isolated"]


def test_the_function_itself_never_spoils_its_own_group() -> None:
    assert codes(FINE, unit=frozenset()) == []


def test_unknown_node_equals_only_unknown() -> None:
    unknown = WANTED.model_copy(update={"node": -1})
    assert codes(dataclasses.replace(FINE, node=-1), unknown) == []
    assert codes(dataclasses.replace(FINE, node=0), unknown) == ["device.node_mismatch"]


def test_no_serial_in_the_assignment_says_nothing() -> None:
    assert codes(FINE, WANTED.model_copy(update={"serial": ""})) == []


def test_a_device_that_does_not_answer_is_not_called_another_one() -> None:
    assert codes(dataclasses.replace(FINE, serial="", responds=False)) == ["device.unresponsive"]


def test_the_instances_own_qemu_may_hold_it_and_nobody_else() -> None:
    assert codes(dataclasses.replace(FINE, holders=(4711,)), pid=4711) == []
    (problem,) = device_problems(
        dataclasses.replace(FINE, holders=(4711, 4712)), WANTED, frozenset({GPU}), instance_pid=4711
    )
    assert problem.code == "device.in_use"
    assert "4712" in problem.message
    assert "4711" not in problem.message


def test_all_problems_are_told_worst_first() -> None:
    bad = dataclasses.replace(
        FINE, device="1111", holders=(1,), node=0, group=None, members=(), reset_methods=()
    )
    assert codes(bad) == [
        "device.identity_mismatch",
        "device.in_use",
        "device.no_iommu",
        "device.node_mismatch",
        "device.no_reset",
    ]

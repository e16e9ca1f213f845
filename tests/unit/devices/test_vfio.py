"""VfioDevices against a sysfs whose kernel is ours: order of writes, read-back, refusals, idempotence."""

from __future__ import annotations

import errno
import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.agent.devices import VfioDevices
from orchestrator.model.errors import DeviceError, HostError
from orchestrator.model.observed import GroupMember
from tests.unit.devices.fakesys import AUDIO, BRIDGE, GPU, FakeKernel, FakeSys, config_space

RaisesContext = AbstractContextManager["pytest.ExceptionInfo[DeviceError]"]
ALL_ONES = b"\xff" * 4096


@pytest.fixture
def sys(tmp_path: Path) -> FakeSys:
    tree = FakeSys(tmp_path)
    tree.driver("vfio-pci")
    tree.function(GPU, driver="bochs-drm", group=7, config=config_space(serial=bytes(range(8))))
    tree.function(BRIDGE, class_code="0x060400", driver="pcieport", group=7, reset=None)
    return tree


@pytest.fixture
def kernel(sys: FakeSys) -> FakeKernel:
    return FakeKernel(sys, natural={GPU: "bochs-drm"})


@pytest.fixture
def devices(sys: FakeSys, kernel: FakeKernel) -> VfioDevices:
    return VfioDevices(sys.root, worker=kernel)


def refused(code: str) -> RaisesContext:
    return pytest.raises(DeviceError, match=re.escape(f"[{code}]"))


def test_observe_tells_what_the_kernel_shows(devices: VfioDevices) -> None:
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.vendor, seen.device, seen.class_code, seen.node) == ("1234", "1111", "038000", 1)
    assert (seen.driver, seen.driver_override, seen.group) == ("bochs-drm", None, 7)
    assert seen.members == (
        GroupMember(BRIDGE, "060400", "pcieport"),
        GroupMember(GPU, "038000", "bochs-drm"),
    )
    assert (seen.reset_methods, seen.serial) == (("flr", "bus"), "00-01-02-03-04-05-06-07")
    assert (seen.holders, seen.responds) == ((), True)


@pytest.mark.parametrize("address", ["0000:99:00.0", "../../etc", "21:00.0", ""])
def test_nothing_is_observed_where_nothing_is(devices: VfioDevices, address: str) -> None:
    assert devices.observe(address) is None


def test_bind_writes_the_override_before_it_unbinds(devices: VfioDevices, kernel: FakeKernel) -> None:
    devices.bind(GPU, "vfio-pci")
    assert kernel.log == [("driver_override", "vfio-pci"), ("unbind", GPU), ("drivers_probe", GPU)]
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.driver, seen.driver_override) == ("vfio-pci", "vfio-pci")


def test_a_second_bind_writes_nothing(devices: VfioDevices, kernel: FakeKernel) -> None:
    devices.bind(GPU, "vfio-pci")
    kernel.log.clear()
    devices.bind(GPU, "vfio-pci")
    assert kernel.log == []


def test_a_lost_override_is_set_again_without_letting_go(
    devices: VfioDevices, kernel: FakeKernel, sys: FakeSys
) -> None:
    devices.bind(GPU, "vfio-pci")
    (sys.folder(GPU) / "driver_override").write_text("(null)\n")
    kernel.log.clear()
    sys.opened(4711, "/dev/vfio/7")
    devices.bind(GPU, "vfio-pci")
    assert kernel.log == [("driver_override", "vfio-pci")]


def test_a_driverless_function_is_bound_too(devices: VfioDevices, kernel: FakeKernel, sys: FakeSys) -> None:
    (sys.folder(GPU) / "driver").unlink()
    devices.bind(GPU, "vfio-pci")
    assert [name for name, _ in kernel.log] == ["driver_override", "drivers_probe"]


def test_bind_believes_the_link_not_the_write(devices: VfioDevices, kernel: FakeKernel) -> None:
    kernel.ignores_override = True
    with refused("device.bind_failed") as caught:
        devices.bind(GPU, "vfio-pci")
    assert "is on bochs-drm" in caught.value.message


def test_bind_without_a_vfio_file_has_failed(devices: VfioDevices, sys: FakeSys) -> None:
    (sys.folder(GPU) / "iommu_group").unlink()
    with refused("device.bind_failed") as caught:
        devices.bind(GPU, "vfio-pci")
    assert "/dev/vfio" in caught.value.message


@pytest.mark.parametrize("driver", ["nvidia", "../vfio-pci", "", "vfio-pci\n"])
def test_a_driver_that_is_not_loaded_is_refused_before_anything_is_written(
    devices: VfioDevices, kernel: FakeKernel, driver: str
) -> None:
    with refused("device.bind_failed"):
        devices.bind(GPU, driver)
    assert kernel.log == []


@pytest.mark.parametrize("attribute", ["driver_override", "unbind", "drivers_probe"])
def test_what_the_kernel_refuses_is_told(devices: VfioDevices, kernel: FakeKernel, attribute: str) -> None:
    kernel.refuses = {attribute: errno.EBUSY}
    with refused("device.bind_failed") as caught:
        devices.bind(GPU, "vfio-pci")
    assert attribute in caught.value.message
    assert caught.value.__cause__ is not None


def test_bind_refuses_a_missing_function(devices: VfioDevices) -> None:
    with refused("device.missing"):
        devices.bind("0000:99:00.0", "vfio-pci")


def test_bind_refuses_a_function_with_virtual_functions(
    devices: VfioDevices, kernel: FakeKernel, sys: FakeSys
) -> None:
    (sys.folder(GPU) / "sriov_numvfs").write_text("2\n")
    with refused("device.has_virtual_functions"):
        devices.bind(GPU, "vfio-pci")
    assert kernel.log == []
    (sys.folder(GPU) / "sriov_numvfs").write_text("0\n")
    devices.bind(GPU, "vfio-pci")


def test_hung_unbind_and_what_is_refused_meanwhile(devices: VfioDevices, kernel: FakeKernel) -> None:
    kernel.hangs_at = "unbind"
    with refused("device.bind_timeout"):
        devices.bind(GPU, "vfio-pci")
    for again in (
        lambda: devices.bind(GPU, "vfio-pci"),
        lambda: devices.give_back(GPU, "bochs-drm"),
        lambda: devices.reset(GPU),
    ):
        with refused("device.bind_in_flight"):
            again()
    assert kernel.log == [("driver_override", "vfio-pci")]
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.driver, seen.responds) == ("bochs-drm", True)


def test_after_a_hung_unbind_came_back_binding_goes_on(devices: VfioDevices, kernel: FakeKernel) -> None:
    kernel.hangs_at = "unbind"
    with refused("device.bind_timeout"):
        devices.bind(GPU, "vfio-pci")
    kernel.hangs_at = None
    kernel.busy.clear()
    devices.bind(GPU, "vfio-pci")
    seen = devices.observe(GPU)
    assert seen is not None
    assert seen.driver == "vfio-pci"


def test_a_lock_that_somebody_else_holds_is_told_not_waited_for(
    devices: VfioDevices, kernel: FakeKernel
) -> None:
    kernel.locked = True
    with refused("device.bind_in_flight"):
        devices.observe(GPU)


def test_while_a_reset_hangs_configuration_space_is_left_alone(
    devices: VfioDevices, kernel: FakeKernel, sys: FakeSys
) -> None:
    kernel.hangs_at = "reset"
    with refused("device.reset_failed"):
        devices.reset(GPU)
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.responds, seen.serial) == (False, "")


@pytest.mark.parametrize(
    "file",
    ["/dev/vfio/7", "/dev/vfio/devices/vfio3", "/dev/dri/card1", "/dev/dri/renderD129", "/dev/nvidia4"],
)
def test_a_held_function_is_left_alone(
    devices: VfioDevices, kernel: FakeKernel, sys: FakeSys, file: str
) -> None:
    for name in ("vfio-dev/vfio3", "drm/card1", "drm/renderD129"):
        (sys.folder(GPU) / name).mkdir(parents=True)
    sys.put(f"proc/driver/nvidia/gpus/{GPU}/information", "Model: \t X\nDevice Minor: \t 4")
    sys.opened(4711, file)
    seen = devices.observe(GPU)
    assert seen is not None
    assert seen.holders == (4711,)
    for deed in (lambda: devices.bind(GPU, "vfio-pci"), lambda: devices.reset(GPU)):
        with refused("device.in_use") as caught:
            deed()
        assert "4711" in caught.value.message
    assert kernel.log == []


def test_files_of_other_functions_do_not_count(devices: VfioDevices, sys: FakeSys) -> None:
    sys.opened(4711, "/dev/vfio/77")
    sys.opened(4711, "/dev/vfio/vfio")
    sys.opened(4712, "socket:[7]")
    seen = devices.observe(GPU)
    assert seen is not None
    assert seen.holders == ()


def test_holders_that_may_not_be_seen_are_not_none(
    devices: VfioDevices, sys: FakeSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sys.root / "proc/4711").mkdir()

    def denied(_path: object) -> object:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("orchestrator.agent.devices.holders.os.scandir", denied)
    with pytest.raises(HostError, match=r"host\.unreadable"):
        devices.observe(GPU)


def test_the_group_is_looked_up_each_time(devices: VfioDevices, sys: FakeSys) -> None:
    sys.opened(4711, "/dev/vfio/8")
    (sys.folder(GPU) / "iommu_group").unlink()
    sys.join(GPU, 8)
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.group, seen.holders, seen.members) == (
        8,
        (4711,),
        (GroupMember(GPU, "038000", "bochs-drm"),),
    )


def test_give_back_restores_the_driver_and_leaves_no_override(
    devices: VfioDevices, kernel: FakeKernel
) -> None:
    devices.bind(GPU, "vfio-pci")
    kernel.log.clear()
    devices.give_back(GPU, "bochs-drm")
    assert kernel.log == [
        ("driver_override", "bochs-drm"),
        ("unbind", GPU),
        ("drivers_probe", GPU),
        ("driver_override", "\n"),
    ]
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.driver, seen.driver_override) == ("bochs-drm", None)
    kernel.log.clear()
    devices.give_back(GPU, "bochs-drm")
    assert kernel.log == []


def test_give_back_cut_off_before_the_override_went_is_finished(
    devices: VfioDevices, kernel: FakeKernel
) -> None:
    devices.bind(GPU, "bochs-drm")
    kernel.log.clear()
    devices.give_back(GPU, "bochs-drm")
    assert kernel.log == [("driver_override", "bochs-drm"), ("driver_override", "\n")]


def test_give_back_to_whichever_driver_the_kernel_picks(devices: VfioDevices) -> None:
    devices.bind(GPU, "vfio-pci")
    devices.give_back(GPU, None)
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.driver, seen.driver_override) == ("bochs-drm", None)


def test_give_back_of_a_function_that_no_driver_wants(devices: VfioDevices, kernel: FakeKernel) -> None:
    kernel.natural.clear()
    devices.bind(GPU, "vfio-pci")
    devices.give_back(GPU, None)
    seen = devices.observe(GPU)
    assert seen is not None
    assert (seen.driver, seen.driver_override) == (None, None)


def test_give_back_sees_that_vfio_still_has_it(devices: VfioDevices, kernel: FakeKernel) -> None:
    devices.bind(GPU, "vfio-pci")
    kernel.natural[GPU] = "vfio-pci"
    with refused("device.bind_failed"):
        devices.give_back(GPU, None)


def test_give_back_of_what_is_gone_is_done(devices: VfioDevices) -> None:
    devices.give_back("0000:99:00.0", "bochs-drm")


def test_give_back_refuses_while_held(devices: VfioDevices, kernel: FakeKernel, sys: FakeSys) -> None:
    devices.bind(GPU, "vfio-pci")
    kernel.log.clear()
    sys.opened(4711, "/dev/vfio/7")
    with refused("device.in_use"):
        devices.give_back(GPU, "bochs-drm")
    assert kernel.log == []


def test_reset_wakes_the_function_first_and_tells_its_method(
    devices: VfioDevices, kernel: FakeKernel
) -> None:
    evidence = devices.reset(GPU)
    assert kernel.log == [("control", "on"), ("reset", "1")]
    assert (evidence.address, evidence.method, evidence.responds) == (GPU, "flr", True)
    assert evidence.evidence_class == "reset_only"
    assert evidence.duration_s >= 0


@pytest.mark.parametrize(
    "config", [ALL_ONES, config_space(header_type=0xFF), config_space(header_type=0x7F), b""]
)
def test_a_device_that_a_reset_killed_does_not_respond(
    devices: VfioDevices, kernel: FakeKernel, config: bytes
) -> None:
    kernel.after_reset = config
    assert devices.reset(GPU).responds is False
    seen = devices.observe(GPU)
    assert seen is not None
    assert seen.responds is False


def test_a_multifunction_header_is_an_answer(devices: VfioDevices, kernel: FakeKernel) -> None:
    kernel.after_reset = config_space(header_type=0x80)
    assert devices.reset(GPU).responds is True


@pytest.mark.parametrize(("state", "responds"), [("D3hot", False), ("D3cold", False), ("unknown", True)])
def test_a_device_that_stays_asleep_does_not_respond(
    devices: VfioDevices, sys: FakeSys, state: str, responds: bool
) -> None:
    (sys.folder(GPU) / "power_state").write_text(f"{state}\n")
    assert devices.reset(GPU).responds is responds


def test_reset_failures_have_their_codes(devices: VfioDevices, kernel: FakeKernel, sys: FakeSys) -> None:
    kernel.refuses = {"reset": errno.ENOTTY}
    with refused("device.reset_failed"):
        devices.reset(GPU)
    (sys.folder(GPU) / "reset_method").write_text("\n")
    with refused("device.no_reset"):
        devices.reset(GPU)
    with refused("device.missing"):
        devices.reset("0000:99:00.0")


def test_a_companion_in_the_group_is_seen(devices: VfioDevices, sys: FakeSys) -> None:
    sys.function(AUDIO, class_code="0x040300", driver="snd_hda_intel", group=7)
    seen = devices.observe(GPU)
    assert seen is not None
    assert GroupMember(AUDIO, "040300", "snd_hda_intel") in seen.members

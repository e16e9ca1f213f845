"""PCI functions, configuration space and PCI events."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hostprep.probe import read_function, read_host
from hostprep.probe.pci import access_control, answers, serial_number
from hostprep.probe.watch import PciEvent, PciWatch
from orchestrator.model.errors import HostError
from tests.unit.devices.fakesys import AUDIO, BOOT_ID, BRIDGE, GPU, FakeSys, config_space

SERIAL = bytes.fromhex("0011223344556677")


@pytest.fixture
def sys(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


def test_a_function_in_full(sys: FakeSys) -> None:
    folder = sys.function(
        GPU,
        ids=("0x10de", "0x2330"),
        class_code="0x030200",
        driver="nvidia",
        group=7,
        config=config_space(serial=SERIAL),
    )
    (folder / "resource").write_text(
        "0x0000040000000000 0x0000041fffffffff 0x000000000014220c\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x00000000d0000000 0x00000000d0ffffff 0x0000000000040200\n"
        "0x000000000000e000 0x000000000000e07f 0x0000000000040101\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x00000000c0000000 0x00000000c007ffff 0x0000000000046200\n"
    )
    (folder / "sriov_numvfs").write_text("3\n")
    found = read_host(sys.root)
    assert found.boot_id == BOOT_ID
    (gpu,) = found.functions
    assert (gpu.vendor, gpu.device, gpu.class_code, gpu.node) == ("10de", "2330", "030200", 1)
    assert (gpu.driver, gpu.group, gpu.reset_methods) == ("nvidia", 7, ("flr", "bus"))
    assert gpu.bars == {0: 128 * 1024**3, 2: 16 * 1024**2}
    assert (gpu.virtual_functions, gpu.physical_function, gpu.serial) == (3, None, "00-11-22-33-44-55-66-77")


def test_a_function_of_which_little_is_known(sys: FakeSys) -> None:
    folder = sys.function(GPU, node=None, reset=None)
    (folder / "config").unlink()
    found = read_function(sys.root, GPU)
    assert found is not None
    assert (found.node, found.driver, found.group, found.reset_methods) == (-1, None, None, ())
    assert (found.bars, found.virtual_functions, found.serial) == ({}, 0, "")


def test_an_unknown_node_stays_unknown(sys: FakeSys) -> None:
    sys.function(GPU, node=-1)
    assert read_host(sys.root).functions[0].node == -1


def test_a_virtual_function_names_its_physical_one(sys: FakeSys) -> None:
    sys.function(GPU)
    folder = sys.function(AUDIO)
    (folder / "physfn").symlink_to(f"../{GPU}")
    found = read_function(sys.root, AUDIO)
    assert found is not None
    assert found.physical_function == GPU


@pytest.mark.parametrize("file", ["vendor", "device", "class"])
def test_a_function_that_is_going_away_is_left_out(sys: FakeSys, file: str) -> None:
    sys.function(BRIDGE, class_code="0x060400")
    (sys.function(GPU) / file).unlink()
    assert [function.address for function in read_host(sys.root).functions] == [BRIDGE]


def test_functions_are_in_order_and_strange_names_are_not_functions(sys: FakeSys) -> None:
    for address in (AUDIO, "10000:01:00.0", GPU, BRIDGE):
        sys.function(address)
    (sys.root / "sys/bus/pci/devices/readme").touch()
    assert [function.address for function in read_host(sys.root).functions] == [
        BRIDGE,
        GPU,
        AUDIO,
        "10000:01:00.0",
    ]


def test_group_members_are_read_together(sys: FakeSys) -> None:
    sys.function(GPU, group=7)
    sys.function(AUDIO, group=7)
    sys.function(BRIDGE, group=8)
    assert [each.address for each in read_host(sys.root).group_members(7)] == [GPU, AUDIO]


@pytest.mark.parametrize(
    ("file", "text"),
    [("vendor", "nvidia"), ("numa_node", "none"), ("resource", "1 2"), ("resource", "x y z")],
)
def test_a_file_that_no_kernel_writes_is_told_by_name(sys: FakeSys, file: str, text: str) -> None:
    (sys.function(GPU) / file).write_text(f"{text}\n")
    with pytest.raises(HostError, match=r"host\.unreadable") as caught:
        read_host(sys.root)
    assert caught.value.message.startswith(str(sys.root / "sys/bus/pci/devices" / GPU / file))


def test_configuration_space_may_be_left_alone(sys: FakeSys) -> None:
    sys.function(GPU, config=config_space(serial=SERIAL))
    quiet = read_function(sys.root, GPU, with_serial=False)
    assert quiet is not None
    assert quiet.serial == ""


@pytest.mark.parametrize(
    ("config", "serial"),
    [
        (config_space(serial=SERIAL), "00-11-22-33-44-55-66-77"),
        (config_space(serial=SERIAL, before=(0x0001, 0x000E)), "00-11-22-33-44-55-66-77"),
        (config_space(before=(0x0001, 0x000E)), ""),
        (config_space(), ""),
        (config_space(serial=SERIAL)[:256], ""),
        (config_space(serial=SERIAL)[:0x108], ""),
        (b"\xff" * 4096, ""),
        (b"", ""),
    ],
)
def test_the_serial_number_is_found_where_there_is_one(config: bytes, serial: str) -> None:
    assert serial_number(config) == serial


def test_a_list_of_capabilities_that_loops_ends() -> None:
    config = bytearray(config_space())
    config[0x100:0x104] = (0x0001 | 1 << 16 | 0x140 << 20).to_bytes(4, "little")
    config[0x140:0x144] = (0x0002 | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    assert serial_number(bytes(config)) == ""


@pytest.mark.parametrize(
    ("config", "alive"),
    [
        (config_space(), True),
        (config_space(header_type=0x80), True),
        (config_space(vendor=0xFFFF), False),
        (config_space(header_type=0x7F), False),
        (config_space(header_type=0xFF), False),
        (b"\xff" * 64, False),
        (config_space()[:14], False),
        (b"", False),
    ],
)
def test_signs_of_life(config: bytes, alive: bool) -> None:
    assert answers(config) is alive


class Monitor:
    """A pyudev monitor that tells what it was given, then nothing."""

    def __init__(self, *events: tuple[str, str]) -> None:
        self._events = [SimpleNamespace(action=action, sys_name=name) for action, name in events]

    def poll(self, timeout: float) -> SimpleNamespace | None:
        assert timeout >= 0
        return self._events.pop(0) if self._events else None


def test_only_comings_and_goings_of_functions_are_told() -> None:
    watch = PciWatch(
        Monitor(("bind", GPU), ("remove", GPU), ("add", "0000:21"), ("unbind", GPU), ("add", GPU))
    )
    assert watch.wait(1) == PciEvent("remove", GPU)
    assert watch.wait(1) == PciEvent("add", GPU)
    assert watch.wait(0) is None


def test_a_functions_place_in_the_tree(sys: FakeSys) -> None:
    sys.function(BRIDGE, class_code="0x060400")
    folder = sys.function(GPU)
    assert (found := read_function(sys.root, GPU)) is not None
    assert (found.parent, found.root_complex) == (None, "pci0000:20")
    link = sys.root / "sys/bus/pci/devices" / GPU
    below = sys.root / "sys/devices/pci0000:20" / BRIDGE / GPU
    folder.rename(below)
    link.unlink()
    link.symlink_to(f"../../../devices/pci0000:20/{BRIDGE}/{GPU}")
    assert (found := read_function(sys.root, GPU)) is not None
    assert (found.parent, found.root_complex) == (BRIDGE, "pci0000:20")


def test_a_domain_below_a_device_has_its_own_root(sys: FakeSys) -> None:
    address = "10000:01:00.0"
    folder = sys.function(address)
    link = sys.root / "sys/bus/pci/devices" / address
    link.unlink()
    deep = "pci0000:00/0000:00:0e.0/pci10000:00/10000:00:02.0"
    (sys.root / "sys/devices" / deep).mkdir(parents=True)
    folder.rename(sys.root / "sys/devices" / deep / address)
    link.symlink_to(f"../../../devices/{deep}/{address}")
    assert (found := read_function(sys.root, address)) is not None
    assert (found.parent, found.root_complex) == ("10000:00:02.0", "pci10000:00")


def test_identity_of_the_board_virtual_functions_and_console(sys: FakeSys) -> None:
    folder = sys.function(GPU)
    for name, text in (
        ("subsystem_vendor", "0x10de"),
        ("subsystem_device", "0x16c1"),
        ("revision", "0xa1"),
        ("sriov_totalvfs", "16"),
        ("boot_vga", "1"),
    ):
        (folder / name).write_text(f"{text}\n")
    assert (found := read_function(sys.root, GPU)) is not None
    assert (found.subsystem, found.revision) == ("10de:16c1", "a1")
    assert (found.virtual_functions_max, found.boot_display) == (16, True)
    (folder / "boot_vga").write_text("0\n")
    (folder / "subsystem_device").unlink()
    assert (found := read_function(sys.root, GPU)) is not None
    assert (found.subsystem, found.boot_display) == ("", False)


def test_access_control_of_a_port() -> None:
    config = bytearray(config_space(before=(0x0001, 0x000D)))
    assert access_control(bytes(config)) == ()
    config[0x146:0x148] = (0b0011101).to_bytes(2, "little")
    assert access_control(bytes(config)) == ("SrcValid", "ReqRedir", "CmpltRedir", "UpstreamFwd")
    assert access_control(config_space(serial=SERIAL)) is None
    assert access_control(b"") is None

"""The machine: two shapes, stand-ins on the buses that `DEVICES` names, a wire only between two hosts."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import pytest

from images.labhost import machine

SPEC = machine.Spec(
    number=1,
    shape=machine.SHAPES["everyday"],
    accelerator="tcg",
    kernel=Path("/images/vmlinuz"),
    initrd=Path("/images/initrd.img"),
    overlay=Path("/lab/overlay.qcow2"),
    nvme_disk=Path("/lab/nvme.img"),
    ssh_port=2222,
    public_key="ssh-ed25519 AAAA lab\n",
)


def spec(**changes: object) -> machine.Spec:
    return dataclasses.replace(SPEC, **changes)


def values(argv: list[str], option: str) -> list[str]:
    """What follows each occurrence of an option."""
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def devices(argv: list[str]) -> list[dict[str, str]]:
    """Each -device as a mapping; the model is under ''."""
    return [
        dict(part.split("=", 1) if "=" in part else ("", part) for part in text.split(","))
        for text in values(argv, "-device")
    ]


@pytest.mark.parametrize(
    ("shape", "smp", "nodes"),
    [
        ("everyday", "6,sockets=2,cores=3,threads=1", ["0-2", "3-5"]),
        ("smt", "8,sockets=2,cores=2,threads=2", ["0-3", "4-7"]),
    ],
)
def test_a_socket_is_a_node(shape: str, smp: str, nodes: list[str]) -> None:
    argv = machine.arguments(spec(shape=machine.SHAPES[shape]))
    assert values(argv, "-smp") == [smp]
    assert re.findall(r"cpus=([0-9-]+)", " ".join(values(argv, "-numa"))) == nodes
    assert values(argv, "-m") == [f"{2 * machine.MEMORY_MIB_PER_NODE}M"]
    assert len([o for o in values(argv, "-object") if o.startswith("memory-backend-ram")]) == 2


def test_four_tenants_can_each_have_a_core_besides_the_hosts() -> None:
    shape = machine.SHAPES["everyday"]
    assert shape.sockets * (shape.cores - 1) == 4
    assert shape.threads == 1
    assert machine.SHAPES["smt"].threads == 2


def test_every_device_says_its_bus() -> None:
    """Without one QEMU tries an expander bridge and refuses."""
    for one in devices(machine.arguments(spec(wire=(1, 2), probe_image=Path("/p")))):
        assert "bus" in one or one[""] in ("intel-iommu", "nvme-subsys"), one


def buses(found: list[dict[str, str]]) -> dict[str, int]:
    """PCI bus numbers as firmware gives them: depth first, in slot order, from each expander's own number."""
    numbers: dict[str, int] = {}

    def walk(bus: str, last: int) -> int:
        below = [one for one in found if one.get("bus") == bus and "port" in one[""]]
        below += [one for one in found if one.get("bus") == bus and one[""].startswith(("x3130", "xio3130"))]
        for bridge in sorted(below, key=lambda one: int(one.get("addr", "0"), 0)):
            last += 1
            numbers[bridge["id"]] = last
            last = walk(bridge["id"], last)
        return last

    for one in found:
        if one[""] == "pxb-pcie":
            numbers[one["id"]] = int(one["bus_nr"])
            walk(one["id"], numbers[one["id"]])
    return numbers


def test_stand_ins_are_where_the_table_says() -> None:
    found = devices(machine.arguments(SPEC))
    numbers = buses(found)
    leaves = [one for one in found if one.get("bus", "") in numbers and "port" not in one[""]]
    leaves = [one for one in leaves if not one[""].startswith(("x3130", "xio3130"))]
    places = {f"0000:{numbers[one['bus']]:02x}:00.0": one[""] for one in leaves}
    assert set(places) == {device.address for device in machine.DEVICES}
    gpus = [device for device in machine.DEVICES if device.role.startswith("gpu")]
    assert [gpu.node for gpu in gpus] == [0, 0, 1, 1]
    assert {places[gpu.address] for gpu in gpus} == {"bochs-display"}
    assert places[machine.ADDRESS["edu"]] == "edu"
    assert places[machine.ADDRESS["merged-nic"]] == "e1000e"
    for device in machine.DEVICES:
        first = machine.NODE_BUS[device.node]
        assert first < int(device.address[5:7], 16) < first + 0x20


def test_only_the_merged_pair_lacks_acs() -> None:
    found = devices(machine.arguments(SPEC))
    without = [one["id"] for one in found if one.get("disable-acs") == "on"]
    assert without == ["port14"]
    under = {one["bus"] for one in found if one[""] in ("bochs-display", "edu", "nvme")} - {"leaf0"}
    assert not under.intersection(without)
    assert next(one for one in found if one[""] == "edu")["dma_mask"] == "0xffffffff"


def test_ids_and_chassis_are_unique() -> None:
    found = devices(machine.arguments(spec(wire=(1, 2), probe_image=Path("/p"))))
    for key in ("id", "chassis"):
        named = [one[key] for one in found if key in one]
        assert len(named) == len(set(named))


def test_the_iommu_remaps_interrupts_and_the_kernel_is_strict() -> None:
    argv = machine.arguments(SPEC)
    assert "intel-iommu,intremap=on" in values(argv, "-device")
    words = machine.kernel_command_line(SPEC).split()
    assert {"intel_iommu=on", "iommu.strict=1", "iommu.passthrough=0"} <= set(words)
    assert f"hugepages=0:{machine.HUGEPAGES_PER_NODE},1:{machine.HUGEPAGES_PER_NODE}" in words


def test_notices_are_shown_for_the_boot_mark() -> None:
    """Boots are told apart by the kernel's banner, which is a notice (5): shown from level 6 on."""
    (level,) = re.findall(r"\bloglevel=(\d+)", machine.kernel_command_line(SPEC))
    assert int(level) > 5


def test_kvm_takes_the_hosts_cpu_and_the_split_irqchip() -> None:
    kvm = machine.arguments(spec(accelerator="kvm"))
    assert (values(kvm, "-cpu"), values(kvm, "-accel")) == (["host"], ["kvm"])
    assert values(kvm, "-machine") == ["q35,kernel-irqchip=split"]
    tcg = machine.arguments(SPEC)
    assert values(tcg, "-machine") == ["q35"]
    assert values(tcg, "-accel")[0].startswith("tcg,thread=multi")


def test_the_wire_joins_two_hosts_crosswise_on_loopback() -> None:
    assert "uplink" not in " ".join(machine.arguments(SPEC))
    first = machine.arguments(spec(wire=(7001, 7002)))
    second = machine.arguments(spec(number=2, wire=(7002, 7001)))
    assert "socket,id=uplink,udp=127.0.0.1:7002,localaddr=127.0.0.1:7001" in values(first, "-netdev")
    assert "socket,id=uplink,udp=127.0.0.1:7001,localaddr=127.0.0.1:7002" in values(second, "-netdev")
    macs = {one["mac"] for argv in (first, second) for one in devices(argv) if one.get("netdev") == "uplink"}
    assert len(macs) == 2


def test_all_traffic_stays_on_loopback() -> None:
    netdevs = values(machine.arguments(spec(wire=(7001, 7002))), "-netdev")
    user = next(text for text in netdevs if text.startswith("user,"))
    assert "restrict=on" in user
    assert f"hostfwd=tcp:127.0.0.1:2222-{machine.GUEST_ADDRESS}:22" in user
    for text in netdevs:
        assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) <= {"127.0.0.1", machine.GUEST_ADDRESS}


def test_the_probe_image_is_read_only_and_named() -> None:
    assert "probe" not in " ".join(machine.arguments(SPEC))
    argv = machine.arguments(spec(probe_image=Path("/cache/a,b.raw")))
    (drive,) = [text for text in values(argv, "-drive") if "id=probe" in text]
    assert "readonly=on" in drive
    assert drive.endswith("file=/cache/a,,b.raw")
    assert any("serial=probe" in text for text in values(argv, "-device"))


def test_the_key_travels_as_a_credential_and_ids_differ() -> None:
    line = machine.kernel_command_line(SPEC)
    (key,) = re.findall(r"ssh\.authorized_keys\.root:(\S+)", line)
    assert base64.b64decode(key).decode() == SPEC.public_key.strip()
    other = machine.kernel_command_line(spec(number=2))
    pattern = r"systemd\.machine_id=([0-9a-f]{32})\b"
    assert re.findall(pattern, line) != re.findall(pattern, other)
    assert "systemd.hostname=lab2" in other


def test_status_lists_every_stand_in() -> None:
    text = machine.describe()
    for device in machine.DEVICES:
        assert re.search(
            rf"{device.role} +{re.escape(device.address)}  node {device.node}$", text, re.MULTILINE
        )

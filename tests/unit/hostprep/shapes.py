"""Six machine shapes by hand, as vendors draw them."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.hostprep.machines import GIB, Machine

MIB = 1 << 20


def one_socket() -> Machine:
    """One socket, two L40S, each behind a root port of its own."""
    made = Machine()
    made.cpus(sockets=1, cores=16, memory_gib=256, pages=200)
    for index, bus in enumerate((0x21, 0x41)):
        port = f"0000:{bus - 1:02x}:01.1"
        root = f"pci0000:{bus - 1:02x}"
        made.function(port, "1022:1483", "060400", above=(root,), group=10 + index, driver="pcieport")
        made.function(f"0000:{bus:02x}:00.0", "10de:26b9", "030200", above=(root, port), group=20 + index,
                      driver="vfio-pci", bars={0: 16 * MIB, 1: 64 * GIB, 3: 32 * MIB})  # fmt: skip
    return made


def two_sockets() -> Machine:
    """Two sockets, two A100 on each, a management display; one GPU has lost its BAR."""
    made = Machine()
    made.cpus(sockets=2, cores=32, memory_gib=512, pages=400)
    made.function("0000:03:00.0", "1a03:2000", "030000", group=1, driver="ast", boot_vga=1)
    for index, bus in enumerate((0x17, 0x31, 0x98, 0xB1)):
        root, port = f"pci0000:{bus - 1:02x}", f"0000:{bus - 1:02x}:01.0"
        made.function(port, "8086:352a", "060400", above=(root,), node=index // 2, group=30 + index)
        made.function(f"0000:{bus:02x}:00.0", "10de:20b5", "030200", above=(root, port), node=index // 2,
                      group=40 + index, driver="vfio-pci",
                      bars={0: 16 * MIB, 1: 128 * GIB, 3: 32 * MIB})  # fmt: skip
    lost = "sys/bus/pci/devices/0000:b1:00.0/resource"
    made.put(lost, made.texts[lost].replace("0x14220c", "0x2014220c"))
    return made


def nps4() -> Machine:
    """One EPYC in four nodes, an MI300X on each; the last node has no hugepages."""
    made = Machine()
    made.cpus(sockets=1, cores=64, nodes_per_socket=4, memory_gib=192, pages=150)
    made.hugepages(3, 0)
    made.take("sys/module/kvm_intel")
    made.put("sys/module/kvm_amd/parameters/nested", "0")
    for index, bus in enumerate((0x05, 0x26, 0x46, 0x65)):
        root, port = f"pci0000:{bus & 0xE0:02x}", f"0000:{bus - 1:02x}:01.1"
        made.function(port, "1022:14ab", "060400", above=(root,), node=index, group=50 + index)
        made.function(f"0000:{bus:02x}:00.0", "1002:74a1", "120000", above=(root, port), node=index,
                      group=60 + index, bars={0: 256 * GIB, 2: 2 * MIB, 5: 512 * 1024})  # fmt: skip
    return made


def hgx() -> Machine:
    """Eight H100 behind four switches, joined by four NVSwitches; the host's driver still holds them."""
    made = Machine()
    made.cpus(sockets=2, cores=56, memory_gib=1024, pages=900)
    for index, bus in enumerate((0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF)):
        node = index // 4
        root = f"pci0000:{bus - 4:02x}"
        bridges = tuple(f"0000:{bus - 3 + level:02x}:00.0" for level in range(3))
        for level, bridge in enumerate(bridges):
            made.function(bridge, "1000:c030", "060400", above=(root, *bridges[:level]), node=node,
                          group=100 + 3 * index + level, driver="pcieport")  # fmt: skip
        made.function(f"0000:{bus:02x}:00.0", "10de:2330", "030200", above=(root, *bridges), node=node,
                      group=200 + index, driver="nvidia",
                      bars={0: 16 * MIB, 2: 128 * GIB, 4: 32 * MIB})  # fmt: skip
    for index in range(4):
        made.function(f"0000:{7 + index:02x}:00.0", "10de:22a3", "068000", above=("pci0000:00",), node=0,
                      group=300 + index, driver="nvidia-nvswitch", bars={0: 32 * MIB})  # fmt: skip
    return made


def consumer() -> Machine:
    """A desktop board: the console's GPU, and a second one in the chipset's group with NIC and disk."""
    made = Machine()
    made.cpus(sockets=1, cores=8, memory_gib=64, pages=32)
    made.put("proc/cpuinfo", "vendor_id\t: GenuineIntel\naddress sizes\t: 39 bits physical, 48 bits virtual")
    made.function("0000:01:00.0", "10de:2684", "030000", above=("pci0000:00", "0000:00:01.0"), group=15,
                  driver="nouveau", reset="bus", bars={0: 16 * MIB, 1: 32 * GIB}, boot_vga=1)  # fmt: skip
    made.function("0000:01:00.1", "10de:22ba", "040300", above=("pci0000:00", "0000:00:01.0"), group=15,
                  driver="snd_hda_intel")  # fmt: skip
    made.links["sys/class/graphics/fb0"] = "../../devices/pci0000:00/0000:00:01.0/0000:01:00.0/graphics/fb0"
    made.function("0000:00:1c.0", "8086:7ab8", "060400", group=16, driver="pcieport")
    made.function("0000:05:00.0", "10de:2204", "030000", above=("pci0000:00", "0000:00:1c.0"), group=16,
                  reset="", bars={0: 16 * MIB, 1: 32 * GIB}, d3cold_allowed=1,
                  **{"power/control": "auto"})  # fmt: skip
    made.function("0000:06:00.0", "10ec:8125", "020000", above=("pci0000:00", "0000:00:1c.0"), group=16,
                  driver="r8169")  # fmt: skip
    made.function("0000:07:00.0", "144d:a80a", "010802", above=("pci0000:00", "0000:00:1c.0"), group=16,
                  driver="nvme")  # fmt: skip
    return made


def sriov() -> Machine:
    """Two sockets with an SR-IOV NIC and its virtual functions, and an H100 whose node nobody knows."""
    made = Machine()
    made.cpus(sockets=2, cores=24, memory_gib=384, pages=300)
    made.function("0000:5e:00.0", "15b3:101d", "020000", above=("pci0000:5d", "0000:5d:00.0"), group=70,
                  driver="mlx5_core", sriov_totalvfs=8, sriov_numvfs=4)  # fmt: skip
    for index in range(4):
        made.virtual_function(f"0000:5e:00.{index + 2}", "0000:5e:00.0", "15b3:101e", group=71 + index,
                              above=("pci0000:5d", "0000:5d:00.0"))  # fmt: skip
    made.function("0000:ca:00.0", "10de:2331", "030200", above=("pci0000:c9", "0000:c9:01.0"), node=-1,
                  group=80, driver="vfio-pci", bars={0: 16 * MIB, 2: 128 * GIB, 4: 32 * MIB})  # fmt: skip
    return made


SHAPES: dict[str, Callable[[], Machine]] = {
    "one-socket": one_socket,
    "two-sockets": two_sockets,
    "nps4": nps4,
    "hgx": hgx,
    "consumer": consumer,
    "sriov": sriov,
}

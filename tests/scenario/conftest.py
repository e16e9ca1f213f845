"""Probe guests for the scenario tests: a pair joined by a cable, booted once, and single ones by firmware.

Everything is emulated and slow: deadlines are minutes, and no test depends on how long something takes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.probe.image import ensure_image
from tests.scenario.probe_vm import Console, ProbeVM, write_seed

MAC_A, MAC_B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
DATA_MIB = 16
USER_DATA = "#cloud-config\nhostname: never-run\n"


@pytest.fixture(scope="session")
def image() -> Path:
    return ensure_image().path


@pytest.fixture(scope="session")
def new_folder() -> Iterator[Callable[[], Path]]:
    """Makes folders with names short enough for sockets."""
    root = Path(tempfile.mkdtemp(prefix="probe-", dir="/tmp"))
    count = iter(range(1000))

    def make() -> Path:
        folder = root / str(next(count))
        folder.mkdir()
        return folder

    yield make
    shutil.rmtree(root)


def seed_disk(path: Path, meta: object, network: object, label: str = "cidata") -> list[str]:
    """Write a seed and return the QEMU arguments that put it in as libvirt does: a read-only virtio disk."""
    write_seed(path, json.dumps(meta), USER_DATA, json.dumps(network), label)
    return [
        *("-drive", f"file={path},format=raw,if=none,id=seed,readonly=on"),
        *("-device", "virtio-blk-pci,drive=seed"),
    ]


def data_disk(path: Path) -> list[str]:
    with path.open("wb") as out:
        out.truncate(DATA_MIB << 20)
    return [
        *("-drive", f"file={path},format=raw,if=none,id=data,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=data,serial=data-0001"),
    ]


def cable(path: Path, mac: str, *, server: bool) -> list[str]:
    """One end of a cable between two machines; the end that serves has to exist first."""
    role = "on" if server else "off"
    return [
        *("-netdev", f"stream,id=n0,server={role},addr.type=unix,addr.path={path}"),
        *("-device", f"virtio-net-pci,bus=pcie.0,netdev=n0,mac={mac},romfile="),
    ]


#: Two sockets of two cores, a NUMA node each; an edu device; a display behind a bridge of node 1.
MACHINE_A = [
    *("-m", "384", "-smp", "4,sockets=2,cores=2,threads=1"),
    *("-object", "memory-backend-ram,id=m0,size=160M", "-object", "memory-backend-ram,id=m1,size=224M"),
    *("-numa", "node,nodeid=0,cpus=0-1,memdev=m0", "-numa", "node,nodeid=1,cpus=2-3,memdev=m1"),
]
DEVICES_A = [
    *("-device", "edu,bus=pcie.0,dma_mask=0xffffffffff"),
    *("-device", "pxb-pcie,id=pxb1,bus=pcie.0,bus_nr=128,numa_node=1"),
    *("-device", "pcie-root-port,id=rp1,bus=pxb1,chassis=1,slot=1"),
    *("-device", "bochs-display,bus=rp1,vgamem=16M"),
]
#: One socket, one core, two threads, no NUMA. An emulated AMD model cannot tell its kernel about threads.
MACHINE_B = ["-m", "192", "-cpu", "max,vendor=GenuineIntel", "-smp", "2,sockets=1,cores=1,threads=2"]

META_A = {"instance-id": "vm_a-g1", "local-hostname": "probe-a"}
NETWORK_A = {
    "version": 2,
    "ethernets": {
        "eth0": {
            "match": {"macaddress": MAC_A},
            "addresses": ["10.1.0.1/24", "fd00:1::1/64"],
            "mtu": 1400,
            "dhcp4": False,
        }
    },
}
META_B = {"instance-id": "vm_b-g7", "local-hostname": "probe-b"}
NETWORK_B = {
    "version": 2,
    "ethernets": {
        "eth0": {
            "match": {"macaddress": MAC_B},
            "addresses": ["10.1.0.2/24", "10.1.0.999/24"],
            "bridges": [],
        },
        "eth1": {"match": {"macaddress": "52:54:00:00:00:ff"}, "addresses": ["10.2.0.2/24"]},
    },
}


@dataclass(frozen=True)
class Pair:
    """Two machines of different shapes at the ends of one cable."""

    a: ProbeVM
    b: ProbeVM


@pytest.fixture(scope="module")
def pair(image: Path, new_folder: Callable[[], Path]) -> Iterator[Pair]:
    at_a, at_b = new_folder(), new_folder()
    extra_a = [*seed_disk(at_a / "seed.iso", META_A, NETWORK_A), *data_disk(at_a / "data.raw"), *DEVICES_A]
    extra_b = seed_disk(at_b / "seed.iso", META_B, NETWORK_B)
    a = ProbeVM(at_a, image, [*extra_a, *cable(at_a / "cable", MAC_A, server=True)], MACHINE_A)
    try:
        # Once its guest speaks, its end of the cable surely listens.
        a.connect().ask("ping")
        b = ProbeVM(at_b, image, [*extra_b, *cable(at_a / "cable", MAC_B, server=False)], MACHINE_B)
        try:
            yield Pair(a, b)
        finally:
            b.stop()
    finally:
        a.stop()


@pytest.fixture
def a(pair: Pair) -> Iterator[Console]:
    """A fresh connection to the first guest, as the agent makes one for each question."""
    console = pair.a.connect()
    yield console
    console.close()


@pytest.fixture
def b(pair: Pair) -> Iterator[Console]:
    """A fresh connection to the second guest."""
    console = pair.b.connect()
    yield console
    console.close()

"""A good assignment for the simulated host, and the ways to spoil it: one change, one code, one field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]

IMAGE_DIGEST = "sha256:" + "1" * 64
#: Stands in each good seed; no message may ever show it.
SECRET = "hunter2-hunter2"


def _instance(tenant: str, node: int, vlan: int) -> Tree:
    first = 3 * node
    return {
        "id": f"vm_{tenant}",
        "generation": 2,
        "tenant": f"ten_{tenant}",
        "name": "train-1",
        "power": "running",
        "isolation": "dedicated",
        "firmware": "uefi",
        "cpus": {
            "pins": [{"vcpu": 0, "host_cpu": first + 1}, {"vcpu": 1, "host_cpu": first + 2}],
            "emulator": [first],
            "threads_per_core": 1,
        },
        "memory": {
            "page_size_kib": 2048,
            "cells": [{"node": node, "memory_mib": 256, "vcpus": [0, 1]}],
        },
        "devices": [
            {
                "id": f"gpu_{tenant}",
                "address": f"0000:{0x20 * (node + 1) + 1:02x}:00.0",
                "vendor": "1234",
                "device": "1111",
                "node": node,
                "serial": "",
            }
        ],
        "volumes": [
            {
                "id": f"vol_{tenant}",
                "generation": 1,
                "size_gib": 1,
                "image": {"digest": IMAGE_DIGEST, "size_bytes": 1 << 20, "format": "raw"},
            }
        ],
        "ports": [
            {
                "id": f"prt_{tenant}",
                "network": f"net_{tenant}",
                "vlan": vlan,
                "mac": f"02:00:00:00:00:{vlan - 100:02x}",
                "addresses": [{"address": "10.0.0.10", "prefix_length": 24}],
                "mtu": 1500,
            }
        ],
        "seed": {"user_data": f"#cloud-config\npassword: {SECRET}\n"},
    }


_GOOD: Tree = {
    "version": 1,
    "deployment": "dep_lab",
    "host": "hst_lab1",
    "epoch": 1,
    "revision": 1,
    "observe_only": False,
    "instances": [_instance("acme", 0, 101), _instance("globex", 1, 102)],
    "absent": [{"kind": "volume", "id": "vol_old", "generation": 3}],
    "closed": [{"id": "vm_moved", "generation": 2}],
}


def good(revision: int = 1) -> Tree:
    """Two tenants on the everyday simulated host, with the same addresses; every field is spelled out."""
    return {**copy.deepcopy(_GOOD), "revision": revision}


def raw(tree: Tree) -> bytes:
    """The file."""
    return json.dumps(tree).encode()


@dataclass(frozen=True)
class Case:
    """One way to spoil the good assignment."""

    name: str
    spoil: Callable[[Tree], bytes | None]
    code: str
    field: str | None
    #: Only the host can tell.
    on_host: bool = False

    def file(self, revision: int = 1) -> bytes:
        """The spoiled file."""
        tree = good(revision)
        whole = self.spoil(tree)
        return raw(tree) if whole is None else whole


CASES: list[Case] = []


def put(path: str, value: Any, code: str, *, name: str, at: str | None = None, on_host: bool = False) -> None:
    """Add a case that sets one field; the problem is told there, or at `at`."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]

    def spoil(tree: Tree) -> None:
        here: Any = tree
        for part in parents:
            here = here[part]
        if isinstance(here, list) and last == len(here):
            here.append(copy.deepcopy(value))
        else:
            here[last] = copy.deepcopy(value)

    told = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*parents, last))
    CASES.append(Case(name, spoil, code, at or told.removeprefix("."), on_host))


def drop(path: str, *, name: str) -> None:
    """Add a case that takes one field away."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]

    def spoil(tree: Tree) -> None:
        here: Any = tree
        for part in parents:
            here = here[part]
        del here[last]

    told = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*parents, last))
    CASES.append(Case(name, spoil, "assignment.missing_field", told.removeprefix(".")))


def bytes_case(whole: bytes, code: str, field: str | None = None, *, name: str) -> None:
    """Add a case that is another file altogether."""
    CASES.append(Case(name, lambda _tree: whole, code, field))


_I0, _I1 = "instances/0", "instances/1"
_BAD = "assignment.bad_value"
_UNKNOWN = "assignment.unknown_field"

# Not an assignment at all.
_TEXT = raw(good()).decode()
bytes_case(b"", "assignment.not_json", name="empty file")
bytes_case(b" \n", "assignment.not_json", name="blank file")
bytes_case(b"{", "assignment.not_json", name="cut off")
bytes_case(_TEXT.encode() + b"{}", "assignment.not_json", name="two documents")
bytes_case(b'{"version": 1, "epoch": NaN}', "assignment.not_json", name="NaN")
bytes_case(b'{"version": 1, "epoch": -Infinity}', "assignment.not_json", name="infinity")
bytes_case(b"[]", _BAD, name="a list")
bytes_case(b"\xef\xbb\xbf" + _TEXT.encode(), "assignment.encoding", name="byte order mark")
bytes_case(_TEXT.encode("utf-16"), "assignment.encoding", name="UTF-16")
bytes_case(_TEXT.encode().replace(b"train", b"tr\xe4in"), "assignment.encoding", name="latin-1")
bytes_case(b"[" * 100_000, "assignment.too_deep", name="open brackets without end")
bytes_case(b'{"version":' + b"[" * 200 + b"]" * 200 + b"}", "assignment.too_deep", name="deep lists")
bytes_case(b" " * (16 * 1024 * 1024 + 1), "assignment.too_large", name="too large")
bytes_case(
    _TEXT.replace('"epoch": 1', '"epoch": 1, "epoch": 2').encode(),
    "assignment.duplicate_key",
    "epoch",
    name="key twice",
)
bytes_case(
    _TEXT.replace('"page_size_kib"', '"cells": [], "page_size_kib"', 1).encode(),
    "assignment.duplicate_key",
    "instances[0].memory.cells",
    name="inner key twice",
)
bytes_case(_TEXT.replace('"epoch": 1', '"epoch": ' + "9" * 5000).encode(), _BAD, "epoch", name="huge number")
bytes_case(
    b'{"version": 2, "everything": "else"}', "assignment.version", "version", name="version 2 tells only that"
)
put("version", True, "assignment.version", name="version true")
put("version", "1", "assignment.version", name="version as text")

# Fields that are not there, or not known.
drop("deployment", name="no deployment")
drop("version", name="no version")
drop(f"{_I0}/cpus/pins/1/host_cpu", name="pin without host CPU")
drop(f"{_I1}/isolation", name="no isolation class")
put("instance", [], _UNKNOWN, name="unknown field")
put(f"{_I0}/cpus/pin", [], _UNKNOWN, name="unknown inner field")
put(f"{_I0}/volumes/0/key", "c2VjcmV0", _UNKNOWN, name="a key in the assignment")
put(f"{_I0}/volumes/0/path", "/etc/shadow", _UNKNOWN, name="a path of a volume")
put(f"{_I0}/kernel", "/boot/vmlinuz", _UNKNOWN, name="direct kernel boot")
put(
    f"{_I0}/\x1b[31mred",
    1,
    _UNKNOWN,
    name="unknown field with control characters",
    at='instances[0]["\\u001b[31mred"]',
)

# Single values.
put("epoch", 0, _BAD, name="epoch 0")
put("revision", 2**63, _BAD, name="revision beyond 63 bits")
put("revision", 1.0, _BAD, name="revision with a fraction")
put("observe_only", "no", _BAD, name="text for a truth value")
put(f"{_I0}/id", "acme", _BAD, name="id without prefix")
put(f"{_I0}/id", "vm_../../etc/passwd", _BAD, name="id that climbs")
put(f"{_I0}/tenant", "ten_" + "a" * 41, _BAD, name="id too long")
put(f"{_I0}/name", "../../etc/passwd", _BAD, name="name that climbs")
put(f"{_I0}/name", "a\x1b]0;owned\x07", _BAD, name="name with control characters")
put(f"{_I0}/name", "train\n", _BAD, name="name with a line end")
put(f"{_I0}/name", "", _BAD, name="empty name")
put(f"{_I0}/power", "suspended", _BAD, name="unknown power state")
put(f"{_I0}/firmware", "kernel", _BAD, name="unknown firmware")
put(f"{_I0}/isolation", "shared", _BAD, name="unknown isolation class")
put(f"{_I0}/isolation", "mig-vgpu", "instance.isolation_unsupported", name="isolation class not supported")
put(f"{_I0}/cpus/threads_per_core", 4, _BAD, name="four threads per core")
put(f"{_I0}/cpus/threads_per_core", True, _BAD, name="true threads per core")
put(f"{_I0}/cpus/pins", [], _BAD, name="no vCPU")
put(f"{_I0}/cpus/emulator", [], _BAD, name="no emulator CPU")
put(f"{_I0}/cpus/pins/0/host_cpu", -1, _BAD, name="negative CPU")
put(f"{_I0}/cpus/pins/0/host_cpu", "1", _BAD, name="CPU as text")
put(f"{_I0}/memory/page_size_kib", 64, _BAD, name="page size that no host has")
put(f"{_I0}/memory/cells/0/memory_mib", 0, _BAD, name="no memory")
put(f"{_I0}/memory/cells/0/memory_mib", 2**40, _BAD, name="memory beyond all hosts")
put(f"{_I0}/devices/0/address", "21:00.0", _BAD, name="short PCI address")
put(f"{_I0}/devices/0/address", "0000:21:00.0/../../x", _BAD, name="PCI address that climbs")
put(f"{_I0}/devices/0/vendor", "0x1234", _BAD, name="vendor with 0x")
put(f"{_I0}/devices/0/node", -2, _BAD, name="node below unknown")
put(f"{_I0}/devices/0/serial", "00 11", _BAD, name="serial with a space")
put(f"{_I0}/volumes", [], _BAD, name="no volume")
put(f"{_I0}/volumes/0/id", "vol_../../etc/passwd", _BAD, name="volume that climbs")
put(f"{_I0}/volumes/0/size_gib", 0, _BAD, name="volume of nothing")
put(f"{_I0}/volumes/0/generation", 0, _BAD, name="generation 0")
put(f"{_I0}/volumes/0/image/digest", "sha256:" + "A" * 64, _BAD, name="digest in capitals")
put(f"{_I0}/volumes/0/image/digest", "sha256:" + "1" * 63, _BAD, name="digest too short")
put(f"{_I0}/volumes/0/image/digest", "md5:" + "1" * 32, _BAD, name="digest of another kind")
put(f"{_I0}/volumes/0/image/digest", "/images/x.raw", _BAD, name="path for a digest")
put(f"{_I0}/volumes/0/image/format", "qcow2", _BAD, name="image with a backing file")
put(f"{_I0}/ports/0/vlan", 0, _BAD, name="no VLAN")
put(f"{_I0}/ports/0/vlan", 4095, _BAD, name="dead VLAN")
put(f"{_I0}/ports/0/mac", "02-00-00-00-00-01", _BAD, name="MAC with dashes")
put(f"{_I0}/ports/0/mac", "03:00:00:00:00:01", _BAD, name="multicast MAC")
put(f"{_I0}/ports/0/mac", "00:16:3e:00:00:01", _BAD, name="vendor's MAC")
put(f"{_I0}/ports/0/mtu", 100, _BAD, name="tiny MTU")
put(f"{_I0}/ports/0/addresses", [], _BAD, name="port without address")
_ADDRESS = f"{_I0}/ports/0/addresses/0"
_AT_ADDRESS = "instances[0].ports[0].addresses[0]"
put(f"{_ADDRESS}/address", "10.0.0.256", _BAD, name="no address", at=_AT_ADDRESS)
put(f"{_ADDRESS}/address", "10.0.0.0", _BAD, name="address of the network", at=_AT_ADDRESS)
put(f"{_ADDRESS}/address", "224.0.0.1", _BAD, name="multicast address", at=_AT_ADDRESS)
put(f"{_ADDRESS}/address", "127.0.0.1", _BAD, name="loopback address", at=_AT_ADDRESS)
put(f"{_ADDRESS}/address", "fd00::000a", _BAD, name="address not in short form", at=_AT_ADDRESS)
put(f"{_ADDRESS}/address", "fe80::1%\x1b[2J", _BAD, name="address with a zone", at=_AT_ADDRESS)
put(f"{_ADDRESS}/prefix_length", 33, _BAD, name="prefix too long", at=_AT_ADDRESS)
put(f"{_I0}/seed/user_data", "x" * 65537, _BAD, name="seed too long")
put(f"{_I0}/seed/user_data", "\ud800", _BAD, name="seed that is no Unicode")
put(f"{_I0}/seed", SECRET, _BAD, name="seed that is no object")
put("absent/0/kind", "host", _BAD, name="absent host")
put("absent/0/id", "vm_old", _BAD, name="absent id of another kind", at="absent[0]")
put("absent/0/generation", 0, _BAD, name="absent generation 0")

# Between fields: CPUs and memory.
_PINS0 = f"{_I0}/cpus/pins"
put(f"{_PINS0}/1/vcpu", 0, "cpu.vcpu_numbers", name="vCPU twice")
put(f"{_PINS0}/1/vcpu", 2, "cpu.vcpu_numbers", name="vCPU left out")
put(f"{_PINS0}/1/host_cpu", 1, "cpu.pinned_twice", name="CPU twice in one VM")


def _same_cpu(tree: Tree) -> None:
    """Globex's VM on acme's node, with one vCPU of acme's."""
    other = tree["instances"][1]
    other["cpus"]["pins"] = [{"vcpu": 0, "host_cpu": 1}]
    other["memory"]["cells"] = [{"node": 0, "memory_mib": 256, "vcpus": [0]}]


CASES.append(Case("CPU in two VMs", _same_cpu, "cpu.pinned_twice", "instances[1].cpus.pins[0].host_cpu"))
put(f"{_I1}/cpus/emulator/1", 2, "cpu.emulator_on_vcpu", name="emulator on another tenant's vCPU")
_CELLS0 = f"{_I0}/memory/cells"
put(f"{_CELLS0}/0/vcpus", [0], "memory.vcpu_missing", name="vCPU in no cell", at="instances[0].memory.cells")
put(f"{_CELLS0}/0/vcpus/2", 1, "memory.vcpu_twice", name="vCPU twice in a cell")
put(f"{_CELLS0}/0/vcpus/2", 7, "memory.vcpu_unknown", name="vCPU that is not there")
put(
    f"{_CELLS0}/1",
    {"node": 0, "memory_mib": 128, "vcpus": []},
    "memory.node_twice",
    name="two cells on one node",
    at="instances[0].memory.cells[1].node",
)
put(f"{_CELLS0}/0/memory_mib", 257, "memory.broken_page", name="memory that is no whole number of pages")

# Between fields: things that are given twice.
put(f"{_I1}/id", "vm_acme", "instance.named_twice", name="instance twice")
put(f"{_I1}/devices/0/address", "0000:21:00.0", "device.given_twice", name="device address twice")
put(f"{_I1}/devices/0/id", "gpu_acme", "device.given_twice", name="device id twice")
put(
    f"{_I1}/devices/0",
    _GOOD["instances"][0]["devices"][0],
    "device.given_twice",
    name="whole device twice",
    at="instances[1].devices[0].address",
)
put(f"{_I1}/volumes/0/id", "vol_acme", "volume.given_twice", name="volume in two VMs")
put(f"{_I0}/volumes/0/image/size_bytes", (1 << 30) + 1, "volume.image_too_large", name="image too large")
put(f"{_I1}/ports/0/id", "prt_acme", "port.named_twice", name="port twice")
put(f"{_I1}/ports/0/mac", "02:00:00:00:00:01", "port.mac_taken", name="MAC twice")
put(f"{_I1}/ports/0/network", "net_acme", "network.of_another_tenant", name="network of two tenants")
put(f"{_I1}/ports/0/vlan", 101, "network.vlan_shared", name="VLAN of two tenants")


def _second_port(change: Tree, address: Tree) -> Tree:
    """A further port of acme's in its network, spoiled."""
    port = {"id": "prt_acme2", "network": "net_acme", "vlan": 101, "mac": "02:00:00:00:00:33"}
    return {**port, "addresses": [{"address": "10.0.0.11", "prefix_length": 24, **address}], **change}


_PORT, _AT_PORT = f"{_I0}/ports/1", "instances[0].ports[1]"
put(
    _PORT,
    _second_port({"vlan": 103}, {}),
    "network.two_vlans",
    name="network on two VLANs",
    at=f"{_AT_PORT}.vlan",
)
put(
    _PORT,
    _second_port({}, {"address": "10.0.0.10"}),
    "network.address_taken",
    name="address twice in a network",
    at=f"{_AT_PORT}.addresses[0].address",
)
put(
    _PORT,
    _second_port({}, {"prefix_length": 16}),
    "network.prefix_mismatch",
    name="two prefixes in a network",
    at=f"{_AT_PORT}.addresses[0].prefix_length",
)
put(
    _PORT,
    _second_port({}, {"address": "10.0.1.11"}),
    "network.other_subnet",
    name="two subnets in a network",
    at=f"{_AT_PORT}.addresses[0].address",
)
put(f"{_ADDRESS}/address", "10.0.0.255", "port.broadcast_address", name="broadcast address")

# Orders that contradict each other.
put(
    "absent/1",
    {"kind": "volume", "id": "vol_old", "generation": 4},
    "absent.named_twice",
    name="absent twice",
    at="absent[1].id",
)
put(
    "absent/1",
    {"kind": "instance", "id": "vm_acme", "generation": 2},
    "absent.still_ordered",
    name="instance here and away",
    at="absent[1].generation",
)
put(
    "absent/1",
    {"kind": "volume", "id": "vol_acme", "generation": 1},
    "absent.in_use",
    name="volume in use and away",
    at="absent[1].id",
)
put(
    "absent/1",
    {"kind": "device", "id": "gpu_acme", "generation": 1},
    "absent.in_use",
    name="device in use and away",
    at="absent[1].id",
)
put(
    "closed/1",
    {"id": "vm_moved", "generation": 3},
    "closed.named_twice",
    name="cut off twice",
    at="closed[1].id",
)
put(
    "closed/1",
    {"id": "vm_acme", "generation": 1},
    "closed.still_ordered",
    name="instance here and cut off",
    at="closed[1].id",
)

# Against the host.
put(f"{_PINS0}/0/host_cpu", 99, "cpu.unknown", name="CPU that the host has not", on_host=True)
put(f"{_I0}/cpus/emulator/0", 99, "cpu.unknown", name="emulator CPU that the host has not", on_host=True)
put(f"{_PINS0}/0/host_cpu", 0, "cpu.host_share", name="CPU of the host's share", on_host=True)
put(
    f"{_I0}/cpus/threads_per_core",
    2,
    "cpu.not_siblings",
    name="siblings that are none",
    at="instances[0].cpus.pins[1].host_cpu",
    on_host=True,
)
put(
    _CELLS0,
    [{"node": 0, "memory_mib": 128, "vcpus": [0]}, {"node": 1, "memory_mib": 128, "vcpus": [1]}],
    "memory.vcpu_far",
    name="memory of the other node",
    at="instances[0].memory.cells[1].vcpus[0]",
    on_host=True,
)
put(f"{_CELLS0}/0/node", 7, "memory.node_unknown", name="node that the host has not", on_host=True)
put(f"{_CELLS0}/0/memory_mib", 802, "memory.too_little", name="more memory than pages", on_host=True)
put(
    f"{_I0}/memory",
    {"page_size_kib": 1048576, "cells": [{"node": 0, "memory_mib": 1024, "vcpus": [0, 1]}]},
    "memory.no_pages",
    name="page size that the host has not reserved",
    at="instances[0].memory.page_size_kib",
    on_host=True,
)
_DEVICE = f"{_I0}/devices/0"
_AT_DEVICE = "instances[0].devices[0].address"
put(f"{_DEVICE}/address", "0000:99:00.0", "device.missing", name="device that is not there", on_host=True)
put(
    f"{_DEVICE}/vendor",
    "10de",
    "device.identity_mismatch",
    name="another vendor's device",
    at=_AT_DEVICE,
    on_host=True,
)
put(
    f"{_DEVICE}/device",
    "2330",
    "device.identity_mismatch",
    name="another device",
    at=_AT_DEVICE,
    on_host=True,
)
put(
    f"{_DEVICE}/serial",
    "00-11",
    "device.identity_mismatch",
    name="another device's serial",
    at=_AT_DEVICE,
    on_host=True,
)
put(f"{_DEVICE}/node", 1, "device.node_mismatch", name="device on another node", on_host=True)
put(f"{_DEVICE}/node", -1, "device.node_mismatch", name="device on an unknown node", on_host=True)

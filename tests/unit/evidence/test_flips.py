"""A VM that runs as ordered passes every check, and for each one fact of the kernel turns it, alone."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.isolation import judge_compute, judge_process, judge_things
from orchestrator.isolation.judge_things import judge_closed, judge_flows
from orchestrator.isolation.verdicts import Status
from orchestrator.model.observed import ObservedPort
from tests.unit.evidence.goodhost import (
    GPU,
    GROUP,
    LABEL,
    OTHER_GROUP,
    OTHER_PID,
    PID,
    VM,
    VOLUME,
    VOLUME_PATH,
    GoodHost,
    luks_header,
)

REPOSITORY = Path(__file__).parents[3]
_ID = re.compile(r"^[a-z]+\.[a-z_]+$")

Flip = Callable[[GoodHost], object]

#: By verdict id. Each changes one thing that the kernel (or, for the last five, libvirt or the switch) says.
FLIPS: dict[str, Flip] = {
    "process.instance": lambda h: h.edit_argv(f"guest={VM},", "guest=vm_other,"),
    "process.uid": lambda h: h.edit_thread(PID + 3, f"Uid:\t{h.uid}", f"Uid:\t{h.uid + 7}"),
    "process.gid": lambda h: h.edit_thread(PID, f"Groups:\t{h.uid} ", f"Groups:\t{h.uid} 64055"),
    "process.uid_alone": lambda h: h.neighbour(uid=h.uid),
    "process.caps": lambda h: h.edit_thread(PID + 1, "CapEff:\t00", "CapEff:\t80"),
    "process.no_new_privs": lambda h: h.edit_thread(PID + 3, "NoNewPrivs:\t1", "NoNewPrivs:\t0"),
    "process.seccomp": lambda h: h.edit_thread(PID + 3, "Seccomp:\t2", "Seccomp:\t0"),
    "process.sandbox": lambda h: h.edit_argv("spawn=deny", "spawn=allow"),
    "process.confined": lambda h: h.put(f"proc/{PID}/attr/current", "unconfined"),
    "process.label_alone": lambda h: h.neighbour(label=LABEL),
    "process.namespace": lambda h: h.link(f"proc/{PID}/ns/mnt", "mnt:[4026531841]"),
    "process.no_core": lambda h: h.edit(f"proc/{PID}/limits", "0        unlimited", "unlimited unlimited"),
    "cpu.accelerator": lambda h: (h.root / f"proc/{PID}/fd/1").unlink(),
    "cpu.pinned": lambda h: h.edit_thread(PID + 1, "list:\t4", "list:\t4-5"),
    "cpu.emulator": lambda h: h.edit_thread(PID + 3, "list:\t3", "list:\t0-5"),
    "cpu.siblings_exclusive": lambda h: h.neighbour(cpus="1,5"),
    "memory.node": lambda h: h.ram("N0=1 N1=9000"),
    "memory.bound": lambda h: h.ram("N1=256", policy="prefer:1"),
    "memory.hugepages": lambda h: h.ram("N1=131072", page_kib=4),
    "memory.no_merge": lambda h: h.put(f"proc/{PID}/ksm_merging_pages", 3),
    "memory.no_swap": lambda h: h.edit_thread(PID, "       0 kB", "     128 kB"),
    "gpu.identity": lambda h: h.put(f"sys/bus/pci/devices/{GPU}/device", "0x2222"),
    "gpu.driver": lambda h: h.put(f"sys/bus/pci/devices/{GPU}/driver_override", "(null)"),
    "gpu.group": lambda h: h.sys.function("0000:41:00.1", group=GROUP),
    "gpu.holder": lambda h: h.opened(OTHER_PID, f"/dev/vfio/{GROUP}"),
    "gpu.no_other": lambda h: h.opened(PID, f"/dev/vfio/{OTHER_GROUP}"),
    "gpu.iommu": lambda h: h.put("sys/module/iommufd/parameters/allow_unsafe_interrupts", "Y"),
    "volume.header": lambda h: h.file(VOLUME_PATH, luks_header(mode=b"cbc-essiv:sha256")),
    "volume.owner": lambda h: (h.root / VOLUME_PATH.lstrip("/")).chmod(0o604),
    "volume.holder": lambda h: h.open_volume(1),
    "seed.volatile": lambda h: h.mounts("self", run_bulkhead_seeds="ext4"),
    "console.volatile": lambda h: h.mounts("self", run_bulkhead_console="xfs"),
    "secret.argv": lambda h: h.edit_argv(',"keyid":"masterKey0","iv":"aXY="', ""),
    "secret.master_key": lambda h: h.mounts(PID, var_lib_libvirt_qemu="ext4"),
    "secret.gone": lambda h: setattr(h, "held_secrets", (VOLUME,)),
    "port.owner": lambda h: h.port.update(instance="vm_other"),
    "port.mode": lambda h: h.port.update(vlan_mode="native-untagged"),
    "port.tag": lambda h: h.port.update(vlan=102),
    "port.open": lambda h: h.port.update(open=False),
}

#: Judged once for the whole switch, from its drift; `tests/unit/agent` turns it in the agent's report.
OF_THE_SWITCH = {"switch.flows", "port.cut_off"}

#: Hugepages are counted by node, so that one on a wrong node turns two checks; small pages turn one.
SMALL_PAGES = {"memory.node"}

#: Other facts for the same checks.
MORE: list[tuple[str, Flip]] = [
    ("process.uid", lambda h: h.edit_thread(PID, f"Uid:\t{h.uid}\t{h.uid}", f"Uid:\t{h.uid}\t{h.uid + 7}")),
    ("process.gid", lambda h: h.edit_thread(PID, f"Gid:\t{h.uid}", f"Gid:\t{h.uid + 7}")),
    ("process.caps", lambda h: h.edit_thread(PID, "CapPrm:\t00", "CapPrm:\t80")),
    ("process.seccomp", lambda h: h.edit_thread(PID, "Seccomp:\t2", "Seccomp:\t1")),
    ("process.sandbox", lambda h: h.edit_argv("-sandbox", "-msg")),
    ("process.confined", lambda h: h.put(f"proc/{PID}/attr/current", LABEL.replace("enforce", "complain"))),
    ("process.confined", lambda h: h.put(f"proc/{PID}/attr/apparmor/current", "unconfined")),
    ("process.no_core", lambda h: h.put("proc/sys/kernel/core_pattern", "|/usr/share/apport/apport %p")),
    ("cpu.pinned", lambda h: (h.root / f"proc/{PID}/task/{PID + 2}/status").unlink()),
    ("cpu.emulator", lambda h: _vhost(h, "0-5")),
    ("cpu.emulator", lambda h: _recovery(h, "4", by_kernel=False)),
    ("cpu.emulator", lambda h: _recovery(h, "2", by_kernel=True)),
    ("memory.bound", lambda h: h.ram("N1=256", policy="bind:0-1")),
    ("memory.bound", lambda h: h.ram("N1=256", policy="default")),
    ("memory.hugepages", lambda h: h.ram("N1=255")),
    ("memory.no_merge", lambda h: h.put("sys/kernel/mm/ksm/run", 1)),
    ("memory.no_swap", lambda h: _swap(h, "/dev/sdb2 partition")),
    ("gpu.identity", lambda h: h.put(f"sys/bus/pci/devices/{GPU}/numa_node", 0)),
    ("gpu.iommu", lambda h: h.put("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")),
    ("gpu.iommu", lambda h: h.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y")),
    ("gpu.holder", lambda h: _device_file(h, GPU, OTHER_PID)),
    ("gpu.no_other", lambda h: h.opened(PID, "/dev/vfio/noiommu-0")),
    ("gpu.no_other", lambda h: _device_file(h, "0000:42:00.0", PID)),
    ("volume.header", lambda h: h.file(VOLUME_PATH, b"a file system in clear" * 100)),
    (
        "secret.argv",
        lambda h: h.edit_argv('{"qom-type":"memory-backend-file",', '{"qom-type":"secret","data":"x",'),
    ),
    ("secret.argv", lambda h: _keyval_secret(h)),
    ("port.mode", lambda h: h.port.update(trunks=(5,))),
    ("port.owner", lambda h: h.port.update(deployment="dep_other")),
]


def _vhost(host: GoodHost, cpus: str) -> None:
    """A kernel thread that carries this VM's packets, as Linux before 6.4 has it."""
    host.put("proc/6000/comm", f"vhost-{PID}")
    host.thread(6000, 6000, f"vhost-{PID}", cpus)


def _recovery(host: GoodHost, cpus: str, *, by_kernel: bool) -> None:
    """A thread named as KVM's page recovery is; only the kernel can set the flag that says it is its own."""
    tid = PID + 50
    host.thread(PID, tid, "kvm-nx-lpage-re", cpus)
    flags = 0x84040C0 if by_kernel else 0x8400140
    host.put(f"proc/{PID}/task/{tid}/stat", f"{tid} (kvm-nx-lpage-re) S 1 1 1 0 -1 {flags} 0 0")


def _swap(host: GoodHost, line: str) -> None:
    host.put("proc/swaps", f"Filename\tType\tSize\tUsed\tPriority\n{line}\t1024\t0\t-2")
    host.put("sys/class/block/sdb2/size", 2048)


def _device_file(host: GoodHost, address: str, pid: int) -> None:
    """A process that holds a function by its own file, without the group's."""
    host.put(f"sys/devices/pci0000:20/{address}/vfio-dev/vfio5/dev", "511:5")
    host.link(f"sys/devices/pci0000:20/{address}/vfio-dev/vfio5/device", f"../../../{address}")
    host.link("sys/class/vfio-dev/vfio5", f"../../devices/pci0000:20/{address}/vfio-dev/vfio5")
    host.opened(pid, "/dev/vfio/devices/vfio5")


def _keyval_secret(host: GoodHost) -> None:
    raw = (host.root / f"proc/{PID}/cmdline").read_bytes()
    host.file(f"proc/{PID}/cmdline", raw + b"-object\0secret,id=s1,data=open,,sesame\0")


def _bad(host: GoodHost) -> dict[str, Status]:
    return {id_: status for id_, status in host.verdicts().items() if status is not Status.PASS}


def _ids_in_source() -> set[str]:
    """Every id that the judges can produce, whatever the facts."""
    found = set()
    for module in (judge_compute, judge_process, judge_things):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _ID.match(node.value):
                found.add(node.value)
    return found


@pytest.mark.parametrize("page_size_kib", [2048, 4])
def test_a_vm_that_runs_as_ordered_passes_everything(tmp_path, page_size_kib):
    assert _bad(GoodHost(tmp_path, page_size_kib)) == {}


@pytest.mark.parametrize("id_", FLIPS)
def test_one_fact_turns_exactly_one_verdict(tmp_path, id_):
    host = GoodHost(tmp_path, 4 if id_ in SMALL_PAGES else 2048)
    assert _bad(host) == {}

    FLIPS[id_](host)

    assert _bad(host) == {id_: Status.FAIL}


@pytest.mark.parametrize(("id_", "flip"), MORE)
def test_other_facts_turn_it_too(tmp_path, id_, flip):
    host = GoodHost(tmp_path)

    flip(host)

    assert _bad(host) == {id_: Status.FAIL}


def test_every_verdict_has_a_fact_that_turns_it(tmp_path):
    assert set(GoodHost(tmp_path).verdicts()) == set(FLIPS)
    assert _ids_in_source() == set(FLIPS) | OF_THE_SWITCH


@pytest.mark.parametrize(("differences", "status"), [((), Status.PASS), (("+ table=0",), Status.FAIL)])
def test_a_flow_too_many_turns_the_switch_verdict(differences, status):
    found = judge_flows("br-bulkhead", 3, differences)
    assert (found.id, found.status) == ("switch.flows", status)


def test_a_port_that_is_open_here_and_lives_elsewhere_turns_the_hosts_verdict():
    shut = ObservedPort("prt_a", "vm_a", "dep_a", "vnet0", 1, "trunk", None, (4095,), False)
    others = dataclasses.replace(shut, port="prt_b", instance="vm_b", vlan=7, open=True)
    for port, status in (
        (shut, Status.PASS),
        (dataclasses.replace(shut, open=True), Status.FAIL),
        (dataclasses.replace(shut, vlan=7), Status.FAIL),
    ):
        (found,) = judge_closed(["vm_a"], [port, others])
        assert (found.id, found.subject, found.status) == ("port.cut_off", "vm_a", status)


def test_the_document_lists_exactly_the_verdicts():
    text = (REPOSITORY / "docs/evidence.md").read_text()
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|(.+)\|(.+)\|(.+)\|$", text, re.MULTILINE)
    listed = [id_ for id_, *_ in rows]
    assert sorted(listed) == sorted(_ids_in_source())
    assert all(cell.strip() for row in rows for cell in row), "every cell says something"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda h: _vhost(h, "3"), "vhost's thread sits with the emulator's"),
        (lambda h: _recovery(h, "4", by_kernel=True), "KVM's own thread sits with the vCPU that started it"),
        (lambda h: h.neighbour(cpus="4-5", tenant="ten_acme"), "a neighbour of the same tenant"),
        (lambda h: h.put("proc/sys/kernel/core_pattern", "|/lib/systemd/systemd-coredump"), "it obeys"),
        (lambda h: h.opened(OTHER_PID, "/dev/vfio/vfio"), "the container is no device"),
        (lambda h: h.opened(OTHER_PID, VOLUME_PATH), "a path of that name elsewhere is another file"),
        (lambda h: (h.root / f"proc/{PID}/ksm_merging_pages").unlink(), "before Linux 5.19, nothing shared"),
        (lambda h: (h.root / f"proc/{PID}/task/{PID + 3}/status").unlink(), "a pool thread ended"),
    ],
)  # fmt: skip
def test_what_is_no_breach_turns_nothing(tmp_path, change, why):
    host = GoodHost(tmp_path)

    change(host)

    assert _bad(host) == {}, why

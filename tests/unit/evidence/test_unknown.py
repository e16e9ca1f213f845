"""What cannot be read is UNKNOWN, and a process that ends or is replaced meanwhile proves nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable

import pytest

from orchestrator.agent.devices.worker import BusyError, InFlight
from orchestrator.agent.evidence import KernelInspector
from orchestrator.isolation.verdicts import InstanceFacts, Status, judge, proven
from tests.unit.evidence.goodhost import (
    CONSOLE,
    GPU,
    LABEL,
    MASTER_KEY,
    OTHER_PID,
    PID,
    SEED,
    START_TICKS,
    VOLUME_PATH,
    GoodHost,
)

RAM = {"memory.node", "memory.bound", "memory.hugepages"}
DEVICE = {"gpu.identity", "gpu.driver", "gpu.group", "gpu.holder"}
VOLUME = {"volume.header", "volume.owner", "volume.holder"}
NEIGHBOURS = {"process.uid_alone", "process.label_alone", "cpu.siblings_exclusive"}
HOLDERS = {"gpu.holder", "gpu.no_other", "volume.holder", "cpu.accelerator", *NEIGHBOURS}
PORTS = {"port.owner", "port.mode", "port.tag", "port.open"}
ARGV = {"process.instance", "process.sandbox", "secret.argv", "secret.master_key"}
STATUS = {
    "process.uid", "process.gid", "process.caps", "process.no_new_privs", "process.seccomp",
    "cpu.accelerator", "cpu.pinned", "cpu.emulator", "memory.no_swap",
}  # fmt: skip


def gone(*paths: str) -> Callable[[GoodHost], None]:
    def remove(host: GoodHost) -> None:
        for path in paths:
            target = host.root / path.lstrip("/")
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def sealed(host: GoodHost, pid: int) -> None:
    """Make a process one that may not be looked into, also for root."""
    folder = host.root / f"proc/{pid}/fd"
    shutil.rmtree(folder)
    # Reading a link's own name as a folder loops, which no permission mends.
    folder.symlink_to("fd")


MISSING = [
    (gone(f"proc/{PID}/task"), STATUS),
    (gone(f"proc/{PID}/cmdline"), ARGV),
    (gone(f"proc/{PID}/attr"), {"process.confined", "process.label_alone"}),
    (gone(f"proc/{PID}/ns"), {"process.namespace"}),
    (gone("proc/1/ns"), {"process.namespace"}),
    (gone(f"proc/{PID}/limits"), {"process.no_core"}),
    (gone("proc/sys/kernel/core_pattern"), {"process.no_core"}),
    (gone(f"proc/{PID}/numa_maps"), RAM),
    (gone(f"proc/{PID}/maps"), RAM),
    (lambda h: h.put(f"proc/{PID}/numa_maps", "gibberish"), RAM),
    (lambda h: h.ram(""), {"memory.node", "memory.hugepages"}),
    (gone("sys/kernel/mm"), {"memory.no_merge"}),
    (gone("sys/kernel/mm/ksm/run"), {"memory.no_merge"}),
    (lambda h: (gone(f"proc/{PID}/ksm_merging_pages")(h), h.put("sys/kernel/mm/ksm/pages_shared", 9)),
     {"memory.no_merge"}),
    (gone("proc/swaps"), {"memory.no_swap"}),
    (lambda h: h.put("proc/swaps", "Filename Type\n/dev/nowhere partition 1 0 -2"), {"memory.no_swap"}),
    (lambda h: h.edit_thread(PID, "VmSwap", "VmSomething"), {"memory.no_swap"}),
    (lambda h: h.edit_thread(PID + 3, "Seccomp", "Other"), {"process.seccomp"}),
    (lambda h: h.edit_thread(PID + 3, "NoNewPrivs", "Other"), {"process.no_new_privs"}),
    (lambda h: h.edit_thread(PID + 3, "CapEff", "Other"), {"process.caps"}),
    (lambda h: h.edit_thread(PID + 3, "Uid", "Other"), {"process.uid"}),
    (lambda h: h.edit_thread(PID + 3, "Groups", "Other"), {"process.gid"}),
    (lambda h: h.edit_thread(PID + 3, "Cpus_allowed_list", "Other"), {"cpu.pinned", "cpu.emulator"}),
    (gone(f"sys/bus/pci/devices/{GPU}/driver_override"), DEVICE),
    (gone(f"sys/bus/pci/devices/{GPU}/vendor"), DEVICE),
    (gone("sys/module/vfio_iommu_type1", "sys/module/iommufd"), {"gpu.iommu"}),
    (gone("sys/module/vfio"), {"gpu.iommu"}),
    (lambda h: sealed(h, OTHER_PID), HOLDERS),
    (lambda h: sealed(h, 1), HOLDERS),
    (gone(f"proc/{OTHER_PID}/attr"), NEIGHBOURS),
    (gone(f"proc/{OTHER_PID}/task"), NEIGHBOURS),
    (gone(VOLUME_PATH), VOLUME),
    (gone(SEED), {"seed.volatile"}),
    (gone(CONSOLE), {"console.volatile"}),
    (gone(MASTER_KEY), {"secret.master_key"}),
    (gone("proc/self/mountinfo"), {"seed.volatile", "console.volatile"}),
    (gone(f"proc/{PID}/mountinfo"), {"secret.master_key"}),
    (lambda h: h.edit_argv('"qom-type":"secret","id":"s0"', "s0"), {"secret.argv", "secret.master_key"}),
    (lambda h: setattr(h, "held_secrets", None), {"secret.gone"}),
    (lambda h: setattr(h, "ports_known", False), PORTS),
]  # fmt: skip


@pytest.mark.parametrize(("change", "unknown"), MISSING)
def test_what_cannot_be_read_is_unknown(tmp_path, change, unknown):
    host = GoodHost(tmp_path)

    change(host)

    found = {id_: status for id_, status in host.verdicts().items() if status is not Status.PASS}
    assert found == dict.fromkeys(unknown, Status.UNKNOWN)


#: Facts that other facts make up for, or whose absence is an answer of its own.
HARMLESS = {
    f"proc/{PID}/task/{PID + 3}/status",  # a pool thread that ended
    f"proc/{PID}/ksm_merging_pages",  # an older kernel; nothing is shared on the whole host
    f"proc/{PID}/fd/0",  # /dev/null
    f"proc/{PID}/fd/2",  # vfio's container
}


def test_no_file_of_the_process_can_be_taken_away_unnoticed(tmp_path):
    top = GoodHost(tmp_path / "sample").root
    folder = top / f"proc/{PID}"
    files = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    paths = {str(path.relative_to(top)) for path in files}
    assert paths >= HARMLESS
    for index, path in enumerate(sorted(paths - HARMLESS)):
        host = GoodHost(tmp_path / str(index))
        gone(path)(host)
        assert set(host.verdicts().values()) != {Status.PASS}, f"without {path} everything passes"


def _replaced(host: GoodHost) -> None:
    host.stat(PID, started=START_TICKS + 1)


def _ended(host: GoodHost) -> None:
    shutil.rmtree(host.root / f"proc/{PID}")


def _zombie(host: GoodHost) -> None:
    host.stat(PID, state="Z")


@pytest.mark.parametrize("end", [_replaced, _ended, _zombie])
def test_a_process_that_ends_while_it_is_looked_at_leaves_no_fact(tmp_path, end):
    host = GoodHost(tmp_path)
    host.worker.before = lambda: end(host)

    facts = host.facts()

    assert facts == InstanceFacts()
    found = judge(host.spec, host.inspector().host(), facts, ports_open=True)
    assert {verdict.status for verdict in found} == {Status.UNKNOWN}
    assert not proven(found)


@pytest.mark.parametrize("end", [_ended, _zombie])
def test_a_process_that_is_not_there_leaves_no_fact(tmp_path, end):
    host = GoodHost(tmp_path)
    end(host)
    assert host.facts() == InstanceFacts()


def test_a_domain_that_does_not_run_leaves_no_fact(tmp_path):
    host = GoodHost(tmp_path)
    assert host.inspector().instance(host.spec, host.domain(None)) == InstanceFacts()


def test_a_locked_device_is_unknown_and_the_rest_is_still_read(tmp_path):
    host = GoodHost(tmp_path)

    def busy() -> None:
        raise BusyError(InFlight(77, "bind"))

    host.worker.before = busy
    verdicts = host.verdicts()
    assert {id_ for id_, status in verdicts.items() if status is Status.UNKNOWN} == DEVICE
    assert Status.FAIL not in verdicts.values()


def test_a_device_that_says_gibberish_is_unknown(tmp_path):
    host = GoodHost(tmp_path)
    host.put(f"sys/bus/pci/devices/{GPU}/vendor", "gibberish")
    assert host.facts().devices == {}


def test_a_neighbour_that_ended_meanwhile_is_no_neighbour(tmp_path):
    host = GoodHost(tmp_path)
    for path in ("stat", "task", "attr"):
        gone(f"proc/{OTHER_PID}/{path}")(host)
    assert host.facts().neighbours == ()


def test_a_tenant_that_cannot_be_asked_is_a_stranger(tmp_path):
    host = GoodHost(tmp_path)
    host.neighbour(cpus="5", tenant="ten_acme")
    assert host.verdicts()["cpu.siblings_exclusive"] is Status.PASS

    del host.tenants[OTHER_PID]

    assert host.verdicts()["cpu.siblings_exclusive"] is Status.FAIL


def test_with_the_real_worker_the_facts_are_the_same(tmp_path):
    host = GoodHost(tmp_path)
    inspector = KernelInspector(
        host_cpus=None,
        hypervisor=host,  # type: ignore[arg-type]
        switch=host,  # type: ignore[arg-type]
        root=host.root,
    )
    assert inspector.instance(host.spec, host.domain()) == host.facts()


def test_every_field_of_a_good_vm_is_filled(tmp_path):
    facts = GoodHost(tmp_path).facts()
    assert [f.name for f in dataclasses.fields(facts) if getattr(facts, f.name) is None] == []
    assert facts.label == LABEL


def test_this_process_can_be_read_on_the_real_kernel():
    """Real /proc, no fixture: what this test knows of itself is what the readers say."""
    from pathlib import Path

    from orchestrator.agent.evidence import process

    folder = process.folder(Path("/"), os.getpid())
    threads = process.threads(folder)
    assert threads is not None
    standing = process.standing(threads)
    assert standing.uids == {os.getuid()}
    assert standing.gids == {os.getgid()}
    assert standing.groups == set(os.getgroups())
    assert threads[0].tid == os.getpid()
    assert threads[0].cpus == os.sched_getaffinity(0)
    assert process.start_ticks(folder) is not None
    assert process.start_ticks(process.folder(Path("/"), 2**22 + 1)) is None

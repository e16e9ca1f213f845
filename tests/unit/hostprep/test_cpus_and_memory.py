"""CPUs, nodes and the host's share, from trees of regular and odd shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostprep.probe import read_host
from orchestrator.model.errors import HostError
from orchestrator.model.host import Hugepages, NumaNode

CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, text: str | int) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    def cpu(self, cpu: int, *, siblings: str | None, core: int | None, socket: int | None) -> None:
        topology = f"{CPUS}/cpu{cpu}/topology"
        for name, value in (
            ("thread_siblings_list", siblings),
            ("core_id", core),
            ("physical_package_id", socket),
        ):
            if value is not None:
                self.put(f"{topology}/{name}", value)
        (self.root / CPUS / f"cpu{cpu}").mkdir(parents=True, exist_ok=True)

    def node(self, node: int, cpus: str, memory_kib: int | None = 2097152, **pages: tuple[int, int]) -> None:
        self.put(f"{NODES}/node{node}/cpulist", cpus)
        if memory_kib is not None:
            self.put(
                f"{NODES}/node{node}/meminfo",
                f"Node {node} MemTotal:       {memory_kib} kB\nNode {node} MemFree:        17 kB",
            )
        for size, (total, free) in pages.items():
            folder = f"{NODES}/node{node}/hugepages/hugepages-{size.removeprefix('kb')}kB"
            self.put(f"{folder}/nr_hugepages", total)
            self.put(f"{folder}/free_hugepages", free)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two sockets of two cores with two threads; threads of a core are numbered four apart."""
    made = Tree(tmp_path)
    made.put(f"{CPUS}/online", "0-7")
    for cpu in range(8):
        first = cpu % 4
        made.cpu(cpu, siblings=f"{first},{first + 4}", core=first % 2, socket=first // 2)
    made.node(0, "0-1,4-5", kb2048=(400, 396), kb1048576=(2, 1))
    made.node(1, "2-3,6-7", memory_kib=1048575)
    return made


def test_threads_cores_sockets_and_nodes(tree: Tree) -> None:
    facts = read_host(tree.root)
    assert [cpu.cpu for cpu in facts.cpus] == list(range(8))
    sixth = facts.cpus[6]
    assert (sixth.socket, sixth.core, sixth.node, sixth.siblings) == (1, 0, 1, frozenset({2, 6}))
    assert facts.nodes == (
        NumaNode(0, frozenset({0, 1, 4, 5}), 2048, {2048: Hugepages(400, 396), 1048576: Hugepages(2, 1)}),
        NumaNode(1, frozenset({2, 3, 6, 7}), 1023, {}),
    )


def test_the_host_keeps_the_first_core_of_each_node_whole(tree: Tree) -> None:
    assert read_host(tree.root).host_cpus == frozenset({0, 4, 2, 6})


def test_an_operator_may_say_which_cpus_stay(tree: Tree) -> None:
    assert read_host(tree.root, frozenset({7})).host_cpus == frozenset({7})
    assert read_host(tree.root, frozenset()).host_cpus == frozenset()


def test_an_offline_cpu_is_not_there(tree: Tree) -> None:
    tree.put(f"{CPUS}/online", "0-3,5-7")
    (tree.root / CPUS / "cpu4/topology/thread_siblings_list").unlink()
    tree.put(f"{CPUS}/cpu0/topology/thread_siblings_list", "0")
    facts = read_host(tree.root)
    assert [cpu.cpu for cpu in facts.cpus] == [0, 1, 2, 3, 5, 6, 7]
    assert facts.host_cpus == frozenset({0, 2, 6})


def test_what_the_kernel_does_not_say_stays_unknown(tree: Tree) -> None:
    for name in ("thread_siblings_list", "core_id", "physical_package_id"):
        (tree.root / CPUS / "cpu5/topology" / name).unlink()
    fifth = read_host(tree.root).cpus[5]
    assert (fifth.socket, fifth.core, fifth.siblings) == (-1, -1, frozenset())
    assert fifth.node == 0


def test_a_package_of_minus_one_stays_so(tree: Tree) -> None:
    tree.put(f"{CPUS}/cpu5/topology/physical_package_id", -1)
    assert read_host(tree.root).cpus[5].socket == -1


def test_unknown_siblings_still_keep_the_first_thread_for_the_host(tree: Tree) -> None:
    (tree.root / CPUS / "cpu0/topology/thread_siblings_list").unlink()
    assert read_host(tree.root).host_cpus == frozenset({0, 2, 6})


def test_nodes_without_memory_and_without_cpus_are_legal(tree: Tree) -> None:
    tree.node(2, "", memory_kib=4194304, kb2048=(10, 10))
    tree.node(3, "", memory_kib=0)
    facts = read_host(tree.root)
    assert facts.nodes[2] == NumaNode(2, frozenset(), 4096, {2048: Hugepages(10, 10)})
    assert facts.nodes[3] == NumaNode(3, frozenset(), 0, {})
    assert facts.host_cpus == frozenset({0, 4, 2, 6})


def test_nodes_are_in_order_of_number(tree: Tree) -> None:
    tree.node(10, "")
    tree.node(2, "")
    assert [node.node for node in read_host(tree.root).nodes] == [0, 1, 2, 10]


def test_a_node_whose_memory_is_unknown_offers_none(tree: Tree) -> None:
    tree.node(2, "", memory_kib=None)
    assert read_host(tree.root).nodes[2].memory_mib == 0


def test_pages_with_half_their_counts_are_left_out(tree: Tree) -> None:
    (tree.root / NODES / "node0/hugepages/hugepages-2048kB/free_hugepages").unlink()
    assert set(read_host(tree.root).nodes[0].hugepages) == {1048576}


def test_a_kernel_without_numa_has_cpus_on_no_node(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.put(f"{CPUS}/online", "0-1")
    tree.cpu(0, siblings="0-1", core=0, socket=0)
    tree.cpu(1, siblings="0-1", core=0, socket=0)
    facts = read_host(tree.root)
    assert [cpu.node for cpu in facts.cpus] == [-1, -1]
    assert (facts.nodes, facts.host_cpus) == ((), frozenset({0, 1}))


def test_a_kernel_without_hotplug_lists_no_online_cpus(tree: Tree) -> None:
    (tree.root / CPUS / "online").unlink()
    (tree.root / CPUS / "cpufreq").mkdir()
    assert [cpu.cpu for cpu in read_host(tree.root).cpus] == list(range(8))


def test_nothing_at_all_is_an_empty_host(tmp_path: Path) -> None:
    facts = read_host(tmp_path)
    assert (facts.cpus, facts.nodes, facts.functions, facts.host_cpus, facts.boot_id) == (
        (),
        (),
        (),
        frozenset(),
        "",
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{CPUS}/online", "0-x"),
        (f"{CPUS}/cpu3/topology/core_id", "three"),
        (f"{CPUS}/cpu3/topology/thread_siblings_list", "7-3"),
        (f"{NODES}/node0/cpulist", "a"),
        (f"{NODES}/node0/meminfo", "nothing here"),
        (f"{NODES}/node0/hugepages/hugepages-2048kB/nr_hugepages", ""),
    ],
)
def test_a_file_that_no_kernel_writes_is_told_by_name(tree: Tree, path: str, text: str) -> None:
    tree.put(path, text)
    with pytest.raises(HostError, match=r"host\.unreadable") as caught:
        read_host(tree.root)
    assert path in caught.value.message


def test_caches_are_told_once_with_who_shares_them(tree: Tree) -> None:
    for cpu in range(8):
        for index, (level, kind, size, shared) in enumerate(
            ((1, "Data", "32K", f"{cpu % 4},{cpu % 4 + 4}"), (3, "Unified", "16384K", "0-7"))
        ):
            folder = f"{CPUS}/cpu{cpu}/cache/index{index}"
            tree.put(f"{folder}/level", level)
            tree.put(f"{folder}/type", kind)
            tree.put(f"{folder}/size", size)
            tree.put(f"{folder}/shared_cpu_list", shared)
    caches = read_host(tree.root).caches
    assert [(each.level, sorted(each.cpus)) for each in caches] == [
        (1, [0, 4]),
        (1, [1, 5]),
        (1, [2, 6]),
        (1, [3, 7]),
        (3, list(range(8))),
    ]
    assert (caches[-1].kind, caches[-1].size_kib) == ("unified", 16384)
    (tree.root / CPUS / "cpu0/cache/index1/size").unlink()
    (tree.root / CPUS / "cpu0/cache/index0/shared_cpu_list").unlink()
    assert len(read_host(tree.root).caches) == 5


def test_distances_between_nodes(tree: Tree) -> None:
    tree.put(f"{NODES}/node0/distance", "10 32")
    assert [node.distances for node in read_host(tree.root).nodes] == [(10, 32), ()]
    tree.put(f"{NODES}/node0/distance", "10 far")
    with pytest.raises(HostError, match=r"host\.unreadable"):
        read_host(tree.root)


def test_firmware_and_kernel(tree: Tree) -> None:
    tree.put("sys/class/dmi/id/bios_version", "2.1a")
    tree.put("sys/class/dmi/id/product_serial", "S3CRET")
    tree.put("proc/sys/kernel/osrelease", "6.12.1")
    assert read_host(tree.root).firmware == {"bios_version": "2.1a", "kernel": "6.12.1"}

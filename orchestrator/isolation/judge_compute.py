"""Verdicts on CPUs and memory: threads sit where they were ordered, guest RAM lies where it was ordered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from orchestrator.isolation.facts import InstanceFacts, KsmFacts, RamFacts
from orchestrator.isolation.judging import verdict
from orchestrator.model.cpus import format_cpu_list, parse_cpu_list
from orchestrator.model.evidence import Verdict
from orchestrator.model.host import HostFacts
from orchestrator.model.launch import LaunchSpec

_BOUND = re.compile(r"^bind(?:=(?:static|relative))?:([0-9,-]+)$")


def judge_cpus(spec: LaunchSpec, host: HostFacts, facts: InstanceFacts) -> list[Verdict]:
    """Judge where threads may run, and who else may run there."""
    subject = spec.instance.id
    wanted = {pin.vcpu: frozenset({pin.host_cpu}) for pin in spec.instance.cpus.pins}
    emulator = frozenset(spec.instance.cpus.emulator)
    strays = _strays(facts, emulator, frozenset().union(*wanted.values()))
    return [
        verdict(
            "cpu.accelerator",
            subject,
            "KVM",
            facts.accelerator,
            None if facts.accelerator is None else facts.accelerator == "KVM",
        ),
        verdict(
            "cpu.pinned",
            subject,
            _pins(wanted),
            _pins(facts.vcpu_threads or {}),
            None if facts.vcpu_threads is None else dict(facts.vcpu_threads) == wanted,
        ),
        verdict(
            "cpu.emulator",
            subject,
            f"all other threads on {format_cpu_list(emulator)}",
            _pins(strays) if strays else f"{len(facts.emulator_threads or {})} threads, all inside",
            # A process has a main thread; a list without any thread was not read.
            not strays if strays is not None and facts.emulator_threads else None,
        ),
        _siblings(spec, host, facts),
    ]


def _strays(
    facts: InstanceFacts, emulator: frozenset[int], own: frozenset[int]
) -> dict[int, frozenset[int]] | None:
    """Find threads where they must not be.

    KVM starts its page recovery from a vCPU's thread, so it stays with that one: on the VM's own CPU, where
    it takes time from nobody else.
    """
    if facts.emulator_threads is None or facts.kernel_threads is None:
        return None
    strays = {tid: cpus for tid, cpus in facts.emulator_threads.items() if not cpus <= emulator}
    loose = {tid: cpus for tid, cpus in facts.kernel_threads.items() if not cpus <= emulator | own}
    return {**strays, **loose}


def _pins(threads: Mapping[int, frozenset[int]]) -> str:
    return " ".join(f"{number}:{format_cpu_list(threads[number])}" for number in sorted(threads)) or "none"


def _siblings(spec: LaunchSpec, host: HostFacts, facts: InstanceFacts) -> Verdict:
    """Whole cores: no thread of another tenant's VM, nothing of the host's share on a sibling of ours."""
    ours = {pin.host_cpu for pin in spec.instance.cpus.pins}
    by_cpu = {cpu.cpu: cpu.siblings for cpu in host.cpus}
    cores = frozenset().union(*(by_cpu.get(cpu, frozenset()) for cpu in ours))
    ok: bool | None = None
    read = ""
    if facts.neighbours is not None and all(by_cpu.get(cpu) for cpu in ours):
        others = [n for n in facts.neighbours if n.tenant != spec.instance.tenant and n.cpus & cores]
        shared = [f"pid {n.pid} on {format_cpu_list(n.cpus & cores)}" for n in others]
        if host.host_cpus & cores:
            shared.append(f"host on {format_cpu_list(host.host_cpus & cores)}")
        ok, read = not shared, ", ".join(shared) or f"cores {format_cpu_list(cores)} shared with nobody"
    return verdict(
        "cpu.siblings_exclusive",
        spec.instance.id,
        f"nobody else on the cores of {format_cpu_list(ours)}",
        read,
        ok,
    )


def judge_memory(spec: LaunchSpec, facts: InstanceFacts) -> list[Verdict]:
    """Judge where guest RAM lies, in which pages, and that it is neither merged nor swapped."""
    subject = spec.instance.id
    memory = spec.instance.memory
    wanted: Counter[int] = Counter()
    for cell in memory.cells:
        wanted[cell.node] += cell.memory_mib * 1024
    nodes = frozenset(wanted)
    ram = facts.ram
    return [
        verdict(
            "memory.node",
            subject,
            f"all guest RAM on node {format_cpu_list(nodes)}",
            _by_node(ram),
            None if ram is None or not _total(ram) else set(_total(ram)) <= nodes,
        ),
        verdict(
            "memory.bound",
            subject,
            f"policy bind to node {format_cpu_list(nodes)}",
            " ".join(sorted(ram.policies)) if ram else "",
            None if ram is None or not ram.policies else all(_bound_to(p, nodes) for p in ram.policies),
        ),
        verdict(
            "memory.hugepages",
            subject,
            f"{sum(wanted.values())} KiB in pages of {memory.page_size_kib} KiB",
            _by_page(ram),
            None if ram is None or not ram.kib else _in_pages(ram, memory.page_size_kib, wanted),
        ),
        verdict(
            "memory.no_merge",
            subject,
            "no page merging",
            _ksm_text(facts.ksm),
            None if facts.ksm is None else _unmerged(facts.ksm),
        ),
        verdict(
            "memory.no_swap",
            subject,
            "nothing swapped, no swap in clear",
            f"{facts.swapped_kib} KiB swapped, swap in clear: {', '.join(facts.plain_swaps or ()) or 'none'}",
            None
            if facts.swapped_kib is None or facts.plain_swaps is None
            else facts.swapped_kib == 0 and not facts.plain_swaps,
        ),
    ]


def _total(ram: RamFacts) -> dict[int, int]:
    found: Counter[int] = Counter()
    for nodes in ram.kib.values():
        found.update(nodes)
    return {node: kib for node, kib in found.items() if kib}


def _by_node(ram: RamFacts | None) -> str:
    if ram is None:
        return ""
    return ", ".join(f"node {node}: {kib} KiB" for node, kib in sorted(_total(ram).items()))


def _by_page(ram: RamFacts | None) -> str:
    if ram is None:
        return ""
    return ", ".join(
        f"{sum(nodes.values())} KiB in pages of {size} KiB" for size, nodes in sorted(ram.kib.items())
    )


def _bound_to(policy: str, nodes: frozenset[int]) -> bool:
    found = _BOUND.match(policy)
    return found is not None and parse_cpu_list(found.group(1)) <= nodes


def _in_pages(ram: RamFacts, page_size_kib: int, wanted: Mapping[int, int]) -> bool:
    """Hugepages are all there from the start: amounts must be equal. Small ones come as they are touched."""
    sizes = {size: {n: kib for n, kib in nodes.items() if kib} for size, nodes in ram.kib.items()}
    sizes = {size: nodes for size, nodes in sizes.items() if nodes}
    if page_size_kib == 4:
        return set(sizes) <= {4}
    return sizes == {page_size_kib: dict(wanted)}


def _ksm_text(ksm: KsmFacts | None) -> str:
    if ksm is None:
        return ""
    own = "unknown" if ksm.merging_pages is None else str(ksm.merging_pages)
    return f"ksm run {ksm.run}, {ksm.pages_shared} pages shared on the host, {own} of this process"


def _unmerged(ksm: KsmFacts) -> bool | None:
    """`run` 0 stops merging but keeps what was merged; 2 undoes it. Before 5.19 only the host's sum says."""
    if ksm.run not in (0, 2) or ksm.merging_pages:
        return False
    if ksm.merging_pages is None and ksm.pages_shared:
        return None
    return True

"""Judges one running instance: does the kernel show what was ordered? One verdict per question, ids stable.

Pure, and it never reads anything itself. A missing fact is UNKNOWN, and `proven` takes nothing but PASS.
Called by the reconciler before a port opens, and by `bulkhead agent verify`. docs/evidence.md lists every
id, what it is read from and what it does not show.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.isolation.facts import (
    CoreFacts,
    DeviceFacts,
    DiskFacts,
    InstanceFacts,
    KsmFacts,
    Neighbour,
    RamFacts,
)
from orchestrator.isolation.judge_compute import judge_cpus, judge_memory
from orchestrator.isolation.judge_process import judge_process
from orchestrator.isolation.judge_things import judge_devices, judge_ports, judge_secrets, judge_volumes
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.host import HostFacts
from orchestrator.model.launch import LaunchSpec

__all__ = [
    "CoreFacts",
    "DeviceFacts",
    "DiskFacts",
    "InstanceFacts",
    "KsmFacts",
    "Neighbour",
    "RamFacts",
    "Status",
    "Verdict",
    "judge",
    "judge_ports",
    "proven",
    "summary",
]


def judge(
    spec: LaunchSpec, host: HostFacts, facts: InstanceFacts, *, ports_open: bool = False
) -> tuple[Verdict, ...]:
    """Answer every question about one running instance, in a fixed order.

    Args:
        spec: what was ordered.
        host: topology of the host.
        facts: what the kernel says now.
        ports_open: judge the ports too; before they are opened there is nothing to hold them to.
    """
    found = [
        *judge_process(spec, facts),
        *judge_cpus(spec, host, facts),
        *judge_memory(spec, facts),
        *judge_devices(spec, facts),
        *judge_volumes(spec, facts),
        *judge_secrets(spec, facts),
    ]
    if ports_open:
        found += judge_ports(spec, facts.ports)
    return tuple(found)


def proven(verdicts: Iterable[Verdict]) -> bool:
    """Say whether every question was answered by PASS; no questions prove nothing."""
    answers = [verdict.status for verdict in verdicts]
    return bool(answers) and all(answer is Status.PASS for answer in answers)


def summary(verdicts: Iterable[Verdict]) -> str:
    """Say it in one line: how many passed, and every one that did not."""
    everything = list(verdicts)
    bad = [v for v in everything if v.status is not Status.PASS]
    head = f"{len(everything) - len(bad)} of {len(everything)} checks passed"
    return "; ".join([head, *(f"{v.id} of {v.subject} {v.status.value}: {v.read}" for v in bad)])

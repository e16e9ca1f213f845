"""What an agent tells its controller, and what of it is news. Pure.

A look changes nothing, so what the last application did (removals followed, devices reset) stays true after
it and is told with it: a report that got lost must not take that along. Called by `session`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from orchestrator.model.host import HostFacts, Hugepages
from orchestrator.model.protocol import Report
from orchestrator.model.report import HostReport
from orchestrator.model.wire import report_document


def after_look(applied: HostReport | None, seen: HostReport) -> HostReport:
    """Return what a look saw, with what the last application of the same assignment did."""
    if applied is None or (applied.epoch, applied.revision) != (seen.epoch, seen.revision):
        return seen
    resets = {(each.instance, each.generation, each.pid): each.resets for each in applied.instances}
    instances = tuple(
        dataclasses.replace(
            each, resets=each.resets or resets.get((each.instance, each.generation, each.pid), ())
        )
        for each in seen.instances
    )
    return dataclasses.replace(seen, instances=instances, absent=applied.absent)


def after_apply(before: HostReport | None, applied: HostReport) -> HostReport:
    """Return what an application did; a VM that ran through keeps the evidence of its start."""
    if before is None:
        return applied
    resets = {(each.instance, each.generation, each.pid): each.resets for each in before.instances}
    instances = tuple(
        each
        if each.resets or each.pid is None
        else dataclasses.replace(each, resets=resets.get((each.instance, each.generation, each.pid), ()))
        for each in applied.instances
    )
    return dataclasses.replace(applied, instances=instances)


def lasting(facts: HostFacts) -> HostFacts:
    """Return the part of a look that our own work does not change: no drivers, no free pages."""
    nodes = tuple(
        dataclasses.replace(
            node, hugepages={size: Hugepages(pages.total, 0) for size, pages in node.hugepages.items()}
        )
        for node in facts.nodes
    )
    functions = tuple(dataclasses.replace(each, driver=None) for each in facts.functions)
    return dataclasses.replace(facts, nodes=nodes, functions=functions)


def news_digest(report: Report) -> str:
    """Name a report by what its reader acts on; durations and steps are no news."""
    body = None
    if report.report is not None:
        plain = dataclasses.replace(report.report, steps=(), duration_s=0.0, changed=False)
        body = report_document(plain)
    whole = [report.boot_id, report.agent_version, body, report.refusal]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()

"""What an agent tells its controller, and what of it is news. Pure.

A look changes nothing, so the removals that the last application followed stay true after it and are told
with it: a report that got lost must not take them along. Called by `session`.
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
    """Return what a look saw, with the removals that the last application of this assignment followed."""
    if applied is None or (applied.epoch, applied.revision) != (seen.epoch, seen.revision):
        return seen
    return dataclasses.replace(seen, absent=applied.absent)


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

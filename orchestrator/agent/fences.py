"""Whether an assignment may be followed: deployment, epoch, revision. Pure over the journal's state.

The agent keeps the highest it has seen. A lower one is refused whole, a foreign deployment is refused
whole, and in both cases nothing on the host is touched.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from orchestrator.agent.journal import JournalState
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import BulkheadError, FencedError


def assignment_digest(assignment: Assignment) -> str:
    """Name an assignment by content; seeds are left out, since they may hold secrets."""
    body = assignment.model_dump(mode="json", exclude={"instances": {"__all__": {"seed"}}})
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def refusal(state: JournalState, assignment: Assignment, host: str | None) -> BulkheadError | None:
    """Say why the assignment must not be followed, or None.

    Args:
        host: this host's own id; None while it has not been told one.
    """
    if host is not None and assignment.host != host:
        return FencedError(
            "assignment.wrong_host",
            f"this host is {host}, the assignment is for {assignment.host}",
            field="host",
        )
    if state.deployment is None:
        return None
    if assignment.deployment != state.deployment:
        return FencedError(
            "assignment.foreign_deployment",
            f"this host belongs to {state.deployment}, the assignment to {assignment.deployment}",
            field="deployment",
            hint="to hand the host to another deployment, drain it, then: bulkhead agent leave",
        )
    seen, offered = (state.epoch, state.revision), (assignment.epoch, assignment.revision)
    if offered < seen:
        return FencedError(
            "assignment.stale",
            f"epoch {offered[0]} revision {offered[1]} is older than epoch {seen[0]} revision {seen[1]}, "
            "which this host has already followed",
            field="epoch" if offered[0] < seen[0] else "revision",
            hint=f"send a revision above {seen[1]}"
            if offered[0] == seen[0]
            else f"send epoch {seen[0]} or above",
        )
    if offered == seen and assignment_digest(assignment) != state.assignment_digest:
        return FencedError(
            "assignment.revision_reused",
            f"revision {offered[1]} was followed with other content",
            field="revision",
            hint=f"send revision {offered[1] + 1}",
        )
    return None


def accepted(state: JournalState, assignment: Assignment) -> JournalState:
    """Return the state that remembers this assignment as the highest."""
    return dataclasses.replace(
        state,
        deployment=assignment.deployment,
        epoch=assignment.epoch,
        revision=assignment.revision,
        assignment_digest=assignment_digest(assignment),
    )

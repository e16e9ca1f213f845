"""What is wrong with a host, as its row says it: its agent refuses or is ahead, checks fail, strays run.

A host with an error takes nothing new; what runs on it goes on. The next report that is as it should be takes
the error away. Called by `reports` and the agents' API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import update

from orchestrator.controller.deployment import RESTORED_COMMAND
from orchestrator.model.actor import Actor
from orchestrator.model.errors import FencedError, HostError
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.fleet import FleetHost, StaleInstance
from orchestrator.store.nouns import HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.store import Store
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.unit_of_work import UnitOfWork, table_of

_HOSTS = table_of(HostRow)
#: Refusals that mean that the agent has followed orders which this database does not remember.
_AHEAD = frozenset({"assignment.stale", "assignment.revision_reused"})
_AHEAD_CODE = "host.ahead"
_MAX_TEXT = 512


def ahead(followed: tuple[int, int], ours: tuple[int, int]) -> dict[str, object]:
    """Its agent has followed a later order than there is: the database is older than the host."""
    return FencedError(
        _AHEAD_CODE,
        f"its agent follows epoch {followed[0]} revision {followed[1]}, "
        f"this database ends at epoch {ours[0]} revision {ours[1]}",
        hint=f"was the database restored? stop the controllers, then: {RESTORED_COMMAND}",
    ).as_dict()


def note_ahead(store: Store, actor: Actor, followed: tuple[int, int], ours: tuple[int, int]) -> None:
    """Write once that a host is ahead: it asked for what comes after an order that there never was."""
    with store.reading() as tx:
        host = HOSTS.get(tx, PLATFORM, actor.id)
    if host is None or (host.error or {}).get("code") == _AHEAD_CODE:
        return
    with store.unit_of_work(actor) as tx:
        host = HOSTS.get(tx, PLATFORM, actor.id, lock=True)
        if host is not None:
            tell(tx, host, ahead(followed, ours))


def refused(refusal: Mapping[str, Any]) -> dict[str, object]:
    """Its agent refused the assignment whole."""
    code, message = str(refusal.get("code", "")), str(refusal.get("message", ""))[:_MAX_TEXT]
    if code in _AHEAD:
        return FencedError(
            _AHEAD_CODE,
            f"its agent has followed orders that this database does not know: {message}",
            hint=f"was the database restored? stop the controllers, then: {RESTORED_COMMAND}",
        ).as_dict()
    return HostError(
        "host.refuses",
        f"its agent refused the assignment: {code}: {message}",
        hint=str(refusal["hint"])[:_MAX_TEXT] if refusal.get("hint") else None,
    ).as_dict()


def runs_strays(strays: Sequence[Mapping[str, Any]]) -> dict[str, object] | None:
    """It runs instances that the database does not know there; None when it runs none."""
    found = [str(each["id"]) for each in strays if each["kind"] == "instance"]
    if not found:
        return None
    shown = ", ".join(found[:3]) + (" and others" if len(found) > 3 else "")
    return FencedError(
        "host.stray_instances",
        f"it runs {len(found)} instances that the database does not know there: {shown}",
        hint="bulkhead host show NAME -o yaml lists them; bulkhead host remove-stray takes one away for good",
    ).as_dict()


def holds_stale(left: Sequence[StaleInstance]) -> dict[str, object] | None:
    """It may still run instances that were rebuilt elsewhere; None when nothing of them is left."""
    if not left:
        return None
    shown = ", ".join(each.instance_id for each in left[:3]) + (" and others" if len(left) > 3 else "")
    return FencedError(
        "host.stale_instances",
        f"{len(left)} instances were rebuilt elsewhere and may still be on it: {shown}",
        hint="let it come back, then: bulkhead host remove-stray NAME instance ID; or: "
        "bulkhead host remove NAME --lost",
    ).as_dict()


def fails_checks(verdicts: Sequence[Verdict]) -> dict[str, object] | None:
    """A check of the host as a whole did not pass; None when all did. What is not known did not pass."""
    bad = [each for each in verdicts if each.status is not Status.PASS]
    if not bad:
        return None
    first, count = bad[0], f"{len(bad)} of {len(verdicts)}"
    return HostError(
        "host.checks_failed",
        f"{count} checks of the host did not pass, first {first.id} of {first.subject}: "
        f"expected {first.expected}, read {first.read}"[:_MAX_TEXT],
        hint="bulkhead host evidence NAME lists them; it takes nothing new until they pass",
    ).as_dict()


def tell(tx: UnitOfWork, host: FleetHost, error: Mapping[str, Any] | None) -> None:
    """Write what is wrong with a host, or that nothing is, when that is news."""
    if host.error == error:
        return
    tx.execute(
        update(_HOSTS)
        .where(_HOSTS.c.id == host.id)
        .values(error=None if error is None else dict(error), generation=_HOSTS.c.generation + 1)
    )
    tx.record(
        "host.error" if error is not None else "host.recovered",
        ("host", host.id),
        tenant=None,
        stage="outcome",
        outcome="ok" if error is None else "failed",
        details={} if error is None else {"code": str(error["code"]), "message": str(error["message"])},
    )
    tx.wake("scheduler")

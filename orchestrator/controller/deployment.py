"""The deployment as a whole: what becomes of it after its database was brought back from a backup.

A database from yesterday believes in things that are gone and knows nothing of what came since. So it gets a
higher epoch, which sets its orders apart from those that it forgot, and observes: agents report what is
there, nothing is placed and nothing removed, until an operator has seen what does not agree and says go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update

from orchestrator.controller import generations
from orchestrator.model.deployment import Deployment
from orchestrator.model.errors import ConflictError
from orchestrator.model.states import HostState
from orchestrator.store.nouns import DEPLOYMENTS, HOSTS
from orchestrator.store.rows import PLATFORM
from orchestrator.store.tables.fleet import HostRow
from orchestrator.store.tables.tenants import DeploymentRow
from orchestrator.store.unit_of_work import Reader, UnitOfWork, table_of

_TABLE, _HOSTS = table_of(DeploymentRow), table_of(HostRow)
_OURS = DEPLOYMENTS.wanting(PLATFORM)
#: Hosts of which nobody expects a word.
_SILENT = (HostState.ENROLLING, HostState.UNREACHABLE, HostState.FENCED)
#: What an operator does about a database that is older than its hosts.
RESTORED_COMMAND = "bulkhead controller restored --reason WHY"


@dataclass(frozen=True)
class Standing:
    """How far observing is.

    Args:
        unheard: names of hosts that have not yet reported in this epoch.
        strays: how many things hosts reported that the database does not know there.
        ahead: ids of instances that are in a later generation on their hosts; it is taken over on resuming.
        gone: ids of instances that their hosts removed after the backup.
    """

    deployment: Deployment
    unheard: tuple[str, ...]
    strays: int
    ahead: tuple[str, ...]
    gone: tuple[str, ...]


def get(tx: Reader) -> Deployment:
    """Return the deployment of a prepared store."""
    return DEPLOYMENTS.found(tx, _OURS)[0]


def standing(tx: Reader) -> Standing:
    """Return the deployment with what its hosts said in this epoch."""
    found = get(tx)
    hosts = HOSTS.where(tx, PLATFORM)
    unheard = [host.name for host in hosts if host.state not in _SILENT and host.applied_epoch != found.epoch]
    strays = sum(len(host.strays) for host in hosts)
    return Standing(found, tuple(sorted(unheard)), strays, generations.ahead(tx), generations.gone(tx))


def restored(tx: UnitOfWork, reason: str) -> Deployment:
    """Say that this database came back from a backup: from now on it only observes.

    The new epoch is the time in seconds: a backup from before an earlier restore does not know how high that
    one went, and an agent follows nothing that is not above what it has seen.
    """
    was = get(tx)
    epoch = max(was.epoch + 1, tx.now_ms // 1000)
    tx.execute(update(_TABLE).values(epoch=epoch, observe_only=True))
    tx.record(
        "deployment.restored",
        ("deployment", was.id),
        tenant=None,
        details={"reason": reason, "epoch": epoch, "was": was.epoch},
    )
    _tell_hosts(tx)
    return get(tx)


def resume(tx: UnitOfWork, reason: str, *, force: bool = False) -> Deployment:
    """Go on: agents make their hosts equal to what the database says, removals that it orders included.

    An instance that is in a later generation on its host keeps that one and runs on, unless it is wanted
    stopped: `generations`.

    Args:
        force: also while hosts have not reported in this epoch.

    Raises:
        ConflictError: `deployment.not_observing`, `deployment.unheard`.
    """
    now = standing(tx)
    if not now.deployment.observe_only:
        raise ConflictError("deployment.not_observing", "it does not observe; there is nothing to resume")
    if now.unheard and not force:
        shown = ", ".join(now.unheard[:5]) + (" and others" if len(now.unheard) > 5 else "")
        raise ConflictError(
            "deployment.unheard",
            f"{len(now.unheard)} hosts have not reported since the restore: {shown}",
            hint="wait for them, cordon and fence those that are gone, or force it",
        )
    tx.execute(update(_TABLE).values(observe_only=False))
    tx.record(
        "deployment.resume",
        ("deployment", now.deployment.id),
        tenant=None,
        details={
            "reason": reason,
            "strays": now.strays,
            "unheard": len(now.unheard),
            "ahead": len(now.ahead),
            "gone": len(now.gone),
            "forced": force,
        },
    )
    _tell_hosts(tx)
    return get(tx)


def _tell_hosts(tx: UnitOfWork) -> None:
    """Each host's assignment is another now, and what was decided on an earlier look is stale."""
    tx.execute(update(_HOSTS).values(revision=_HOSTS.c.revision + 1, generation=_HOSTS.c.generation + 1))
    for row in tx.all(select(_HOSTS.c.id).order_by(_HOSTS.c.id)):
        tx.wake(f"host:{row.id}")
    tx.wake("scheduler")

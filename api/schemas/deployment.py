"""The deployment as a whole."""

from __future__ import annotations

from api.schemas.common import In, Out, Reason, at
from orchestrator.controller.deployment import Standing


class DeploymentOut(Out):
    """The deployment. While `observe_only` is true, nothing is placed and nothing is removed.

    `unheard` names hosts that have not reported in this epoch; `strays` counts what hosts have and the
    database does not know there. `ahead` names instances that are in a later generation on their hosts, which
    is taken over on resuming; `gone` names instances that their hosts removed after the backup.
    """

    id: str
    epoch: int
    observe_only: bool
    unheard: list[str]
    strays: int
    ahead: list[str]
    gone: list[str]
    created_at: str

    @classmethod
    def of(cls, standing: Standing) -> DeploymentOut:
        """From its value."""
        found = standing.deployment
        return cls(
            id=found.id,
            epoch=found.epoch,
            observe_only=found.observe_only,
            unheard=list(standing.unheard),
            strays=standing.strays,
            ahead=list(standing.ahead),
            gone=list(standing.gone),
            created_at=at(found.created_ms),
        )


class ResumeIn(In):
    """Why it may go on; `force` goes on though hosts have not reported yet."""

    reason: Reason
    force: bool = False

"""The deployment as a whole, for the platform's people: whether it only observes, and the word to go on."""

from __future__ import annotations

from fastapi import APIRouter

from api.calls import Changing, Looking
from api.schemas.deployment import DeploymentOut, ResumeIn
from orchestrator.controller import deployment
from orchestrator.controller.caller import Caller
from orchestrator.store.unit_of_work import UnitOfWork

router = APIRouter(prefix="/v1/deployment", tags=["fleet"])


@router.get("", operation_id="get_deployment")
def get_deployment(ask: Looking) -> DeploymentOut:
    """Show the deployment, and how far observing is after a restore."""
    return ask.look(lambda tx, _caller: DeploymentOut.of(deployment.standing(tx)))


@router.post("/actions/resume", operation_id="resume_deployment")
def resume_deployment(ask: Changing, body: ResumeIn) -> DeploymentOut:
    """Go on after a restore: hosts are made equal to what the database says, its removals included."""

    def work(tx: UnitOfWork, _caller: Caller) -> DeploymentOut:
        deployment.resume(tx, body.reason, force=body.force)
        return DeploymentOut.of(deployment.standing(tx))

    return ask.change(work)

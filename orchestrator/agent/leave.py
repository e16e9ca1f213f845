"""How a host leaves its deployment: its devices go back to the host, then it forgets whom it belonged to.

Refused while anything of a tenant is there: leaving is no way to destroy. Safe to repeat after a crash at any
point; the caller holds the host's lock. `processes` calls it.
"""

from __future__ import annotations

from orchestrator.agent.effects import Effects, Progress, Silent
from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.journal import Journal
from orchestrator.agent.link.certificates import Certificates
from orchestrator.agent.pool import Pool
from orchestrator.model.errors import ConflictError

#: More than a screen has lines help nobody.
_MAX_NAMED = 10


def leave(
    host: Host,
    journal: Journal,
    certificates: Certificates,
    settings: AgentSettings,
    *,
    progress: Progress | None = None,
) -> str | None:
    """Give the pool's devices back and forget deployment, fences and identity.

    Returns:
        The deployment that was left, for people; None when the host belonged to none.

    Raises:
        ConflictError: `agent.not_empty`: instances or volumes are here; nothing was changed.
        HostError: a device could not be given back: it stays in the pool, and the host in its deployment.
    """
    kept = sorted(
        {domain.instance for domain in host.hypervisor.domains()}
        | {volume.volume for volume in host.volumes.observe()}
    )
    if kept:
        more = ", ..." if len(kept) > _MAX_NAMED else ""
        raise ConflictError(
            "agent.not_empty",
            f"{len(kept)} things of tenants are on this host: {', '.join(kept[:_MAX_NAMED])}{more}",
            hint="drain the host and delete what is left on it first",
        )
    left = journal.state.deployment or (
        "a deployment that never asked for anything" if certificates.enrolled else None
    )
    pool = Pool(host, journal, Effects(progress or Silent()), settings.vfio_driver)
    for device in sorted(journal.state.pool.values(), key=lambda each: each.address):
        pool.give_back(device.id)
    certificates.forget()
    journal.forget()
    return left

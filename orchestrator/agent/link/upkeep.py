"""Keeps a host's certificate fresh: asks for the next one when a third of its life is left.

Decides when; the controller decides whether. A renewal that fails is tried again at the next look, days
before the end. The agent's process runs it beside the session.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

from orchestrator.agent.link.certificates import Certificates, FreshKey, ended
from orchestrator.agent.link.client import Link
from orchestrator.model.errors import BulkheadError

#: A host certificate lives 30 days; an hour more or less is nothing to it.
LOOK_S = 3600.0


async def keep_fresh(
    certificates: Certificates,
    link: Link,
    *,
    now: Callable[[], dt.datetime],
    say: Callable[[str], None] = lambda _line: None,
    look_s: float = LOOK_S,
) -> None:
    """Look every `look_s` seconds and renew when it is due, until cancelled."""
    while True:
        try:
            await renew_if_due(certificates, link, now())
        except BulkheadError as exc:
            say(exc.explain())
        await asyncio.sleep(look_s)


async def renew_if_due(certificates: Certificates, link: Link, now: dt.datetime) -> bool:
    """Renew the certificate if little of its life is left, and let the link show the new one.

    Raises:
        HostError: `link.*`, `agent.identity_*`; `certificate.ended`: it is too late for that.
    """
    identity = certificates.identity()
    if not identity.renewal_due(now):
        return False
    if identity.not_after <= now:
        raise ended(f" at {identity.not_after:%Y-%m-%d %H:%M:%SZ}")
    key = await asyncio.to_thread(FreshKey.make)
    renewed = certificates.renew(key, await link.renew(key.csr_pem))
    await link.use(certificates.tls(), renewed.not_after)
    return True

"""Everything that a front door needs, in one value: store, gate, bell, limits and what an operator has set.

Decides nothing. `processes` makes one for each process and hands it to the apps; tests make one over a
database of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.controller.bell import Bell
from orchestrator.controller.denials import Denials
from orchestrator.controller.gate import Gate, RateSettings
from orchestrator.controller.keyring import Keyring
from orchestrator.controller.leases import LEASE_S
from orchestrator.controller.networks import VlanRange
from orchestrator.controller.rates import RateLimits
from orchestrator.controller.switchboard import StreamLimits, Switchboard
from orchestrator.model.errors import InvalidInputError
from orchestrator.store import migrate
from orchestrator.store.store import Store

MIN_PEPPER_BYTES = 32


@dataclass(frozen=True)
class ControlSettings:
    """What an operator may set.

    Args:
        page_size, max_page_size: how many things a page of a list has when nobody says, and at most.
        max_wait_s: how long a call may wait for an operation.
        look_again_s: how often a waiting call looks by itself, whatever was rung.
        lease_s: how long a controller that is gone keeps the scheduler's work from the others.
        silent_s: a host that nobody heard for so long is unreachable.
        metrics_from: the addresses that may read `/metrics`.
        streams: how much of consoles and kept logs is carried.
        binders: of each identity provider, by its URL, the tenants (ids or names) whose admins may bind its
            subjects to users; only operators may where none is listed.
    """

    vlans: VlanRange = field(default_factory=VlanRange)
    rates: RateSettings = field(default_factory=RateSettings)
    page_size: int = 100
    max_page_size: int = 1000
    max_wait_s: int = 60
    look_again_s: float = 2.0
    keep_alive_s: float = 15.0
    lease_s: float = LEASE_S
    silent_s: float = 90.0
    metrics_from: frozenset[str] = frozenset({"127.0.0.1", "::1"})
    streams: StreamLimits = field(default_factory=StreamLimits)
    binders: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Control:
    """The parts that a front door calls.

    Args:
        pepper: the key of the tokens' hashes; it is not in the database.
        ca_fingerprint: `sha256:...` of the authority that hosts may believe; join tokens carry it.
        keyring: None where no key backend is configured: no volume can be opened then.
        switchboard: joins who looks at a console with the host that has it; both apps share it.
    """

    store: Store
    gate: Gate
    bell: Bell
    rates: RateLimits
    denials: Denials
    settings: ControlSettings
    ca_fingerprint: str
    switchboard: Switchboard
    pepper: bytes = field(repr=False)
    keyring: Keyring | None = None

    def ready(self) -> bool:
        """Tell whether the database answers and has the schema of this version."""
        return migrate.is_current(self.store.database)


def join(
    store: Store,
    *,
    pepper: bytes,
    ca_fingerprint: str,
    keyring: Keyring | None = None,
    settings: ControlSettings | None = None,
    clock: Callable[[], int] | None = None,
) -> Control:
    """Join the parts over a prepared store; from now on its commits ring the control's bell.

    Args:
        clock: milliseconds since the epoch, for the rate limits; None is the wall clock.

    Raises:
        InvalidInputError: `token.pepper`.
    """
    if len(pepper) < MIN_PEPPER_BYTES:
        raise InvalidInputError(
            "token.pepper", f"the key of the tokens' hashes needs {MIN_PEPPER_BYTES} bytes"
        )
    chosen = settings or ControlSettings()
    bell, rates, denials = Bell(), RateLimits(store, clock=clock), Denials(store)
    store.bell = bell
    return Control(
        store=store,
        gate=Gate(store, pepper, rates, denials, chosen.rates),
        bell=bell,
        rates=rates,
        denials=denials,
        settings=chosen,
        ca_fingerprint=ca_fingerprint,
        switchboard=Switchboard(chosen.streams),
        pepper=pepper,
        keyring=keyring,
    )

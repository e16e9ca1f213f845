"""The states of everything that has a life, and which may follow which (DESIGN §4).

Decides nothing about when; the controller moves things, the database refuses what is not listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class TenantState(StrEnum):
    """A tenant's life; of a deleted tenant only the audit log remains."""

    ACTIVE = "active"
    DELETING = "deleting"
    DELETED = "deleted"


class InstanceState(StrEnum):
    """A VM's life as its tenant sees it."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    DELETING = "deleting"
    DELETED = "deleted"
    ERROR = "error"
    NEEDS_ATTENTION = "needs_attention"


class Desired(StrEnum):
    """What its tenant wants of an instance."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class VolumeState(StrEnum):
    """A volume's life."""

    CREATING = "creating"
    AVAILABLE = "available"
    IN_USE = "in_use"
    DELETING = "deleting"
    DELETED = "deleted"
    LOST = "lost"


class HostState(StrEnum):
    """Whether a host takes new instances, and why not."""

    ENROLLING = "enrolling"
    READY = "ready"
    CORDONED = "cordoned"
    DRAINING = "draining"
    DRAINED = "drained"
    UNREACHABLE = "unreachable"
    FENCED = "fenced"
    #: Its row stays for the audit log; nobody sees it any more.
    REMOVED = "removed"


class GpuState(StrEnum):
    """A GPU's way between tenants."""

    DISCOVERED = "discovered"
    DIRTY = "dirty"
    SANITISING = "sanitising"
    VERIFYING = "verifying"
    CLEAN = "clean"
    CLAIMED = "claimed"
    EXPOSED = "exposed"
    RELEASING = "releasing"
    QUARANTINED = "quarantined"
    MISSING = "missing"


class OperationState(StrEnum):
    """How far an operation is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Nothing more comes of it."""
        return self in (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED)


class RequestState(StrEnum):
    """A wait for capacity."""

    WAITING = "waiting"
    PLACED = "placed"
    FAILED = "failed"
    CANCELLED = "cancelled"


_I = InstanceState
#: Where an instance may go; `deleting` is open to all that are not deleted.
INSTANCE_EDGES: Mapping[InstanceState, frozenset[InstanceState]] = {
    _I.PENDING: frozenset({_I.SCHEDULED, _I.ERROR, _I.STOPPED}),
    _I.SCHEDULED: frozenset(
        {_I.PROVISIONING, _I.RUNNING, _I.STOPPING, _I.STOPPED, _I.ERROR, _I.NEEDS_ATTENTION}
    ),
    _I.PROVISIONING: frozenset({_I.RUNNING, _I.STOPPING, _I.STOPPED, _I.ERROR, _I.NEEDS_ATTENTION}),
    _I.RUNNING: frozenset({_I.STOPPING, _I.STARTING, _I.PROVISIONING, _I.ERROR, _I.NEEDS_ATTENTION}),
    _I.STOPPING: frozenset({_I.STOPPED, _I.STARTING, _I.ERROR, _I.NEEDS_ATTENTION}),
    _I.STOPPED: frozenset({_I.STARTING, _I.PENDING}),
    _I.STARTING: frozenset({_I.RUNNING, _I.STOPPING, _I.ERROR, _I.NEEDS_ATTENTION}),
    _I.ERROR: frozenset({_I.STARTING, _I.STOPPING, _I.RUNNING, _I.STOPPED, _I.PENDING, _I.NEEDS_ATTENTION}),
    _I.NEEDS_ATTENTION: frozenset({_I.STARTING, _I.STOPPING, _I.RUNNING, _I.STOPPED}),
    _I.DELETING: frozenset({_I.DELETED}),
    _I.DELETED: frozenset(),
}


def may_become(state: InstanceState, wanted: InstanceState) -> bool:
    """Tell whether an instance may go from one state to another; staying is always fine."""
    if state is wanted:
        return True
    if wanted is InstanceState.DELETING:
        return state is not InstanceState.DELETED
    return wanted in INSTANCE_EDGES[state]


_G = GpuState
_ANY_LIVE = tuple(state for state in GpuState if state not in (_G.QUARANTINED, _G.MISSING))
#: Every edge of a GPU's life, as rows of a table that a foreign key enforces.
GPU_EDGES: tuple[tuple[GpuState, GpuState], ...] = (
    (_G.DISCOVERED, _G.DIRTY),
    (_G.DIRTY, _G.SANITISING),
    (_G.SANITISING, _G.VERIFYING),
    (_G.VERIFYING, _G.CLEAN),
    (_G.CLEAN, _G.CLAIMED),
    (_G.CLAIMED, _G.EXPOSED),
    (_G.EXPOSED, _G.RELEASING),
    (_G.RELEASING, _G.SANITISING),
    (_G.CLAIMED, _G.CLEAN),
    (_G.SANITISING, _G.DIRTY),
    (_G.VERIFYING, _G.DIRTY),
    (_G.CLEAN, _G.DIRTY),
    *((state, _G.QUARANTINED) for state in GpuState if state is not _G.QUARANTINED),
    *((state, _G.MISSING) for state in _ANY_LIVE),
    (_G.QUARANTINED, _G.MISSING),
    (_G.QUARANTINED, _G.DIRTY),
    (_G.MISSING, _G.DIRTY),
    #: A row that has just been made follows itself.
    (_G.DISCOVERED, _G.DISCOVERED),
)

"""An instance as its tenant asked for it and as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model.states import Desired, InstanceState

#: The code of an instance that its host removed by an order which a restored database does not remember.
GONE = "instance.gone"


@dataclass(frozen=True)
class InstanceRecord:
    """One VM of a tenant. What it is made of is copied from its type, so that types may go.

    Args:
        generation: raised by each change of what is wanted; also its ETag.
        user_data_bytes: how long the user data is; the text itself lies sealed beside the instance.
        placement: `model.placement.Placement.as_dict()`, None until it is placed.
        error: an error's JSON form: what went wrong last and what to do; None when all is well.
        evidence: the last verdicts of its host, as JSON; None until it ran.
        failures: reports of failure in a row.
        on_drain: what its tenant wants when its host is drained: `stop`, `move` (built anew elsewhere from
            its image) or `refuse` (only its tenant stops it).
        drain_deadline_s: how long it may run on in a drain before that becomes of it, and before one that
            refuses is stopped; None is at once, and of one that refuses never.
        rebuilt: `at_ms`, `reason` and `lost_volumes` (`id` and `name` of each, its former boot volume among
            them) of the last time that it was built anew elsewhere; None when it never was.
        operation_id: the operation that works on it now, or did last.
    """

    id: str
    tenant_id: str
    name: str
    generation: int
    state: InstanceState
    desired: Desired
    type_name: str
    image_id: str
    vcpus: int
    memory_mib: int
    page_size_kib: int
    threads_per_core: int
    gpus: int
    gpu_model: str | None
    disk_gib: int
    isolation: str
    firmware: str
    user_data_bytes: int
    host_id: str | None
    placement: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    evidence: Mapping[str, Any] | None
    failures: int
    operation_id: str | None
    created_ms: int
    updated_ms: int
    rebuilt: Mapping[str, Any] | None = None
    on_drain: str = "stop"
    drain_deadline_s: int | None = None

    @property
    def gone(self) -> bool:
        """Its host removed it, and it never comes back; only deleting it is left to do."""
        return self.error is not None and self.error.get("code") == GONE

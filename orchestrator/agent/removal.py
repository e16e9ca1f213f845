"""Removal: explicit orders, and things with our marks that nobody ordered.

Absence never destroys. What an `absent` entry names goes, fenced first so that it cannot come back; what
the agent never knew itself goes only on a second sighting, a grace apart. Strays are reported, never
touched.
"""

from __future__ import annotations

import dataclasses

from orchestrator.agent.effects import Effects
from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.instances import Instances
from orchestrator.agent.journal import Journal, JournalState, Sighting
from orchestrator.agent.pool import Pool
from orchestrator.model.assignment import Absent, AbsentKind, Assignment
from orchestrator.model.errors import BulkheadError, ConflictError, FencedError
from orchestrator.model.report import AbsentReport, Phase, Stray

#: Instances hold volumes and devices, so they go first.
_ORDER = (AbsentKind.INSTANCE, AbsentKind.VOLUME, AbsentKind.DEVICE)


class Removal:
    """Follows the `absent` entries of one assignment."""

    def __init__(
        self,
        host: Host,
        journal: Journal,
        effects: Effects,
        settings: AgentSettings,
        instances: Instances,
        assignment: Assignment,
        now_s: float,
    ) -> None:
        self._host = host
        self._journal = journal
        self._effects = effects
        self._settings = settings
        self._instances = instances
        self._assignment = assignment
        self._now_s = now_s
        self._pool = Pool(host, journal, effects, settings.vfio_driver)

    def follow(self) -> tuple[AbsentReport, ...]:
        """Remove everything that is ordered away; one failure does not stop the rest."""
        ordered = sorted(self._assignment.absent, key=lambda each: (_ORDER.index(each.kind), each.id))
        return tuple(self._one(each) for each in ordered)

    def _one(self, order: Absent) -> AbsentReport:
        try:
            if order.kind is AbsentKind.INSTANCE:
                phase = self._instance(order)
            elif order.kind is AbsentKind.VOLUME:
                phase = self._volume(order)
            else:
                self._pool.give_back(order.id)
                phase = Phase.ABSENT
        except BulkheadError as exc:
            held = exc.held_generation if isinstance(exc, FencedError) else None
            return AbsentReport(order.kind.value, order.id, Phase.ERROR, exc.as_dict(), held)
        return AbsentReport(order.kind.value, order.id, phase)

    def _instance(self, order: Absent) -> Phase:
        domain = next((d for d in self._host.hypervisor.domains() if d.instance == order.id), None)
        if domain is not None:
            self._refuse(domain.deployment, domain.generation, order)
        if domain is not None and not self._known(order.id) and not self._seen_twice(order):
            return Phase.SIGHTED
        self._fence(order)
        if domain is not None or self._holds_anything(order.id):
            self._instances.take_down(order.id)
            self._instances.forget(order.id)
        self._forget_sighting(order)
        return Phase.ABSENT

    def _volume(self, order: Absent) -> Phase:
        user = next((d for d in self._host.hypervisor.domains() if order.id in d.volumes), None)
        if user is not None:
            raise ConflictError(
                "volume.in_use",
                f"{order.id} belongs to the definition of {user.instance}",
                hint=f"order {user.instance} absent first",
            )
        found = next((v for v in self._host.volumes.observe() if v.volume == order.id), None)
        if found is not None and found.complete:
            self._refuse(found.deployment, found.generation, order)
        self._fence(order)
        if found is not None:
            self._effects.do(order.id, "erase_volume", lambda: self._host.volumes.erase(order.id))
        return Phase.ABSENT

    def _refuse(self, deployment: str, generation: int, order: Absent) -> None:
        if deployment != self._assignment.deployment:
            raise ConflictError(f"{order.kind.value}.foreign", f"{order.id} here belongs to {deployment}")
        if generation > order.generation:
            raise FencedError(
                f"{order.kind.value}.stale",
                f"{order.id} is at generation {generation}; the order removes up to {order.generation}",
                held_generation=generation,
            )

    def _known(self, instance_id: str) -> bool:
        """Tell whether this agent made it (its uid is in the journal) or already began to remove it."""
        state = self._journal.state
        return instance_id in state.uids or instance_id in state.fences

    def _holds_anything(self, instance_id: str) -> bool:
        state = self._journal.state
        return (
            instance_id in state.uids
            or any(device.instance == instance_id for device in state.pool.values())
            or any(port.instance == instance_id for port in self._host.switch.observe().ports)
            or any(seed.instance == instance_id for seed in self._host.seeds.observe())
        )

    def _fence(self, order: Absent) -> None:
        fence = max(self._journal.state.fences.get(order.id, 0), order.generation)
        self._effects.do(
            order.id,
            "fence",
            lambda: self._journal.update(
                lambda state: dataclasses.replace(state, fences={**state.fences, order.id: fence})
            ),
        ) if self._journal.state.fences.get(order.id) != fence else None

    def _seen_twice(self, order: Absent) -> bool:
        key = f"{order.kind.value}:{order.id}"
        before = self._journal.state.sightings.get(key)
        if before is None:
            sighting = Sighting(1, self._now_s)
        else:
            sighting = Sighting(before.count + 1, before.first_at_s)
        self._journal.update(lambda state: _with_sighting(state, key, sighting))
        return sighting.count >= 2 and self._now_s - sighting.first_at_s >= self._settings.sighting_grace_s

    def _forget_sighting(self, order: Absent) -> None:
        key = f"{order.kind.value}:{order.id}"
        self._journal.update(
            lambda state: dataclasses.replace(
                state, sightings={k: v for k, v in state.sightings.items() if k != key}
            )
        )


def _with_sighting(state: JournalState, key: str, sighting: Sighting) -> JournalState:
    return dataclasses.replace(state, sightings={**state.sightings, key: sighting})


def strays(host: Host, assignment: Assignment) -> tuple[Stray, ...]:
    """List what carries our marks and is named nowhere in the assignment. Touches nothing."""
    named = {each.id for each in assignment.instances} | {each.id for each in assignment.absent}
    named |= {volume.id for each in assignment.instances for volume in each.volumes}
    found = [("instance", domain.instance) for domain in host.hypervisor.domains()]
    found += [("volume", volume.volume) for volume in host.volumes.observe()]
    found += [("seed", seed.instance) for seed in host.seeds.observe()]
    found += [("port", port.port) for port in host.switch.observe().ports if port.instance not in named]
    return tuple(Stray(kind, id_, 1) for kind, id_ in sorted(set(found)) if id_ not in named)

"""The agent's one verb: make this host equal to its assignment, and report.

Refusals come first and change nothing: fences, then admission of the whole assignment. Then removals, then
instances that run on, then the others side by side; the failure of one never stops another. Safe to repeat at
any time, after any crash. The caller holds the host's lock.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable

from orchestrator.agent.effects import Effects, Progress, Silent
from orchestrator.agent.fences import accepted, refusal
from orchestrator.agent.flowsync import FlowSync
from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.instances import Instances
from orchestrator.agent.journal import Journal
from orchestrator.agent.pool import devices
from orchestrator.agent.removal import Removal, strays
from orchestrator.isolation.admission import problems
from orchestrator.isolation.flows import FlowProgram
from orchestrator.isolation.judge_things import judge_closed
from orchestrator.model.assignment import Assignment, Instance, Power
from orchestrator.model.errors import BulkheadError
from orchestrator.model.host import HostFacts
from orchestrator.model.parsing import AssignmentRefused
from orchestrator.model.report import AbsentReport, HostReport, InstanceReport

#: Steps that do not touch the host; remembering an order is none of its changes.
_LOOKING = frozenset({"collect_evidence", "read_host", "accept_assignment"})


class Agent:
    """One host's reconciler.

    Args:
        host: the drivers.
        journal: this host's memory.
        settings: where things are and how long they may take.
        host_id: this host's id; None accepts the first assignment's.
        progress: who sees steps as they happen.
        clock: seconds since the epoch, for sightings.
    """

    def __init__(
        self,
        host: Host,
        journal: Journal,
        settings: AgentSettings,
        *,
        host_id: str | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._journal = journal
        self._settings = settings
        self._host_id = host_id
        self._progress = progress or Silent()
        self._clock = clock

    def apply(self, assignment: Assignment) -> HostReport:
        """Follow the assignment as far as possible and say what came of it.

        Raises:
            FencedError: an older or foreign assignment; nothing was touched.
            AssignmentRefused: it contradicts itself or this host; nothing was touched.
            HostError: the host itself cannot be read or its switch not be made.
        """
        with self._host.switch.kept():
            return self._apply(assignment, Effects(self._progress))

    def _apply(self, assignment: Assignment, effects: Effects) -> HostReport:
        began = time.monotonic()
        refused = refusal(self._journal.state, assignment, self._host_id)
        if refused is not None:
            raise refused
        facts = self._admit(assignment, effects)
        if accepted(self._journal.state, assignment) != self._journal.state:
            effects.do(
                assignment.host,
                "accept_assignment",
                lambda: self._journal.update(lambda state: accepted(state, assignment)),
            )
        if assignment.observe_only:
            # Remembered all the same: who gave orders in a lower epoch gives none any more.
            return self._look(assignment, facts, effects)
        self._host.switch.ensure_bridge()
        self._drop_secrets(effects)
        flows, instances = self._parts(assignment, effects)
        absent = Removal(
            self._host, self._journal, effects, self._settings, instances, assignment, self._clock()
        ).follow()
        for order in assignment.closed:
            # What stays open is told by a check of the host.
            with contextlib.suppress(BulkheadError):
                instances.cut_off(order.id, order.generation)
        reports = self._converge(assignment, effects, instances, facts)
        program = flows.sync(assignment.host)
        return self._report(assignment, effects, flows, program, reports, absent, began)

    def look(self, assignment: Assignment) -> HostReport:
        """Hold the host against an assignment, with fresh evidence, and change nothing.

        Raises:
            FencedError: it is for another host or deployment.
            AssignmentRefused: it contradicts itself or this host.
            HostError: the host itself cannot be read.
        """
        effects = Effects(self._progress)
        refused = refusal(self._journal.state, assignment, self._host_id)
        if refused is not None and refused.code != "assignment.stale":
            raise refused
        with self._host.switch.kept():
            facts = self._admit(assignment, effects)
            return self._look(assignment, facts, effects)

    def _admit(self, assignment: Assignment, effects: Effects) -> HostFacts:
        facts = effects.do(assignment.host, "read_host", self._host.inspector.host)
        pool = self._journal.state.pool.values()
        held = {(device.instance, device.address) for device in pool if device.instance is not None}
        found = problems(assignment, facts, held=held)
        if found:
            raise AssignmentRefused(found)
        return facts

    def _look(self, assignment: Assignment, facts: HostFacts, effects: Effects) -> HostReport:
        began = time.monotonic()
        flows, instances = self._parts(assignment, effects)
        reports = tuple(instances.look(each, facts) for each in assignment.instances)
        program = flows.program(self._host.switch.observe())
        return self._report(assignment, effects, flows, program, reports, (), began)

    def _converge(
        self, assignment: Assignment, effects: Effects, instances: Instances, facts: HostFacts
    ) -> tuple[InstanceReport, ...]:
        """Those that run and shall go on come first: what they let go of may be wanted by others."""

        def one(instance: Instance) -> InstanceReport:
            with self._host.switch.kept():
                return instances.converge(instance, facts)

        running = instances.running()
        stays = {each.id for each in assignment.instances if each.power is Power.RUNNING} & running
        first = [each for each in assignment.instances if each.id in stays]
        then = [each for each in assignment.instances if each.id not in stays]
        done = [one(each) for each in first]
        done += effects.side_by_side([functools.partial(one, each) for each in then], self._settings.at_once)
        reports = {each.instance: each for each in done}
        return tuple(reports[each.id] for each in assignment.instances)

    def _parts(self, assignment: Assignment, effects: Effects) -> tuple[FlowSync, Instances]:
        flows = FlowSync(self._host.switch, self._journal, effects)
        return flows, Instances(
            self._host, self._journal, effects, self._settings, flows, assignment.deployment
        )

    def _report(
        self,
        assignment: Assignment,
        effects: Effects,
        flows: FlowSync,
        program: FlowProgram,
        instances: tuple[InstanceReport, ...],
        absent: tuple[AbsentReport, ...],
        began: float,
    ) -> HostReport:
        return HostReport(
            deployment=assignment.deployment,
            host=assignment.host,
            epoch=assignment.epoch,
            revision=assignment.revision,
            instances=instances,
            absent=absent,
            strays=strays(self._host, assignment),
            flows_digest=program.digest(),
            changed=any(record.step not in _LOOKING for record in effects.records),
            verdicts=(
                flows.verdict(program, self._settings.bridge),
                *judge_closed(
                    [each.id for each in assignment.closed],
                    self._host.switch.observe().ports if assignment.closed else (),
                ),
            ),
            steps=tuple(effects.records),
            duration_s=time.monotonic() - began,
            devices=devices(self._journal.state),
        )

    def _drop_secrets(self, effects: Effects) -> None:
        """Secrets live only around a start; whatever is here now was left by a crash."""
        for secret in self._host.hypervisor.secrets():
            with contextlib.suppress(BulkheadError):
                effects.do(
                    secret.volume,
                    "drop_secret",
                    lambda s=secret: self._host.hypervisor.drop_secret(s.volume),  # type: ignore[misc]
                )

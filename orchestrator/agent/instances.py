"""One instance: from whatever the host shows to what the assignment says, one repeatable step after another.

Nothing is remembered between steps: each look decides anew, so a crash anywhere ends in the same state. The
port is plugged closed and opens last, after the evidence; the passphrase exists in libvirt only around the
start.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.agent.effects import Effects
from orchestrator.agent.flowsync import FlowSync
from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.journal import Journal
from orchestrator.agent.pool import Pool
from orchestrator.agent.volumes.nocloud import seed_files
from orchestrator.isolation.verdicts import judge, judge_ports, proven
from orchestrator.model.assignment import Instance, Power, Volume
from orchestrator.model.cpus import format_cpu_list
from orchestrator.model.errors import (
    BulkheadError,
    CapacityError,
    ConflictError,
    EvidenceError,
    FencedError,
    HostError,
)
from orchestrator.model.evidence import Status, Verdict
from orchestrator.model.host import HostFacts
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.naming import interface_id
from orchestrator.model.observed import DomainState, ObservedDomain
from orchestrator.model.report import InstanceReport, Phase


@dataclass(frozen=True)
class Started:
    """What bringing an instance up showed."""

    domain: ObservedDomain | None
    verdicts: tuple[Verdict, ...]


class Instances:
    """Converges instances; one steps aside where it is made, started or stopped."""

    def __init__(
        self,
        host: Host,
        journal: Journal,
        effects: Effects,
        settings: AgentSettings,
        flows: FlowSync,
        deployment: str,
    ) -> None:
        self._host = host
        self._journal = journal
        self._effects = effects
        self._settings = settings
        self._flows = flows
        self._deployment = deployment
        self._pool = Pool(host, journal, effects, settings.vfio_driver)

    def running(self) -> frozenset[str]:
        """Return which run; none where the hypervisor does not say, as each of them will tell then."""
        try:
            domains = self._host.hypervisor.domains()
        except BulkheadError:
            return frozenset()
        return frozenset(each.instance for each in domains if each.state is DomainState.RUNNING)

    def converge(self, instance: Instance, facts: HostFacts) -> InstanceReport:
        """Make one instance as ordered; a failure is reported and leaves it closed, never half open."""
        uid: int | None = None
        try:
            domain = self._domain(instance.id)
            self._refuse(instance, domain)
            uid = self._uid(instance.id, domain)
            spec = self._spec(instance, uid)
            if instance.power is Power.RUNNING:
                done = self._bring_up(spec, domain, facts)
                phase = Phase.RUNNING
            else:
                # Also when it is off already: what powered off by itself still holds its devices and port.
                self.take_down(instance.id)
                done = Started(None, ())
                self._follow_volumes(spec, domain)
                phase = Phase.STOPPED
        except BulkheadError as exc:
            return self._failed(instance, exc, uid)
        if done.domain is None:
            return self._report(instance, phase, uid=uid)
        return dataclasses.replace(self._seen(instance, phase, done.domain, done.verdicts), uid=uid)

    def look(self, instance: Instance, facts: HostFacts) -> InstanceReport:
        """Say what became of one instance, with fresh evidence where it runs; touches nothing."""
        try:
            domain = self._domain(instance.id)
            self._refuse(instance, domain)
            for volume in instance.volumes:
                self._refuse_erased(volume)
            if domain is None or domain.state is DomainState.SHUTOFF:
                phase = Phase.ABSENT if domain is None else Phase.STOPPED
                report = self._report(instance, phase, uid=domain.uid if domain else None)
                if instance.power is Power.STOPPED:
                    return report
                lost = HostError("instance.not_running", f"{instance.id} is {phase.value}, not running")
                return dataclasses.replace(report, phase=Phase.ERROR, error=lost.as_dict())
            spec = self._spec(instance, domain.uid)
            if domain.digest != spec.digest() or instance.power is Power.STOPPED:
                raise ConflictError(
                    "instance.not_as_ordered",
                    f"{instance.id} runs by another order than this one",
                    hint="bulkhead agent apply makes it as ordered",
                )
            verdicts = self._examine(spec, domain, facts)
            verdicts += tuple(judge_ports(spec, self._host.switch.observe().ports))
        except BulkheadError as exc:
            return self._failed(instance, exc, None)
        return self._seen(instance, Phase.RUNNING, domain, verdicts)

    def take_down(self, instance_id: str) -> None:
        """Stop an instance and clean up everything it held but its definition and volumes."""
        domain = self._domain(instance_id)
        self._flows.close(instance_id)
        if domain is not None and domain.state is not DomainState.SHUTOFF:
            self._pool.adopt(instance_id, {address: address for address in domain.devices})
            with self._effects.aside():
                self._effects.do(
                    instance_id,
                    "stop_domain",
                    lambda: self._host.hypervisor.stop(instance_id, self._settings.stop_grace_s),
                )
        self._flows.remove(instance_id)
        self._pool.release(instance_id)

    def cut_off(self, instance_id: str, generation: int) -> None:
        """Close the ports of what is here of an instance up to a generation; it runs on.

        Raises:
            HostError: the switch did not follow.
        """
        domain = self._domain(instance_id)
        if domain is not None and domain.deployment == self._deployment and domain.generation <= generation:
            self._flows.close(instance_id)

    def forget(self, instance_id: str) -> None:
        """Remove the definition, seed and uid of an instance that was taken down."""
        self._effects.do(instance_id, "undefine_domain", lambda: self._host.hypervisor.undefine(instance_id))
        self._effects.do(instance_id, "remove_seed", lambda: self._host.seeds.remove(instance_id))
        self._journal.update(
            lambda state: dataclasses.replace(
                state, uids={k: v for k, v in state.uids.items() if k != instance_id}
            )
        )

    def _refuse(self, instance: Instance, domain: ObservedDomain | None) -> None:
        """Raise what forbids touching this instance."""
        fence = self._journal.state.fences.get(instance.id, 0)
        if instance.generation <= fence:
            raise FencedError(
                "instance.fenced",
                f"{instance.id} was removed up to generation {fence}; "
                f"{instance.generation} must not come back",
                hint="use a new id: ids are never reused",
                held_generation=fence,
            )
        if domain is None:
            return
        if domain.deployment != self._deployment:
            raise ConflictError("instance.foreign", f"{instance.id} here belongs to {domain.deployment}")
        if domain.generation > instance.generation:
            raise FencedError(
                "instance.stale",
                f"{instance.id} is at generation {domain.generation}, the order says {instance.generation}",
                hint="was the controller's database restored? It goes by this host when it resumes",
                held_generation=domain.generation,
            )
        if domain.state is DomainState.OTHER and instance.power is Power.RUNNING:
            raise HostError(
                "domain.unexpected_state",
                f"{instance.id} is neither running nor off (paused or crashed)",
                hint=f"look at it with: virsh domstate --reason {instance.id}",
            )

    def _refuse_erased(self, volume: Volume) -> None:
        """Raise when this volume was erased here: an empty one must not take its place."""
        fence = self._journal.state.fences.get(volume.id, 0)
        if volume.generation <= fence:
            raise FencedError(
                "volume.fenced",
                f"{volume.id} was erased up to generation {fence}",
                hint="stop the instance and detach the volume, or delete the instance if it boots from it",
            )

    def _refuse_shared_cpus(self, instance: Instance) -> None:
        """An assignment cannot see VMs that it does not name; they keep their CPUs all the same."""
        wanted = {pin.host_cpu for pin in instance.cpus.pins}
        for other in self._host.hypervisor.domains():
            taken = wanted & other.cpus
            if other.instance != instance.id and other.state is not DomainState.SHUTOFF and taken:
                raise ConflictError(
                    "instance.cpus_in_use",
                    f"host CPUs {format_cpu_list(taken)} belong to {other.instance}, which runs",
                    field="cpus.pins",
                    hint=f"order {other.instance} absent, or choose other CPUs",
                )

    def _bring_up(self, spec: LaunchSpec, domain: ObservedDomain | None, facts: HostFacts) -> Started:
        instance = spec.instance
        if domain is not None and domain.state is DomainState.RUNNING and domain.digest != spec.digest():
            if domain.generation == instance.generation:
                raise ConflictError(
                    "instance.changed_without_generation",
                    f"{instance.id} runs with another definition under the same generation",
                    hint="stop it and start it again to have it run with the new one: "
                    f"that raises its generation above {instance.generation}",
                )
            self.take_down(instance.id)
            domain = self._domain(instance.id)
        if domain is None or domain.state is not DomainState.RUNNING:
            self._start(spec, domain)
            domain = self._domain(instance.id)
        else:
            self._pool.adopt(instance.id, {device.address: device.id for device in instance.devices})
        if domain is None or domain.state is not DomainState.RUNNING:
            raise HostError(
                "domain.died",
                f"{instance.id} started and is not running",
                hint=f"read /var/log/libvirt/qemu/{instance.id}.log",
            )
        self._label_ports(instance)
        verdicts = self._examine(spec, domain, facts)
        if proven(verdicts):
            self._flows.open(instance)
            verdicts += tuple(judge_ports(spec, self._host.switch.observe().ports))
        else:
            self._flows.close(instance.id)
        return Started(domain, verdicts)

    def _start(self, spec: LaunchSpec, domain: ObservedDomain | None) -> None:
        instance = spec.instance
        self._refuse_shared_cpus(instance)
        # Asked for once: what makes a volume unlocks it too, and each question is a hand-out on record.
        passphrase = functools.cache(self._host.keys.passphrase)
        for volume in instance.volumes:
            self._ensure_volume(instance, volume, passphrase)
        self._ensure_seed(instance)
        if domain is None or domain.digest != spec.digest():
            self._effects.do(instance.id, "define_domain", lambda: self._host.hypervisor.define(spec))
        self._pool.prepare(instance)
        keys = {volume.id: passphrase(volume.id, volume.generation) for volume in instance.volumes}
        with self._effects.aside():
            self._unlock_and_start(instance.id, keys)

    def _unlock_and_start(self, instance_id: str, keys: Mapping[str, bytes]) -> None:
        hypervisor = self._host.hypervisor
        try:
            for volume, key in keys.items():
                self._effects.do(
                    instance_id, "put_secret", functools.partial(hypervisor.put_secret, volume, key)
                )
            self._effects.do(instance_id, "start_domain", lambda: hypervisor.start(instance_id))
        finally:
            for volume in keys:
                self._effects.do(
                    instance_id, "drop_secret", functools.partial(hypervisor.drop_secret, volume)
                )

    def _follow_volumes(self, spec: LaunchSpec, domain: ObservedDomain | None) -> None:
        """Define what is off anew when it has other volumes now: what it let go of may be erased then."""
        if domain is not None and set(domain.volumes) != {each.id for each in spec.instance.volumes}:
            self._effects.do(spec.instance.id, "define_domain", lambda: self._host.hypervisor.define(spec))

    def _ensure_volume(
        self, instance: Instance, volume: Volume, passphrase: Callable[[str, int], bytes]
    ) -> None:
        self._refuse_erased(volume)
        found = next((v for v in self._host.volumes.observe() if v.volume == volume.id), None)
        if found is not None and found.complete:
            if (found.deployment, found.tenant) != (self._deployment, instance.tenant):
                raise ConflictError(
                    "volume.foreign", f"{volume.id} here belongs to {found.tenant} of {found.deployment}"
                )
            if found.generation != volume.generation:
                raise ConflictError(
                    "volume.generation_conflict",
                    f"{volume.id} here has generation {found.generation}, the order says {volume.generation}",
                    hint="order the volume absent first, if its data may go",
                )
            return
        key = passphrase(volume.id, volume.generation)
        with self._effects.aside():
            self._effects.do(
                instance.id,
                "create_volume",
                lambda: self._host.volumes.create(
                    volume, deployment=self._deployment, tenant=instance.tenant, passphrase=key
                ),
            )

    def _ensure_seed(self, instance: Instance) -> None:
        self._effects.do(
            instance.id,
            "write_seed",
            lambda: self._host.seeds.write(instance.id, instance.generation, seed_files(instance)),
        )

    def _label_ports(self, instance: Instance) -> None:
        labelled = {port.port for port in self._host.switch.observe().ports}
        for port in instance.ports:
            if port.id not in labelled:
                self._effects.do(
                    instance.id,
                    "label_port",
                    lambda p=port: self._host.switch.label_port(  # type: ignore[misc]
                        p.id,
                        instance=instance.id,
                        deployment=self._deployment,
                        interface_id=interface_id(p.id),
                    ),
                )

    def _examine(self, spec: LaunchSpec, domain: ObservedDomain, facts: HostFacts) -> tuple[Verdict, ...]:
        seen = self._effects.do(
            spec.instance.id, "collect_evidence", lambda: self._host.inspector.instance(spec, domain)
        )
        return judge(spec, facts, seen)

    def _domain(self, instance_id: str) -> ObservedDomain | None:
        return next((d for d in self._host.hypervisor.domains() if d.instance == instance_id), None)

    def _uid(self, instance_id: str, domain: ObservedDomain | None) -> int:
        """Return the VM's uid, adopting a running domain's, else the lowest free one."""
        known = self._journal.state.uids.get(instance_id)
        if known is None and domain is not None:
            known = domain.uid
        if known is None:
            taken = set(self._journal.state.uids.values())
            taken |= {each.uid for each in self._host.hypervisor.domains()}
            base = self._settings.uid_base
            free = (uid for uid in range(base, base + self._settings.uid_count) if uid not in taken)
            known = next(free, None)
            if known is None:
                raise CapacityError(
                    "host.no_uid", f"all {self._settings.uid_count} uids from {base} are in use"
                )
        uid = known
        self._journal.update(lambda state: dataclasses.replace(state, uids={**state.uids, instance_id: uid}))
        return uid

    def _spec(self, instance: Instance, uid: int) -> LaunchSpec:
        return LaunchSpec(
            instance=instance,
            deployment=self._deployment,
            uid=uid,
            volume_paths={v.id: self._host.volumes.path(v.id, v.generation) for v in instance.volumes},
            seed_path=self._host.seeds.path(instance.id),
            console_path=self._settings.console_path(instance.id),
            guest_socket=self._settings.guest_socket(instance.id),
            bridge=self._settings.bridge,
        )

    def _not_proven(self, verdicts: tuple[Verdict, ...]) -> dict[str, object] | None:
        bad = [v for v in verdicts if v.status is not Status.PASS]
        if not bad:
            return None
        first = bad[0]
        return EvidenceError(
            "instance.isolation_not_proven",
            f"{len(bad)} of {len(verdicts)} checks did not pass, first {first.id} of {first.subject}: "
            f"expected {first.expected}, read {first.read}; its ports stay closed",
            hint="bulkhead agent verify FILE -o wide lists all; stop the instance or mend the host",
        ).as_dict()

    def _seen(
        self, instance: Instance, phase: Phase, domain: ObservedDomain, verdicts: tuple[Verdict, ...]
    ) -> InstanceReport:
        """Report a running instance; one failed check is an error whatever else is well."""
        error = self._not_proven(verdicts)
        return dataclasses.replace(
            self._report(instance, Phase.ERROR if error else phase, uid=domain.uid, error=error),
            pid=domain.pid,
            verdicts=verdicts,
            resets=self._pool.resets(instance.id),
        )

    def _failed(self, instance: Instance, problem: BulkheadError, uid: int | None) -> InstanceReport:
        held = problem.held_generation if isinstance(problem, FencedError) else None
        report = self._report(instance, Phase.ERROR, uid=uid, error=problem.as_dict())
        return dataclasses.replace(report, held_generation=held)

    def _report(
        self, instance: Instance, phase: Phase, *, uid: int | None, error: dict[str, object] | None = None
    ) -> InstanceReport:
        return InstanceReport(
            instance=instance.id,
            tenant=instance.tenant,
            name=instance.name,
            generation=instance.generation,
            phase=phase,
            error=error,
            uid=uid,
            guest_socket=self._settings.guest_socket(instance.id),
        )

"""The `Hypervisor` port over libvirt: persistent domains that carry our mark, and the secrets of their start.

Decides whether a domain may be touched: one without our mark, or of another deployment, never is; one that
runs is neither redefined nor undefined. Never chooses anything about a VM: the spec says it all, the builders
write it. Every step looks before it acts and can be repeated, also on a new connection. Called by the
reconciler.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from orchestrator.agent.libvirt import leftovers
from orchestrator.agent.libvirt.connection import Connection
from orchestrator.agent.libvirt.errors import is_gone, translate
from orchestrator.agent.libvirt.features import HostFeatures, detect
from orchestrator.agent.libvirt.lint import lint
from orchestrator.agent.libvirt.pidfile import PID_DIR, read_pid
from orchestrator.agent.libvirt.readback import is_ours, observed, parse
from orchestrator.agent.libvirt.secrets import Secrets
from orchestrator.agent.libvirt.xml.domain import build, domain_uuid
from orchestrator.agent.libvirt.xml.metadata import TAG
from orchestrator.model.errors import ConflictError, EvidenceError, HostError, NotFoundError
from orchestrator.model.launch import LaunchSpec
from orchestrator.model.observed import DomainState, ObservedDomain, ObservedSecret

T = TypeVar("T")

#: Events wake earlier; they are lost while there is no connection.
_POLL_S = 1.0
#: A guest that still boots misses the button: press it again. Nova's interval.
_ASK_AGAIN_S = 10.0

#: The test driver knows these, QEMU's driver all.
_UNDEFINE = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
_UNDEFINE_QEMU = _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA


class LibvirtHypervisor:
    """The domains and secrets of one libvirtd.

    Args:
        connection: how to reach it; the system's own unless given.
        features: what the host can do; asked of each new connection unless given.
        pid_dir, log_dir: where libvirt keeps QEMU's pids and logs.
    """

    def __init__(
        self,
        connection: Connection | None = None,
        *,
        features: HostFeatures | None = None,
        pid_dir: Path = PID_DIR,
        log_dir: Path = leftovers.LOG_DIR,
    ) -> None:
        self._connection = connection or Connection()
        self._secrets = Secrets(self._connection)
        self._given = features
        self._detected: tuple[Any, HostFeatures] | None = None
        self._pid_dir = pid_dir
        self._log_dir = log_dir
        self._changed = threading.Condition()
        self._connection.on_change(self._wake)

    def domains(self) -> tuple[ObservedDomain, ...]:
        """All domains with our metadata, running or not, sorted by instance.

        Raises:
            HostError: `domain.list_failed`, `domain.unreadable`.
        """

        def work(connection: Any) -> list[ObservedDomain]:
            found = (self._observe(domain) for domain in connection.listAllDomains(0))
            return [each for each in found if each is not None]

        return tuple(sorted(self._call("list", "domains", work), key=lambda each: each.instance))

    def define(self, spec: LaunchSpec) -> None:
        """Define or redefine the stopped domain, and look at what libvirt made of it.

        Raises:
            InvalidInputError: the spec cannot be written (`xml.domain.build`).
            EvidenceError: `domain.lint`: the definition, ours or as libvirt completed it, would not isolate.
            ConflictError: `domain.running`, `domain.foreign`.
            HostError: `domain.define_failed`.
        """
        instance = spec.instance.id

        def work(connection: Any) -> None:
            text = build(spec, self._features(connection))
            _refuse(instance, "the definition", text)
            present = _find(connection, instance)
            if present is not None:
                _require_ours(present, instance, spec.deployment)
                _require_stopped(present, instance)
            domain = connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            try:
                _refuse(instance, "what libvirt made of it", _definition(domain))
            except EvidenceError:
                _undefine(domain, keep_nvram=True)
                raise
            if domain.autostart():
                # After a reboot devices must be bound and clean before anything starts.
                domain.setAutostart(0)

        self._call("define", instance, work)

    def start(self, instance: str) -> None:
        """Start it; done when QEMU runs. A running domain is left as it is.

        Raises:
            NotFoundError: `domain.not_found`.
            ConflictError: `domain.foreign`; `domain.not_running`: it is paused, crashed or on its way out.
            HostError: `domain.start_failed`, with QEMU's last words; nothing of it is left running.
        """

        def work(connection: Any) -> None:
            domain = _get(connection, instance)
            state, name = _state(domain)
            if state is DomainState.RUNNING:
                return
            if state is DomainState.OTHER:
                raise ConflictError(
                    "domain.not_running", f"{instance} is {name}: stop it before it is started again"
                )
            if domain.hasManagedSaveImage(0):
                # Memory that somebody saved, with a definition of its own, must not come back.
                domain.managedSaveRemove(0)
            domain.createWithFlags(0)
            state, name = _state(domain)
            if state is not DomainState.RUNNING:
                _pull_the_plug(domain)
                raise HostError(
                    "domain.start_failed",
                    f"{instance} was started and is {name}",
                    hint=f"read {self._log_dir / instance}.log",
                )

        self._call("start", instance, work)

    def stop(self, instance: str, grace_s: float) -> None:
        """Ask the guest to power off; after `grace_s` seconds pull the plug. Stopped or unknown is fine.

        A guest that is paused or crashed cannot answer and gets no grace; nor does one that cannot be asked.

        Raises:
            ConflictError: `domain.foreign`.
            HostError: `domain.stop_failed`: QEMU does not go away.
        """
        deadline = time.monotonic() + grace_s
        ask_at = time.monotonic()
        while (now := time.monotonic()) < deadline:
            if now >= ask_at:
                if not self._call("stop", instance, lambda connection: _ask(connection, instance)):
                    break
                ask_at = now + _ASK_AGAIN_S
            if self._call("stop", instance, lambda connection: _is_off(connection, instance)):
                return
            with self._changed:
                self._changed.wait(min(_POLL_S, max(0.0, deadline - time.monotonic())))

        def work(connection: Any) -> None:
            domain = _find(connection, instance)
            if domain is not None:
                _require_ours(domain, instance)
                _pull_the_plug(domain)

        self._call("stop", instance, work)

    def undefine(self, instance: str) -> None:
        """Forget the stopped domain with its NVRAM and logs. Unknown is fine.

        Raises:
            ConflictError: `domain.running`, `domain.foreign`.
            HostError: `domain.undefine_failed`, `domain.leftover`.
        """

        def work(connection: Any) -> None:
            domain = _find(connection, instance)
            if domain is None:
                return
            _require_ours(domain, instance)
            _require_stopped(domain, instance)
            # First the files: without the definition nobody would know of them any more.
            leftovers.remove(parse(_definition(domain)), self._log_dir)
            _undefine(domain)

        self._call("undefine", instance, work)

    def secrets(self) -> tuple[ObservedSecret, ...]:
        """Secrets of ours that exist now."""
        return self._secrets.list()

    def put_secret(self, volume: str, passphrase: bytes) -> None:
        """Hold a volume's passphrase in an ephemeral, private secret."""
        self._secrets.put(volume, passphrase)

    def drop_secret(self, volume: str) -> None:
        """Forget it. Unknown is fine."""
        self._secrets.drop(volume)

    def _call(self, verb: str, subject: str, work: Callable[[Any], T]) -> T:
        try:
            return self._connection.call(work)
        except libvirt.libvirtError as exc:
            raise translate(exc, "domain", verb, subject) from exc

    def _features(self, connection: Any) -> HostFeatures:
        if self._given is not None:
            return self._given
        if self._detected is None or self._detected[0] is not connection:
            # libvirtd may have come back newer than it went.
            self._detected = (connection, detect(connection))
        return self._detected[1]

    def _observe(self, domain: Any) -> ObservedDomain | None:
        """Read one domain; None if it is not ours or has just gone."""
        try:
            definition = parse(_definition(domain))
            if not is_ours(definition):
                return None
            state, _ = _state(domain)
        except libvirt.libvirtError as exc:
            if is_gone(exc):
                return None
            raise
        pid = None
        if state is not DomainState.SHUTOFF:
            pid = read_pid(domain.name(), domain.UUIDString(), pid_dir=self._pid_dir)
        return observed(definition, state, pid)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


#: libvirt's states in words, for messages.
_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "in no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "blocked",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "asleep",
}


def _state(domain: Any) -> tuple[DomainState, str]:
    """The state, and in libvirt's words.

    Shut off is what has no QEMU, whatever libvirt remembers of its end: only then are devices and CPUs free.
    """
    code = domain.state()[0]
    words = _STATES.get(code, f"in state {code}")
    if code == libvirt.VIR_DOMAIN_RUNNING:
        return DomainState.RUNNING, words
    if code == libvirt.VIR_DOMAIN_SHUTOFF or not domain.isActive():
        return DomainState.SHUTOFF, words
    return DomainState.OTHER, words


def _definition(domain: Any) -> str:
    """What it was defined from and will start from next, not what libvirt added for the present run."""
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def _find(connection: Any, instance: str) -> Any | None:
    try:
        return connection.lookupByName(instance)
    except libvirt.libvirtError as exc:
        if is_gone(exc):
            return None
        raise


def _get(connection: Any, instance: str) -> Any:
    domain = _find(connection, instance)
    if domain is None:
        raise NotFoundError("domain.not_found", f"{instance} is not defined in libvirt")
    _require_ours(domain, instance)
    return domain


def _require_ours(domain: Any, instance: str, deployment: str | None = None) -> None:
    mark = parse(_definition(domain)).find(f"metadata/{TAG}")
    owner = None if mark is None else mark.get("deployment")
    if owner is None:
        raise ConflictError("domain.foreign", f"libvirt has a domain {instance} that does not carry our mark")
    if deployment is None:
        return
    if (owner, domain.UUIDString()) != (deployment, domain_uuid(deployment, instance)):
        raise ConflictError("domain.foreign", f"{instance} here belongs to {owner}, not to {deployment}")


def _require_stopped(domain: Any, instance: str) -> None:
    state, words = _state(domain)
    if state is not DomainState.SHUTOFF:
        raise ConflictError("domain.running", f"{instance} is {words}", hint="stop it first")


def _refuse(instance: str, what: str, text: str) -> None:
    findings = lint(text)
    if findings:
        raise EvidenceError("domain.lint", f"{what} of {instance} would not isolate: {'; '.join(findings)}")


def _ask(connection: Any, instance: str) -> bool:
    """Press the power button; False if nobody is there who could answer."""
    domain = _find(connection, instance)
    if domain is None:
        return False
    _require_ours(domain, instance)
    code = domain.state()[0]
    if code == libvirt.VIR_DOMAIN_RUNNING:
        try:
            domain.shutdown()
        except libvirt.libvirtError:
            # Gone meanwhile, or its monitor hangs: pulling the plug tells which, and fails if it must.
            return False
    return code in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_SHUTDOWN)


def _is_off(connection: Any, instance: str) -> bool:
    domain = _find(connection, instance)
    try:
        return domain is None or _state(domain)[0] is DomainState.SHUTOFF
    except libvirt.libvirtError as exc:
        if is_gone(exc):
            return True
        raise


def _pull_the_plug(domain: Any) -> None:
    """SIGTERM first, which lets QEMU flush what it holds, then SIGKILL; off or gone is fine."""
    for flags in (libvirt.VIR_DOMAIN_DESTROY_GRACEFUL, libvirt.VIR_DOMAIN_DESTROY_DEFAULT):
        try:
            if _state(domain)[0] is not DomainState.SHUTOFF:
                domain.destroyFlags(flags)
            return
        except libvirt.libvirtError as exc:
            if is_gone(exc) or exc.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
                return
            if flags == libvirt.VIR_DOMAIN_DESTROY_DEFAULT:
                raise


def _undefine(domain: Any, *, keep_nvram: bool = False) -> None:
    """Forget the definition and what libvirt keeps beside it; the guest's boot entries may stay."""
    flags = _UNDEFINE
    if domain.connect().getType() == "QEMU":
        nvram = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM if keep_nvram else libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        flags = _UNDEFINE_QEMU | nvram
    try:
        domain.undefineFlags(flags)
    except libvirt.libvirtError as exc:
        if not is_gone(exc):
            raise

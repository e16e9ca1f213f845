"""LibvirtHypervisor on libvirt's own test driver: every verb, every verb again, and what is refused."""

from __future__ import annotations

import re
import threading
import time

import libvirt
import pytest

from orchestrator.agent.libvirt import domains
from orchestrator.agent.libvirt.features import HostFeatures
from orchestrator.agent.libvirt.xml.domain import build, domain_uuid
from orchestrator.model.errors import (
    ConflictError,
    EvidenceError,
    HostError,
    InvalidInputError,
    NotFoundError,
)
from orchestrator.model.observed import DomainState
from tests.unit.libvirt.conftest import Machine, refusal
from tests.unit.libvirt.specs import instance, launch

RUNNING, SHUTOFF, OTHER = DomainState.RUNNING, DomainState.SHUTOFF, DomainState.OTHER


def refused(kind: type[Exception], code: str):
    return pytest.raises(kind, match=re.escape(f"[{code}]"))


def states(machine: Machine) -> dict[str, DomainState]:
    return {each.instance: each.state for each in machine.hypervisor.domains()}


def foreign(machine: Machine, name: str = "vm_a") -> str:
    """Somebody's own domain of that name; returns its definition."""
    text = (
        f"<domain type='test'><name>{name}</name><memory>65536</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )
    return machine.libvirt.defineXMLFlags(text, 0).XMLDesc(0)


def test_defined_domain_is_observed_as_ordered(machine):
    spec = launch()
    machine.hypervisor.define(spec)
    (seen,) = machine.hypervisor.domains()
    assert (seen.instance, seen.digest, seen.state, seen.pid) == ("vm_a", spec.digest(), SHUTOFF, None)
    assert (seen.cpus, seen.devices) == ({2}, ("0000:21:00.0",))
    assert machine.domain().isPersistent()
    assert not machine.domain().autostart()
    assert machine.domain().UUIDString() == domain_uuid("dep_a", "vm_a")


def test_domains_are_sorted_and_those_without_our_mark_left_out(machine):
    foreign(machine, "vm_foreign")
    for name in ("vm_c", "vm_a", "vm_b"):
        machine.hypervisor.define(launch(instance(id=name)))
    assert [each.instance for each in machine.hypervisor.domains()] == ["vm_a", "vm_b", "vm_c"]
    assert machine.names() == {"test", "vm_foreign", "vm_a", "vm_b", "vm_c"}


def test_redefining_keeps_the_uuid_and_changes_the_digest(machine):
    machine.hypervisor.define(launch())
    before = machine.domain().UUIDString()
    changed = launch(instance(generation=4))
    machine.hypervisor.define(changed)
    machine.hypervisor.define(changed)
    (seen,) = machine.hypervisor.domains()
    assert (seen.digest, seen.generation) == (changed.digest(), 4)
    assert machine.domain().UUIDString() == before


def test_redefining_takes_autostart_away(machine):
    machine.hypervisor.define(launch())
    machine.domain().setAutostart(1)
    machine.hypervisor.define(launch())
    assert not machine.domain().autostart()


def test_running_domain_is_neither_redefined_nor_undefined(machine):
    spec = launch()
    machine.hypervisor.define(spec)
    machine.hypervisor.start("vm_a")
    with refused(ConflictError, "domain.running"):
        machine.hypervisor.define(launch(instance(generation=4)))
    with refused(ConflictError, "domain.running"):
        machine.hypervisor.undefine("vm_a")
    (seen,) = machine.hypervisor.domains()
    assert (seen.state, seen.digest) == (RUNNING, spec.digest())


def test_paused_domain_counts_as_running_for_that(machine):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    machine.domain().suspend()
    assert states(machine) == {"vm_a": OTHER}
    with refused(ConflictError, "domain.running"):
        machine.hypervisor.define(launch())
    with refused(ConflictError, "domain.running"):
        machine.hypervisor.undefine("vm_a")


@pytest.mark.parametrize(
    "act",
    [
        lambda h: h.define(launch()),
        lambda h: h.start("vm_a"),
        lambda h: h.stop("vm_a", 0),
        lambda h: h.stop("vm_a", 30),
        lambda h: h.undefine("vm_a"),
    ],
    ids=["define", "start", "stop_now", "stop", "undefine"],
)
def test_domain_without_our_mark_is_never_touched(machine, act):
    before = foreign(machine)
    machine.domain().create()
    with refused(ConflictError, "domain.foreign"):
        act(machine.hypervisor)
    assert machine.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
    assert machine.domain().isActive()


def test_domain_of_another_deployment_is_not_redefined(machine):
    machine.hypervisor.define(launch(deployment="dep_b"))
    with refused(ConflictError, "domain.foreign"):
        machine.hypervisor.define(launch())
    assert [each.deployment for each in machine.hypervisor.domains()] == ["dep_b"]


def test_definition_with_findings_never_reaches_libvirt(machine):
    hypervisor = domains.LibvirtHypervisor(machine.connection, features=HostFeatures(virt_type="qemu"))
    reached: list[str] = []
    machine.connection.methods["defineXMLFlags"] = lambda inner, text, flags: reached.append(text)
    with refused(EvidenceError, "domain.lint") as caught:
        hypervisor.define(launch())
    assert reached == []
    assert "domain type qemu, not kvm" in caught.value.message
    assert not caught.value.retryable
    assert machine.names() == {"test"}


def test_findings_in_what_libvirt_made_of_it_undo_the_definition(machine):
    def weakened(inner, text, flags):
        return inner.defineXMLFlags(text.replace("<nosharepages/>", ""), flags)

    machine.connection.methods["defineXMLFlags"] = weakened
    with refused(EvidenceError, "domain.lint") as caught:
        machine.hypervisor.define(launch())
    assert "what libvirt made of it" in caught.value.message
    assert machine.names() == {"test"}


def test_definition_that_the_schema_refuses_is_refused_for_good(machine):
    hypervisor = domains.LibvirtHypervisor(
        machine.connection, features=HostFeatures(emulator="not an absolute path")
    )
    with refused(HostError, "domain.define_failed") as caught:
        hypervisor.define(launch())
    assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    assert machine.names() == {"test"}


def test_input_that_cannot_be_written_is_refused_as_input(machine):
    with refused(InvalidInputError, "domain.bad_text"):
        machine.hypervisor.define(launch(seed_path="/run/\0"))
    assert machine.names() == {"test"}


def test_damaged_mark_is_an_error_not_absence(machine):
    text = build(launch(), HostFeatures()).replace('generation="3"', 'generation="x"')
    machine.libvirt.defineXMLFlags(text, 0)
    with refused(HostError, "domain.unreadable"):
        machine.hypervisor.domains()


def test_domain_that_goes_while_it_is_listed_is_left_out(machine):
    machine.hypervisor.define(launch())
    machine.hypervisor.define(launch(instance(id="vm_b")))

    def stale(inner, flags):
        listed = inner.listAllDomains(flags)
        inner.lookupByName("vm_b").undefine()
        return listed

    machine.connection.methods["listAllDomains"] = stale
    assert states(machine) == {"vm_a": SHUTOFF}


def test_start_runs_it_and_again_changes_nothing(machine):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    number = machine.domain().ID()
    machine.fresh().start("vm_a")
    assert states(machine) == {"vm_a": RUNNING}
    assert machine.domain().ID() == number


def test_start_of_what_is_not_defined(machine):
    with refused(NotFoundError, "domain.not_found"):
        machine.hypervisor.start("vm_a")


def test_start_of_a_paused_domain_is_refused_and_does_not_resume_it(machine):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    machine.domain().suspend()
    with refused(ConflictError, "domain.not_running"):
        machine.hypervisor.start("vm_a")
    assert states(machine) == {"vm_a": OTHER}


def test_failed_start_tells_qemus_last_words_and_where_the_rest_is(machine):
    machine.hypervisor.define(launch())
    words = "QEMU unexpectedly closed the monitor (vm='vm_a'): \nvfio 0000:21:00.0: group 7 is\x1b[31m busy"

    def fail(inner, flags):
        raise refusal(libvirt.VIR_ERR_INTERNAL_ERROR, words)

    machine.connection.domain["createWithFlags"] = fail
    with refused(HostError, "domain.start_failed") as caught:
        machine.hypervisor.start("vm_a")
    assert "(vm='vm_a'): vfio 0000:21:00.0: group 7 is [31m busy" in caught.value.message
    assert caught.value.retryable
    assert caught.value.hint == "read /var/log/libvirt/qemu/vm_a.log"
    assert states(machine) == {"vm_a": SHUTOFF}


def test_domain_that_is_paused_after_its_start_is_not_left_so(machine):
    machine.hypervisor.define(launch())

    def start_paused(inner, flags):
        inner.createWithFlags(flags)
        inner.suspend()

    machine.connection.domain["createWithFlags"] = start_paused
    with refused(HostError, "domain.start_failed") as caught:
        machine.hypervisor.start("vm_a")
    assert "is paused" in caught.value.message
    assert states(machine) == {"vm_a": SHUTOFF}


def test_domain_that_ends_right_after_its_start_did_not_start(machine):
    machine.hypervisor.define(launch())

    def start_and_die(inner, flags):
        inner.createWithFlags(flags)
        inner.destroy()

    machine.connection.domain["createWithFlags"] = start_and_die
    with refused(HostError, "domain.start_failed"):
        machine.hypervisor.start("vm_a")


def test_memory_that_somebody_saved_does_not_come_back(machine):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    machine.domain().managedSave(0)
    assert machine.domain().hasManagedSaveImage(0)
    saved_at_start: list[int] = []

    def start(inner, flags):
        saved_at_start.append(inner.hasManagedSaveImage(0))
        inner.createWithFlags(flags)

    machine.connection.domain["createWithFlags"] = start
    machine.hypervisor.start("vm_a")
    assert saved_at_start == [0]
    assert not machine.domain().hasManagedSaveImage(0)
    assert states(machine) == {"vm_a": RUNNING}


@pytest.mark.parametrize("grace_s", [0, 30])
def test_stop_stops_and_again_is_fine(machine, grace_s):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    machine.hypervisor.stop("vm_a", grace_s)
    assert states(machine) == {"vm_a": SHUTOFF}
    machine.hypervisor.stop("vm_a", grace_s)
    machine.hypervisor.stop("vm_unknown", grace_s)
    assert states(machine) == {"vm_a": SHUTOFF}


class Guest:
    """Counts how often the button is pressed and the plug pulled; obeys when it is told to."""

    def __init__(self, machine: Machine, obeys_at: int = 0) -> None:
        self.asked = 0
        self.pulled: list[int] = []
        self._obeys_at = obeys_at
        machine.connection.domain.update(shutdown=self._shutdown, destroyFlags=self._destroy)
        machine.hypervisor.define(launch())
        machine.hypervisor.start("vm_a")

    def _shutdown(self, inner, *flags):
        self.asked += 1
        if self.asked == self._obeys_at:
            inner.shutdown()

    def _destroy(self, inner, flags):
        self.pulled.append(flags)
        inner.destroyFlags(flags)


def test_guest_that_obeys_keeps_its_plug(machine):
    guest = Guest(machine, obeys_at=1)
    machine.hypervisor.stop("vm_a", 30)
    assert (guest.asked, guest.pulled) == (1, [])


def test_guest_that_does_not_hear_loses_its_plug_after_the_grace(machine):
    guest = Guest(machine)
    began = time.monotonic()
    machine.hypervisor.stop("vm_a", 0.2)
    assert time.monotonic() - began >= 0.2
    assert (guest.asked, guest.pulled) == (1, [libvirt.VIR_DOMAIN_DESTROY_GRACEFUL])
    assert states(machine) == {"vm_a": SHUTOFF}


def test_no_grace_asks_nobody(machine):
    guest = Guest(machine, obeys_at=1)
    machine.hypervisor.stop("vm_a", 0)
    assert (guest.asked, guest.pulled) == (0, [libvirt.VIR_DOMAIN_DESTROY_GRACEFUL])


def test_guest_that_still_boots_is_asked_again(machine, monkeypatch):
    monkeypatch.setattr(domains, "_POLL_S", 0.01)
    monkeypatch.setattr(domains, "_ASK_AGAIN_S", 0.02)
    guest = Guest(machine, obeys_at=3)
    machine.hypervisor.stop("vm_a", 60)
    assert (guest.asked, guest.pulled) == (3, [])


def test_power_off_wakes_the_waiting_stop(machine, monkeypatch):
    monkeypatch.setattr(domains, "_POLL_S", 60.0)
    guest = Guest(machine)
    # Somebody inside powers off a moment later; only the event can tell before a minute is over.
    later = threading.Timer(0.2, lambda: machine.domain().shutdown())
    later.start()
    began = time.monotonic()
    machine.hypervisor.stop("vm_a", 120)
    later.join()
    assert time.monotonic() - began < 50
    assert guest.pulled == []


def test_paused_guest_gets_no_grace(machine):
    guest = Guest(machine)
    machine.domain().suspend()
    began = time.monotonic()
    machine.hypervisor.stop("vm_a", 120)
    assert time.monotonic() - began < 50
    assert (guest.asked, guest.pulled) == (0, [libvirt.VIR_DOMAIN_DESTROY_GRACEFUL])


def test_guest_that_cannot_be_asked_gets_no_grace(machine):
    guest = Guest(machine)

    def hung(inner, *flags):
        raise refusal(libvirt.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock")

    machine.connection.domain["shutdown"] = hung
    began = time.monotonic()
    machine.hypervisor.stop("vm_a", 120)
    assert time.monotonic() - began < 50
    assert len(guest.pulled) == 1


def test_qemu_that_ignores_sigterm_is_killed(machine):
    guest = Guest(machine)

    def stubborn(inner, flags):
        guest.pulled.append(flags)
        if flags == libvirt.VIR_DOMAIN_DESTROY_GRACEFUL:
            raise refusal(libvirt.VIR_ERR_OPERATION_FAILED, "Failed to terminate process 7 with SIGTERM")
        inner.destroyFlags(flags)

    machine.connection.domain["destroyFlags"] = stubborn
    machine.hypervisor.stop("vm_a", 0)
    assert guest.pulled == [libvirt.VIR_DOMAIN_DESTROY_GRACEFUL, libvirt.VIR_DOMAIN_DESTROY_DEFAULT]
    assert states(machine) == {"vm_a": SHUTOFF}


def test_qemu_that_cannot_be_killed_is_an_error(machine):
    Guest(machine)

    def hung(inner, flags):
        raise refusal(libvirt.VIR_ERR_SYSTEM_ERROR, "Failed to terminate process 7 with SIGKILL")

    machine.connection.domain["destroyFlags"] = hung
    with refused(HostError, "domain.stop_failed"):
        machine.hypervisor.stop("vm_a", 0)
    assert states(machine) == {"vm_a": RUNNING}


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN])
def test_domain_that_goes_just_before_the_plug_is_pulled_is_stopped(machine, code):
    Guest(machine)

    def gone(inner, *flags):
        raise refusal(code, "domain is not running")

    def destroy(inner, flags):
        inner.destroyFlags(flags)
        machine.connection.domain["state"] = gone
        gone(inner)

    machine.connection.domain["destroyFlags"] = destroy
    machine.hypervisor.stop("vm_a", 0)
    assert states(machine) == {"vm_a": SHUTOFF}


def test_crashed_domain_without_a_process_is_off(machine, tmp_path):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    machine.domain().coreDump(str(tmp_path / "core"), libvirt.VIR_DUMP_CRASH)
    assert states(machine) == {"vm_a": SHUTOFF}


def test_what_it_will_start_from_is_read_not_what_runs():
    class Domain:
        def XMLDesc(self, flags):
            return {libvirt.VIR_DOMAIN_XML_INACTIVE: "<domain/>"}[flags]

    assert domains._definition(Domain()) == "<domain/>"


@pytest.mark.parametrize(
    ("code", "active", "expected"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, True, RUNNING),
        (libvirt.VIR_DOMAIN_SHUTOFF, False, SHUTOFF),
        (libvirt.VIR_DOMAIN_NOSTATE, False, SHUTOFF),
        (libvirt.VIR_DOMAIN_CRASHED, False, SHUTOFF),
        (libvirt.VIR_DOMAIN_CRASHED, True, OTHER),
        (libvirt.VIR_DOMAIN_NOSTATE, True, OTHER),
        (libvirt.VIR_DOMAIN_BLOCKED, True, OTHER),
        (libvirt.VIR_DOMAIN_PAUSED, True, OTHER),
        (libvirt.VIR_DOMAIN_SHUTDOWN, True, OTHER),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, True, OTHER),
        (99, True, OTHER),
    ],
)
def test_states(code, active, expected):
    class Domain:
        def state(self):
            return [code, 0]

        def isActive(self):
            return active

    assert domains._state(Domain())[0] is expected


def test_undefine_forgets_all_and_again_is_fine(machine):
    machine.hypervisor.define(launch())
    machine.hypervisor.start("vm_a")
    machine.domain().snapshotCreateXML("<domainsnapshot/>", 0)
    machine.domain().managedSave(0)
    machine.hypervisor.undefine("vm_a")
    machine.hypervisor.undefine("vm_a")
    assert machine.names() == {"test"}


def test_qemus_driver_is_told_to_forget_nvram_and_checkpoints():
    told: list[int] = []

    class Domain:
        def connect(self):
            return self

        def getType(self):
            return "QEMU"

        def undefineFlags(self, flags):
            told.append(flags)

    domains._undefine(Domain())
    domains._undefine(Domain(), keep_nvram=True)
    kept = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    )
    assert told == [
        kept | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM,
        kept | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM,
    ]

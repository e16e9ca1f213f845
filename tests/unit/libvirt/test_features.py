"""What is read from capabilities, and that it is asked once for each connection."""

from __future__ import annotations

import libvirt
import pytest

from orchestrator.agent.libvirt import LibvirtHypervisor
from orchestrator.agent.libvirt.features import CpuMode, HostFeatures, detect
from orchestrator.agent.libvirt.readback import parse
from orchestrator.model.errors import HostError
from tests.unit.libvirt.conftest import refusal
from tests.unit.libvirt.specs import launch

#: The parts that are read, as libvirt 11.3 on a KVM host with AppArmor says them.
HOST = """
<capabilities><host><secmodel><model>apparmor</model><doi>0</doi></secmodel>
<secmodel><model>dac</model><doi>0</doi></secmodel></host></capabilities>
"""
DOMAIN = """
<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>kvm</domain><cpu>
<mode name='host-passthrough' supported='yes'><enum name='hostPassthroughMigratable'/></mode>
<mode name='maximum' supported='yes'/>
<mode name='host-model' supported='yes'><maxphysaddr mode='passthrough' limit='46'/></mode>
</cpu></domainCapabilities>
"""


class Libvirtd:
    def __init__(self, *, host: str = HOST, domain: str = DOMAIN, version: int = 11_003_000) -> None:
        self.host, self.domain, self.version = host, domain, version
        self.asked: list[tuple[object, ...]] = []

    def getCapabilities(self) -> str:
        return self.host

    def getDomainCapabilities(self, *asked: object) -> str:
        self.asked.append(asked)
        return self.domain

    def getLibVersion(self) -> int:
        return self.version


def test_newest_host_can_do_all():
    libvirtd = Libvirtd()
    assert detect(libvirtd) == HostFeatures(ps2_switch=True)
    assert libvirtd.asked == [(None, "x86_64", "q35", "kvm")]


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"version": 10_006_999}, "ps2_switch", False),
        ({"version": 10_007_000}, "ps2_switch", True),
        ({"host": HOST.replace("apparmor", "selinux")}, "apparmor", False),
        ({"host": "<capabilities><host/></capabilities>"}, "apparmor", False),
        ({"domain": DOMAIN.replace("host-passthrough' supported='yes'", "host-passthrough' supported='no'")},
         "cpu_mode", CpuMode.HOST_MODEL),
        ({"domain": DOMAIN.replace("mode='passthrough'", "mode='emulate'")}, "phys_bits", False),
        ({"domain": DOMAIN.replace("/usr/bin", "/opt")}, "emulator", "/opt/qemu-system-x86_64"),
    ],
)  # fmt: skip
def test_each_feature_follows_its_capability(change, field, value):
    assert getattr(detect(Libvirtd(**change)), field) == value


def test_host_without_kvm_is_refused_for_good(machine):
    hypervisor = LibvirtHypervisor(machine.connection)

    def refuse(inner, *asked):
        raise refusal(libvirt.VIR_ERR_INVALID_ARG, "KVM is not supported by this emulator")

    machine.connection.methods["getDomainCapabilities"] = refuse
    with pytest.raises(HostError, match=r"\[domain\.define_failed\]") as caught:
        hypervisor.define(launch())
    assert not caught.value.retryable
    assert machine.names() == {"test"}


def test_features_are_asked_once_for_each_connection(machine):
    asked: list[object] = []
    emulator = "/opt/first/qemu-system-x86_64"

    def answer(inner, *words):
        asked.append(inner)
        return DOMAIN.replace("/usr/bin/qemu-system-x86_64", emulator)

    machine.connection.methods["getDomainCapabilities"] = answer
    hypervisor = LibvirtHypervisor(machine.connection)
    hypervisor.define(launch())
    hypervisor.define(launch())
    assert len(asked) == 1
    emulator = "/opt/second/qemu-system-x86_64"
    machine.connection.close()
    hypervisor.define(launch())
    assert len(asked) == 2
    text = machine.connection.plain().lookupByName("vm_a").XMLDesc(0)
    assert parse(text).findtext("devices/emulator") == emulator

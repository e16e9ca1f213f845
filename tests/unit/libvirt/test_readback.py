"""Reading a definition back: whose it is, and that damage is told apart from absence."""

from __future__ import annotations

import re

import pytest

from orchestrator.agent.libvirt.readback import is_ours, observed, parse
from orchestrator.agent.libvirt.xml.metadata import TAG
from orchestrator.model.errors import HostError
from orchestrator.model.observed import DomainState
from tests.unit.libvirt.golden import golden


def definition():
    return parse(golden("one_gpu_bios"))


def test_mark_of_ours_is_seen():
    assert is_ours(definition())


def test_mark_in_another_namespace_is_not_ours():
    text = golden("one_gpu_bios").replace(
        "https://bulkhead.dev/xmlns/instance/1", "https://bulkhead.dev/other"
    )
    assert not is_ours(parse(text))


def test_mark_outside_metadata_is_not_ours():
    domain = definition()
    domain.append(domain.find(f"metadata/{TAG}"))
    assert not is_ours(domain)


@pytest.mark.parametrize("attribute", ["id", "tenant", "deployment", "generation", "digest", "uid"])
def test_damaged_mark_is_an_error(attribute):
    domain = definition()
    del domain.find(f"metadata/{TAG}").attrib[attribute]
    refused(domain)


@pytest.mark.parametrize(
    ("where", "attribute", "value"),
    [
        (f"metadata/{TAG}", "id", "vm_other"),
        (f"metadata/{TAG}", "generation", "two"),
        (f"metadata/{TAG}", "uid", ""),
        ("cputune/vcpupin", "cpuset", "all"),
        ("devices/hostdev/source/address", "bus", ""),
    ],
)
def test_unreadable_value_is_an_error(where, attribute, value):
    domain = definition()
    domain.find(where).set(attribute, value)
    refused(domain)


def test_domain_without_mark_cannot_be_observed():
    domain = definition()
    domain.remove(domain.find("metadata"))
    refused(domain)


def test_aliases_that_are_not_ids_are_no_volumes_or_ports():
    seen = observed(definition(), DomainState.SHUTOFF, None)
    assert (seen.volumes, seen.ports) == (("vol_1",), ("prt_1",))


def refused(domain) -> None:
    with pytest.raises(HostError, match=re.escape("[domain.unreadable]")) as caught:
        observed(domain, DomainState.SHUTOFF, None)
    assert "virsh dumpxml" in str(caught.value.hint)

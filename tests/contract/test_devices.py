"""What a host's PCI drivers must promise."""

from __future__ import annotations

import pytest

from orchestrator.model.errors import DeviceError


@pytest.fixture
def address(target):
    chosen = target.instance.devices[0].address
    yield chosen
    target.host.devices.give_back(chosen, None)


def test_nothing_is_observed_where_there_is_nothing(target):
    assert target.host.devices.observe("0000:fe:1f.7") is None


def test_bind_is_read_back_and_can_be_repeated(target, address):
    target.host.devices.bind(address, "vfio-pci")
    target.host.devices.bind(address, "vfio-pci")

    seen = target.host.devices.observe(address)
    assert (seen.driver, seen.driver_override, seen.holders) == ("vfio-pci", "vfio-pci", ())
    assert address in {member.address for member in seen.members}


def test_reset_says_what_it_did_and_that_the_device_answers(target, address):
    target.host.devices.bind(address, "vfio-pci")

    evidence = target.host.devices.reset(address)

    assert evidence.responds
    assert evidence.method in target.host.devices.observe(address).reset_methods
    assert evidence.evidence_class == "reset_only"


def test_given_back_device_has_its_own_driver_and_no_override(target, address):
    before = target.host.devices.observe(address).driver
    target.host.devices.bind(address, "vfio-pci")

    target.host.devices.give_back(address, before)

    seen = target.host.devices.observe(address)
    assert (seen.driver, seen.driver_override) == (before, None)


def test_binding_nothing_is_a_device_error(target):
    with pytest.raises(DeviceError) as refused:
        target.host.devices.bind("0000:fe:1f.7", "vfio-pci")

    assert refused.value.code == "device.missing"

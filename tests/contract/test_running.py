"""What hypervisor and switch must promise together, along the life of one VM."""

from __future__ import annotations

import pytest

from images.labhost.tenants import DEPLOYMENT
from orchestrator.agent.volumes.nocloud import seed_files
from orchestrator.isolation.flows import FlowPort, compile_flows
from orchestrator.model.errors import BulkheadError, ConflictError
from orchestrator.model.naming import interface_id
from orchestrator.model.observed import DomainState


def domain_of(target):
    return next((d for d in target.host.hypervisor.domains() if d.instance == target.instance.id), None)


def port_of(target):
    return next((p for p in target.host.switch.observe().ports if p.instance == target.instance.id), None)


@pytest.fixture(scope="module")
def prepared(target):
    """Everything but the start: bridge, volume, seed, device on vfio, definition."""
    host, instance = target.host, target.instance
    volume = instance.volumes[0]
    host.switch.ensure_bridge()
    host.volumes.create(
        volume,
        deployment=DEPLOYMENT,
        tenant=instance.tenant,
        passphrase=host.keys.passphrase(volume.id, volume.generation),
    )
    host.seeds.write(instance.id, instance.generation, seed_files(instance))
    host.devices.bind(instance.devices[0].address, "vfio-pci")
    host.hypervisor.define(target.spec())
    return target


@pytest.fixture(scope="module")
def started(prepared):
    host, volume = prepared.host, prepared.instance.volumes[0]
    host.hypervisor.put_secret(volume.id, host.keys.passphrase(volume.id, volume.generation))
    try:
        host.hypervisor.start(prepared.instance.id)
    finally:
        host.hypervisor.drop_secret(volume.id)
    return prepared


def test_definition_says_what_it_was_made_from(prepared):
    seen, instance = domain_of(prepared), prepared.instance

    assert (seen.state, seen.pid, seen.digest, seen.uid) == (
        DomainState.SHUTOFF,
        None,
        prepared.spec().digest(),
        prepared.spec().uid,
    )
    assert (seen.tenant, seen.deployment, seen.generation) == (
        instance.tenant,
        DEPLOYMENT,
        instance.generation,
    )
    assert seen.cpus == {pin.host_cpu for pin in instance.cpus.pins}
    assert seen.devices == tuple(device.address for device in instance.devices)
    assert seen.volumes == tuple(volume.id for volume in instance.volumes)
    assert seen.ports == tuple(port.id for port in instance.ports)


def test_start_without_the_secret_fails_and_leaves_it_off(prepared):
    with pytest.raises(BulkheadError):
        prepared.host.hypervisor.start(prepared.instance.id)

    assert domain_of(prepared).state is DomainState.SHUTOFF


def test_started_domain_runs_and_its_secret_is_gone(started):
    seen = domain_of(started)

    assert seen.state is DomainState.RUNNING
    assert seen.pid
    assert started.host.hypervisor.secrets() == ()


def test_starting_again_keeps_the_process(started):
    before = domain_of(started).pid

    started.host.hypervisor.start(started.instance.id)

    assert domain_of(started).pid == before


def test_running_domain_is_not_redefined(started):
    with pytest.raises(ConflictError) as refused:
        started.host.hypervisor.define(started.spec())

    assert refused.value.code == "domain.running"


def test_device_is_held_while_it_runs(started):
    seen = started.host.devices.observe(started.instance.devices[0].address)

    assert seen.holders == (domain_of(started).pid,)


def test_port_is_unlabelled_then_closed_then_open_then_closed(started):
    host, instance = started.host, started.instance
    port = instance.ports[0]
    host.switch.label_port(
        port.id, instance=instance.id, deployment=DEPLOYMENT, interface_id=interface_id(port.id)
    )
    closed = port_of(started)
    assert (closed.open, closed.vlan, closed.vlan_mode, closed.trunks) == (False, None, "trunk", (4095,))

    host.switch.open_port(port.id, port.vlan)
    opened = port_of(started)
    assert (opened.open, opened.vlan, opened.vlan_mode, opened.trunks) == (True, port.vlan, "access", ())

    host.switch.close_port(port.id)
    again = port_of(started)
    assert (again.open, again.vlan, again.vlan_mode, again.trunks) == (False, None, "trunk", (4095,))


def test_flows_are_replaced_whole_and_drift_is_seen(started):
    host, port = started.host, started.instance.ports[0]
    seen = port_of(started)
    program = compile_flows(
        [FlowPort(port.id, seen.ofport, port.vlan, port.mac, (port.addresses[0].address,))]
    )

    host.switch.replace_flows(program)
    assert host.switch.drift(program) == ()

    empty = compile_flows([])
    assert host.switch.drift(empty) != ()
    host.switch.replace_flows(empty)
    assert host.switch.drift(empty) == ()


def test_stopped_domain_leaves_no_process_and_no_tap(started):
    host, instance = started.host, started.instance

    host.hypervisor.stop(instance.id, 2.0)
    host.hypervisor.stop(instance.id, 2.0)

    assert (domain_of(started).state, domain_of(started).pid) == (DomainState.SHUTOFF, None)
    assert host.devices.observe(instance.devices[0].address).holders == ()
    assert port_of(started) is None

    host.hypervisor.undefine(instance.id)
    host.hypervisor.undefine(instance.id)
    assert domain_of(started) is None

"""A host leaves its deployment: never with a tenant's things on it, and whole after a crash on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.labhost.tenants import assignment_of, everything_absent
from orchestrator.agent.journal import Journal, JournalState
from orchestrator.agent.leave import leave
from orchestrator.agent.link.certificates import Certificates
from orchestrator.agent.sim import sim_host
from orchestrator.model.errors import ConflictError, HostError
from tests.unit.agent.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def left_by(fleet: Fleet) -> str | None:
    folder = fleet.settings.state_dir / "agent" / "link"
    journal = Journal(fleet.settings.journal_path)
    return leave(sim_host(fleet.world), journal, Certificates(folder), fleet.settings)


def enrolled(fleet: Fleet) -> Path:
    """As after an enrolment: `Certificates` asks for the file that is written last."""
    folder = fleet.settings.state_dir / "agent" / "link"
    folder.mkdir(parents=True)
    for name in ("identity.pem", "authority.pem", "enrolment.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_host_with_tenants_things_stays(fleet: Fleet) -> None:
    fleet.apply(fleet.two_tenants())
    folder, before = enrolled(fleet), fleet.snapshot()

    with pytest.raises(ConflictError) as told:
        left_by(fleet)

    assert told.value.code == "agent.not_empty"
    assert "vm_acme_train" in told.value.message
    assert "vol_globex_serve" in told.value.message
    assert fleet.snapshot() == before
    assert Journal(fleet.settings.journal_path).state.deployment == "dep_lab"
    assert (folder / "enrolment.json").exists()


def test_a_kept_volume_alone_keeps_the_host(fleet: Fleet) -> None:
    order = fleet.two_tenants()
    fleet.apply(order)
    instances = [each for each in everything_absent(order.instances) if each.kind == "instance"]
    fleet.apply(assignment_of([], revision=2, absent=instances))

    with pytest.raises(ConflictError) as told:
        left_by(fleet)

    assert told.value.message.count("vol_") == 2


def test_an_empty_host_gives_its_devices_back_and_forgets(fleet: Fleet) -> None:
    drivers = {address: function.driver for address, function in fleet.world.functions.items()}
    emptied(fleet)
    folder = enrolled(fleet)
    assert {f.driver for f in fleet.world.functions.values()} != set(drivers.values())

    assert left_by(fleet) == "dep_lab"

    assert {address: function.driver for address, function in fleet.world.functions.items()} == drivers
    assert Journal(fleet.settings.journal_path).state == JournalState()
    assert list(folder.iterdir()) == []
    assert left_by(fleet) is None
    # The next deployment may begin with its own first revision.
    next_ = fleet.two_tenants(revision=1).model_copy(update={"deployment": "dep_next"})
    assert fleet.apply(next_).ok


def test_a_device_that_does_not_come_back_keeps_the_host(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied(fleet)

    def hangs(_devices: object, address: str, _driver: str | None) -> None:
        raise HostError("device.bind_timeout", f"{address} hangs")

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.agent.sim.drivers.SimDevices.give_back", hangs)
        with pytest.raises(HostError):
            left_by(fleet)
    assert Journal(fleet.settings.journal_path).state.deployment == "dep_lab"

    assert left_by(fleet) == "dep_lab"


def emptied(fleet: Fleet) -> None:
    """As the controller deletes: instances and volumes go, devices stay in the pool."""
    order = fleet.two_tenants()
    fleet.apply(order)
    gone = [each for each in everything_absent(order.instances) if each.kind != "device"]
    assert fleet.apply(assignment_of([], revision=2, absent=gone)).ok

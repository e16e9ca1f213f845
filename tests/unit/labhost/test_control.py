"""The lab's controller: one process that outlives the program that started it, and its people."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.labhost import lab
from images.labhost.control import LabController, ensure
from images.labhost.showcase import LIMITS, NETWORK
from orchestrator.cli.profiles import read_profiles


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[LabController]:
    made = LabController(tmp_path / "lab" / "controller")
    yield made
    made.remove()


def test_a_controller_comes_stays_and_goes(controller: LabController) -> None:
    first = controller.start()
    assert controller.start() == first == controller.running()

    with controller.admin_of("acme", LIMITS) as client:
        made = ensure(client.tenant("acme").networks, NETWORK)
        assert ensure(client.tenant("acme").networks, NETWORK) == made

    controller.stop()
    assert controller.running() is None
    again = controller.start()
    assert (again.public_port, again.agents_port) == (first.public_port, first.agents_port)
    with controller.operator() as operator:
        assert [each["name"] for each in operator.tenants] == ["acme"]

    config = controller.write_profiles() / "bulkhead" / "config.toml"
    assert set(read_profiles(config).by_name) == {"operator", "acme"}
    for path in (config, *controller.folder.glob("*token*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    controller.remove()
    assert not controller.folder.exists()
    assert (controller.folder.parent / "controller.log").exists()


def test_a_controller_that_cannot_start_says_where_its_words_are(controller: LabController) -> None:
    controller.folder.mkdir(parents=True)
    (controller.folder / "state").write_text("no folder")

    with pytest.raises(lab.LabError, match=r"does not come up; see .*log"):
        controller.start()
    assert controller.running() is None


def test_without_a_running_controller_there_is_no_address(controller: LabController) -> None:
    with pytest.raises(lab.LabError, match="does not run"):
        _ = controller.url

"""A second lab host is lost with what ran on it: rebuilt on the first, named, and it comes back in peace.

One instance, since each start takes a minute here; many are tests/unit/controller/test_evacuate.py's matter.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from images.labhost import showcase
from images.labhost.control import ensure
from images.labhost.prepared import DISK_GIB
from images.labhost.session import LabSession, open_session
from tests.lab import kernel_view
from tests.lab.deployment import ACME, Deployment

pytestmark = pytest.mark.lab

NAME = "train"
REASON = "its power supply burnt"


class Second:
    """The second lab host, as a host of the deployment."""

    def __init__(self, deployment: Deployment, session: LabSession) -> None:
        self.host = session.host
        self.controller = deployment.controller
        self.seen = deployment.operator.hosts[f"lab{session.host.number}"]

    def let_in(self, token: str, *words: str) -> None:
        """As an operator does with a join token: enrol, and let the agent serve."""
        enrol = f"bulkhead agent enrol {' '.join(words)} --controller {self.controller.url} --token-file -"
        serve = "systemd-run -q --collect --unit=bulkhead-agent $(command -v bulkhead) agent serve"
        self.host.ssh(f"{enrol} && {serve}", 240, input=token.encode())

    def domains(self) -> set[str]:
        return set(self.host.sh("virsh list --all --name").split())

    def volumes(self) -> set[str]:
        return set(self.host.sh("ls /var/lib/bulkhead/volumes").split())


@pytest.fixture(scope="module")
def second(deployment: Deployment) -> Iterator[Second]:
    session = open_session(lambda words: print(words, file=sys.stderr, flush=True), number=2)
    made = Second(deployment, session)
    # By hand, since the playbook is the first one's matter; its doctor keeps no tenant away here either.
    made.host.sh("mkdir -p /etc/bulkhead && echo 'doctor_accepted = [\"*\"]' >/etc/bulkhead/agent.toml")
    for port in deployment.controller.ports():
        session.host.forward_back(port)
    wanted = {"name": f"lab{session.host.number}", "disk_gib": DISK_GIB}
    made.let_in(deployment.operator.hosts.create(wanted).body["join_token"])
    yield made
    session.preloaded.close()
    session.host.stop()


def test_a_second_host_takes_what_the_first_does_not(deployment: Deployment, second: Second) -> None:
    deployment.host.act("cordon", {"reason": "the second one's turn"})
    ensure(deployment.tenant(ACME).volumes, {"name": "data", "size_gib": 1})
    ensure(deployment.tenant(ACME).instances, {**showcase.instance(NAME), "volumes": ["data"]})

    deployment.eventually(lambda: deployment.in_state("running") == {NAME}, "it runs")

    (found,) = deployment.running()
    assert second.domains() == {found["id"]}
    assert found["placement"]["host"] == second.seen.get()["id"]


def test_it_is_lost_and_its_instance_runs_on_the_other(deployment: Deployment, second: Second) -> None:
    (before,) = deployment.running()
    running = second.host.running()
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    deployment.eventually(lambda: second.seen.get()["state"] == "unreachable", "its silence is noticed")
    # A silent host harms nobody: nothing is taken off it before a person says that it is off.
    assert deployment.in_state("running") == {NAME}

    deployment.host.act("uncordon", {"reason": "it is needed"})
    second.seen.act("fence", {"reason": REASON, "powered_off": True})
    asked = second.seen.act("evacuate", {"reason": REASON})
    ended = deployment.operator.wait(asked, deployment.operator.operations, timeout_s=900)

    assert {each["name"] for each in ended["result"]["lost_volumes"]} == {f"{NAME}-boot", "data"}
    (found,) = deployment.running()
    assert found["placement"]["host"] == deployment.host.get()["id"]
    assert found["rebuilt"]["reason"] == REASON
    for kept in ("id", "name", "ports"):
        assert found[kept] == before[kept]
    (device,) = found["placement"]["devices"]
    pid = kernel_view.qemu_pid(deployment.lab, found["id"])
    assert kernel_view.vfio_holders(deployment.lab, device["address"]) == {pid}
    code, said = deployment.inside(found["id"], "hostname")
    assert (code, said.strip()) == (0, NAME)
    evidence = deployment.tenant(ACME).instances[NAME].part("evidence").get()
    assert {check["status"] for check in evidence["verdicts"]} == {"pass"}
    assert deployment.tenant(ACME).volumes["data"].get()["state"] == "lost"
    deployment.checked()


def test_it_comes_back_and_destroys_nothing(deployment: Deployment, second: Second) -> None:
    pids = deployment.pids()
    gone = set(pids)
    second.host.restart_once("it comes back")
    # Its certificate opens nothing any more: what it has stays as it is, and it hears of nothing.
    assert second.domains() == gone
    assert second.seen.get()["state"] == "fenced"

    second.let_in(second.seen.act("join-token").body["join_token"], "--again")

    found = deployment.eventually(lambda: told(second), "it follows its new assignment")
    assert {each["instance_id"] for each in found["stale"]} == gone
    assert found["error"]["code"] == "host.stale_instances"
    assert second.domains() == gone
    assert len(second.volumes()) == 2
    assert second.host.sh("pgrep -c qemu-system || true") == "0"
    assert deployment.pids() == pids
    held = [gpu for gpu in deployment.operator.gpus if gpu["host_id"] == found["id"]]
    assert [gpu["state"] for gpu in held].count("exposed") == 1
    deployment.checked()


def test_what_it_still_has_goes_by_order_alone(deployment: Deployment, second: Second) -> None:
    pids = deployment.pids()
    deployment.done(ACME, deployment.tenant(ACME).volumes["data"].delete())
    (identity,) = pids
    second.seen.act("remove-stray", {"kind": "instance", "id": identity, "reason": "it runs elsewhere"})

    found = deployment.eventually(
        lambda: found if not (found := second.seen.get())["stale"] else None, "it is gone from there"
    )

    deployment.eventually(lambda: not second.volumes(), "its volumes are gone")
    assert second.domains() == set()
    assert (found["state"], found["error"]) == ("ready", None)
    deployment.eventually(
        lambda: (
            {gpu["state"] for gpu in deployment.operator.gpus if gpu["host_id"] == found["id"]} == {"clean"}
        ),
        "its GPUs are clean",
    )
    assert deployment.pids() == pids
    deployment.delete((ACME, NAME))
    deployment.checked()


def told(second: Second) -> dict[str, Any] | None:
    """The host as the controller sees it, once it follows its assignment."""
    found = second.seen.get()
    return found if found["applied_revision"] == found["revision"] and found["state"] == "ready" else None

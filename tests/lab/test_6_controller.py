"""The whole way, from a call to what a guest sees: a controller here, the lab host enrolled with it.

Six instances are asked for where there are four GPUs. Judged by the API, by the invariants over the
controller's database, and by the lab host's own tools.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from pathlib import Path

import pytest

from images.labhost import build, commands, showcase
from images.labhost.control import ensure
from images.labhost.prepared import prepare
from images.labhost.tenants import GPU_DEVICE, GPU_VENDOR
from orchestrator import __version__
from orchestrator.model.errors import NotFoundError
from tests.lab import kernel_view, versions
from tests.lab.deployment import ACME, GLOBEX, SETTLE_S, Deployment
from tests.lab.scripts import ping
from tests.lab.test_3_faults import assert_nothing_leaked

pytestmark = pytest.mark.lab

#: In the order of their creation.
WANTED = (
    (ACME, "train"),
    (ACME, "help"),
    (GLOBEX, "serve"),
    (GLOBEX, "sweep"),
    (ACME, "late"),
    (GLOBEX, "last"),
)


def test_six_asked_for_four_run_and_two_say_what_is_short(deployment: Deployment) -> None:
    for tenant, name in WANTED:
        ensure(deployment.tenant(tenant).instances, showcase.instance(name))

    deployment.eventually(lambda: len(deployment.in_state("running")) == 4, "four run")

    assert deployment.in_state("running") == {"train", "help", "serve", "sweep"}
    assert deployment.in_state("pending") == {"late", "last"}
    for tenant, name in (WANTED[4], WANTED[5]):
        identity = deployment.instances()[name]["id"]
        (request,) = [each for each in deployment.tenant(tenant).requests if each["instance_id"] == identity]
        assert request["state"] == "waiting"
        assert "gpu" in json.dumps(request["reason"]).lower(), request
    deployment.checked()


def test_each_holds_what_the_controller_says_by_the_kernels_word(deployment: Deployment) -> None:
    lab_host = deployment.lab
    devices, cpus = set(), set()
    for each in deployment.running():
        pid, place = kernel_view.qemu_pid(lab_host, each["id"]), each["placement"]
        (device,) = place["devices"]
        assert kernel_view.driver(lab_host, device["address"]) == "vfio-pci"
        assert kernel_view.vfio_holders(lab_host, device["address"]) == {pid}
        planned = {pin["vcpu"]: str(pin["host_cpu"]) for pin in place["pins"]}
        assert kernel_view.vcpu_cpus(lab_host, pid) == planned
        assert set(kernel_view.hugepages_by_node(lab_host, pid)) == {cell["node"] for cell in place["cells"]}
        devices.add(device["address"])
        cpus.update(planned.values())
    assert (len(devices), len(cpus)) == (4, 4)


def test_evidence_reaches_the_tenant_and_every_check_passed(deployment: Deployment) -> None:
    for tenant, name in WANTED[:4]:
        found = deployment.tenant(tenant).instances[name].part("evidence").get()
        assert {check["status"] for check in found["verdicts"]} == {"pass"}
        assert len(found["verdicts"]) > 20
        assert [reset["responds"] for reset in found["resets"]] == [True]


def test_each_guest_sees_what_was_asked_for_and_nobody_else(deployment: Deployment) -> None:
    lab_host = deployment.lab
    for each in deployment.running():
        guest = lab_host.session.ask(each["id"], {"op": "report"})["report"]
        gpus = [f for f in guest["pci"] if (f["vendor"], f["device"]) == (GPU_VENDOR, GPU_DEVICE)]
        (port,) = each["ports"]
        (nic,) = [nic for nic in guest["network"] if nic["name"] != "lo"]
        assert guest["hostname"] == each["name"]
        assert guest["cpus"]["online"] == 1
        assert len(gpus) == 1
        assert nic["mac"] == port["mac"]
        assert f"{port['address']}/{port['prefix_length']}" in nic["addresses"]


def test_both_tenants_use_the_same_addresses_and_reach_their_own(deployment: Deployment) -> None:
    found = deployment.instances()
    ports = {name: found[name]["ports"][0] for name in deployment.in_state("running")}
    assert {ports["train"]["address"], ports["help"]["address"]} == {
        ports["serve"]["address"],
        ports["sweep"]["address"],
    }
    for source, target in (("train", "help"), ("serve", "sweep")):
        to = ports[target]["address"]
        script = f"({ping(to)}) && grep '^{to} ' /proc/net/arp"
        code, said = deployment.inside(found[source]["id"], script)
        assert code == 0
        assert ports[target]["mac"] in said


def test_a_tenant_reads_its_guests_log_and_types_into_its_console(deployment: Deployment) -> None:
    client = deployment.clients[ACME]
    assert b"probe: ready" in b"".join(client.console_log(ACME, "train"))

    async def typed() -> bytes:
        said = b""
        async with client.console(ACME, "train") as console, asyncio.timeout(SETTLE_S):
            # The guest's own terminal echoes what is typed.
            await console.write(b"is-anybody-there\r")
            while b"is-anybody-there" not in said:
                piece = await console.read()
                assert piece, console.end
                said += piece
        return said

    assert b"is-anybody-there" in asyncio.run(typed())
    assert b"is-anybody-there" in b"".join(client.console_log(ACME, "train", last_bytes=4096))
    with pytest.raises(NotFoundError):
        client.console(GLOBEX, "serve")


def test_stop_and_start_keep_the_claim_one_version_apart(deployment: Deployment, tmp_path: Path) -> None:
    """Each order is given while agent and controller are one version apart, once each way, and both go back.

    Nobody else's process changes through all their restarts.
    """
    newer = versions.next_version(tmp_path / "next")
    before, pids = deployment.instances()["serve"], deployment.pids()
    bystanders = {identity: pid for identity, pid in pids.items() if identity != before["id"]}
    own = deployment.tenant(GLOBEX).instances["serve"]

    with_agent(deployment, newer, versions.NEXT)
    assert deployment.pids() == pids
    deployment.done(GLOBEX, own.act("stop"))
    stopped = deployment.instances()["serve"]
    assert stopped["state"] == "stopped"
    # What is stopped keeps its GPU: those that wait go on waiting.
    assert deployment.in_state("pending") == {"late", "last"}
    assert not deployment.lab.sh(f"virsh list --name | grep {before['id']} || true")

    with_controller(deployment, newer)
    with_agent(deployment, build.REPOSITORY, __version__)
    assert deployment.pids() == bystanders
    deployment.done(GLOBEX, own.act("start"))
    after = deployment.instances()["serve"]
    assert after["state"] == "running"
    for name in ("id", "placement", "ports"):
        assert after[name] == before[name]
    pids = deployment.pids()
    assert bystanders.items() < pids.items()

    with_controller(deployment, build.REPOSITORY)
    doctor(deployment)  # both speak with each other again
    assert deployment.pids() == pids
    deployment.checked()


def with_agent(deployment: Deployment, source: Path, version: str) -> None:
    """Replace the agent's code, as an upgrade does, and wait until the controller was told."""
    commands.push(deployment.lab.host, source)
    deployment.lab.session.preloaded.close()
    deployment.lab.sh("systemctl restart bulkhead-agent")
    told = deployment.host.get
    deployment.eventually(lambda: told()["agent_version"] == version, f"the agent is {version}")


def with_controller(deployment: Deployment, source: Path) -> None:
    """Replace the controller by the code of another checkout, on the same state."""
    deployment.controller.stop()
    deployment.controller.source = source
    deployment.controller.start()


def test_a_setting_undone_is_seen_by_the_doctor_and_mended_by_preparing_again(deployment: Deployment) -> None:
    """With VMs running; nothing else is changed, so this is also the run that finds everything in place."""
    before = deployment.pids()
    assert "kernel.kptr_restrict" not in doctor(deployment)["K9"]
    deployment.lab.sh("sysctl -q -w kernel.kptr_restrict=0")
    assert "kernel.kptr_restrict=0" in doctor(deployment)["K9"]

    prepared = prepare(deployment.controller, deployment.lab.host)

    assert prepared.changed == ("finish: Set the running system: /proc/sys/kernel/kptr_restrict: 0 -> 2",)
    # QEMU is the lab host's boot loader, and gives its kernel no such argument.
    (waits,) = [each for each in prepared.waits if each.startswith("reboot")]
    assert waits.startswith("reboot: kernel argument irqaffinity=")
    assert "kernel.kptr_restrict" not in doctor(deployment)["K9"]
    after = deployment.pids()
    assert after == before


def doctor(deployment: Deployment) -> dict[str, str]:
    """Have the host's doctor look; return by check what it read where it did not pass."""
    host = deployment.host
    host.act("examine")
    found = deployment.eventually(
        lambda: found if (found := host.part("doctor").get())["asked_at"] is None else None,
        "the doctor spoke",
    )
    read: dict[str, str] = defaultdict(str)
    for each in found["findings"]:
        if each["status"] != "pass":
            read[each["id"]] += f"{each['read']}; "
    return read


def test_those_that_wait_start_when_others_are_deleted(deployment: Deployment) -> None:
    deployment.delete((ACME, "help"), (GLOBEX, "sweep"))

    deployment.eventually(
        lambda: deployment.in_state("running") == {"train", "serve", "late", "last"}, "those that waited run"
    )
    deployment.checked()


def test_delete_leaves_nothing(deployment: Deployment) -> None:
    deployment.delete(WANTED[0], WANTED[2], WANTED[4], WANTED[5])

    assert deployment.instances() == {}
    deployment.checked()
    assert_nothing_leaked(deployment.lab, [])
    usage = deployment.tenant(ACME).quota.get()
    assert {name: value for name, value in usage["used"].items() if value} == {"networks": 1}
    # Cleaned after their last tenancy, as the host's agent reported it.
    deployment.eventually(
        lambda: {gpu["state"] for gpu in deployment.operator.gpus} == {"clean"}, "all are clean"
    )
    for gpu in deployment.operator.gpus:
        assert gpu["evidence"]["class"] == "reset_only", gpu

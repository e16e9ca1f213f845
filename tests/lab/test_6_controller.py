"""The whole way, from a call to what a guest sees: a controller here, the lab host enrolled with it.

Six instances are asked for where there are four GPUs. Judged by the API, by the invariants over the
controller's database, and by the lab host's own tools.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from images.labhost import lab, showcase
from images.labhost.control import LabController, ensure
from images.labhost.prepared import prepare
from images.labhost.tenants import GPU_DEVICE, GPU_VENDOR
from orchestrator.client import TenantClient
from orchestrator.controller.checks import violations
from orchestrator.model.errors import NotFoundError
from orchestrator.store.engine import Database
from orchestrator.store.store import Store
from tests.lab import kernel_view
from tests.lab.scripts import ping
from tests.lab.test_3_faults import assert_nothing_leaked

pytestmark = pytest.mark.lab

ACME, GLOBEX = "acme", "globex"
#: In the order of their creation.
WANTED = (
    (ACME, "train"),
    (ACME, "help"),
    (GLOBEX, "serve"),
    (GLOBEX, "sweep"),
    (ACME, "late"),
    (GLOBEX, "last"),
)
SETTLE_S = 600.0


class Deployment:
    """The controller, its two tenants, and the lab host."""

    def __init__(self, controller: LabController, lab_host: Any) -> None:
        self.controller = controller
        self.lab = lab_host
        self.clients = {name: controller.admin_of(name, showcase.LIMITS) for name in (ACME, GLOBEX)}
        self.operator = controller.operator()

    def tenant(self, name: str) -> TenantClient:
        return self.clients[name].tenant(name)

    def instances(self) -> dict[str, dict[str, Any]]:
        """All of both tenants by name, as the operator sees them."""
        return {
            each["name"]: each for name in (ACME, GLOBEX) for each in self.operator.tenant(name).instances
        }

    def eventually(self, holds: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + SETTLE_S
        while not (found := holds()):
            if (death := self.lab.host.died_reason(quick=True)) is not None:
                raise lab.LabDiedError(death)
            assert time.monotonic() < end, (
                what,
                [(n, i["state"], i["error"]) for n, i in self.instances().items()],
            )
            time.sleep(1)
        return found

    def in_state(self, state: str) -> set[str]:
        return {name for name, each in self.instances().items() if each["state"] == state}

    def done(self, tenant: str, answer: Any) -> None:
        self.clients[tenant].wait(answer, self.tenant(tenant).operations, timeout_s=SETTLE_S)

    def checked(self) -> None:
        """No invariant is broken in the controller's database."""
        url = f"sqlite:///{self.controller.folder / 'state' / 'bulkhead.db'}"
        store = Store(Database(url))
        try:
            with store.reading() as tx:
                assert violations(tx) == ()
        finally:
            store.database.dispose()


@pytest.fixture(scope="module")
def deployment(lab_host) -> Iterator[Deployment]:
    leave(lab_host)
    controller = LabController(lab.lab_folder() / "controller-of-tests")
    controller.remove()
    controller.start()
    prepare(controller, lab_host.host)
    made = Deployment(controller, lab_host)
    showcase.catalog(controller, lab_host.session)
    for name in (ACME, GLOBEX):
        ensure(made.tenant(name).networks, showcase.NETWORK)
    yield made
    lab_host.sh("systemctl stop bulkhead-agent || true")
    lab_host.sh("bulkhead agent leave || true")
    controller.remove()


def leave(lab_host) -> None:
    """Let the lab host be nobody's, whoever it served until now."""
    lab_host.sh("systemctl stop bulkhead-agent 2>/dev/null || true")
    if lab_host.session.followed():
        lab_host.session.apply(lab_host.gone(lab_host.all))
    lab_host.sh("bulkhead agent leave")
    # From here on it is the controller that says what runs.
    lab_host.last = None


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
    for each in running(deployment):
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
    for each in running(deployment):
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
        code, said = inside(deployment, found[source]["id"], script)
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


def test_stop_and_start_keep_the_claim(deployment: Deployment) -> None:
    before = deployment.instances()["serve"]
    own = deployment.tenant(GLOBEX).instances["serve"]

    deployment.done(GLOBEX, own.act("stop"))
    stopped = deployment.instances()["serve"]
    assert stopped["state"] == "stopped"
    # What is stopped keeps its GPU: those that wait go on waiting.
    assert deployment.in_state("pending") == {"late", "last"}
    assert not deployment.lab.sh(f"virsh list --name | grep {before['id']} || true")
    deployment.done(GLOBEX, own.act("start"))

    after = deployment.instances()["serve"]
    assert after["state"] == "running"
    for name in ("id", "placement", "ports"):
        assert after[name] == before[name]
    deployment.checked()


def test_a_controller_that_starts_anew_touches_nothing(deployment: Deployment) -> None:
    before = {each["id"]: kernel_view.qemu_pid(deployment.lab, each["id"]) for each in running(deployment)}

    deployment.controller.stop()
    deployment.controller.start()
    deployment.lab.sh("systemctl restart bulkhead-agent")

    assert deployment.eventually(lambda: len(deployment.in_state("running")) == 4, "four run on")
    after = {each["id"]: kernel_view.qemu_pid(deployment.lab, each["id"]) for each in running(deployment)}
    assert after == before


def test_a_setting_undone_is_seen_by_the_doctor_and_mended_by_preparing_again(deployment: Deployment) -> None:
    """With VMs running; nothing else is changed, so this is also the run that finds everything in place."""
    host = deployment.operator.hosts[f"lab{deployment.lab.host.number}"]
    before = {each["id"]: kernel_view.qemu_pid(deployment.lab, each["id"]) for each in running(deployment)}
    assert "kernel.kptr_restrict" not in doctor(deployment, host)["K9"]
    deployment.lab.sh("sysctl -q -w kernel.kptr_restrict=0")
    assert "kernel.kptr_restrict=0" in doctor(deployment, host)["K9"]

    prepared = prepare(deployment.controller, deployment.lab.host)

    assert prepared.changed == ("finish: Set the running system: /proc/sys/kernel/kptr_restrict: 0 -> 2",)
    # QEMU is the lab host's boot loader, and gives its kernel no such argument.
    (waits,) = [each for each in prepared.waits if each.startswith("reboot")]
    assert waits.startswith("reboot: kernel argument irqaffinity=")
    assert "kernel.kptr_restrict" not in doctor(deployment, host)["K9"]
    after = {each["id"]: kernel_view.qemu_pid(deployment.lab, each["id"]) for each in running(deployment)}
    assert after == before


def doctor(deployment: Deployment, host: Any) -> dict[str, str]:
    """Have the host's doctor look; return by check what it read where it did not pass."""
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
    for tenant, name in ((ACME, "help"), (GLOBEX, "sweep")):
        deployment.done(tenant, deployment.tenant(tenant).instances[name].delete())

    deployment.eventually(
        lambda: deployment.in_state("running") == {"train", "serve", "late", "last"}, "those that waited run"
    )
    deployment.checked()


def test_delete_leaves_nothing(deployment: Deployment) -> None:
    for tenant, name in (WANTED[0], WANTED[2], WANTED[4], WANTED[5]):
        deployment.done(tenant, deployment.tenant(tenant).instances[name].delete())

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


def running(deployment: Deployment) -> list[dict[str, Any]]:
    found = [each for each in deployment.instances().values() if each["state"] == "running"]
    assert found
    return found


def inside(deployment: Deployment, identity: str, script: str) -> tuple[int, str]:
    """Run a script in a guest; return its exit status and output."""
    request = {"op": "run", "script": script, "timeout_s": 60}
    answer = deployment.lab.session.ask(identity, request)
    return answer["exit_code"], base64.b64decode(answer["output_b64"]).decode(errors="replace")

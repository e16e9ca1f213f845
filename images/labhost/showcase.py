"""`make run`: boots the lab host and a controller, enrols the one with the other, asks for two tenants' VMs.

Everything goes the way of the product: a token for the host, certificates, the API for tenants, types,
networks and instances, the agent's reports for the evidence; both guests are asked what they see. Repeatable:
what runs already stays as it is. Everything it makes lies in `.lab` and in the image cache.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from images.labhost import lab
from images.labhost.control import LabController, ensure, found
from images.labhost.prepared import prepare
from images.labhost.session import LabSession, Say, open_session
from images.labhost.tenants import GPU_DEVICE, GPU_VENDOR
from orchestrator.model.errors import BulkheadError

#: Characters of one verdict that are shown.
_WIDEST = 56
#: Lab time is emulated: a start takes half a minute on an idle machine.
WAIT_S = 900.0
GPU_TYPE = {
    "name": "gpu-1", "vcpus": 1, "memory_mib": 256, "page_size_kib": 2048, "gpus": 1, "disk_gib": 1,
    "gpu_model": f"{GPU_VENDOR}:{GPU_DEVICE}",
}  # fmt: skip
IMAGE = "probe"
NETWORK = {"name": "lan", "cidr": "10.0.0.0/24"}
LIMITS = {
    "instances": 8, "vcpus": 8, "memory_mib": 4096, "gpus": 4, "volumes": 8, "disk_gib": 16, "networks": 2,
}  # fmt: skip
#: Tenant and its instance; both use the same addresses.
TENANTS = (("acme", "train"), ("globex", "serve"))


@dataclass(frozen=True)
class Shown:
    """One instance: as the API tells it to the operator, its evidence, and what its guest sees."""

    tenant: str
    instance: Mapping[str, Any]
    vlan: int
    volumes: Sequence[Mapping[str, Any]]
    evidence: Mapping[str, Any]
    guest: Mapping[str, Any]


def main() -> int:
    """Do it and return the exit status."""
    console = Console()
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {words}", file=sys.stderr, flush=True)

    try:
        session = open_session(say)
        controller = LabController()
        controller.start()
        say(f"controller: {controller.url}")
        prepared = prepare(controller, session.host, restart=session.pushed)
        say(
            f"lab host: prepared, {len(prepared.changed)} changes by {prepared.tasks} tasks; its agent serves"
        )
        changed = provide(controller, session, say)
        shown = [look(controller, session, tenant, name) for tenant, name in TENANTS]
    except BulkheadError as exc:
        print(exc.explain(), file=sys.stderr)
        return exc.exit_code
    except lab.TOLD as exc:
        print(f"make run: {exc}", file=sys.stderr)
        return 1
    show(console, shown)
    console.print(f"\nlab host: {session.where()}; controller: {controller.url}")
    console.print("this run " + ("changed" if changed else "found everything in place; changed nothing"))
    _next(console, controller)
    return 0 if all(_passed(each.evidence) for each in shown) else 8


def provide(controller: LabController, session: LabSession, say: Say) -> bool:
    """Make what the showcase needs and wait until it runs; tell whether anything was made."""
    catalog(controller, session)
    asked = {}
    for tenant, name in TENANTS:
        with controller.admin_of(tenant, LIMITS) as client:
            own = client.tenant(tenant)
            ensure(own.networks, NETWORK)
            if found(own.instances, name) is None:
                asked[tenant] = own.instances.create(instance(name))
                say(f"{tenant}/{name}: asked for")
    for tenant, name in TENANTS:
        with controller.admin_of(tenant, LIMITS) as client:
            if tenant in asked:
                client.wait(asked[tenant], client.tenant(tenant).operations, timeout_s=WAIT_S)
                say(f"{tenant}/{name}: runs")
    return bool(asked)


def instance(name: str) -> dict[str, Any]:
    """Return what to ask for: one GPU, the probe guest, one network."""
    return {"name": name, "type": GPU_TYPE["name"], "image": IMAGE, "networks": [NETWORK["name"]]}


def catalog(controller: LabController, session: LabSession) -> None:
    """Offer the type with one GPU stand-in, and the probe guest's image."""
    image = {"digest": session.image.digest, "size_bytes": session.image.size_bytes, "firmware": "bios"}
    with controller.operator() as operator:
        ensure(operator.instance_types, GPU_TYPE)
        ensure(operator.images, {"name": IMAGE, **image})


def look(controller: LabController, session: LabSession, tenant: str, name: str) -> Shown:
    """Return one instance with its evidence, and what it sees from inside."""
    with controller.operator() as client:
        own = client.tenant(tenant)
        seen = own.instances[name].get()
        vlan = int(own.networks[NETWORK["name"]].get()["vlan"])
        volumes = [each for each in own.volumes if each["instance_id"] == seen["id"]]
        evidence = own.instances[name].part("evidence").get()
    guest = session.ask(seen["id"], {"op": "report"})["report"]
    return Shown(tenant, seen, vlan, volumes, evidence, guest)


def show(console: Console, shown: list[Shown]) -> None:
    """Print what runs, what each guest sees, and the evidence."""
    columns = {f"{each.tenant}/{each.instance['name']}": each for each in shown}
    console.print(_facts("what runs", {name: _what_runs(each) for name, each in columns.items()}))
    seen = {name: _what_a_guest_sees(each.guest) for name, each in columns.items()}
    console.print(_facts("what each guest sees from inside", seen))
    evidence = {name: _evidence(each.evidence) for name, each in columns.items()}
    console.print(_facts("evidence, read from the host's kernel", evidence))


def _passed(evidence: Mapping[str, Any]) -> bool:
    verdicts = evidence["verdicts"] or []
    return bool(verdicts) and all(check["status"] == "pass" for check in verdicts)


def _next(console: Console, controller: LabController) -> None:
    bulkhead = ".venv/bin/python -m orchestrator"
    console.print(f"next:  export XDG_CONFIG_HOME={controller.write_profiles()}", soft_wrap=True)
    for words in (
        f"{bulkhead} status",
        f"{bulkhead} --profile acme instance list",
        f"{bulkhead} --profile acme instance stop train",
        f"{bulkhead} audit export --platform",
        ".venv/bin/python -m images.labhost ssh virsh list",
        "make stop",
    ):
        console.print(f"       {words}", soft_wrap=True)


def _facts(title: str, columns: dict[str, dict[str, str]]) -> Table:
    """Set instances side by side, one fact a row: that fits 80 columns and compares at a glance."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, overflow="fold")
    for fact in dict.fromkeys(fact for facts in columns.values() for fact in facts):
        table.add_row(fact, *(facts.get(fact, "-") for facts in columns.values()))
    return table


def _what_runs(shown: Shown) -> dict[str, str]:
    instance, place = shown.instance, shown.instance["placement"]
    return {
        "instance": instance["id"],
        "state": instance["state"],
        "host": place["host"],
        "device": ", ".join(device["address"] for device in place["devices"]),
        "NUMA node": ", ".join(str(cell["node"]) for cell in place["cells"]),
        "host CPUs": ", ".join(str(pin["host_cpu"]) for pin in place["pins"]),
        "VLAN": str(shown.vlan),
        "address": ", ".join(f"{port['address']}/{port['prefix_length']}" for port in instance["ports"]),
        "volume": ", ".join(f"{volume['id']}, {volume['size_gib']} GiB" for volume in shown.volumes),
    }


def _what_a_guest_sees(seen: Mapping[str, Any]) -> dict[str, str]:
    gpus = [f for f in seen["pci"] if (f["vendor"], f["device"]) == (GPU_VENDOR, GPU_DEVICE)]
    nics = [nic for nic in seen["network"] if nic["name"] != "lo"]
    return {
        "hostname": seen["hostname"],
        "vCPUs": str(seen["cpus"]["online"]),
        "memory": f"{seen['memory_kib'] // 1024} MiB",
        "GPU": ", ".join(f"{gpu['address']}, guest node {gpu['numa_node']}" for gpu in gpus) or "none",
        "disks": ", ".join(f"{disk['name']} {decimal(disk['size_bytes'])}" for disk in seen["disks"]),
        "network": "\n".join(f"{nic['name']} {', '.join(nic['addresses'])}" for nic in nics),
    }


def _evidence(evidence: Mapping[str, Any]) -> dict[str, str]:
    found_: dict[str, str] = {}
    for check in sorted(evidence["verdicts"] or [], key=lambda verdict: str(verdict["id"])):
        passed = check["status"] == "pass"
        if passed and check["id"] in found_:
            continue  # Of several devices or ports the first that failed is shown, else the first.
        words = f"{check['status']}: {check['read']}"
        found_[check["id"]] = words if not passed or len(words) <= _WIDEST else words[: _WIDEST - 1] + "…"
    return found_


if __name__ == "__main__":
    sys.exit(main())

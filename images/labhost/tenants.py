"""Makes assignments for a lab host out of what its probe found. Pure; lab tests and bench use it.

Each VM gets whole cores of one node, hugepages of that node, and a GPU stand-in of that node, so that
everything it holds is near.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model.assignment import (
    Absent,
    Assignment,
    Firmware,
    ImageRef,
    Instance,
    IsolationClass,
)

DEPLOYMENT = "dep_lab"
HOST = "hst_lab1"
#: bochs-display stands in for a GPU.
GPU_VENDOR, GPU_DEVICE = "1234", "1111"


@dataclass(frozen=True)
class Tenancy:
    """Who gets a VM: which tenant, on which VLAN, with which last octet of the shared subnet."""

    tenant: str
    name: str
    node: int
    vlan: int
    octet: int
    gpu: bool = True


#: Two tenants that use the same addresses, one on each node; the first has a second VM, without a GPU.
ACME = Tenancy("acme", "train", 0, 101, 10)
HELPER = Tenancy("acme", "help", 1, 101, 11, gpu=False)
GLOBEX = Tenancy("globex", "serve", 1, 102, 10)


def gpus_of_node(probe: Mapping[str, Any], node: int) -> list[str]:
    """Addresses of the node's stand-ins that are alone in their IOMMU groups, in order."""
    members: dict[int, int] = {}
    for function in probe["functions"]:
        if function["group"] is not None and not function["class_code"].startswith("06"):
            members[function["group"]] = members.get(function["group"], 0) + 1
    return sorted(
        function["address"]
        for function in probe["functions"]
        if (function["vendor"], function["device"], function["node"]) == (GPU_VENDOR, GPU_DEVICE, node)
        and members.get(function["group"], 0) == 1
    )


def free_cores(probe: Mapping[str, Any], node: int) -> list[list[int]]:
    """The node's cores that the host does not keep, each as the list of its threads."""
    kept = set(probe["host_cpus"])
    cores = {tuple(sorted(cpu["siblings"])) for cpu in probe["cpus"] if cpu["node"] == node}
    return [list(core) for core in sorted(cores) if not kept.intersection(core)]


def instance_for(
    tenancy: Tenancy, probe: Mapping[str, Any], image: ImageRef, *, core: int = 0, generation: int = 1
) -> Instance:
    """One VM on the tenancy's node: its n-th free core, the n-th stand-in, 256 MiB of hugepages."""
    threads = free_cores(probe, tenancy.node)[core]
    name = f"{tenancy.tenant}_{tenancy.name}"
    device: list[dict[str, Any]] = []
    if tenancy.gpu:
        address = gpus_of_node(probe, tenancy.node)[core]
        device = [
            {
                "id": f"gpu_{address.replace(':', '').replace('.', '')}",
                "address": address,
                "vendor": GPU_VENDOR,
                "device": GPU_DEVICE,
                "node": tenancy.node,
            }
        ]
    mac = hashlib.sha256(name.encode()).hexdigest()[:10]
    body = {
        "id": f"vm_{name}",
        "generation": generation,
        "tenant": f"ten_{tenancy.tenant}",
        "name": tenancy.name,
        "isolation": IsolationClass.DEDICATED,
        "firmware": Firmware.BIOS,
        "cpus": {
            "pins": [{"vcpu": vcpu, "host_cpu": cpu} for vcpu, cpu in enumerate(threads)],
            "emulator": [min(cpu["cpu"] for cpu in probe["cpus"] if cpu["node"] == tenancy.node)],
            "threads_per_core": len(threads),
        },
        "memory": {
            "page_size_kib": 2048,
            "cells": [{"node": tenancy.node, "memory_mib": 256, "vcpus": list(range(len(threads)))}],
        },
        "devices": device,
        "volumes": [{"id": f"vol_{name}", "generation": 1, "size_gib": 1, "image": image.model_dump()}],
        "ports": [
            {
                "id": f"prt_{name}",
                "network": f"net_{tenancy.tenant}",
                "vlan": tenancy.vlan,
                "mac": "02:" + ":".join(mac[i : i + 2] for i in range(0, 10, 2)),
                "addresses": [{"address": f"10.0.0.{tenancy.octet}", "prefix_length": 24}],
            }
        ],
    }
    return Instance.model_validate(body)


def made_again(instance: Instance) -> Instance:
    """The same VM with new disks, as generations after those that a host may have removed for good."""
    volumes = [each.model_copy(update={"generation": each.generation + 1}) for each in instance.volumes]
    return instance.model_copy(update={"generation": instance.generation + 1, "volumes": tuple(volumes)})


def assignment_of(
    instances: Iterable[Instance], *, revision: int, epoch: int = 1, absent: Iterable[Absent] = ()
) -> Assignment:
    """One assignment for the lab host."""
    return Assignment(
        version=1,
        deployment=DEPLOYMENT,
        host=HOST,
        epoch=epoch,
        revision=revision,
        instances=tuple(instances),
        absent=tuple(absent),
    )


def everything_absent(instances: Iterable[Instance]) -> tuple[Absent, ...]:
    """The entries that take instances away without a trace: the VMs, their volumes, their devices."""
    found: list[Absent] = []
    for each in instances:
        found.append(Absent(kind="instance", id=each.id, generation=each.generation))
        found += [Absent(kind="volume", id=v.id, generation=v.generation) for v in each.volumes]
        found += [Absent(kind="device", id=d.id, generation=1) for d in each.devices]
    return tuple(found)


def keys_for(instances: Iterable[Instance], secret: bytes) -> dict[str, str]:
    """Derive each volume's passphrase from one lab secret, so that the lab needs to keep only that."""
    return {
        volume.id: base64.b64encode(
            hmac.digest(secret, f"{volume.id}/{volume.generation}".encode(), "sha256")
        ).decode()
        for each in instances
        for volume in each.volumes
    }

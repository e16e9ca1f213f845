"""The launch specs that the golden files are made from, and how to make others like them."""

from __future__ import annotations

from typing import Any

from orchestrator.agent.libvirt.features import CpuMode, HostFeatures
from orchestrator.model.assignment import Instance
from orchestrator.model.launch import LaunchSpec

#: A host without AppArmor whose CPU cannot be passed through.
PLAIN = HostFeatures(cpu_mode=CpuMode.HOST_MODEL, phys_bits=False, apparmor=False)


def gpu(number: int, node: int) -> dict[str, Any]:
    address = f"0000:{0x20 + number:02x}:00.0"
    return {"id": f"gpu_{number}", "address": address, "vendor": "10de", "device": "2330", "node": node}


def volume(number: int) -> dict[str, Any]:
    return {"id": f"vol_{number}", "generation": 1, "size_gib": 10}


def port(number: int) -> dict[str, Any]:
    return {
        "id": f"prt_{number}",
        "network": "net_a",
        "vlan": 101,
        "mac": f"02:00:00:00:00:{number:02x}",
        "addresses": [{"address": f"10.0.0.{number + 1}", "prefix_length": 24}],
        "mtu": 1450,
    }


def cell(node: int, vcpus: list[int], memory_mib: int = 1024) -> dict[str, Any]:
    return {"node": node, "memory_mib": memory_mib, "vcpus": vcpus}


def pins(*host_cpus: int) -> list[dict[str, int]]:
    return [{"vcpu": vcpu, "host_cpu": cpu} for vcpu, cpu in enumerate(host_cpus)]


def instance(**changes: Any) -> Instance:
    """One vCPU, one cell, one volume, one GPU near it, one port; BIOS."""
    body: dict[str, Any] = {
        "id": "vm_a",
        "generation": 3,
        "tenant": "ten_acme",
        "name": "train",
        "isolation": "dedicated",
        "firmware": "bios",
        "cpus": {"pins": pins(2), "emulator": [0]},
        "memory": {"page_size_kib": 2048, "cells": [cell(0, [0])]},
        "devices": [gpu(1, 0)],
        "volumes": [volume(1)],
        "ports": [port(1)],
    }
    return Instance.model_validate({**body, **changes})


def launch(of: Instance | None = None, **changes: Any) -> LaunchSpec:
    made = of or instance()
    told: dict[str, Any] = {
        "instance": made,
        "deployment": "dep_a",
        "uid": 2_100_007,
        "volume_paths": {each.id: f"/var/lib/bulkhead/volumes/{each.id}.luks" for each in made.volumes},
        "seed_path": f"/run/bulkhead/seeds/{made.id}.iso",
        "console_path": f"/run/bulkhead/console/{made.id}.log",
        "guest_socket": f"/run/bulkhead/guest/{made.id}.sock",
        "bridge": "br-bulkhead",
    }
    return LaunchSpec(**{**told, **changes})


def _two_cells() -> Instance:
    return instance(
        id="vm_two_cells",
        firmware="uefi",
        cpus={"pins": pins(2, 10, 3, 11, 6, 14, 7, 15), "emulator": [0, 4, 1], "threads_per_core": 2},
        memory={
            "page_size_kib": 1048576,
            "cells": [cell(0, [0, 1, 2, 3], 4096), cell(1, [4, 5, 6, 7], 4096)],
        },
        devices=[gpu(1, 0), gpu(2, 1)],
    )


def _no_device() -> Instance:
    return instance(
        id="vm_no_device",
        memory={"page_size_kib": 4, "cells": [cell(1, [0], 512)]},
        devices=[],
        ports=[],
    )


def _many() -> Instance:
    return instance(
        id="vm_many",
        devices=[gpu(1, 0), gpu(2, 0), gpu(3, 1), gpu(4, -1)],
        volumes=[volume(number) for number in range(1, 31)],
        ports=[port(number) for number in range(1, 13)],
    )


#: Golden file's name -> what it is made from.
SPECS: dict[str, tuple[LaunchSpec, HostFeatures]] = {
    "one_gpu_bios": (launch(), HostFeatures()),
    "two_cells_two_gpus_uefi_smt": (launch(_two_cells()), HostFeatures()),
    "no_device_no_port_4kib": (launch(_no_device()), PLAIN),
    "many_volumes_and_ports": (launch(_many()), HostFeatures()),
}

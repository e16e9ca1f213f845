"""Objects as the API answers them, long enough in every field to try what a table can hold."""

from __future__ import annotations

from typing import Any

from orchestrator.model.quota import DIMENSIONS

AT = "2026-03-01T12:34:56.789Z"

ACME, GLOBEX = "ten_aaaabbbbccccddddeeee", "ten_ffffgggghhhhiiiijjjj"
VM1, VM2, VM3 = "vm_a2b3c4d5e6f7g2h3i4j5", "vm_k2l3m4n5o6p7q2r3s4t5", "vm_u2v3w4x5y6z7a2b3c4d5"
HOST1, HOST2 = "hst_a2b3c4d5e6f7g2h3i4j5", "hst_k2l3m4n5o6p7q2r3s4t5"
OP1, OP2 = "op_a2b3c4d5e6f7g2h3i4j5", "op_k2l3m4n5o6p7q2r3s4t5"
USER = "usr_a2b3c4d5e6f7g2h3i4j5"
TOKEN_ID = "tok_a2b3c4d5e6f7g2h3i4j5"
LONG_NAME = "a-name-that-is-as-long-as-names-may-be-which-is-sixty-three-xyz"


def tenant(name: str = "acme", identity: str = ACME) -> dict[str, Any]:
    return {"id": identity, "name": name, "state": "active", "generation": 1, "created_at": AT}


def quota() -> dict[str, Any]:
    limits = dict(zip(DIMENSIONS, (8, 64, 262144, 4, 16, 2000, 4), strict=True))
    used = dict(zip(DIMENSIONS, (3, 24, 196608, 4, 4, 500, 1), strict=True))
    return {"tenant_id": ACME, "limits": limits, "used": used, "generation": 7}


def instance(name: str, identity: str, state: str = "running", **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": identity,
        "tenant_id": ACME,
        "name": name,
        "generation": 2,
        "state": state,
        "desired": "running",
        "type_name": "gpu-1",
        "image_id": "img_a2b3c4d5e6f7g2h3i4j5",
        "vcpus": 8,
        "memory_mib": 65536,
        "gpus": 1,
        "gpu_model": "10de:2330",
        "disk_gib": 100,
        "isolation": "dedicated",
        "firmware": "uefi",
        "user_data_bytes": 0,
        "ports": [
            {
                "id": "prt_a2b3c4d5e6f7g2h3i4j5",
                "network_id": "net_a2b3c4d5e6f7g2h3i4j5",
                "mac": "02:00:00:00:00:01",
                "address": "10.0.0.2",
                "prefix_length": 24,
            }
        ],
        "volumes": [
            {"id": "vol_k2l3m4n5o6p7q2r3s4t5", "name": f"{name}-boot", "size_gib": 100, "boot": True}
        ],
        "host_id": None,
        "placement": None,
        "error": None,
        "rebuilt": None,
        "on_drain": "stop",
        "drain_deadline_s": None,
        "failures": 0,
        "operation_id": OP1,
        "created_at": AT,
        "updated_at": AT,
    }
    return {**found, **changes}


def volume(name: str, identity: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": identity,
        "tenant_id": ACME,
        "name": name,
        "size_gib": 200,
        "image_id": None,
        "state": "available",
        "generation": 1,
        "host_id": None,
        "instance_id": None,
        "boot": False,
        "created_at": AT,
    }
    return {**found, **changes}


def network() -> dict[str, Any]:
    return {
        "id": "net_a2b3c4d5e6f7g2h3i4j5",
        "tenant_id": ACME,
        "name": "back",
        "cidr": "10.0.0.0/24",
        "vlan": None,
        "generation": 1,
        "created_at": AT,
    }


def image() -> dict[str, Any]:
    return {
        "id": "img_a2b3c4d5e6f7g2h3i4j5",
        "name": "debian-13",
        "tenant_id": None,
        "digest": "sha256:" + "0123456789abcdef" * 4,
        "size_bytes": 2147483648,
        "firmware": "uefi",
        "created_at": AT,
    }


def instance_type() -> dict[str, Any]:
    return {
        "id": "typ_a2b3c4d5e6f7g2h3i4j5",
        "name": "gpu-1",
        "vcpus": 8,
        "memory_mib": 65536,
        "page_size_kib": 2048,
        "threads_per_core": 1,
        "gpus": 1,
        "gpu_model": "10de:2330",
        "disk_gib": 100,
        "isolation": "dedicated",
        "created_at": AT,
    }


def host(name: str, identity: str, state: str = "ready", reason: str = "") -> dict[str, Any]:
    return {
        "id": identity,
        "name": name,
        "state": state,
        "reason": reason,
        "generation": 12,
        "revision": 34,
        "applied_epoch": 1,
        "applied_revision": 34,
        "boot_id": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        "agent_version": "0.1.0",
        "disk_gib": 4000,
        "used_disk_gib": 500,
        "error": None,
        "failed_checks": 0,
        "doctor": host_doctor_short(),
        "cordoned_by": "operator" if state == "cordoned" else None,
        "drain": None,
        "evacuation_id": None,
        "strays": [],
        "created_at": AT,
        "reported_at": AT,
        "heard_at": AT,
    }


def host_doctor_short(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "checked_at": AT,
        "changed_at": AT,
        "agent_version": "0.1.0",
        "failed": [],
        "unknown": [],
        "warned": [],
        "lived_with": [],
        "accepted": [],
        "counts": {"pass": 48, "fail": 0, "unknown": 0},
    }
    return {**found, **changes}


def _finding(check: str, status: str, read: str, mend: str = "", **more: Any) -> dict[str, Any]:
    found = {
        "id": check,
        "subject": "host",
        "severity": "must",
        "status": status,
        "accepted": False,
        "expected": "as it should be",
        "read": read,
        "mend": mend,
    }
    return {**found, **more}


def host_doctor() -> dict[str, Any]:
    """One of every kind: passed, failed, unknown, accepted, and one that is only worth mending."""
    return {
        "host_id": HOST2,
        "host_name": "gpu-02",
        "boot_id": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        "asked_at": None,
        "summary": host_doctor_short(
            failed=["K7"],
            unknown=["N2"],
            warned=["gpu.power"],
            lived_with=["K10"],
            accepted=["K10"],
            counts={"pass": 1, "fail": 3, "unknown": 1},
        ),
        "passes_left_out": 0,
        "findings": [
            _finding("K1", "pass", "2 flaws, none open"),
            _finding("K10", "fail", "missing slab_nomerge", "boot with slab_nomerge", accepted=True),
            _finding("N2", "unknown", "not read", "give nftables' input and forward chains policy drop"),
            _finding(
                "K7", "fail", "/dev/sda2", "swapoff -a, and take swap out of /etc/fstab", subject="swap"
            ),
            _finding(
                "gpu.power",
                "fail",
                "d3cold_allowed 1, power/control auto",
                "echo 0 > /sys/bus/pci/devices/0000:41:00.0/d3cold_allowed",
                subject="0000:41:00.0",
                severity="policy",
            ),
        ],
    }


def host_detail() -> dict[str, Any]:
    """One with facts of a real size: two sockets of 32 cores, eight GPUs, a management display."""
    found = host("gpu-02", HOST2, "cordoned", "memory errors on DIMM 3, ticket 4711")
    found["error"] = {
        "code": "host.stray_instances",
        "message": "it runs 1 instances that the database does not know there: vm_a",
        "retryable": False,
    }
    found["doctor"] = host_doctor()["summary"]
    found["strays"] = [{"kind": "volume", "id": f"vol_stray{number}"} for number in range(5)]
    functions = [
        _function(f"0000:{0x10 + number:02x}:00.0", "10de", "2330", "030200", number // 4)
        for number in range(8)
    ]
    functions += [
        _function(f"0000:{0x20 + number:02x}:00.0", "15b3", "1021", "020000", 0) for number in range(4)
    ]
    functions.append(_function("0000:03:00.0", "1a03", "2000", "030000", -1))
    bridges = [
        {"address": f"0000:00:{number:02x}.0", "parent": None, "root_complex": "pci0000:00", "acs": None}
        for number in range(24)
    ]
    cpus = [
        {
            "cpu": cpu,
            "socket": cpu // 32 % 2,
            "core": cpu % 32,
            "node": cpu // 32 % 2,
            "siblings": sorted({cpu, (cpu + 64) % 128}),
        }
        for cpu in range(128)
    ]
    nodes = [
        {"node": 0, "memory_mib": 515000, "hugepages": {"2048": 1024, "1048576": 448}, "distances": [10, 21]},
        {"node": 1, "memory_mib": 516000, "hugepages": {"2048": 0, "1048576": 448}, "distances": [21, 10]},
    ]
    facts = {
        "cpus": cpus,
        "nodes": nodes,
        "host_cpus": [0, 1, 64, 65],
        "functions": functions,
        "bridges": bridges,
        "caches": [],
        "firmware": {"bios": "2.1.5", "kernel": "6.12.48", "microcode": "0xd0003f5"},
        "gpu_models": ["data-centre", "display"],
        "ignored": {"0000:03:00.0": "1a03:2000 is a server's management display"},
    }
    return {**found, "facts": facts}


def _function(address: str, vendor: str, device: str, class_code: str, node: int) -> dict[str, Any]:
    return {
        "address": address,
        "vendor": vendor,
        "device": device,
        "class_code": class_code,
        "node": node,
        "serial": "",
        "parent": None,
        "root_complex": "pci0000:00",
        "subsystem": "",
        "virtual_functions_max": 0,
    }


def deployment() -> dict[str, Any]:
    return {
        "id": "dep_a2b3c4d5e6f7g2h3i4j5",
        "epoch": 1772368496,
        "observe_only": True,
        "unheard": ["gpu-02"],
        "strays": 2,
        "ahead": ["vm_b2c3d4e5f6g7h2i3j4k5"],
        "gone": [],
        "created_at": AT,
    }


def gpu(identity: str, state: str = "clean", reason: str = "") -> dict[str, Any]:
    return {
        "id": identity,
        "host_id": HOST1,
        "address": "0000:41:00.0",
        "vendor": "10de",
        "device": "2330",
        "serial": "1654922000001",
        "node": 0,
        "state": state,
        "tenancy": 3,
        "tenant_id": None,
        "instance_id": None,
        "evidence": {"class": "fill and verify", "tenancy": 3},
        "reason": reason,
        "generation": 5,
        "created_at": AT,
    }


def operation(identity: str = OP1, state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    steps = [
        {"name": "accepted", "state": "done", "at": AT},
        {"name": "placed", "state": "done" if state == "succeeded" else "running", "at": AT},
        {"name": "running", "state": "done" if state == "succeeded" else "pending", "at": None},
    ]
    found: dict[str, Any] = {
        "id": identity,
        "tenant_id": ACME,
        "kind": "instance.create",
        "subject_kind": "instance",
        "subject_id": VM1,
        "state": state,
        "steps": steps,
        "steps_done": sum(step["state"] == "done" for step in steps),
        "waits": None,
        "error": None,
        "result": None,
        "principal_id": USER,
        "request_id": "req-1",
        "created_at": AT,
        "finished_at": AT if state != "running" else None,
    }
    return {**found, **changes}


def failed(identity: str = OP1) -> dict[str, Any]:
    error = {"code": "device.bind_timeout", "message": "the GPU did not bind", "retryable": False}
    return operation(identity, "failed", error={**error, "hint": "bulkhead instance delete train"})


def request(identity: str, instance_id: str) -> dict[str, Any]:
    reason = {
        "code": "placement.no_gpu",
        "message": "no host has 1 free GPU of model 10de:2330; 4 of 4 are claimed",
        "retryable": True,
    }
    return {
        "id": identity,
        "tenant_id": ACME,
        "instance_id": instance_id,
        "state": "waiting",
        "on_no_capacity": "wait",
        "reason": reason,
        "reason_at": AT,
        "submitted_at": AT,
        "decided_at": None,
    }


def user(name: str = "alice", identity: str = USER) -> dict[str, Any]:
    return {
        "id": identity,
        "tenant_id": ACME,
        "kind": "user",
        "name": name,
        "roles": ["member", "tenant-admin"],
        "issuer": "",
        "subject": "",
        "created_at": AT,
    }


def token() -> dict[str, Any]:
    return {
        "key_id": TOKEN_ID,
        "user_id": USER,
        "name": "ci",
        "scopes": ["read", "write"],
        "created_at": AT,
        "expires_at": "2026-05-30T12:34:56.789Z",
        "revoked_at": None,
    }


def whoami() -> dict[str, Any]:
    return {
        "id": USER,
        "kind": "user",
        "name": "alice",
        "tenant_id": ACME,
        "roles": ["member"],
        "scopes": ["read", "write"],
        "key_id": TOKEN_ID,
    }


def host_evidence() -> dict[str, Any]:
    return {
        "host_id": HOST1,
        "applied_epoch": 1,
        "applied_revision": 34,
        "changed_at": AT,
        "heard_at": AT,
        "verdicts": [
            {
                "id": "switch.flows",
                "subject": "br-tenants",
                "status": "fail",
                "expected": "the 14 flows of the policy",
                "read": "1 difference",
            }
        ],
    }


def evidence() -> dict[str, Any]:
    verdicts = [
        {
            "id": "devices.exact",
            "subject": "0000:41:00.0",
            "status": "pass",
            "expected": "vfio-pci, group of its own",
            "read": "vfio-pci, group 17 with 1 device",
        },
        {
            "id": "memory.locked_and_apart_from_others",
            "subject": VM1,
            "status": "fail",
            "expected": "65536 MiB in 2 MiB pages of node 0",
            "read": "65534 MiB in 2 MiB pages of node 0, 2 MiB in node 1",
        },
    ]
    return {"instance_id": VM1, "generation": 2, "state": "running", "verdicts": verdicts, "resets": []}

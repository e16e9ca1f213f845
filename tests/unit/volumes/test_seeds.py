from __future__ import annotations

import io
import json
from pathlib import Path

import pycdlib
import pytest

from hostprep.probe.files import filesystem_of
from orchestrator.agent.volumes import IsoSeeds
from orchestrator.agent.volumes.nocloud import seed_files
from orchestrator.agent.volumes.seeds import seed_iso
from orchestrator.model.assignment import Instance
from orchestrator.model.errors import BulkheadError, EvidenceError

FILES = {"user-data": b"#cloud-config\n{}\n", "meta-data": b'{"a":1}', "network-config": b"{}"}

INSTANCE = Instance.model_validate_json(
    json.dumps(
        {
            "id": "vm_a",
            "generation": 3,
            "tenant": "ten_a",
            "name": "web-1",
            "isolation": "dedicated",
            "cpus": {"pins": [{"vcpu": 0, "host_cpu": 2}], "emulator": [0]},
            "memory": {"page_size_kib": 2048, "cells": [{"node": 0, "memory_mib": 256, "vcpus": [0]}]},
            "volumes": [{"id": "vol_a", "generation": 1, "size_gib": 1}],
            "ports": [
                {
                    "id": "prt_a",
                    "network": "net_a",
                    "vlan": 100,
                    "mac": "02:00:00:00:00:01",
                    "mtu": 1400,
                    "addresses": [
                        {"address": "10.1.0.2", "prefix_length": 24},
                        {"address": "fd00::2", "prefix_length": 64},
                    ],
                },
                {
                    "id": "prt_b",
                    "network": "net_b",
                    "vlan": 101,
                    "mac": "02:00:00:00:00:02",
                    "addresses": [{"address": "10.2.0.2", "prefix_length": 24}],
                },
            ],
            "seed": {"user_data": "#cloud-config\n{runcmd: [x]}\n"},
        }
    )
)


def read_iso(content: bytes, kind: str) -> dict[str, bytes]:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(content))
    found = {}
    for name in FILES:
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, **{kind: f"/{name}"})
        found[name] = out.getvalue()
    iso.close()
    return found


@pytest.mark.parametrize("kind", ["joliet_path", "rr_path"])
def test_seed_holds_the_files_under_both_kinds_of_names(kind):
    assert read_iso(seed_iso(1, FILES), kind) == FILES


def test_seed_is_labelled_as_nocloud_wants():
    content = seed_iso(1, FILES)

    assert content[16 * 2048 + 40 : 16 * 2048 + 72].rstrip() == b"cidata"


def test_seed_is_private_observed_with_its_generation_and_replaced(tmp_path):
    seeds = IsoSeeds(tmp_path / "seeds", memory_only=False)
    seeds.write("vm_a", 2**63 - 1, FILES)
    seeds.write("vm_b", 1, FILES)
    seeds.write("vm_b", 2, FILES)

    assert [(s.instance, s.generation) for s in seeds.observe()] == [("vm_a", 2**63 - 1), ("vm_b", 2)]
    assert Path(seeds.path("vm_a")).stat().st_mode & 0o777 == 0o600

    seeds.remove("vm_a")
    seeds.remove("vm_a")
    assert [s.instance for s in seeds.observe()] == ["vm_b"]


def test_unreadable_seed_shows_generation_zero_and_strangers_are_left_out(tmp_path):
    (tmp_path / "vm_a.iso").write_bytes(b"short")
    (tmp_path / "stranger.iso").write_bytes(b"")
    (tmp_path / "vm_b.iso.part").write_bytes(b"")

    found = IsoSeeds(tmp_path, memory_only=False).observe()
    assert [(s.instance, s.generation) for s in found] == [("vm_a", 0)]


def test_directory_on_a_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.agent.volumes.seeds.filesystem_of", lambda path: "ext4")

    with pytest.raises(EvidenceError) as refused:
        IsoSeeds(tmp_path).write("vm_a", 1, FILES)
    assert refused.value.code == "seed.not_on_memory"
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr("orchestrator.agent.volumes.seeds.filesystem_of", lambda path: "tmpfs")
    IsoSeeds(tmp_path).write("vm_a", 1, FILES)


def test_file_system_is_read_from_the_kernel():
    assert filesystem_of(Path("/proc")) == "proc"
    assert filesystem_of(Path("/dev/shm")) == "tmpfs"


def test_names_that_are_no_instance_ids_reach_no_path(tmp_path):
    with pytest.raises(BulkheadError):
        IsoSeeds(tmp_path).path("../vm_a")


def test_metadata_names_instance_generation_and_host():
    found = json.loads(seed_files(INSTANCE)["meta-data"])

    assert found == {"instance-id": "vm_a-g3", "local-hostname": "web-1"}


def test_network_config_matches_by_mac_and_is_static():
    found = json.loads(seed_files(INSTANCE)["network-config"])

    assert found["version"] == 2
    assert sorted(found["ethernets"]) == ["eth0", "eth1"]
    assert found["ethernets"]["eth0"] == {
        "match": {"macaddress": "02:00:00:00:00:01"},
        "set-name": "eth0",
        "addresses": ["10.1.0.2/24", "fd00::2/64"],
        "mtu": 1400,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
    }


def test_user_data_is_passed_on_as_it_is():
    assert seed_files(INSTANCE)["user-data"] == b"#cloud-config\n{runcmd: [x]}\n"

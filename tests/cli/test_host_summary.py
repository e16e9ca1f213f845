"""What people see of a host: one screen, whatever its size; programs get all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cli.host_summary import summary
from tests.cli import objects
from tests.cli.conftest import Bulkhead


def of(**facts: Any) -> dict[str, Any]:
    whole = objects.host_detail()
    return summary({**whole, "facts": {**whole["facts"], **facts}})


def test_it_fits_a_screen_and_programs_get_all(bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = bulkhead("host", "show", "gpu-02").stdout
    assert len(shown.splitlines()) <= 40
    assert "0000:10:00.0" not in shown
    told = json.loads(bulkhead("host", "show", "gpu-02", "-o", "json").stdout)
    assert told == objects.host_detail()
    assert "0000:10:00.0" in bulkhead("host", "show", "gpu-02", "-o", "yaml").stdout


def test_a_host_that_never_reported_has_no_facts() -> None:
    found = summary({**objects.host_detail(), "facts": None, "strays": []})
    assert (found["strays"], "cpus" in found, "gpus" in found) == ("", False, False)


def test_what_is_small_is_told_whole_and_what_is_long_counted() -> None:
    found = of(
        nodes=[
            {"node": 0, "memory_mib": 1000, "hugepages": {"64": 3}},
            {"node": 7, "memory_mib": 0, "hugepages": {}},
        ],
        functions=[],
        bridges=[],
        ignored={},
        host_cpus=[],
    )
    assert found["node 0"] == "CPUs 0-31,64-95; memory 1000 MiB; hugepages 3 x 64 KiB"
    assert found["node 7"] == "CPUs none; memory 0 MiB; hugepages none"
    assert (found["gpus"], found["not handed out"], found["host_cpus"]) == ("", "", "")
    assert found["pci_functions"] == "0"
    many = of(ignored={f"0000:{number:02x}:00.0": "in no IOMMU group" for number in range(9)})
    assert many["not handed out"].endswith("; and 6 more")


def test_gpus_are_counted_by_model_and_node_and_only_those_that_are_handed_out() -> None:
    whole = objects.host_detail()["facts"]
    for each in whole["functions"][:3]:
        each["device"] = "20b0"
    whole["functions"][3]["node"] = -1
    whole["ignored"]["0000:17:00.0"] = "the kernel knows no way to reset it"
    found = of(**whole)
    assert found["gpus"] == "3 x 10de:20b0 (3 on node 0), 4 x 10de:2330 (1 on no node, 3 on node 1)"


def test_cores_are_counted_across_sockets_with_the_same_core_numbers() -> None:
    cpus = [
        {"cpu": 0, "socket": 0, "core": 0, "node": 0, "siblings": [0]},
        {"cpu": 1, "socket": 1, "core": 0, "node": 1, "siblings": [1]},
    ]
    assert of(cpus=cpus)["cpus"] == "2 sockets, 2 cores, 2 threads"

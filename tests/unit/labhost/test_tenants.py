"""Assignments for the lab out of a probe: whole free cores, near devices that are alone in their groups."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from images.labhost import tenants
from orchestrator.model.assignment import ImageRef

IMAGE = ImageRef(digest="sha256:" + "1" * 64, size_bytes=1 << 20)
SECRET = b"s" * 32
PAIR = (tenants.ACME, tenants.GLOBEX)


def function(address: str, node: int, group: int | None, **changes: str) -> dict[str, Any]:
    known = {"vendor": "1234", "device": "1111", "class_code": "038000"}
    return {"address": address, "node": node, "group": group, **known, **changes}


def probe(threads: int = 1) -> dict[str, Any]:
    """Two nodes of three cores; the first core of each is the host's."""
    cpus = []
    for core in range(6):
        siblings = list(range(core * threads, (core + 1) * threads))
        cpus += [{"cpu": cpu, "node": core // 3, "siblings": siblings} for cpu in siblings]
    kept = [cpu for core in (0, 3) for cpu in range(core * threads, (core + 1) * threads)]
    functions = [
        function("0000:22:00.0", 0, 19),
        function("0000:21:00.0", 0, 18),
        function(
            "0000:20:00.0", 0, 18, vendor="1b36", device="000c", class_code="060400"
        ),  # a root port in the GPU's own group
        function("0000:41:00.0", 1, 11),
        function("0000:42:00.0", 1, 12),
        function("0000:47:00.0", 1, 10),
        function("0000:48:00.0", 1, 10, vendor="8086", device="10d3", class_code="020000"),
        function("0000:49:00.0", 1, None),
        function("0000:43:00.0", 1, 13, vendor="1b36", device="0010", class_code="010802"),
    ]
    return {"cpus": cpus, "host_cpus": kept, "functions": functions}


def test_stand_ins_of_a_node_come_in_order_without_the_merged_and_the_groupless() -> None:
    assert tenants.gpus_of_node(probe(), 0) == ["0000:21:00.0", "0000:22:00.0"]
    assert tenants.gpus_of_node(probe(), 1) == ["0000:41:00.0", "0000:42:00.0"]
    alone = probe()
    alone["functions"] = [f for f in alone["functions"] if f["address"] != "0000:48:00.0"]
    assert "0000:47:00.0" in tenants.gpus_of_node(alone, 1)


def test_the_hosts_cores_are_never_free() -> None:
    assert tenants.free_cores(probe(), 0) == [[1], [2]]
    assert tenants.free_cores(probe(), 1) == [[4], [5]]
    assert tenants.free_cores(probe(threads=2), 1) == [[8, 9], [10, 11]]
    half = probe(threads=2)
    half["host_cpus"] = [*half["host_cpus"], 9]  # one thread of a core is enough
    assert tenants.free_cores(half, 1) == [[10, 11]]


@pytest.mark.parametrize(("threads", "pins"), [(1, [4]), (2, [8, 9])])
def test_a_tenant_gets_a_whole_core_and_things_that_are_near(threads: int, pins: list[int]) -> None:
    tenancy = tenants.Tenancy("globex", "serve", 1, 102, 10)
    one = tenants.instance_for(tenancy, probe(threads), IMAGE)
    assert [pin.host_cpu for pin in one.cpus.pins] == pins
    assert one.cpus.threads_per_core == threads
    assert [cell.node for cell in one.memory.cells] == [1]
    assert [(device.address, device.node) for device in one.devices] == [("0000:41:00.0", 1)]
    assert set(one.cpus.emulator) <= set(probe(threads)["host_cpus"])


def test_a_tenant_may_go_without_a_gpu() -> None:
    one = tenants.instance_for(tenants.HELPER, probe(), IMAGE, core=1)
    assert one.devices == ()
    assert [pin.host_cpu for pin in one.cpus.pins] == [5]


def test_a_core_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        tenants.instance_for(tenants.ACME, probe(), IMAGE, core=2)


def test_the_two_tenants_share_addresses_and_nothing_else() -> None:
    first, second = (tenants.instance_for(tenancy, probe(), IMAGE) for tenancy in PAIR)
    assert first.ports[0].addresses == second.ports[0].addresses
    assert first.tenant != second.tenant
    for one, other in (
        (first.ports[0].vlan, second.ports[0].vlan),
        (first.ports[0].mac, second.ports[0].mac),
        (first.devices[0].address, second.devices[0].address),
        (first.volumes[0].id, second.volumes[0].id),
        (first.cpus.pins[0].host_cpu, second.cpus.pins[0].host_cpu),
    ):
        assert one != other


def test_macs_are_local_unicast_and_the_same_each_time() -> None:
    for tenancy in PAIR:
        mac = tenants.instance_for(tenancy, probe(), IMAGE).ports[0].mac
        assert int(mac[:2], 16) & 3 == 2
        assert mac == tenants.instance_for(tenancy, probe(), IMAGE).ports[0].mac


def test_everything_absent_names_all_that_an_instance_has() -> None:
    one = tenants.instance_for(tenants.ACME, probe(), IMAGE, generation=3)
    found = [(each.kind, each.id, each.generation) for each in tenants.everything_absent([one])]
    assert found == [
        ("instance", one.id, 3),
        ("volume", one.volumes[0].id, 1),
        ("device", one.devices[0].id, 1),
    ]
    assert tenants.assignment_of([], revision=2, absent=tenants.everything_absent([one])).revision == 2


def test_each_volume_has_a_key_of_its_own_that_depends_on_the_secret() -> None:
    instances = [tenants.instance_for(tenancy, probe(), IMAGE) for tenancy in PAIR]
    keys = tenants.keys_for(instances, SECRET)
    assert set(keys) == {volume.id for each in instances for volume in each.volumes}
    assert len(set(keys.values())) == len(keys)
    assert all(len(base64.b64decode(key)) == 32 for key in keys.values())
    assert keys == tenants.keys_for(instances, SECRET)
    other = tenants.keys_for(instances, b"t" * 32)
    assert not set(other.values()) & set(keys.values())

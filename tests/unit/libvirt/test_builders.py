"""What single builders decide: topology, the PCI tree, disk names; and that text stays text."""

from __future__ import annotations

import pytest
from lxml import etree

from orchestrator.agent.libvirt.features import HostFeatures
from orchestrator.agent.libvirt.lint import lint
from orchestrator.agent.libvirt.readback import parse
from orchestrator.agent.libvirt.xml.cpu import topology
from orchestrator.agent.libvirt.xml.disks import disk_serial, secret_uuid
from orchestrator.agent.libvirt.xml.domain import build, domain_uuid
from orchestrator.agent.libvirt.xml.pci import plan
from orchestrator.model.errors import InvalidInputError
from tests.unit.libvirt.golden import golden
from tests.unit.libvirt.specs import SPECS, cell, gpu, instance, launch, pins, port, volume


def shaped(threads: int, *cells: list[int]) -> tuple[int, int, int]:
    count = sum(len(vcpus) for vcpus in cells)
    return topology(
        instance(
            cpus={"pins": pins(*range(count)), "emulator": [0], "threads_per_core": threads},
            memory={"page_size_kib": 4, "cells": [cell(i, vcpus) for i, vcpus in enumerate(cells)]},
            devices=[],
        )
    )


@pytest.mark.parametrize(
    ("threads", "cells", "expected"),
    [
        (1, [[0]], (1, 1, 1)),
        (1, [[0, 1, 2]], (1, 3, 1)),
        (2, [[0, 1, 2, 3]], (1, 2, 2)),
        (1, [[0, 1], [2, 3]], (2, 2, 1)),
        (2, [[0, 1], [2, 3]], (2, 1, 2)),
        # Cells that are no equal runs share one socket: no socket may span two cells.
        (1, [[0, 2], [1, 3]], (1, 4, 1)),
        (1, [[0, 1, 2], [3]], (1, 4, 1)),
        (1, [[2, 3], [0, 1]], (1, 4, 1)),
        (2, [[0], [1]], (1, 1, 2)),
        (1, [[0, 1], []], (1, 2, 1)),
    ],
)
def test_topology(threads, cells, expected):
    assert shaped(threads, *cells) == expected


def test_halved_cores_are_refused():
    with pytest.raises(InvalidInputError, match=r"domain\.topology") as caught:
        shaped(2, [0, 1, 2])
    assert caught.value.field == "cpus.threads_per_core"


def places(definition: str) -> list[tuple[str, ...]]:
    found = parse(definition).iterfind("devices//address[@type='pci']")
    return [tuple(each.get(part) for part in ("bus", "slot", "function")) for each in found]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_no_two_devices_share_a_place_and_every_bus_exists(name):
    taken = places(golden(name))
    assert len(taken) == len(set(taken))
    indexes = {int(c.get("index")) for c in parse(golden(name)).iterfind("devices/controller[@type='pci']")}
    assert indexes == set(range(len(indexes)))
    assert {int(bus, 16) for bus, _, _ in taken} <= indexes


@pytest.mark.parametrize("name", sorted(SPECS))
def test_slots_with_several_functions_say_so_in_function_zero(name):
    by_slot: dict[tuple[str, str], list[etree._Element]] = {}
    for each in parse(golden(name)).iterfind("devices//address[@type='pci']"):
        by_slot.setdefault((each.get("bus"), each.get("slot")), []).append(each)
    for functions in by_slot.values():
        first = [each for each in functions if each.get("function") == "0x0"]
        assert len(first) == 1
        assert (first[0].get("multifunction") == "on") == (len(functions) > 1)


def test_device_hangs_on_the_expander_of_its_cell():
    domain = parse(golden("two_cells_two_gpus_uefi_smt"))
    controllers = {c.get("index"): c for c in domain.iterfind("devices/controller[@type='pci']")}
    nodes = []
    for hostdev in domain.iterfind("devices/hostdev"):
        root_port = controllers[str(int(hostdev.find("address").get("bus"), 16))]
        expander = controllers[str(int(root_port.find("address").get("bus"), 16))]
        nodes.append(expander.findtext("target/node"))
    assert nodes == ["0", "1"]


def test_device_of_no_cell_claims_no_node():
    tree = plan(instance(devices=[gpu(1, -1), gpu(2, 1)]))
    assert [c for c in tree.controllers if c.get("model") == "pcie-expander-bus"] == []
    assert {"gpu_1", "gpu_2"} <= set(tree.ports)


def test_guest_bus_numbers_of_expanders_leave_room_for_their_ports():
    tree = plan(
        instance(
            memory={"page_size_kib": 4, "cells": [cell(0, [0]), cell(1, [])]},
            devices=[gpu(1, 0), gpu(2, 0), gpu(3, 1)],
        )
    )
    numbers = [
        int(c.find("target").get("busNr")) for c in tree.controllers if c.find("target/node") is not None
    ]
    # One bus for the expander itself and one behind each of its ports, up to 255.
    assert numbers == [251, 254]


def crowded(cells: int) -> None:
    plan(
        instance(
            cpus={"pins": pins(*range(cells)), "emulator": [0]},
            memory={"page_size_kib": 4, "cells": [cell(node, [node]) for node in range(cells)]},
            devices=[gpu(node, node) for node in range(cells)],
            volumes=[volume(number) for number in range(32)],
            ports=[port(number) for number in range(1, 33)],
        )
    )


def test_root_bus_holds_what_fits_and_refuses_one_more():
    # 67 root ports fill 9 slots; 21 expanders fill the rest up to 1e.
    crowded(21)
    with pytest.raises(InvalidInputError, match=r"domain\.too_many_devices"):
        crowded(22)


def test_serials_fit_the_guests_field_and_differ():
    short, long_a, long_b = "vol_a", "vol_" + "a" * 39 + "a", "vol_" + "a" * 39 + "b"
    assert disk_serial(short) == short
    serials = {disk_serial(name) for name in (short, long_a, long_b)}
    assert len(serials) == 3
    assert all(len(serial) <= 20 for serial in serials)


def test_uuids_follow_from_ids_alone():
    assert domain_uuid("dep_a", "vm_a") == domain_uuid("dep_a", "vm_a")
    others = {domain_uuid("dep_b", "vm_a"), domain_uuid("dep_a", "vm_b"), secret_uuid("vm_a")}
    assert len({domain_uuid("dep_a", "vm_a"), *others}) == 4


HOSTILE = '/x\'/><hostdev mode="subsystem"/><!--&amp;]]>'


@pytest.mark.parametrize("place", ["seed_path", "console_path", "guest_socket", "bridge", "deployment"])
def test_markup_in_a_path_or_name_stays_text(place):
    domain = parse(build(launch(**{place: HOSTILE}), HostFeatures()))
    plain = parse(golden("one_gpu_bios"))
    assert [each.tag for each in domain.iter()] == [each.tag for each in plain.iter()]
    said = [value for each in domain.iter() for value in each.attrib.values() if value == HOSTILE]
    assert said == [HOSTILE]
    assert lint(etree.tostring(domain, encoding="unicode")) == ()


def test_markup_in_a_volumes_path_stays_text():
    domain = parse(build(launch(volume_paths={"vol_1": HOSTILE}), HostFeatures()))
    assert domain.find("devices/disk/source").get("file") == HOSTILE
    assert len(domain.findall("devices/hostdev")) == 1


@pytest.mark.parametrize("bad", ["/run/\0/x", "/run/\x1b[2J", "/run/\ud800"])
def test_what_xml_cannot_hold_is_refused(bad):
    with pytest.raises(InvalidInputError, match=r"domain\.bad_text"):
        build(launch(seed_path=bad), HostFeatures())

"""The probe guest tells the truth about two machines of different shapes, and does what tests ask it to.

What the guest says is held against what the machine was started with and what its files hold outside.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import pytest

from orchestrator.agent.guest import GuestChannel
from tests.scenario.conftest import DATA_MIB, MAC_A, MAC_B, META_A, NETWORK_A, USER_DATA, Pair
from tests.scenario.probe_vm import Console

pytestmark = pytest.mark.scenario


def by_ids(report: dict[str, Any], vendor: str, device: str) -> dict[str, Any]:
    (found,) = [f for f in report["pci"] if (f["vendor"], f["device"]) == (vendor, device)]
    return found


def interface(report: dict[str, Any], mac: str) -> dict[str, Any]:
    (found,) = [each for each in report["network"] if each["mac"] == mac]
    return found


def test_seed_is_read_and_applied(a: Console) -> None:
    report = a.report()

    assert (report["hostname"], report["instance_id"]) == ("probe-a", "vm_a-g1")
    seed = report["seed"]
    assert (seed["found"], seed["errors"], seed["meta_data"]) == (True, [], META_A)
    assert seed["user_data"]["bytes"] == len(USER_DATA)
    assert seed["user_data"]["crc32"] == f"{zlib.crc32(USER_DATA.encode()):08x}"
    assert seed["user_data"]["cloud_config"] is True
    wanted = NETWORK_A["ethernets"]["eth0"]["addresses"]  # type: ignore[index]
    assert [(n["id"], n["mac"], n["addresses"]) for n in seed["network"]] == [("eth0", MAC_A, wanted)]


def test_what_a_seed_gets_wrong_is_named_and_the_rest_applied(b: Console) -> None:
    seed = b.report()["seed"]

    assert (seed["found"], seed["meta_data"]["instance-id"]) == (True, "vm_b-g7")
    assert [(n["mac"], n["addresses"]) for n in seed["network"]] == [(MAC_B, ["10.1.0.2/24"])]
    said = "; ".join(seed["errors"])
    assert len(seed["errors"]) == 3, said
    assert "bridges is not supported" in said
    assert "address cannot be read" in said
    assert "no interface with 52:54:00:00:00:ff" in said


def test_processors_have_the_machines_shape(a: Console, b: Console) -> None:
    cpus = a.report()["cpus"]
    assert (cpus["online"], cpus["sockets"], cpus["cores_per_socket"], cpus["threads_per_core"]) == (
        4,
        2,
        2,
        1,
    )
    assert [(c["cpu"], c["package"], c["node"]) for c in cpus["per_cpu"]] == [
        *[(0, 0, 0), (1, 0, 0)],
        *[(2, 1, 1), (3, 1, 1)],
    ]
    cpus = b.report()["cpus"]
    assert (cpus["online"], cpus["sockets"], cpus["cores_per_socket"], cpus["threads_per_core"]) == (
        2,
        1,
        1,
        2,
    )
    assert [(c["package"], c["node"]) for c in cpus["per_cpu"]] == [(0, 0), (0, 0)]
    assert len({c["core"] for c in cpus["per_cpu"]}) == 1


def test_memory_is_what_the_machine_has_less_the_kernels_own(a: Console, b: Console) -> None:
    first, second = a.report(), b.report()
    for found_kib, has_mib in ((first["memory_kib"], 384), (second["memory_kib"], 192)):
        assert (has_mib - 80) << 10 < found_kib < has_mib << 10
    nodes = first["numa_nodes"]
    assert [(n["node"], n["cpus"]) for n in nodes] == [(0, "0-1"), (1, "2-3")]
    assert sum(n["memory_kib"] for n in nodes) == pytest.approx(first["memory_kib"], rel=0.01)
    # 160 and 224 MiB: the nodes are not taken for each other.
    assert nodes[0]["memory_kib"] < 160 << 10 < nodes[1]["memory_kib"] < 224 << 10
    assert [n["node"] for n in second["numa_nodes"]] == [0]


def test_pci_devices_show_ids_node_driver_and_regions(a: Console, b: Console) -> None:
    report = a.report()
    display = by_ids(report, "1234", "1111")
    assert (display["class"], display["numa_node"], display["driver"]) == ("038000", 1, None)
    framebuffer = display["bars"][0]
    assert (framebuffer["index"], framebuffer["size_bytes"], framebuffer["start_nonzero"]) == (
        0,
        16 << 20,
        True,
    )
    edu = by_ids(report, "1234", "11e8")
    assert (edu["class"], edu["numa_node"]) == ("00ff00", -1)
    assert [r["size_bytes"] for r in edu["bars"]] == [1 << 20]
    assert by_ids(report, "1af4", "1000")["driver"] == "virtio-pci"
    assert not [f for f in b.report()["pci"] if f["vendor"] == "1234"]


def test_disks_show_serial_size_and_whether_they_can_be_written(a: Console, pair: Pair) -> None:
    found = {d["name"]: (d["serial"], d["size_bytes"], d["read_only"]) for d in a.report()["disks"]}
    seed_bytes = (pair.a.folder / "seed.iso").stat().st_size

    assert found == {
        "vda": ("boot-0001", 64 << 20, False),
        "vdb": ("", seed_bytes, True),
        "vdc": ("data-0001", DATA_MIB << 20, False),
    }


def carrier_becomes(console: Console, wanted: bool) -> bool:
    """Ask until it does: the guest's kernel looks at the link when it gets round to it."""
    return any(interface(console.report(), MAC_A)["carrier"] is wanted for _ in range(200))


def test_network_shows_addresses_and_carrier(a: Console, pair: Pair) -> None:
    nic = interface(a.report(), MAC_A)
    assert (nic["mtu"], nic["carrier"]) == (1400, True)
    assert {"10.1.0.1/24", "fd00:1::1/64", "fe80::5054:ff:fe00:a/64"} == set(nic["addresses"])
    pair.a.command("set_link", name="n0", up=False)
    try:
        assert carrier_becomes(a, False)
    finally:
        pair.a.command("set_link", name="n0", up=True)
    assert carrier_becomes(a, True)


def test_ping_reaches_the_other_guest_and_nobody_where_nobody_is(a: Console, b: Console) -> None:
    b.report()
    # The first may be lost while the other's address is looked up.
    assert a.run("ping -c 3 -w 30 10.1.0.2", 60).exit_code == 0
    missed = a.run("ping -c 2 -W 2 10.1.0.77", 60)
    assert missed.exit_code == 1
    assert "100% packet loss" in missed.output


def listen(console: Console, name: str, arguments: str) -> None:
    """Start to listen in the guest's background, and wait until it does."""
    done = console.run(
        f"listenframe eth0 120 {arguments} >/tmp/{name} 2>&1 &\n"
        f"for i in $(seq 200); do grep -q '# listening' /tmp/{name} && exit 0; sleep 0.1; done; exit 1",
        60,
    )
    assert done.exit_code == 0, done


def heard(console: Console, name: str) -> list[str]:
    """Return the frames that a listener showed, once it has seen all it was told to wait for."""
    done = console.run(
        f"for i in $(seq 600); do grep -q '# seen' /tmp/{name} && break; sleep 0.1; done; cat /tmp/{name}", 90
    )
    first, *frames, last = done.output.splitlines()
    assert (first, last) == ("# listening", f"# seen {len(frames)}"), done
    return frames


SPOOFED = "02:00:00:00:00:66"
FRAMES = {
    f"--src {SPOOFED} --ethertype 0x88b5 --payload c0ffee raw": f"ff:ff:ff:ff:ff:ff {SPOOFED} 0x88b5 60",
    f"--src {SPOOFED} --dst {MAC_B} --sip 10.9.9.9 --dip 10.1.0.2 --sport 67 --dport 4242 udp": (
        f"{MAC_B} {SPOOFED} 0x0800 60 ip 10.9.9.9>10.1.0.2 udp 67>4242"
    ),
    f"--src {SPOOFED} --op reply --sha {SPOOFED} --spa 10.1.0.1 --tpa 10.1.0.2 arp": (
        f"ff:ff:ff:ff:ff:ff {SPOOFED} 0x0806 60 arp reply sha {SPOOFED} spa 10.1.0.1 tpa 10.1.0.2"
    ),
    f"--src {SPOOFED} --sip fe80::66 --dip ff02::1 echo": (
        f"ff:ff:ff:ff:ff:ff {SPOOFED} 0x86dd 70 ip6 fe80::66>ff02::1 icmp6 type 128 code 0"
    ),
    f"--src {SPOOFED} --sip fe80::66 --target fe80::1 na": (
        f"ff:ff:ff:ff:ff:ff {SPOOFED} 0x86dd 86 ip6 fe80::66>ff02::1 icmp6 type 136 code 0"
    ),
    f"--src {SPOOFED} --yip 10.1.0.9 --sip 10.1.0.66 dhcp-offer": (
        f"ff:ff:ff:ff:ff:ff {SPOOFED} 0x0800 316 ip 10.1.0.66>255.255.255.255 udp 67>68"
    ),
    f"--src {SPOOFED} --vlan 42 --ethertype 0x88b5 raw": f"ff:ff:ff:ff:ff:ff {SPOOFED} 0x88b5 vlan=42 60",
}


def test_crafted_frames_arrive_as_they_were_made(a: Console, b: Console) -> None:
    listen(b, "all", f"--count {len(FRAMES)} src={SPOOFED}")
    for arguments in FRAMES:
        sent = a.run(f"sendframe eth0 {arguments}")
        assert sent.exit_code == 0, sent
    frames = heard(b, "all")

    # The tag of a frame is taken out by the receiver's kernel: it may count or not.
    assert [re.sub(r" 56$", " 60", frame) for frame in frames] == list(FRAMES.values())


def test_filters_let_only_their_frames_through(a: Console, b: Console) -> None:
    listen(b, "some", f"--count 1 src={SPOOFED} vlan=7 contains=beef")
    for tag, text in ((8, "beef"), (7, "dead"), (7, "beef")):
        assert a.run(f"sendframe eth0 --src {SPOOFED} --vlan {tag} --payload {text} raw").exit_code == 0

    (frame,) = heard(b, "some")
    assert " vlan=7 " in frame
    wrong = a.run("sendframe eth0 --sorce x raw")
    assert (wrong.exit_code, "usage:" in wrong.output) == (2, True)


def test_a_forged_router_advertisement_is_believed(a: Console, b: Console) -> None:
    prefix = "2001:db8:66:"
    assert not [x for x in interface(b.report(), MAC_B)["addresses"] if x.startswith(prefix)]
    a.run("sendframe eth0 --sip fe80::5054:ff:fe00:a --prefix 2001:db8:66:: --dst 33:33:00:00:00:01 ra")
    done = b.run(
        "for i in $(seq 300); do ip -6 addr | grep -q 2001:db8:66: && exit 0; sleep 0.1; done; exit 1", 60
    )

    assert done.exit_code == 0
    assert [x for x in interface(b.report(), MAC_B)["addresses"] if x.startswith(prefix)]


def test_device_memory_is_filled_and_searched(a: Console) -> None:
    address = by_ids(a.report(), "1234", "1111")["address"]
    pattern = bytes.fromhex("b01c4ead00112233")
    expected = pattern * ((16 << 20) // len(pattern))

    filled = a.run(f"pcimem fill {address} 0 {pattern.hex()}", 240)
    assert filled.exit_code == 0, filled
    assert (
        f"hits={len(expected) // len(pattern)} first=0 bytes={len(expected)} region={len(expected)}"
        in filled.output
    )
    assert f"crc32={zlib.crc32(expected):08x}" in filled.output
    found = a.run(f"pcimem search {address} 0 {pattern.hex()} --offset 8388608 --bytes 4096", 60)
    assert "search hits=512 first=8388608 bytes=4096" in found.output
    # Another pattern is not found, and is found once it is there.
    other = f"pcimem search {address} 0 deadbeef --bytes 65536"
    assert "hits=0 first=-1" in a.run(other, 60).output
    assert a.run(f"pcimem fill {address} 0 deadbeef --offset 4096 --bytes 4", 60).exit_code == 0
    assert "hits=1 first=4096" in a.run(other, 60).output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("search {display} 0 aa --offset 16777216", 1, "outside the region"),
        ("search {display} 0 aa --bytes 16777220", 1, "outside the region"),
        ("search {display} 5 aa", 1, "region 5"),
        ("search 0000:ff:1f.7 0 aa", 1, "cannot be enabled"),
        ("search {display} 0 zz", 2, "usage:"),
        ("wipe {display} 0 aa", 2, "usage:"),
    ],
)
def test_device_memory_that_is_not_there_is_told(a: Console, arguments: str, code: int, said: str) -> None:
    display = by_ids(a.report(), "1234", "1111")["address"]
    done = a.run("pcimem " + arguments.format(display=display), 60)

    assert (done.exit_code, said in done.output) == (code, True), done


def test_edu_moves_a_page_by_dma(a: Console) -> None:
    report = a.report()
    edu, display = by_ids(report, "1234", "11e8")["address"], by_ids(report, "1234", "1111")["address"]

    done = a.run(f"dmaedu {edu} selftest", 60)
    assert done.exit_code == 0, done
    # What the tool fills its page with, so that the sum is of real bytes and not of zeros.
    page = bytes((i * 7 + i // 256) & 255 for i in range(2048))
    assert f"bytes=2048 crc32={zlib.crc32(page):08x}" in done.output
    wrong = a.run(f"dmaedu {display} selftest", 60)
    assert (wrong.exit_code, "is no edu device" in wrong.output) == (1, True)


def test_disk_keeps_what_is_written_as_seen_from_outside(a: Console, pair: Pair) -> None:
    done = a.run("disktest /dev/vdc 5 2", 120)
    assert done.exit_code == 0, done
    sums = re.search(r"ok bytes=(\d+) offset=(\d+) crc32=([0-9a-f]{8})", done.output)
    assert sums is not None, done
    with (pair.a.folder / "data.raw").open("rb") as disk:
        disk.seek(5 << 20)
        content = disk.read(2 << 20)
    assert sums.groups() == (str(2 << 20), str(5 << 20), f"{zlib.crc32(content):08x}")
    assert len(set(content)) == 256, "random bytes have all values"
    # The volume that it boots from works the same way behind its partition.
    assert a.run("disktest /dev/vda 40", 120).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("/dev/vda 0", 1, "refused: the boot partition is there"),
        ("/dev/vda 5", 1, "refused: the boot partition is there"),
        ("/dev/vdb 0", 1, "write failed at byte 0"),
        (f"/dev/vdc {DATA_MIB}", 1, "write failed at byte"),
        ("/dev/vdz 0", 1, "No such file"),
        ("/etc 0", 1, "/etc"),
        ("/dev/vdc 0 65", 2, "usage:"),
    ],
)
def test_disk_that_must_not_or_cannot_be_written_is_told(
    a: Console, arguments: str, code: int, said: str
) -> None:
    done = a.run(f"disktest {arguments}", 60)

    assert (done.exit_code, said in done.output) == (code, True), done


def test_script_comes_back_with_output_and_exit_code(a: Console) -> None:
    done = a.run("echo out; echo err >&2; cat; pwd; id -u; exit 7")
    assert (done.exit_code, done.output) == (7, "out\nerr\n/tmp\n0\n")
    assert (done.truncated, done.timed_out) == (False, False)
    assert a.run("kill -9 $$").exit_code == 128 + 9


def test_long_output_is_cut_and_said_to_be(a: Console) -> None:
    most = 128 * 1024
    whole = a.run(f"head -c {most} /dev/zero | tr '\\0' x", 60)
    assert (len(whole.output), whole.truncated) == (most, False)
    cut = a.run(f"head -c {most + 1} /dev/zero | tr '\\0' x; exit 3", 60)
    assert (len(cut.output), cut.truncated, cut.exit_code) == (most, True, 3)


def test_script_over_its_time_is_ended_with_its_children(a: Console) -> None:
    done = a.run("echo begun; sleep 4321 & sleep 4321", 2)
    assert (done.exit_code, done.timed_out, done.output) == (124, True, "begun\n")
    assert a.run("ps | grep -c '[s]leep 4321'").output == "0\n"


DEEP = b'{"id":9,"op":"ping","x":' + b"[" * 100 + b"]" * 100 + b"}"
HOSTILE = {
    "no JSON": (b"hello", None, "not JSON"),
    "half a line": (b'{"id":9,"op":"ping"', None, "not JSON"),
    "an array": (b'[{"id":9,"op":"ping"}]', None, "op is missing"),
    "a name twice": (b'{"id":9,"op":"ping","op":"run"}', None, "not JSON"),
    "deep nesting": (DEEP, None, "not JSON"),
    "a NUL": (b'{"id":9,"op":"pi\0ng"}', None, "not JSON"),
    "no UTF-8": (b'{"id":"\xff\xfe","op":"nothing"}', None, ""),
    "no op": (b'{"id":9}', 9, "op is missing"),
    "unknown op": (b'{"id":"x","op":"format"}', "x", "no such op"),
    "op of another type": (b'{"id":9,"op":7}', 9, "op is missing"),
    "an object for an id": (b'{"id":{"a":1},"op":"format"}', None, "no such op"),
    "no script": (b'{"id":9,"op":"run"}', 9, "script is missing"),
    "a script that is a number": (b'{"id":9,"op":"run","script":1}', 9, "script is missing"),
    "no time": (b'{"id":9,"op":"run","script":"","timeout_s":0}', 9, "no whole number"),
    "too much time": (b'{"id":9,"op":"run","script":"","timeout_s":3601}', 9, "no whole number"),
    "time that is no number": (b'{"id":9,"op":"run","script":"","timeout_s":"9"}', 9, "no whole number"),
    "a line too long": (b'{"id":9,"op":"' + b"x" * (256 * 1024) + b'"}', None, "too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_is_answered_with_an_error_and_nothing_else(a: Console, name: str) -> None:
    request, number, said = HOSTILE[name]
    a.send_raw(b"\n" + request + b"\n")
    found = a.read_line()

    assert found["ok"] is False
    assert said in found["error"]
    if name != "no UTF-8":
        assert found["id"] == number
    assert a.ask("ping")["ok"] is True


def test_numbers_and_texts_come_back_as_ids_as_they_were(a: Console) -> None:
    for number in (0, -1, 2**53 + 1, 2**63, "", "é\u2028", "1"):
        a.send_raw(json.dumps({"id": number, "op": "ping"}).encode() + b"\n")
        assert a.read_line() == {"id": number, "ok": True}


def test_half_a_line_of_an_earlier_connection_does_no_harm(pair: Pair) -> None:
    for rest in (b'{"id":1,"op":"run","script":"', b"x" * 300_000):
        first = pair.a.connect()
        first.send_raw(rest)
        first.close()
        second = pair.a.connect()
        assert second.ask("ping")["ok"] is True
        second.close()


def test_the_agents_channel_reads_it_through_its_worker(pair: Pair) -> None:
    found = GuestChannel().ask(str(pair.b.port), {"op": "report"}, 120)

    assert (found["ok"], found["report"]["hostname"]) == (True, "probe-b")
    refused = GuestChannel().ask(str(pair.b.port), {"op": "format"}, 120)
    assert (refused["ok"], refused["error"]) == (False, "no such op")

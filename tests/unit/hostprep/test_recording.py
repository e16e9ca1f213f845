"""Recordings: what was read replays the same elsewhere; secrets stay out; strangers' files are refused."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostprep.probe import read_host
from hostprep.probe.files import listing, read_text
from hostprep.probe.keep import NFT_RULESET, kept
from hostprep.probe.recording import Recorder, Recording, decode, load, save
from orchestrator.model.errors import BulkheadError, ConflictError, InvalidInputError
from tests.unit.devices.fakesys import AUDIO, BRIDGE, GPU, FakeSys, config_space

SERIAL = bytes.fromhex("0011223344556677")


@pytest.fixture
def sys(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path / "host")
    made.function(BRIDGE, class_code="0x060400", config=config_space(before=(0x000D,)))
    made.function(GPU, group=7, driver="nvidia", config=config_space(serial=SERIAL))
    made.function(AUDIO, group=7, class_code="0x040300", config=config_space(serial=SERIAL))
    return made


def recorded(sys: FakeSys) -> Recording:
    recorder = Recorder(sys.root)
    read_host(recorder.root)
    return recorder.recording


def test_a_recording_replays_the_same_facts(sys: FakeSys, tmp_path: Path) -> None:
    save(recorded(sys), tmp_path / "r.json", redact=False)
    assert read_host(load(tmp_path / "r.json").root) == read_host(sys.root)


def test_a_recording_holds_only_what_was_read(sys: FakeSys) -> None:
    sys.put("etc/shadow", "root:secret")
    sys.put("proc/1/environ", "TOKEN=secret")
    assert b"secret" not in recorded(sys).encode()
    assert not any(path.startswith(("etc", "proc/1/")) for path in recorded(sys).texts)


def test_it_is_written_for_its_owner_alone_and_over_nothing(sys: FakeSys, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    save(recorded(sys), file, redact=False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(ConflictError, match=r"recording\.exists"):
        save(recorded(sys), file, redact=True)
    assert file.read_bytes() == before


def test_redaction_takes_serials_and_boot_id_and_keeps_who_shares_one(sys: FakeSys) -> None:
    raw = recorded(sys).encode(redact=True)
    assert b"0011223344556677" not in raw
    assert b"7766554433221100" not in raw
    assert read_host(sys.root).boot_id.encode() not in raw
    facts = {each.address: each.serial for each in read_host(decode(raw).root).functions}
    assert facts[GPU] == facts[AUDIO] == "00-00-00-00-00-00-00-01"
    assert facts[BRIDGE] == ""


def test_what_was_not_read_then_is_unknown_and_not_absent(sys: FakeSys) -> None:
    replay = recorded(sys).root
    assert read_text(replay / "sys" / "kernel" / "mm" / "ksm" / "run") is None
    assert listing(replay / "sys" / "kernel" / "mm") is None
    assert listing(replay / "sys/bus/pci/devices") == (BRIDGE, GPU, AUDIO)


@pytest.mark.parametrize(
    ("what", "text", "stays", "goes"),
    [
        ("proc/cmdline", "root=/dev/sda iommu.strict=1 systemd.set_credential=k:pw", "iommu.strict=1", "pw"),
        ("etc/libvirt/qemu.conf", 'vnc_password = "pw"\nuser = "qemu"\n', 'user = "qemu"', "pw"),
        ("etc/libvirt/qemu.conf", 'vnc_x = [\n "pw",\n]\nnamespaces = [ "mount" ]\n', '"mount"', "pw"),
        ("etc/libvirt/qemu.conf", 'cgroup_device_acl = [\n "/dev/a",\n "/dev/b"\n]\nx = 1', "/dev/b", "x ="),
        ("proc/net/tcp", "sl a b st\n0: 0A:0CEA 0:0 0A 1\n1: 0A:1 DEADBEEF:2 01 1\n", "0CEA", "DEADBEEF"),
        ("sshd -T", "passwordauthentication no\nallowusers alice\n", "passwordauthentication no", "alice"),
        (
            NFT_RULESET,
            '{"nftables": [{"chain": {"hook": "input"}}, {"rule": {"comment": "alice"}}]}',
            "input",
            "alice",
        ),
        (NFT_RULESET, "not JSON alice", "", "alice"),
    ],
)  # fmt: skip
def test_of_files_that_may_hold_secrets_only_known_parts_are_kept(
    what: str, text: str, stays: str, goes: str
) -> None:
    assert stays in kept(what, text)
    assert goes not in kept(what, text)


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(body: dict[str, Any]) -> None:
        *above, last = path
        for name in above:
            body = body[name]
        body[last] = to

    return apply


@pytest.mark.parametrize(
    "hurt",
    [
        change("bulkhead_recording", to=2),
        change("bulkhead_recording", to="1"),
        change("surprise", to={}),
        change("texts", to=[]),
        change("texts", "sys/../etc/passwd", to="x"),
        change("texts", "/etc/passwd", to="x"),
        change("texts", "home/alice", to="x"),
        change("texts", "sys//a", to="x"),
        change("texts", "", to="x"),
        change("texts", "sys/a\x1b[2J", to="x"),
        change("texts", "sys/" + "a/" * 3000 + "b", to="x"),
        change("texts", "sys/a", to=1),
        change("texts", "sys/a", to="x" * (1024 * 1024 + 1)),
        change("bytes", "sys/a", to="0g"),
        change("bytes", "sys/a", to="000"),
        change("links", "sys/../a", to="b"),
        change("links", "sys/a", to=None),
        change("folders", "sys/a", to="bc"),
        change("folders", "sys/a", to=["b", "../c"]),
        change("folders", "sys/a", to=[".."]),
        change("folders", "sys/a", to=[1]),
        change("commands", "nft", to=["x"]),
    ],
)
def test_what_no_recorder_writes_is_refused(sys: FakeSys, hurt: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads(recorded(sys).encode())
    decode(json.dumps(body).encode())
    hurt(body)
    with pytest.raises(InvalidInputError, match=r"recording\.invalid"):
        decode(json.dumps(body).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"recording\.invalid"):
        decode(raw)


def test_a_truncated_recording_is_refused(sys: FakeSys) -> None:
    raw = recorded(sys).encode()
    for part in (1, 2, 3):
        with pytest.raises(InvalidInputError, match=r"recording\.invalid"):
            decode(raw[: len(raw) * part // 4])


def test_a_file_without_an_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostprep.probe.recording.MAX_BYTES", 4096)
    with pytest.raises(InvalidInputError, match=r"recording\.too_large"):
        load(Path("/dev/zero"))


def test_a_file_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(BulkheadError, match=r"recording\.unreadable.*none\.json"):
        load(tmp_path / "none.json")


def test_a_recording_with_a_file_that_no_kernel_writes_gives_the_probes_error(sys: FakeSys) -> None:
    found = recorded(sys)
    found.texts[f"sys/bus/pci/devices/{GPU}/numa_node"] = "none"
    with pytest.raises(BulkheadError, match=r"host\.unreadable"):
        read_host(found.root)

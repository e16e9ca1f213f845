"""The small readers on their own: argv, numa_maps, mounts, swap, descriptors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.agent.evidence.argv import ArgvAnswers, read_argv
from orchestrator.agent.evidence.memory import plain_swaps, read_ram
from orchestrator.agent.evidence.mounts import device_of, filesystem_of, read_mounts
from orchestrator.agent.evidence.openfiles import scan
from orchestrator.agent.evidence.things import read_volume
from orchestrator.isolation.facts import RamFacts


def argv(folder: Path, *words: str) -> ArgvAnswers | None:
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    return read_argv(folder)


@pytest.mark.parametrize(
    ("words", "plain", "files"),
    [
        (["-object", "secret,id=a,data=x"], 1, set()),
        (["--object", "secret,id=a,data=x"], 1, set()),
        (["-object", "qom-type=secret,id=a,data=x"], 1, set()),
        (["-object", "secret,id=a,data=x,keyid=k"], 1, set()),
        (["-object", "secret,id=a,data=x,keyid=k,iv=i"], 0, set()),
        (["-object", "secret,id=a,file=/run/a,,b"], 0, {"/run/a,b"}),
        (["-object", '{"qom-type":"secret","id":"a","file":"/k","format":"raw"}'], 0, {"/k"}),
        (["-object", '{"qom-type":"secret","id":"a","data":"x"}', "-object", "secret,id=b,data=y"], 2, set()),
        (["-object", '{"qom-type":"rng-random","id":"r","filename":"/dev/urandom"}'], 0, set()),
        (["-object", "memory-backend-ram,id=m,size=1"], 0, set()),
        (["-object", '{"qom-type":"secret"'], None, None),
        (["-device", "secret,data=x"], 0, set()),
        (["-object"], 0, set()),
    ],
)
def test_secrets_of_argv(tmp_path, words, plain, files):
    found = argv(tmp_path, "qemu", *words)
    assert found is not None
    assert found.plain_secrets == plain
    assert found.secret_files == files


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-name", "guest=vm_a,debug-threads=on"], "vm_a"),
        (["-name", "debug-threads=on,guest=vm_a"], "vm_a"),
        (["-name", "vm_a,process=other"], "vm_a"),
        (["-name", "guest=a,,b"], "a,b"),
        (["-nameless", "guest=vm_a"], None),
        (["-name", "process=vm_a"], None),
    ],
)
def test_guest_name_of_argv(tmp_path, words, name):
    found = argv(tmp_path, "qemu", *words)
    assert found is not None
    assert found.guest_name == name


def test_answers_hold_no_secret(tmp_path):
    found = argv(tmp_path, "qemu", "-object", "secret,id=a,data=opensesame", "-sandbox", "on")
    assert "opensesame" not in repr(found)
    assert found == ArgvAnswers(None, "on", 1, frozenset())


def test_a_process_without_argv_answers_nothing(tmp_path):
    (tmp_path / "cmdline").write_bytes(b"")
    assert read_argv(tmp_path) is None


def ram(
    folder: Path, maps: dict[int, int], *lines: str, cells: tuple[int, ...] = (65536,)
) -> RamFacts | None:
    text = "".join(f"{start:x}-{start + (kib << 10):x} rw-p 0 00:00 0\n" for start, kib in maps.items())
    (folder / "maps").write_text(text)
    (folder / "numa_maps").write_text("\n".join(lines) + "\n")
    return read_ram(folder, cells)


ROWS = [
    ("anonymous", "10000 bind:1 anon=5 N0=2 N1=3 kernelpagesize_kB=4", {4: {0: 8, 1: 12}}, "bind:1"),
    ("memfd", "10000 bind:1 file=/memfd:ram\\040(deleted) N1=3 kernelpagesize_kB=4", {4: {1: 12}}, "bind:1"),
    ("hugetlb memfd", "10000 bind:0 file=/memfd:ram huge N0=2 kernelpagesize_kB=1048576",
     {1048576: {0: 2097152}}, "bind:0"),
    ("anonymous hugepage",
     "99000 bind=static:0 file=/anon_hugepage\\040(deleted) huge N0=1 kernelpagesize_kB=2048",
     {2048: {0: 2048}}, "bind=static:0"),
    ("untouched", "10000 bind:1", {}, "bind:1"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "kib", "policy"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_guest_ram_is_found(tmp_path, line, kib, policy):
    found = ram(tmp_path, {0x10000: 65536, 0x99000: 65536}, line)
    assert found == RamFacts(kib, frozenset({policy}))


@pytest.mark.parametrize(
    "line",
    [
        "10000 default heap anon=5 N0=5 kernelpagesize_kB=4",
        "10000 default stack anon=5 N0=5 kernelpagesize_kB=4",
        "10000 default file=/usr/lib/libc.so mapped=5 N0=5 kernelpagesize_kB=4",
        "10000 default file=/dev/vfio/devices/vfio0 N0=5 kernelpagesize_kB=4",
        "99000 default anon=5 N0=5 kernelpagesize_kB=4",
        "77000 default anon=5 N0=5 kernelpagesize_kB=4",
    ],
)
def test_qemus_own_memory_is_not_guest_ram(tmp_path, line):
    assert ram(tmp_path, {0x10000: 65536, 0x99000: 2048}, line) is None


def test_two_cells_add_up(tmp_path):
    lines = ("10000 bind:0 N0=1 kernelpagesize_kB=4", "9000000 bind:1 N1=2 kernelpagesize_kB=4")
    found = ram(tmp_path, {0x10000: 65536, 0x9000000: 131072}, *lines, cells=(65536, 131072))
    assert found == RamFacts({4: {0: 4, 1: 8}}, frozenset({"bind:0", "bind:1"}))


def test_a_cell_that_is_not_found_leaves_nothing_said(tmp_path):
    """Its twin lies right; of the other nobody knows."""
    line = "10000 bind:0 N0=1 kernelpagesize_kB=4"
    assert ram(tmp_path, {0x10000: 65536}, line) is not None
    assert ram(tmp_path, {0x10000: 65536}, line, cells=(65536, 65536)) is None


@pytest.mark.parametrize("line", ["10000 bind:1 N1=3", "10000", "zzz bind:1 N1=3"])
def test_a_line_that_cannot_be_understood_says_nothing(tmp_path, line):
    assert ram(tmp_path, {0x10000: 65536}, line) is None


def swaps(root: Path, *lines: str) -> tuple[str, ...] | None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/swaps").write_text("\n".join(["Filename Type Size Used Priority", *lines]) + "\n")
    return plain_swaps(root)


def block(
    root: Path, name: str, *, uuid: str | None = None, mapper: str = "", slaves: tuple[str, ...] = ()
) -> Path:
    folder = root / "sys/class/block" / name
    (folder / "slaves").mkdir(parents=True)
    for slave in slaves:
        (folder / "slaves" / slave).mkdir()
    if uuid is not None:
        (folder / "dm").mkdir()
        (folder / "dm/uuid").write_text(uuid + "\n")
        (folder / "dm/name").write_text(mapper + "\n")
    return folder


def test_swap_in_clear_is_told_from_encrypted_and_from_memory(tmp_path):
    block(tmp_path, "sda2")
    block(tmp_path, "dm-0", uuid="CRYPT-LUKS2-0-luks", mapper="luks", slaves=("sda2",))
    block(tmp_path, "dm-1", uuid="LVM-x", mapper="vg-safe", slaves=("dm-0",))
    block(tmp_path, "dm-2", uuid="LVM-y", mapper="vg-open", slaves=("dm-0", "sda2"))
    block(tmp_path, "zram0")
    (block(tmp_path, "zram1") / "backing_dev").write_text("/dev/sda2\n")
    assert swaps(tmp_path) == ()
    assert swaps(tmp_path, "/dev/dm-0 partition 1 0 -2", "/dev/zram0 partition 1 0 -3") == ()
    assert swaps(tmp_path, "/dev/mapper/vg-safe partition 1 0 -2") == ()
    assert swaps(tmp_path, "/dev/mapper/vg-open partition 1 0 -2") == ("/dev/mapper/vg-open",)
    assert swaps(tmp_path, "/dev/dm-0 partition 1 0 -2", "/dev/sda2 partition 1 0 -2") == ("/dev/sda2",)
    assert swaps(tmp_path, "/dev/zram1 partition 1 0 -2") == ("/dev/zram1",)
    assert swaps(tmp_path, "/dev/sdz9 partition 1 0 -2") is None


@pytest.mark.parametrize(("uuid", "plain"), [("CRYPT-LUKS2-0-root", ()), (None, ("/swap file",))])
def test_a_swap_file_is_judged_by_its_device(tmp_path, uuid, plain):
    (tmp_path / "swap file").write_bytes(b"x")
    folder = block(tmp_path, "dm-7", uuid=uuid)
    number = device_of(tmp_path / "swap file")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block" / str(number)).symlink_to(folder)
    assert swaps(tmp_path, "/swap\\040file file 1 0 -2") == plain


def mounted(root: Path, *points: tuple[str, str, str]) -> None:
    lines = [f"1 0 {device} / {point} rw master:1 - {kind} x rw" for point, kind, device in points]
    (root / "mountinfo").write_text("\n".join(lines) + "\n")


def test_the_longest_mount_counts_and_the_later_of_two(tmp_path):
    here = tmp_path / "a b/deep/file"
    here.parent.mkdir(parents=True)
    here.touch()
    device = str(device_of(here))
    mounted(tmp_path, ("/", "ext4", device), ("/a\\040b", "xfs", device), ("/a\\040b/deep", "ext4", device),
            ("/a\\040b/deep", "tmpfs", device), ("/a\\040b/deeper", "nfs", device))  # fmt: skip
    mounts = read_mounts(tmp_path)
    assert filesystem_of(tmp_path, mounts, "/a b/deep/file") == "tmpfs"
    assert filesystem_of(tmp_path, mounts, "/a b") == "xfs"
    assert filesystem_of(tmp_path, mounts, "/a b/none") is None


def test_a_mount_on_another_device_says_nothing(tmp_path):
    (tmp_path / "file").touch()
    mounted(tmp_path, ("/", "tmpfs", "0:9999"))
    assert filesystem_of(tmp_path, read_mounts(tmp_path), "/file") is None


def test_a_link_counts_where_it_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/seed").touch()
    (tmp_path / "run").symlink_to("disk")
    device = str(device_of(tmp_path / "disk/seed"))
    mounted(tmp_path, ("/", "ext4", device), ("/run", "tmpfs", device))
    assert filesystem_of(tmp_path, read_mounts(tmp_path), "/run/seed") == "ext4"
    (tmp_path / "out").symlink_to("/etc/passwd")
    assert filesystem_of(tmp_path, read_mounts(tmp_path), "/out") is None


def test_a_volume_that_is_a_link_or_a_pipe_is_not_read(tmp_path):
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    assert read_volume(tmp_path, "/real") is not None
    assert read_volume(tmp_path, "/link") is None
    assert read_volume(tmp_path, "/pipe") is None


def test_a_renamed_or_deleted_file_is_still_held(tmp_path):
    """Real /proc of this process: the inode counts, whatever the name."""
    path = tmp_path / "volume"
    path.write_bytes(b"x")
    with path.open("rb") as held:
        seen = os.fstat(held.fileno())
        path.rename(tmp_path / "renamed")
        (tmp_path / "renamed").unlink()
        found = scan(Path("/"), [(seen.st_dev, seen.st_ino)])
        assert found.files[seen.st_dev, seen.st_ino] == {os.getpid()}
    assert (seen.st_dev, seen.st_ino) not in scan(Path("/"), [(seen.st_dev, seen.st_ino)]).files


def test_no_processes_at_all_is_not_complete(tmp_path):
    (tmp_path / "proc").mkdir()
    assert not scan(tmp_path).complete
    assert scan(tmp_path).vfio_holders(["/dev/vfio/1"]) is None
    assert scan(tmp_path / "nowhere").file_holders((1, 1)) is None

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from orchestrator.agent.volumes import luks as luks_files
from orchestrator.agent.volumes.qemuimg import Limits, QemuImg, secret_descriptor
from orchestrator.agent.volumes.volumes import LuksVolumes
from orchestrator.isolation.luks import HEADER_BYTES, header_problems, parse_header
from orchestrator.model.errors import (
    BulkheadError,
    CapacityError,
    ConflictError,
    EvidenceError,
    HostError,
    InvalidInputError,
    NotFoundError,
)
from tests.unit.volumes.conftest import make_luks


def read_back(disks, passphrase: bytes) -> bytes | None:
    """What a volume holds under its image's length; None when the passphrase does not open it."""
    plain = disks.root / "plain.raw"
    source = f"driver=luks,key-secret=k0,file.filename={disks.volumes.path('vol_a', 1)}"
    with secret_descriptor(passphrase, 0) as secret:
        command = ["qemu-img", "dd", "--object", f"secret,id=k0,file=/dev/fd/{secret}", "--image-opts"]
        command += [
            "-O",
            "raw",
            "bs=512",
            f"count={len(disks.content) // 512}",
            f"if={source}",
            f"of={plain}",
        ]
        done = subprocess.run(command, pass_fds=(secret,), capture_output=True, check=False)
    return plain.read_bytes() if done.returncode == 0 else None


def written(path: Path) -> bytes:
    """All bytes of a sparse file that were ever written, without its holes."""
    found, at = b"", 0
    with path.open("rb") as stream:
        while True:
            try:
                at = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                return found
            end = os.lseek(stream.fileno(), at, os.SEEK_HOLE)
            found += os.pread(stream.fileno(), end - at, at)
            at = end


def test_volume_holds_the_image_for_the_right_passphrase_only(disks):
    disks.create()

    assert read_back(disks, disks.passphrase) == disks.content
    assert read_back(disks, disks.passphrase[::-1]) is None


def test_volume_is_complete_private_and_encrypted_as_specified(disks):
    disks.format_for_real()
    disks.create()

    path = Path(disks.volumes.path("vol_a", 1))
    found = disks.volumes.observe()[0]
    assert (found.volume, found.deployment, found.tenant) == ("vol_a", "dep_a", "ten_a")
    assert (found.generation, found.size_bytes, found.complete) == (1, 1 << 30, True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == os.geteuid()
    raw = disks.head()
    assert header_problems(parse_header(raw[:HEADER_BYTES])) == ()
    assert disks.content[:512] not in raw


def test_two_volumes_of_one_image_and_passphrase_share_no_bytes(disks):
    disks.format_for_real()
    disks.create()
    disks.create(disks.volume(id="vol_b"))

    first, second = (disks.head(volume)[2 << 20 : 3 << 20] for volume in ("vol_a", "vol_b"))
    assert len(first) == 1 << 20
    assert not {first[at : at + 512] for at in range(0, 1 << 20, 512)} & {
        second[at : at + 512] for at in range(0, 1 << 20, 512)
    }


def test_passphrase_shows_in_no_argument_environment_or_file(disks):
    disks.format_for_real()
    canary, seen, runs, done = disks.passphrase, [], set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    arguments = (process / "cmdline").read_bytes()
                    shown = arguments + (process / "environ").read_bytes()
                except OSError:
                    continue
                if b"qemu-img" in arguments:
                    runs.add(process.name)
                if canary in shown:
                    seen.append(arguments)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        disks.create()
    finally:
        done.set()
        watcher.join()

    assert runs, "the watcher saw no qemu-img, so it proves nothing"
    assert seen == []
    assert len(written(Path(disks.volumes.path("vol_a", 1)))) > len(disks.content)
    assert not [p for p in disks.root.rglob("*") if p.is_file() and canary in written(p)]


def test_qemu_img_runs_without_rights_and_environment(disks, tmp_path):
    script = disks.root / "qemu-img"
    script.write_text("#!/bin/sh\ncat /proc/self/status /proc/self/limits >&2; env >&2; exit 1\n")
    script.chmod(0o755)

    with pytest.raises(HostError) as failed:
        QemuImg(str(script)).run(["info"], [], 4096)

    said = failed.value.message
    assert "NoNewPrivs: 1" in said
    if os.geteuid() == 0:
        assert "Uid: 2099999 2099999 2099999 2099999" in said
        assert "CapBnd: 0000000000000000" in said
    assert "HOME=" not in said


@pytest.mark.parametrize(
    ("script", "error", "code"),
    [
        ("echo 'qemu-img: No space left on device' >&2; exit 1", CapacityError, "volume.no_space"),
        ("printf 'odd\\033[31m' >&2; exit 1", HostError, "volume.qemu_img_failed"),
        ("exec sleep 30", HostError, "volume.qemu_img_timeout"),
        ("exit 0", EvidenceError, "volume.header_wrong"),
    ],
)
def test_failing_qemu_img_is_named_and_leaves_nothing(disks, script, error, code):
    fake = disks.root / "qemu-img"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    qemu_img = QemuImg(str(fake), limits=Limits(timeout_s=0.5))
    disks.volumes = LuksVolumes(disks.root / "volumes", disks.images, qemu_img)

    with pytest.raises(error) as failed:
        disks.create()

    assert failed.value.code == code
    assert "\x1b" not in failed.value.message
    assert disks.left() == []


def test_full_disk_is_told_and_leaves_nothing(disks, monkeypatch):
    # The space check is about the future; here the disk fills up while the image is written.
    def run(self, arguments, descriptors, largest_file_bytes, real=QemuImg.run):
        if arguments[0] == "convert":
            raise OSError(28, "No space left on device")
        return real(self, arguments, descriptors, largest_file_bytes)

    monkeypatch.setattr(QemuImg, "run", run)
    with pytest.raises(CapacityError) as failed:
        disks.create()

    assert failed.value.code == "volume.no_space"
    assert disks.left() == []


def test_volume_larger_than_the_free_space_is_refused(disks):
    with pytest.raises(CapacityError) as refused:
        disks.create(disks.volume(size_gib=1024 * 1024))

    assert refused.value.code == "volume.no_space"
    assert disks.left() == []


def test_volume_smaller_than_its_image_is_refused(disks):
    image = disks.image.model_copy(update={"size_bytes": (1 << 30) + 512})

    with pytest.raises(InvalidInputError) as refused:
        disks.create(disks.volume(image=image))

    assert refused.value.code == "volume.too_small"


def test_missing_image_is_named_and_leaves_nothing(disks):
    image = disks.image.model_copy(update={"digest": "sha256:" + "e" * 64})

    with pytest.raises(NotFoundError) as refused:
        disks.create(disks.volume(image=image))

    assert refused.value.code == "image.not_found"
    assert disks.left() == []


def test_existing_volume_is_kept_and_another_order_for_it_refused(disks):
    disks.create()
    before = Path(disks.volumes.path("vol_a", 1)).stat()

    disks.create()
    with pytest.raises(ConflictError) as refused:
        disks.create(disks.volume(generation=2))

    after = Path(disks.volumes.path("vol_a", 1)).stat()
    assert refused.value.code == "volume.exists"
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


class Cut(BaseException):
    """The agent dies here."""


@pytest.mark.parametrize("moment", ["format_volume", "write_image"])
def test_creation_cut_off_shows_incomplete_and_is_made_anew(disks, monkeypatch, moment):
    def die(*args: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(luks_files, moment, die)
        patch.setattr(LuksVolumes, "_clean_up", lambda *args: None)
        with pytest.raises(Cut):
            disks.create()

    assert [(v.volume, v.complete) for v in disks.volumes.observe()] == [("vol_a", False)]
    disks.create()
    assert [(v.volume, v.complete) for v in disks.volumes.observe()] == [("vol_a", True)]
    assert read_back(disks, disks.passphrase) == disks.content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"volume":"vol_b"}', b"x" * 5000])
def test_volume_with_unreadable_metadata_is_incomplete_and_kept(disks, content):
    disks.create()
    (disks.root / "volumes/vol_a/meta.json").write_bytes(content)

    assert [(v.volume, v.complete, v.tenant) for v in disks.volumes.observe()] == [("vol_a", False, "")]
    before = disks.head()
    with pytest.raises(ConflictError) as refused:
        disks.create()
    assert refused.value.code == "volume.unclear"
    assert disks.head() == before
    # By order it goes.
    disks.volumes.erase("vol_a")
    disks.create()


def test_erasing_zeroes_the_header_on_disk_and_is_repeatable(disks):
    disks.create(disks.volume(image=None))
    path = Path(disks.volumes.path("vol_a", 1))
    witness = disks.root / "witness"
    witness.hardlink_to(path)
    truncated: list[bytes] = []

    def look(fd: int, size: int, real=os.ftruncate) -> None:
        truncated.append(os.pread(os.open(witness, os.O_RDONLY), 4 << 20, 0))
        real(fd, size)

    os_ftruncate, os.ftruncate = os.ftruncate, look
    try:
        disks.volumes.erase("vol_a")
    finally:
        os.ftruncate = os_ftruncate
    disks.volumes.erase("vol_a")

    assert truncated == [bytes(4 << 20)]
    assert witness.stat().st_size == 0
    assert disks.left() == []
    assert disks.volumes.observe() == ()


def test_erasure_cut_off_shows_incomplete_and_can_be_finished(disks, monkeypatch):
    disks.create(disks.volume(image=None))

    def die(*args: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.agent.volumes.volumes.wipe", die)
        with pytest.raises(Cut):
            disks.volumes.erase("vol_a")

    assert [(v.complete, v.tenant) for v in disks.volumes.observe()] == [(False, "ten_a")]
    disks.volumes.erase("vol_a")
    assert disks.left() == []


def test_header_that_is_not_ours_is_refused_after_creation(disks):
    wrong = disks.root / "wrong.luks"
    make_luks(wrong, "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256", disks.passphrase)

    with wrong.open("rb") as stream, pytest.raises(EvidenceError) as refused:
        luks_files.check_header(stream.fileno(), 16 << 20)

    assert refused.value.code == "volume.header_wrong"
    assert "cbc-essiv" in refused.value.message


@pytest.mark.parametrize("name", ["../x", "vol_", "vol_A", "vm_a", "vol_a/../b"])
def test_names_that_are_no_volume_ids_reach_no_path(disks, name):
    with pytest.raises(BulkheadError):
        disks.volumes.path(name, 1)
    with pytest.raises(BulkheadError):
        disks.volumes.erase(name)

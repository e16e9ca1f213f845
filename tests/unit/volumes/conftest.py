from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.agent.volumes import ImageCache, LuksVolumes
from orchestrator.agent.volumes.qemuimg import QemuImg, secret_descriptor
from orchestrator.isolation.luks import MAX_PAYLOAD_BYTES
from orchestrator.model.assignment import ImageRef, Volume


def make_luks(path: Path, options: str, passphrase: bytes) -> None:
    """Make a small LUKS file by qemu-img alone, which now and then cannot time its key derivation."""
    for _ in range(20):
        with secret_descriptor(passphrase, 0) as secret:
            secret_object = f"secret,id=k0,file=/dev/fd/{secret}"
            command = ["qemu-img", "create", "-q", "-f", "luks", "--object", secret_object]
            command += ["-o", f"key-secret=k0,iter-time=20,{options}", str(path), "16M"]
            done = subprocess.run(command, pass_fds=(secret,), capture_output=True, check=False)
        if b"accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


class RememberingQemuImg(QemuImg):
    """The real qemu-img, except that it formats each kind of volume once: that takes it seconds of timing.

    The same passphrase and options give the same file again, master key included. Tests of what formatting
    itself does use `Disks.format_for_real`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._formatted: dict[tuple[object, ...], tuple[bytes, int]] = {}

    def run(self, arguments: Sequence[str], descriptors: Sequence[int], largest_file_bytes: int) -> None:
        if arguments[0] != "create":
            return super().run(arguments, descriptors, largest_file_bytes)
        secret, volume = descriptors
        options, size = arguments[arguments.index("-o") + 1], arguments[-1]
        kind = (os.pread(secret, 4096, 0), options, size)
        if kind not in self._formatted:
            super().run(arguments, descriptors, largest_file_bytes)
            self._formatted[kind] = (os.pread(volume, MAX_PAYLOAD_BYTES, 0), os.fstat(volume).st_size)
        head, size_bytes = self._formatted[kind]
        os.pwrite(volume, head, 0)
        os.ftruncate(volume, size_bytes)
        return None


#: One passphrase for the whole session, so that there is something to remember.
PASSPHRASE = b64encode(secrets.token_bytes(32))
QEMU_IMG = RememberingQemuImg()


class Disks:
    """A state directory with one image, a key and the drivers over it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = ImageCache(root / "images")
        self.volumes = LuksVolumes(root / "volumes", self.images, QEMU_IMG)
        self.passphrase = PASSPHRASE
        # Data, a hole's worth of zeros, data: zeros must arrive too.
        self.content = os.urandom(1 << 20) + bytes(1 << 20) + os.urandom(512)
        self.image = self.add(self.content)

    def format_for_real(self) -> None:
        """Remember nothing: each volume is formatted by qemu-img itself."""
        self.volumes = LuksVolumes(self.root / "volumes", self.images)

    def add(self, content: bytes) -> ImageRef:
        source = self.root / "source.raw"
        source.write_bytes(content)
        return self.images.add(source)

    def volume(self, **changes: object) -> Volume:
        fields = {"id": "vol_a", "generation": 1, "size_gib": 1, "image": self.image}
        return Volume(**{**fields, **changes})

    def create(self, volume: Volume | None = None, **changes: object) -> None:
        told = {"deployment": "dep_a", "tenant": "ten_a", "passphrase": self.passphrase, **changes}
        self.volumes.create(volume or self.volume(), **told)

    def head(self, volume: str = "vol_a") -> bytes:
        """The first 4 MiB of a volume's file as they lie on disk: its header and what comes after."""
        with Path(self.volumes.path(volume, 1)).open("rb") as stream:
            return stream.read(4 << 20)

    def left(self) -> list[str]:
        return sorted(str(p.relative_to(self.root / "volumes")) for p in (self.root / "volumes").rglob("*"))


@pytest.fixture
def disks():
    # Not below pytest's own directory, which only root may pass: qemu-img runs as someone else.
    root = Path(tempfile.mkdtemp(prefix="bulkhead-volumes-"))
    root.chmod(0o711)
    yield Disks(root)
    shutil.rmtree(root)

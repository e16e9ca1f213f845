"""Runs qemu-img: unprivileged, without environment, with limits, and with secrets only on a descriptor.

Never lets qemu-img guess a format and never names a tenant's file by path where a descriptor will do. Only
this package calls it. qemu-img is called, not linked.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.model.errors import CapacityError, HostError

#: A uid that owns nothing and runs nothing else: just below the range that VMs get
#: (`AgentSettings.uid_base`).
IMAGE_UID = 2_099_999
_STDERR_BYTES = 2000
_GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    timeout_s: float = 3600.0
    cpu_s: int = 1800
    address_space_bytes: int = 2 * _GIB


@contextmanager
def secret_descriptor(secret: bytes, uid: int) -> Iterator[int]:
    """Hold a secret in a sealed memory file that exists only as a descriptor; it is gone at the end."""
    fd = os.memfd_create("bulkhead-secret", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, secret)
        fcntl.fcntl(
            fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        os.fchmod(fd, 0o400)
        if os.geteuid() == 0:
            # /dev/fd/N opens the file anew, with the rights of whoever opens it.
            os.fchown(fd, uid, uid)
        yield fd
    finally:
        os.close(fd)


class QemuImg:
    """qemu-img as a child that can do nothing but its work."""

    def __init__(
        self, program: str = "/usr/bin/qemu-img", uid: int = IMAGE_UID, limits: Limits | None = None
    ) -> None:
        self._program = program
        self.uid = uid
        self._limits = limits or Limits()

    def run(self, arguments: Sequence[str], descriptors: Sequence[int], largest_file_bytes: int) -> None:
        """Run it to its end.

        Args:
            arguments: everything after the program's name. Never a secret.
            descriptors: what it inherits beside standard error.
            largest_file_bytes: no file may grow beyond this.

        Raises:
            HostError: `volume.qemu_img_failed`, `volume.qemu_img_timeout`.
            CapacityError: `volume.no_space`.
        """
        command = [*self._confinement(largest_file_bytes), self._program, *arguments]
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                    cwd="/",
                    pass_fds=tuple(descriptors),
                    start_new_session=True,
                )
            except OSError as exc:
                raise HostError(
                    "volume.qemu_img_failed", f"{command[0]} cannot be started: {exc.strerror}"
                ) from exc
            try:
                status = child.wait(self._limits.timeout_s)
            except subprocess.TimeoutExpired as exc:
                raise HostError(
                    "volume.qemu_img_timeout",
                    f"qemu-img {arguments[0]} took longer than {self._limits.timeout_s} s",
                ) from exc
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            errors.seek(0)
            said = errors.read(_STDERR_BYTES).decode("utf-8", "replace").strip()
        if status != 0:
            self._fail(arguments[0], status, said)

    def _confinement(self, largest_file_bytes: int) -> list[str]:
        limits = self._limits
        drop = ["/usr/bin/setpriv", "--no-new-privs"]
        if os.geteuid() == 0:
            drop += [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
            drop += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
        return [
            *drop,
            "/usr/bin/prlimit",
            f"--as={limits.address_space_bytes}",
            f"--cpu={limits.cpu_s}",
            f"--fsize={largest_file_bytes}",
            "--core=0",
            "--nofile=64",
            "--",
        ]

    def _fail(self, what: str, status: int, said: str) -> None:
        if "No space left on device" in said:
            raise CapacityError("volume.no_space", f"no space left while qemu-img {what} wrote")
        shown = "".join(c if c.isprintable() else " " for c in said) or "no message"
        raise HostError("volume.qemu_img_failed", f"qemu-img {what} ended with {status}: {shown}")

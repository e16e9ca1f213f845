"""What the probe image is made of, and the key that changes whenever any of it does.

The parts are the files beside this module, the versions of the build tools, and Debian packages (`packages`
gets them). Nothing is downloaded or built here. Called by `image` and `build`.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator.model.errors import BulkheadError

HERE = Path(__file__).resolve().parent

KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
"""Debian's kernel for virtual machines: small, and packed with LZ4, which emulated machines unpack fast."""

TOOL_TIMEOUT_S = 600

FETCHED_PACKAGES = ("busybox-static", "syslinux-efi")
BUILD_PACKAGES = (
    *("musl-tools", "gcc", "linux-libc-dev"),
    *("syslinux", "syslinux-common", "mtools", "dosfstools"),
)

KERNEL_OPTIONS = (
    "console=ttyS0,115200",
    "quiet",
    "panic=-1",
    # No calibration against timers that an emulated machine keeps badly.
    "tsc=reliable",
    "no_timer_check",
    "nowatchdog",
    "mitigations=off",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
    # There is no keyboard controller worth waiting for, and one serial port is enough.
    "i8042.noaux",
    "i8042.nokbd",
    "8250.nr_uarts=1",
    "audit=0",
    "apparmor=0",
)

BASE_MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "isofs",
    "button",
    "evdev",
)
SCSI_MODULES = ("virtio_scsi", "sd_mod", "sr_mod")
"""Loaded only where there is a virtio-scsi controller. The cloud kernel has no driver for SATA."""


class ProbeImageError(BulkheadError):
    """The probe image cannot be built."""


@dataclass(frozen=True)
class Recipe:
    """What of this machine decides the image's bytes; the archive's current versions come on top."""

    sources_sha256: str
    release: str
    """Code name of the Debian release the packages are from."""
    tools: tuple[tuple[str, str], ...]
    """Build packages: (name, version)."""

    @property
    def key(self) -> str:
        """Sixteen hex digits that name this recipe in the cache."""
        text = repr((self.sources_sha256, self.release, self.tools))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_tool(arguments: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a build tool and return what it prints.

    Raises:
        ProbeImageError: the tool is missing or fails; the message ends with its last lines.
    """
    try:
        done = subprocess.run(
            arguments, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S
        )
    except FileNotFoundError as exc:
        raise ProbeImageError(
            "probe.tool_missing",
            f"{arguments[0]} is not installed",
            hint="install the packages that bindep.txt names",
        ) from exc
    except subprocess.CalledProcessError as exc:
        tail = "\n".join((exc.stderr or exc.stdout or "").strip().splitlines()[-8:])
        message = f"{arguments[0]} failed ({exc.returncode}): {tail}"
        raise ProbeImageError("probe.tool_failed", message) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ProbeImageError("probe.tool_failed", f"{arguments[0]} did not end well: {exc}") from exc
    return done.stdout


def source_files() -> list[Path]:
    """Return the files of this folder that decide the image, in a fixed order."""
    return sorted([*HERE.glob("*.py"), *HERE.glob("src/*.c"), *HERE.glob("src/*.h")])


def resolve() -> Recipe:
    """Look at the sources and the build tools. Takes a fraction of a second, needs no network.

    The archive's newest kernel is deliberately no part of it: an image that is built stays good without a
    network, and its manifest says which versions it holds.

    Raises:
        ProbeImageError: a build package is not installed.
    """
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    text = run_tool(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *BUILD_PACKAGES])
    tools = tuple(sorted((name, version) for name, version in (line.split() for line in text.splitlines())))
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")
    return Recipe(digest.hexdigest(), release, tools)

"""Which QEMU runs the lab host, and whether it may use KVM.

QEMU 7.2 (Debian 12) survives nested load under emulation; 10.0 (Debian 13) at times does not (docs/lab.md
has the figures). So on a newer Debian a bookworm root is unpacked into the cache and its QEMU run by that
root's own loader: no chroot, no mount, nothing installed. KVM is used only when the CPU, the module and a
trial start all allow nesting.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from images.labhost import build, debian

PROGRAM = "qemu-system-x86_64"
WANTED_VERSION = (7, 2)
FORCE_BOOKWORM = "BULKHEAD_LAB_QEMU"  # set to "bookworm" to use the unpacked one even where 7.2 is installed
LIBRARIES = "usr/lib/x86_64-linux-gnu"
TRIAL_S = 4.0


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU to start: the words before its arguments, its version, and environment it needs."""

    command: tuple[str, ...]
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)


def choose(say: Callable[[str], None]) -> Qemu:
    """Return this machine's QEMU if it is the one that lasts, else the one from an unpacked bookworm root."""
    return installed_choice()[0] or from_root(_bookworm_root(say))


def installed_choice() -> tuple[Qemu | None, str]:
    """Return this machine's own QEMU if it is the one that lasts, and the reason for or against it."""
    wanted = ".".join(map(str, WANTED_VERSION))
    installed = shutil.which(PROGRAM)
    if os.environ.get(FORCE_BOOKWORM) == "bookworm":
        return None, f"{FORCE_BOOKWORM} asks for the unpacked one"
    if installed is None:
        return None, f"no {PROGRAM} is installed"
    version = read_version((installed,))
    text = ".".join(map(str, version))
    if version[: len(WANTED_VERSION)] != WANTED_VERSION:
        return None, f"the installed {text} is not {wanted}, which lasts"
    return Qemu((installed,), text), f"the installed one is a {wanted}, which lasts"


def unpacked() -> Qemu | None:
    """Return the QEMU of the bookworm root in the cache, if it was unpacked before."""
    root = bookworm_folder()
    return from_root(root) if (root / "usr/bin" / PROGRAM).exists() else None


def bookworm_folder() -> Path:
    """Where QEMU 7.2 from Debian 12's packages is unpacked."""
    return build.cache_folder() / "qemu-bookworm"


def read_version(command: tuple[str, ...], environment: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """Ask a QEMU for its version."""
    done = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None:
        raise RuntimeError(f"{command[-1]} does not tell its version: {done.stdout[:200]!r}")
    return tuple(int(part) for part in match.groups())


def from_root(root: Path) -> Qemu:
    """Return the QEMU of an unpacked Debian root, run by that root's loader with its libraries and data."""
    libraries = root / LIBRARIES
    command = (
        str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries),
        str(root / "usr/bin" / PROGRAM),
        "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios"),
    )  # fmt: skip
    environment = {"QEMU_MODULE_DIR": str(libraries / "qemu")}
    version = read_version(command[:4], environment)
    return Qemu(command, ".".join(map(str, version)), environment)


def _bookworm_root(say: Callable[[str], None]) -> Path:
    root = bookworm_folder()
    if (root / "usr/bin" / PROGRAM).exists():
        return root
    say("unpacking QEMU 7.2 from Debian 12's packages (once)")
    work = build.cache_folder() / f"building-qemu-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        debian.bootstrap(
            suite="bookworm", packages=["qemu-system-x86"], hooks=[], log=work / "log", target=work / "root"
        )
        shutil.rmtree(root, ignore_errors=True)
        (work / "root").rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def choose_accelerator(qemu: Qemu) -> str:
    """Return `kvm` where nested virtualisation works for real, else `tcg`."""
    return judge_accelerator(qemu)[0]


def judge_accelerator(qemu: Qemu, root: Path = Path("/")) -> tuple[str, str]:
    """Return the accelerator for a lab host and the reason, one clause; tries a start for `TRIAL_S` at most.

    A /dev/kvm alone is no proof: on some sandboxes it exists without svm or vmx and QEMU aborts with it.
    """
    why_not = _why_not_nested(root)
    if why_not is not None:
        return "tcg", why_not
    if not _trial_start(qemu):
        return "tcg", "KVM allows nesting, but a trial start ended"
    return "kvm", "the CPU and KVM's module allow nesting, and a trial start lived"


def _why_not_nested(root: Path) -> str | None:
    """Return what stands against nested virtualisation under KVM, as the kernel at `root` tells it."""
    try:
        flags = set((root / "proc/cpuinfo").read_text().split())
    except OSError:
        return "/proc/cpuinfo cannot be read"
    modules = [module for flag, module in (("svm", "kvm_amd"), ("vmx", "kvm_intel")) if flag in flags]
    if not modules:
        return "the CPU shows neither svm nor vmx"
    nested = root / "sys/module" / modules[0] / "parameters/nested"
    if not nested.exists():
        return f"{modules[0]} is not loaded"
    if nested.read_text().strip() not in ("1", "Y"):
        return f"{modules[0]} does not allow nesting"
    if not os.access(root / "dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened"
    return None


def _trial_start(qemu: Qemu) -> bool:
    """Let the firmware run for a few seconds: paravirtual KVMs abort while setting the CPU's registers."""
    argv = [*qemu.command, "-nodefaults", "-display", "none", "-machine", "q35,kernel-irqchip=split",
            "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "256M"]  # fmt: skip
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **qemu.environment},
    )  # fmt: skip
    try:
        process.wait(TRIAL_S)
    except subprocess.TimeoutExpired:
        return True
    finally:
        process.kill()
        process.wait()
    return False

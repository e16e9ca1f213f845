"""Makes the QEMU that runs the lab host, once, and tells whether it may use KVM.

Debian's packages will not do: 7.2 (Debian 12) misplaces writes to devices while another CPU changes where
devices are, and ends by that; 10.0 (Debian 13) hangs at times under nested load (docs/lab.md has the
figures). So Debian 12's source is compiled in a root of its own, with the patches of `emulator/`, and what
comes of it is kept in the cache with libraries and loader: nothing is installed, and it runs on any Debian.
KVM is used only when the CPU, the module and a trial start all allow nesting.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from images.labhost import build, debian

PROGRAM = "qemu-system-x86_64"
SUITE = "bookworm"
RECIPE = build.HERE / "emulator"
LOADER = "ld-linux-x86-64.so.2"
# Firmware comes from the first two; the others fetch and compile the source.
PACKAGES = (
    "seabios", "qemu-system-data", "ca-certificates", "dpkg-dev", "gcc", "libc6-dev", "libfdt-dev",
    "libglib2.0-dev", "libpixman-1-dev", "libslirp-dev", "meson", "ninja-build", "patch", "pkg-config",
    "python3", "zlib1g-dev",
)  # fmt: skip
TRIAL_S = 4.0


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU to start: the words before its arguments, and its version."""

    command: tuple[str, ...]
    version: str


def folder() -> Path:
    """Where the QEMU of this recipe is kept, made or not."""
    files = [path for path in sorted(RECIPE.iterdir()) if path.is_file()]
    return build.cache_folder() / f"qemu-{build.recipe_hash(files, ' '.join(PACKAGES))}"


def if_made() -> Qemu | None:
    """Return the QEMU of this recipe, if the cache holds it.

    Raises:
        RuntimeError: what lies there does not tell its version.
    """
    made = folder()
    if not made.exists():
        return None
    libraries = made / "lib"
    command = (str(libraries / LOADER), "--library-path", str(libraries), str(made / PROGRAM))
    return Qemu((*command, "-L", str(made / "share")), _version(command))


def make(say: build.Say) -> Qemu:
    """Return the QEMU of this recipe, made now if the cache lacks it. Three to six minutes; needs root.

    Raises:
        RuntimeError: a package or the source could not be had, or it does not compile; with the log's end.
    """
    made = if_made()
    if made is not None:
        return made
    started = time.monotonic()
    say("the lab's QEMU: compiling Debian 12's with the patches of images/labhost/emulator (once, minutes)")
    work = build.cache_folder() / f"building-qemu-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        out = work / "out"
        out.mkdir()
        shutil.copytree(RECIPE, work / "in")
        debian.bootstrap(
            suite=SUITE, packages=PACKAGES, log=work / "log",
            hooks=[
                f"customize-hook=copy-in {work / 'in'} /",
                f'customize-hook=env -i {build.CLEAN_ENVIRONMENT} chroot "$1" sh /in/compile.sh',
                f'customize-hook=tar -C "$1/out" -cf - . | tar -C {out} -xf -',
            ],
        )  # fmt: skip
        shutil.rmtree(folder(), ignore_errors=True)
        out.rename(folder())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made = if_made()
    if made is None:
        raise RuntimeError(f"{folder()} went away while it was used")
    say(f"the lab's QEMU: {made.version}, made in {time.monotonic() - started:.0f} s")
    return made


def _version(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    match = re.search(r"version (\d+\.\d+\.\d+)", done.stdout)
    if match is None:
        raise RuntimeError(f"{command[-1]} does not tell its version: {done.stdout[:200]!r}")
    return match[1]


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
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(TRIAL_S)
    except subprocess.TimeoutExpired:
        return True
    finally:
        process.kill()
        process.wait()
    return False

"""What this machine has for building and testing: one table, each miss with the command that mends it.

It reads bindep.txt, dpkg, /proc and the image cache, and asks `qemu` what would run the lab host and why. It
never installs, unpacks or changes anything. Called by `__main__` (`make doctor`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from images.labhost import build, debian, lab, machine, qemu

BINDEP = build.REPOSITORY / "bindep.txt"
PACKAGE_LINE = re.compile(r"^([a-z0-9.+-]+) \[([a-z ]+)\]$")
DEBIAN_RELEASES = ("12", "13")
MIN_PYTHON = (3, 11)
MIN_CORES = 2
# A lab host's memory, and as much again as the fast tests and the emulator's translation cache take.
MIN_MEMORY_MIB = 2 * machine.MEMORY_MIB_PER_NODE + 2048
# Two roots and the image side by side while it is built; the image alone needs a third of it.
MIN_BUILD_MIB = 6144
# What a lab host writes over its image, logs included.
MIN_LAB_MIB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, what is there, and, if something needed is missing, the way to get it.

    `fix` empty means that nothing is missing.
    """

    what: str
    found: str
    fix: str = ""


def wanted_packages(bindep: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return (package, profiles) of each line of bindep.txt.

    Raises:
        RuntimeError: a line is not `package [profile ...]`; hostprep/packages.sh would pass it over.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    for line in bindep.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = PACKAGE_LINE.match(line)
        if match is None:
            raise RuntimeError(f"bindep.txt: cannot read {line!r}")
        found.append((match.group(1), tuple(match.group(2).split())))
    return found


def judge_packages(
    wanted: Iterable[tuple[str, tuple[str, ...]]], installed: Mapping[str, str]
) -> list[Finding]:
    """Compare what bindep.txt wants with the versions that are installed."""
    return [
        Finding(f"package {name} ({', '.join(profiles)})", installed[name])
        if name in installed
        else Finding(f"package {name} ({', '.join(profiles)})", "missing", _install(profiles[0]))
        for name, profiles in wanted
    ]


def _install(profile: str) -> str:
    return f"hostprep/packages.sh {profile}"


def installed_packages(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that dpkg has as installed."""
    shape = "${Package} ${db:Status-Status} ${Version}\n"
    # Status 1 only says that some names are unknown.
    argv = ["dpkg-query", "-W", "-f", shape, *names]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in shown.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}


def judge_release(os_release: str) -> Finding:
    """Tell whether the lab host can be built from this machine's own package sources."""
    fields = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', os_release, flags=re.MULTILINE))
    found = fields.get("PRETTY_NAME") or fields.get("ID") or "unknown"
    if fields.get("ID") == "debian" and fields.get("VERSION_ID") in DEBIAN_RELEASES:
        return Finding("distribution", found)
    return Finding("distribution", found, "use a machine with Debian 12 or 13")


def judge_python(version: tuple[int, ...]) -> Finding:
    """Tell whether the interpreter is new enough."""
    text = ".".join(map(str, version))
    return Finding("python", text, "" if version[:2] >= MIN_PYTHON else "apt-get install python3")


def judge_cores(count: int) -> Finding:
    """Emulation of a lab host and the tests beside it want a core each."""
    return Finding("cores", str(count), "" if count >= MIN_CORES else f"give it {MIN_CORES} cores")


def judge_memory(meminfo: str, lab_runs: bool) -> Finding:
    """Compare available memory with what booting a lab host needs; one that runs has its memory already."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, flags=re.MULTILINE)
    if match is None:
        return Finding("memory", "unknown", "mount /proc")
    available_mib = int(match.group(1)) // 1024
    if lab_runs:
        return Finding("memory", f"{available_mib} MiB available, the lab host runs")
    fix = "" if available_mib >= MIN_MEMORY_MIB else f"free memory up: a lab host needs {MIN_MEMORY_MIB} MiB"
    return Finding("memory", f"{available_mib} MiB available", fix)


def judge_disk(folder: Path, free_mib: int, needed_mib: int) -> Finding:
    """Compare the free space of one folder's file system with the need."""
    fix = "" if free_mib >= needed_mib else f"free space up: {needed_mib} MiB are needed"
    return Finding(f"disk at {folder}", f"{free_mib} MiB free", fix)


def judge_user(uid: int, sudo: bool, image_built: bool) -> Finding:
    """Root builds the image and installs packages; a finished image boots without it."""
    if uid == 0:
        return Finding("user", "root")
    if sudo:
        return Finding("user", f"uid {uid}, sudo is there")
    fix = "" if image_built else "become root, or install sudo: building the lab host's image needs it"
    return Finding("user", f"uid {uid}, no sudo", fix)


def _judge_qemu() -> list[Finding]:
    """Say which QEMU and accelerator a lab host started now would get."""
    made = qemu.if_made()
    if made is None:
        return [Finding("QEMU for the lab", "not compiled; `make lab` does it, three to six minutes")]
    accelerator, why = qemu.judge_accelerator(made)
    return [
        Finding("QEMU for the lab", f"{made.version}, from {qemu.folder()}"),
        Finding("accelerator", f"{accelerator}: {why}"),
    ]


def _judge_image(image: build.Image | None) -> Finding:
    if image is None:
        return Finding("lab host image", "not built; `make lab` builds it, a few minutes")
    return Finding("lab host image", str(image.folder))


def _judge_pip() -> Finding:
    try:
        return Finding("pip", " ".join(debian.pip_command()))
    except RuntimeError as exc:
        return Finding("pip", str(exc), "apt-get install python3-pip")


def _free_mib(folder: Path) -> int:
    """Free space where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free >> 20


def examine() -> list[Finding]:
    """Look at this machine; a few seconds where a trial start under KVM is due, else less than one."""
    image = build.image_if_built()
    lab_runs = lab.LabHost(1).running() is not None
    wanted = wanted_packages(BINDEP.read_text())
    cache, state = build.cache_folder(), lab.lab_folder()
    needed_mib = MIN_LAB_MIB if image is not None else MIN_BUILD_MIB
    return [
        judge_release(Path("/etc/os-release").read_text()),
        judge_python(tuple(map(int, platform.python_version_tuple()[:2]))),
        _judge_pip(),
        judge_user(os.geteuid(), shutil.which("sudo") is not None, image is not None),
        judge_cores(len(os.sched_getaffinity(0))),
        judge_memory(Path("/proc/meminfo").read_text(), lab_runs),
        judge_disk(cache, _free_mib(cache), needed_mib),
        judge_disk(state, _free_mib(state), MIN_LAB_MIB),
        *judge_packages(wanted, installed_packages(name for name, _ in wanted)),
        *_judge_qemu(),
        _judge_image(image),
    ]


def table(findings: Iterable[Finding]) -> str:
    """Lay the findings out in columns; a miss is marked at the line's start."""
    rows = [("miss" if one.fix else "ok", one.what, one.found, one.fix) for one in findings]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for mark, what, found, fix in rows:
        then = f"  -> {fix}" if fix else ""
        lines.append(f"{mark:<{widths[0]}}  {what:<{widths[1]}}  {found}{then}")
    return "\n".join(lines)


def main() -> int:
    """Print the table; status 1 if something needed is missing."""
    findings = examine()
    print(table(findings))
    misses = [one for one in findings if one.fix]
    if misses:
        print(f"{len(misses)} missing; `make lab-packages` installs all packages", file=sys.stderr)
    return 1 if misses else 0

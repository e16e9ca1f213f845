"""What `python -m images.labhost` can do to a whole lab: up, down, push, status.

`up` builds what is missing, starts one or two hosts and waits; it changes nothing where they run already.
`down` leaves no process and no socket; logs and the report stay. A lock keeps two of them apart. Called by
`__main__`, `make lab`, `make run` and the tests' fixtures.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from images.labhost import build, control, lab, machine, qemu

Say = Callable[[str], None]
# What runs in the lab host; the tests go along because the contract tests run there against the real drivers.
PUSHED = (
    "orchestrator", "hostprep", "api", "tests", "images/__init__.py", "images/probe",
    "images/labhost/__init__.py", "images/labhost/inside.py", "images/labhost/tenants.py", "pyproject.toml",
)  # fmt: skip
PUSHED_SUFFIXES = {".py", ".toml", ".json", ".txt", ".rng", ".sh", ".ini", ".c", ".h"}
SOURCE = "/opt/bulkhead/src"
NVME_MIB = 64


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lab's lock; another `up` or `down` waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def up(
    say: Say, *, shape: str = "everyday", numbers: Sequence[int] = (1,), probe_image: Path | None = None
) -> list[lab.LabHost]:
    """Return these lab hosts running in `shape`, started now where they do not run.

    Args:
        numbers: 1, 2 or both; both at once are joined by a wire.

    Raises:
        lab.LabError: a host of another shape or without the wire runs, or a host does not come up.
    """
    folder = lab.lab_folder()
    with locked(folder):
        found = [lab.LabHost(number, folder) for number in numbers]
        wired = len(found) > 1
        missing = [host for host in found if not _runs_as(host, shape, wired=wired)]
        if missing:
            _start(missing, say, shape, _wires(folder) if wired else {}, probe_image)
        for host in found:
            host.wait_booted()
        return found


def _runs_as(host: lab.LabHost, shape: str, *, wired: bool) -> bool:
    """Tell whether the host runs; refuse one that runs but is not what is wanted."""
    running = host.running()
    if running is None:
        return False
    if running.shape != shape:
        raise lab.LabError(f"a lab host of shape {running.shape} runs: take it down first (make lab-stop)")
    if wired and not running.wired:
        raise lab.LabError(
            "the lab host that runs has no wire to a second one: take it down first (make lab-stop)"
        )
    return True


def _start(
    missing: list[lab.LabHost],
    say: Say,
    shape: str,
    wires: Mapping[int, tuple[int, int]],
    probe_image: Path | None,
) -> None:
    folder = lab.lab_folder()
    with ThreadPoolExecutor(1) as beside:
        # Where both are made: one compiles, the other waits mostly for downloads and the scripts of packages.
        made = beside.submit(qemu.make, say)
        image, chosen = build.build(say), made.result()
    accelerator = qemu.choose_accelerator(chosen)
    key = _key(folder)
    _new_report(folder, {host.number for host in missing}, chosen.version)
    for host in missing:
        host.folder.mkdir(parents=True, exist_ok=True)
        overlay, disk = host.folder / "overlay.qcow2", host.folder / "nvme.img"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(overlay)]
        subprocess.run(create, check=True)
        with disk.open("wb") as stream:
            stream.truncate(NVME_MIB << 20)
        spec = machine.Spec(
            number=host.number, shape=machine.SHAPES[shape], accelerator=accelerator, kernel=image.kernel,
            initrd=image.initrd, overlay=overlay, nvme_disk=disk, ssh_port=lab.free_port(socket.SOCK_STREAM),
            public_key=key, wire=wires.get(host.number), probe_image=probe_image,
        )  # fmt: skip
        host.start(spec, chosen)
        kind = f"QEMU {chosen.version} ({accelerator}), shape {shape}"
        say(f"lab host {host.number}: {kind}, booting (about a minute)")
    for host in missing:
        wait_booted(host, say)


def wait_booted(host: lab.LabHost, say: Say) -> None:
    """Wait until a host that was started is up; one that dies on the way by itself is started again, once."""
    try:
        say(f"lab host {host.number}: up after {host.wait_booted():.0f} s")
    except lab.LabDiedError as exc:
        say(f"lab host {host.number}: died while booting, is started again: {exc}")
        host.restart_once()


def _new_report(folder: Path, started: set[int], version: str) -> None:
    """Forget the deaths of the hosts that start anew; those of a host that goes on running stay."""
    path = folder / "report.json"
    known = json.loads(path.read_text())["deaths"] if path.exists() else []
    kept = [death for death in known if death["host"] not in started]
    path.write_text(json.dumps({"deaths": kept, "qemu": version}, indent=1))


def _key(folder: Path) -> str:
    """Make the lab's ssh key once; return its public half."""
    key = folder / "id_ed25519"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key], check=True)
    return key.with_suffix(".pub").read_text()


def _wires(folder: Path) -> dict[int, tuple[int, int]]:
    """Each host's two UDP ports, kept while the lab lives so that a host started later finds the other."""
    record = folder / "wire.json"
    if not record.exists():
        record.write_text(json.dumps([lab.free_port(socket.SOCK_DGRAM), lab.free_port(socket.SOCK_DGRAM)]))
    first, second = json.loads(record.read_text())
    return {1: (first, second), 2: (second, first)}


def running_hosts() -> list[lab.LabHost]:
    """Return the lab hosts whose QEMU runs."""
    folder = lab.lab_folder()
    hosts = [lab.LabHost(int(path.name[4:]), folder) for path in sorted(folder.glob("host[0-9]"))]
    return [host for host in hosts if host.running() is not None]


def down(say: Say) -> None:
    """End this checkout's lab hosts and controllers, remove their state; logs and the report stay."""
    folder = lab.lab_folder()
    if not folder.exists():
        return
    with locked(folder):
        for state in sorted(path.parent for path in folder.glob("controller*/controller.toml")):
            control.LabController(state).remove()
            say(f"{state.name}: gone")
        for path in sorted(folder.glob("host[0-9]")):
            lab.LabHost(int(path.name[4:]), folder).stop()
            say(f"lab host {path.name[4:]}: gone")
        for name in ("id_ed25519", "id_ed25519.pub", "wire.json"):
            (folder / name).unlink(missing_ok=True)


def push(host: lab.LabHost, root: Path = build.REPOSITORY) -> bool:
    """Replace the code in the lab host by that of `root`, this checkout; tell whether it was another."""
    paths = pushed_files(root)
    mark, digest = f"{SOURCE}/.pushed", _digest(paths, root)
    if host.ssh(f"cat {mark} 2>/dev/null || true").stdout.strip() == digest:
        return False
    script = f"rm -rf {SOURCE}.new && mkdir -p {SOURCE}.new && tar -C {SOURCE}.new -xzf - && rm -rf {SOURCE}"
    marked = f"echo {digest} >{SOURCE}.new/.pushed && mv {SOURCE}.new {SOURCE}"
    host.ssh(f"{script} && {marked}", 300, input=packed(paths, root))
    return True


def _digest(paths: list[Path], root: Path) -> str:
    """Name the files by name and content."""
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.relative_to(root)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def packed(paths: list[Path], root: Path = build.REPOSITORY) -> bytes:
    """Return a compressed tar of the `paths` under `root`, owned by root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in paths:
            name = str(path.relative_to(root))
            archive.add(path, arcname=name, recursive=False, filter=_as_root)
    return buffer.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def pushed_files(root: Path = build.REPOSITORY) -> list[Path]:
    """Return the files of a checkout that belong in the lab host."""
    found: list[Path] = []
    for name in PUSHED:
        each = root / name
        if each.is_file():
            found.append(each)
        found += [path for path in each.rglob("*") if path.suffix in PUSHED_SUFFIXES and path.is_file()]
    return sorted(set(found))


def _failed_units(host: lab.LabHost) -> list[str]:
    """One line per service of the lab host that did not start."""
    shown = host.ssh("systemctl list-units --failed --plain --no-legend", 60).stdout
    return [f"  failed: {line.split()[0]}" for line in shown.splitlines() if line.split()]


def status() -> str:
    """Describe the lab: its hosts, how they live, and the stand-ins."""
    lines: list[str] = []
    for host in running_hosts():
        running = host.running()
        if running is None:
            continue
        state = host.died_reason() or "answers"
        age = time.time() - (host.folder / "running.json").stat().st_mtime
        lines.append(
            f"host {host.number}: {state}; pid {running.pid}, ssh port {running.ssh_port}, {running.shape}, "
            f"QEMU {running.qemu_version} {running.accelerator}, up {age / 60:.0f} min"
        )
        deaths = host.report()["deaths"]
        if deaths:
            lines.append(f"  died before: {deaths}")
        if state == "answers":
            lines += _failed_units(host)
    if not lines:
        return "no lab host runs"
    return "\n".join([*lines, "stand-ins:", machine.describe()])

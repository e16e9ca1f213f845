"""Debian roots from this machine's own apt configuration: which mirrors, which proxy, and mmdebstrap's call.

It names no host: the mirrors are read from `apt-get indextargets`, with the suite's name exchanged, so the
same code works behind any mirror and on Debian 12 and 13. Called by `build` and by `qemu`.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CODENAMES = ("bookworm", "trixie")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Read by mmdebstrap's apt from our command line, because it ignores /etc/apt of the machine.
PASSED_APT_SETTINGS = re.compile(r"^Acquire::(http|https|Retries|ForceIPv4)\b.*", re.IGNORECASE)
EXCLUDED_PATHS = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*",
)  # fmt: skip


def source_lines(suite: str) -> list[str]:
    """Return one-line apt sources for `suite` from the mirrors this machine uses for its own release."""
    with tempfile.TemporaryDirectory() as lists:
        targets = _index_targets()
        if not targets:
            # Never updated, or its lists thrown away (containers do): update into a folder of our own.
            own = ("-o", f"Dir::State::Lists={lists}")
            subprocess.run(["apt-get", "-q", *own, "update"], capture_output=True, check=False)
            targets = _index_targets(*own)
    return translate_sources(targets, suite)


def _index_targets(*options: str) -> list[str]:
    shape = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    argv = ["apt-get", *options, "indextargets", "--format", shape, "Identifier: Packages"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def translate_sources(targets: Sequence[str], suite: str) -> list[str]:
    """Exchange this machine's Debian codename for `suite` in `ORIGIN URI RELEASE COMPONENT` lines.

    Raises:
        RuntimeError: apt knows no Debian mirror (another distribution, or no network).
    """
    found: list[str] = []
    for target in targets:
        fields = target.split()
        if len(fields) != 4 or fields[0] != "Debian" or fields[3] != "main":
            continue
        _, uri, release, component = fields
        codename, dash, kind = release.partition("-")
        if codename not in CODENAMES or kind not in ("", "updates", "security"):
            continue
        line = f"deb [signed-by={KEYRING}] {uri} {suite}{dash}{kind} {component}"
        if line not in found:
            found.append(line)
    if not found:
        raise RuntimeError("apt knows no reachable Debian 12 or 13 mirror")
    return found


def apt_options() -> list[str]:
    """Return this machine's proxy and retry settings in the form that mmdebstrap passes to its apt."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    set_lines = [line for line in dump.splitlines() if not line.endswith('"";')]
    return [line for line in set_lines if PASSED_APT_SETTINGS.match(line)]


def bootstrap(
    *, suite: str, packages: Sequence[str], hooks: Sequence[str], log: Path, target: Path | None = None
) -> None:
    """Make a root of `suite` with `packages`.

    `hooks` are mmdebstrap's `NAME-hook=COMMAND`; `target` is a folder or a tar file, or nothing if the
    hooks took what they needed.

    Raises:
        RuntimeError: mmdebstrap failed; the message carries the end of its log.
    """
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}"]
    argv += [f"--format={'null' if target is None else 'tar' if target.suffix == '.tar' else 'directory'}"]
    argv += [f"--aptopt={option}" for option in ('Acquire::Languages "none"', *apt_options())]
    argv += [f"--dpkgopt={option}" for option in ("force-confold", "force-unsafe-io")]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED_PATHS]
    argv += [f"--{hook}" for hook in hooks]
    argv += [suite, "-" if target is None else str(target), *source_lines(suite)]
    with log.open("wb") as stream:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False)
    if done.returncode != 0:
        end = log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"mmdebstrap of {suite} failed ({done.returncode}):\n{end}")


def pip_command() -> list[str]:
    """Return the pip to download with: this interpreter's, else the machine's."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        raise RuntimeError("pip is missing: install python3-pip")
    return [pip]

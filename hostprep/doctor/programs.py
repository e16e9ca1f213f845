"""Runs the programs that the doctor asks: fixed command lines that list and change nothing."""

from __future__ import annotations

import subprocess

_TIMEOUT_S = 10.0
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def run_program(command: tuple[str, ...]) -> str | None:
    """Return what it prints; None where it is missing, fails or takes too long."""
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env=_ENVIRONMENT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.decode("utf-8", "replace")

"""The agent's code as it goes to a host: a wheel built from this checkout, without a download."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator.model.errors import HostError, InvalidInputError

_BUILD_S = 120.0


def checkout() -> Path:
    """Return the folder of the checkout that this program runs from.

    Raises:
        InvalidInputError: `prepare.no_checkout`: it was installed without its playbooks.
    """
    root = Path(__file__).resolve().parents[2]
    needed = ("pyproject.toml", "requirements-host.lock", "playbooks/site.yml")
    missing = [name for name in needed if not (root / name).is_file()]
    if missing:
        raise InvalidInputError(
            "prepare.no_checkout",
            f"{root} has no {missing[0]}",
            hint="run bulkhead host prepare from a checkout of Bulkhead",
        )
    return root


def build_wheel(root: Path, target: Path) -> Path:
    """Build the wheel of the checkout `root` into the folder `target`, and return it.

    Raises:
        HostError: `prepare.build`: the build failed; `prepare.not_installed`: hatchling is missing.
    """
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    try:
        done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=_BUILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise HostError("prepare.build", f"the wheel cannot be built: {exc}") from exc
    if "No module named hatchling" in done.stderr:
        raise not_installed("hatchling")
    found = sorted(target.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HostError("prepare.build", f"the wheel cannot be built: {last}")
    return found[0]


def not_installed(name: str) -> HostError:
    """Say that a part of the extra `prepare` is missing."""
    return HostError(
        "prepare.not_installed",
        f"{name} is missing here",
        hint="pip install --require-hashes -r requirements-prepare.lock",
    )

"""Settings files: read when they are there; one that somebody named must be."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from orchestrator.model.errors import InvalidInputError


def read_toml(file: Path, default: Path, option: str) -> dict[str, Any]:
    """Return what a settings file says; nothing where the usual one is missing.

    Args:
        option: by which the file is named on the command line.

    Raises:
        InvalidInputError: `settings.missing`: another than the usual file was named, and is not there;
            `settings.invalid`: it cannot be read.
    """
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError as exc:
        if file == default:
            return {}
        raise InvalidInputError(
            "settings.missing",
            f"there is no file {file}",
            field=option,
            hint=f"name one that is there, or leave {option} out",
        ) from exc
    except (OSError, ValueError) as exc:  # bad TOML and bad UTF-8 are both the latter
        raise InvalidInputError("settings.invalid", f"{file}: {exc}") from exc

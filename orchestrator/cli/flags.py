"""What was typed before the noun: read by the root, used by the session of nouns that call a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Flags:
    """What was given before the noun; None is not given. Those with a variable hold its value already."""

    profile: str | None = None
    url: str | None = None
    ca: Path | None = None
    debug: bool = False

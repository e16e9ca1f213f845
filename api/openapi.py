"""Writes `api/openapi.json`: `python -m api.openapi`. A test holds it against the routes."""

from __future__ import annotations

import json
from pathlib import Path

from api.app import routes_only

FILE = Path(__file__).parent / "openapi.json"


def text() -> str:
    """The document as it is committed: sorted, so that a change shows as what it is."""
    return json.dumps(routes_only().openapi(), indent=1, sort_keys=True, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())

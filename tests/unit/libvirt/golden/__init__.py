"""Definitions as they shall be, one file for each of `specs.SPECS`.

After a wanted change of a builder write them anew, read the difference, and commit it with the change:

    .venv/bin/python -m tests.unit.libvirt.golden
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def golden(name: str) -> str:
    """One definition as it is committed."""
    return (HERE / f"{name}.xml").read_text()

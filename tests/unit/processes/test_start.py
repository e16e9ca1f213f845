"""What a command loads before it begins: on a busy host a start is seconds."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(*words: str) -> set[str]:
    """Top-level modules that a run of the command line has loaded at its end."""
    script = (
        "import sys\n"
        "from orchestrator.__main__ import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_an_agents_command_loads_no_http_no_database_and_no_driver() -> None:
    assert not {"httpx2", "fastapi", "sqlalchemy", "libvirt"} & loaded_by("agent", "schema")


def test_the_question_can_see_what_is_loaded() -> None:
    assert {"typer", "pydantic"} <= loaded_by("agent", "schema")

"""The next version, made of this one for the lab's upgrades, is one that the two sides tell apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator import __version__
from orchestrator.model.protocol import PROTOCOL_VERSION
from tests.lab.versions import NEXT, next_version


def test_the_next_version_is_one_version_on_and_says_more(tmp_path: Path) -> None:
    program = (
        "import orchestrator as o, orchestrator.model.protocol as p\n"
        "said = p.Heartbeat(boot_id='x').model_dump()\n"
        "print(o.__version__, p.PROTOCOL_VERSION, 'of_next_version' in said)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=next_version(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([NEXT, str(PROTOCOL_VERSION + 1), "True"], "")
    assert __version__ != NEXT

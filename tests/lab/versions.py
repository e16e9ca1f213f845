"""The next version of the product: this checkout's code, one version of the protocol on, with more to say.

Made from the working tree, so that an upgrade can be tried in the lab before there is a next version.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from images.labhost import build

NEXT = "0.1.0+next"
#: Whole folders, as a controller and the lab host's agent need them.
_PARTS = ("orchestrator", "hostprep", "api", "tests", "images", "playbooks", "pyproject.toml")
#: File, what stands in it once, and what the next version has there.
_CHANGES = (
    ("orchestrator/__init__.py", '__version__ = "0.1.0"', f'__version__ = "{NEXT}"'),
    ("orchestrator/model/protocol.py", "PROTOCOL_VERSION = 1\n", "PROTOCOL_VERSION = 2\n"),
    # An agent of the next version says so with every sign of life and with every report.
    (
        "orchestrator/model/protocol.py",
        '    """The host lives; kept in memory only."""\n',
        '    """The host lives; kept in memory only."""\n\n    of_next_version: str = "news"\n',
    ),
    (
        "orchestrator/model/protocol.py",
        '            "agent_version": self.agent_version,\n',
        '            "agent_version": self.agent_version,\n            "of_next_version": {"news": 1},\n',
    ),
    (
        "orchestrator/model/protocol.py",
        "    agent_version: Version\n",
        '    agent_version: Version\n    of_next_version: dict[str, int] = {"news": 0}\n',
    ),
)


def next_version(folder: Path) -> Path:
    """Write the next version's code to an empty folder; return it.

    Raises:
        AssertionError: the code to change is not as this expects it.
    """
    for name in _PARTS:
        source = build.REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    for name, old, new in _CHANGES:
        path = folder / name
        text = path.read_text()
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new))
    return folder

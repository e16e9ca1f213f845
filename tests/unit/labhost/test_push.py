"""What is pushed to the lab host suffices there, and nothing else goes along."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from images.labhost import build, commands


def test_the_pushed_tree_imports_by_itself(tmp_path: Path) -> None:
    """The lab host has no checkout: the product and the contract tests' helpers must be in the tree."""
    with tarfile.open(fileobj=io.BytesIO(commands.packed(commands.pushed_files()))) as archive:
        owners = {(member.uid, member.gid, member.uname) for member in archive.getmembers()}
        archive.extractall(tmp_path, filter="data")
    assert owners == {(0, 0, "root")}
    program = (
        "import orchestrator.__main__, images.labhost.tenants, images.probe, tests.contract\n"
        "import sys; print({m.__file__.startswith(sys.argv[1]) for n, m in sys.modules.items()\n"
        "    if n.split('.')[0] in ('orchestrator', 'images', 'tests') and m.__file__})"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("{True}", "")


def test_only_sources_are_pushed() -> None:
    paths = commands.pushed_files()
    names = {str(path.relative_to(build.REPOSITORY)) for path in paths}
    assert "pyproject.toml" in names
    assert "images/labhost/tenants.py" in names
    assert not any("__pycache__" in name or name.startswith((".", "images/labhost/recipe")) for name in names)
    assert len(names) == len(paths)

"""The image cache: built once, rebuilt when damaged or when the recipe changes, never half there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from images.probe import build, image, recipe
from images.probe.recipe import ProbeImageError


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """An empty cache and a builder that only writes a few bytes; the list has the folder of each build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders: list[Path] = []

    def fake(work: Path, progress: Callable[[str], None]) -> build.Built:
        folders.append(work)
        progress("building")
        out = work / "probe.raw"
        out.write_bytes(b"image %d" % len(folders))
        return build.Built(out, {"linux-image-x": "1"})

    monkeypatch.setattr(build, "build", fake)
    return folders


def test_it_is_built_once(builds: list[Path]) -> None:
    lines: list[str] = []
    first = image.ensure_image(lines.append)
    assert image.ensure_image() == first
    assert len(builds) == 1
    assert lines[0] == "building"
    assert first.digest == "sha256:" + hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert first.size_bytes == first.path.stat().st_size
    manifest = json.loads((first.path.parent / "manifest.json").read_text())
    assert manifest["format"] == "raw"
    assert manifest["virtual_size_bytes"] == first.size_bytes
    assert manifest["packages"] == {"linux-image-x": "1"}
    assert not list(first.path.parent.parent.glob("probe-building-*"))


def test_a_cut_off_image_is_built_again(builds: list[Path]) -> None:
    first = image.ensure_image()
    first.path.write_bytes(b"imag")
    assert image.ensure_image().size_bytes == first.size_bytes
    assert len(builds) == 2


def test_another_recipe_replaces_the_image(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = image.ensure_image()
    other = recipe.Recipe("0" * 64, "bookworm", (("gcc", "1"),))
    monkeypatch.setattr(recipe, "resolve", lambda: other)
    second = image.ensure_image()
    assert second.path != first.path
    assert not first.path.exists()
    assert len(builds) == 2


def test_a_failed_build_leaves_nothing(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Path, progress: Callable[[str], None]) -> build.Built:
        (work / "probe.raw").write_bytes(b"half")
        raise ProbeImageError("probe.tool_failed", "the disk is full")

    monkeypatch.setattr(build, "build", broken)
    with pytest.raises(ProbeImageError, match="the disk is full"):
        image.ensure_image()
    assert [path.name for path in image.cache_folder().iterdir()] == ["probe.lock"]


def test_the_key_follows_every_source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "probe"
    shutil.copytree(recipe.HERE, copy)
    before = recipe.resolve().key
    monkeypatch.setattr(recipe, "HERE", copy)
    assert recipe.resolve().key == before
    for changed in ("recipe.py", "src/init.c", "src/util.h"):
        with (copy / changed).open("a") as out:
            out.write("\n")
        after = recipe.resolve().key
        assert after != before, changed
        before = after


def test_tools_that_fail_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeImageError) as failure:
        recipe.run_tool(["sh", "-c", "echo no space >&2; exit 3"])
    assert "no space" in str(failure.value)
    with pytest.raises(ProbeImageError) as failure:
        recipe.run_tool([str(tmp_path / "nothing")])
    assert failure.value.code == "probe.tool_missing"
    assert failure.value.hint

"""The image's recipe: what names it, which Python pins it takes, where its packages come from."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from images.labhost import build, debian

HOST_LOCK = (
    "# by uv\nattrs==1.0 \\\n    --hash=sha256:aa\novs==4.0.0 \\\n    --hash=sha256:bb\n    # via ovsdbapp\n"
)
TEST_LOCK = (
    "attrs==1.0 \\\n    --hash=sha256:aa\npytest==9.0 \\\n    --hash=sha256:cc \\\n    --hash=sha256:dd\n"
    "    # via -r x\npytest-timeout==2.4 \\\n    --hash=sha256:ee\n"
)


@pytest.fixture
def recipe(tmp_path: Path) -> list[Path]:
    """A copy of the real recipe's files."""
    copies = []
    for number, path in enumerate(build.recipe_files()):
        copy = tmp_path / f"{number:03}-{path.name}"
        shutil.copy(path, copy)
        copies.append(copy)
    return copies


def test_the_hash_is_the_same_for_the_same_recipe(recipe: list[Path]) -> None:
    assert re.fullmatch("[0-9a-f]{16}", build.recipe_hash(recipe))
    assert build.recipe_hash(recipe) == build.recipe_hash(list(recipe))
    assert build.recipe_hash() == build.recipe_hash(build.recipe_files())


def test_a_change_of_any_file_makes_another_image(recipe: list[Path]) -> None:
    before = build.recipe_hash(recipe)
    for path in recipe:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert build.recipe_hash(recipe) != before, path.name
        path.write_bytes(content)
    assert build.recipe_hash(recipe) == before


def test_a_name_a_mode_and_a_missing_file_count_too(recipe: list[Path]) -> None:
    before = build.recipe_hash(recipe)
    recipe[0].chmod(recipe[0].stat().st_mode ^ 0o100)
    assert build.recipe_hash(recipe) != before
    recipe[0].chmod(recipe[0].stat().st_mode ^ 0o100)
    assert build.recipe_hash(recipe[1:]) != before
    moved = recipe[0].rename(recipe[0].with_name("other"))
    assert build.recipe_hash([moved, *recipe[1:]]) != before


def test_content_cannot_move_from_one_file_to_the_next(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"xy")
    second.write_bytes(b"z")
    before = build.recipe_hash([first, second])
    first.write_bytes(b"x")
    second.write_bytes(b"yz")
    assert build.recipe_hash([first, second]) != before


def test_a_changed_pin_makes_another_image(recipe: list[Path]) -> None:
    pins = build.image_lock()
    assert build.recipe_hash(recipe) == build.recipe_hash(recipe, pins)
    assert build.recipe_hash(recipe, pins + "#") != build.recipe_hash(recipe, pins)


def test_the_recipe_holds_what_the_image_is_made_of() -> None:
    names = {path.name for path in build.recipe_files()}
    wanted = {"packages-host.txt", "packages-builder.txt", "customize.sh", "compile.sh", "hangremove.c"}
    assert wanted | {"fakenvml.c", "fstab"} <= names
    assert "machine.py" not in names  # QEMU's arguments make no other image


def test_an_image_counts_only_when_its_manifest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.image_if_built() is None
    folder = build.cache_folder() / f"labhost-{build.recipe_hash()}"
    folder.mkdir(parents=True)
    (folder / "root.img").touch()
    assert build.image_if_built() is None
    (folder / "manifest.json").write_text("{}")
    assert build.image_if_built() == build.Image(folder)


def test_building_without_root_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionError, match="root"):
        build.build(lambda text: None)
    assert not list(tmp_path.iterdir())


def test_an_image_in_use_is_known(tmp_path: Path) -> None:
    disk = tmp_path / "image" / "root.img"
    disk.parent.mkdir()
    with disk.open("wb"):
        assert build._in_use(disk.parent)
        assert not build._in_use(tmp_path / "other")
    assert not build._in_use(disk.parent)


def test_the_merged_lock_takes_whole_pins_with_their_hashes() -> None:
    merged = build.merged_lock(HOST_LOCK, TEST_LOCK, ["pytest"])
    assert merged.startswith(HOST_LOCK)
    assert merged.endswith("pytest==9.0 \\\n    --hash=sha256:cc \\\n    --hash=sha256:dd\n    # via -r x\n")
    assert "pytest-timeout" not in merged


def test_the_merged_lock_has_no_pin_twice() -> None:
    merged = build.merged_lock(HOST_LOCK, TEST_LOCK, ["attrs", "pytest", "pytest-timeout"])
    assert re.findall(r"^([a-z-]+)==", merged, re.MULTILINE) == ["attrs", "ovs", "pytest", "pytest-timeout"]


def test_a_pin_that_is_not_there_is_named() -> None:
    with pytest.raises(RuntimeError, match="has no hypothesis"):
        build.merged_lock(HOST_LOCK, TEST_LOCK, ["pytest", "hypothesis"])


def test_the_real_locks_merge() -> None:
    merged = build.image_lock()
    assert "#" not in merged  # who needs a package makes no other image
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==", merged, re.MULTILINE)
    assert len(pins) == len(set(pins))
    assert {*build.TEST_PACKAGES, "libvirt-python", "setuptools"} <= set(pins)
    for block in re.split(r"^(?=[A-Za-z0-9_.-]+==)", merged, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block


def indexed(codename: str, origin: str = "Debian") -> list[str]:
    return [
        f"{origin} http://mirror.test/debian/ {codename} main",
        f"{origin} http://mirror.test/debian/ {codename} contrib",
        f"{origin} http://mirror.test/debian/ {codename}-updates main",
        f"{origin} http://mirror.test/security/ {codename}-security main",
        f"{origin} http://mirror.test/debian/ {codename} main",
    ]


@pytest.mark.parametrize("ours", ["bookworm", "trixie"])
@pytest.mark.parametrize("wanted", ["bookworm", "trixie"])
def test_sources_keep_the_mirrors_and_change_the_suite(ours: str, wanted: str) -> None:
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert debian.translate_sources(indexed(ours), wanted) == [
        f"deb {key} http://mirror.test/debian/ {wanted} main",
        f"deb {key} http://mirror.test/debian/ {wanted}-updates main",
        f"deb {key} http://mirror.test/security/ {wanted}-security main",
    ]


@pytest.mark.parametrize(
    "targets",
    [
        [],
        indexed("noble", "Ubuntu"),
        indexed("bookworm", "Ubuntu"),
        indexed("bullseye"),
        indexed("sid"),
        ["Debian http://mirror.test/debian/ bookworm-backports main"],
        ["Debian http://mirror.test/debian/ bookworm contrib"],
        ["Debian http://mirror.test/debian/ bookworm"],
    ],
)
def test_other_distributions_are_refused(targets: list[str]) -> None:
    with pytest.raises(RuntimeError, match="no reachable Debian 12 or 13"):
        debian.translate_sources(targets, "trixie")


def test_foreign_sources_beside_debians_are_left_out() -> None:
    targets = ["Other http://packages.test/ stable main", *indexed("bookworm")]
    assert not any("packages.test" in line for line in debian.translate_sources(targets, "trixie"))

"""The doctor: every miss has a row with the command that mends it, and decides the exit status."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from images.labhost import build, doctor

OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
MEMINFO = "MemTotal:       16384000 kB\nMemAvailable:   {} kB\n"


def test_every_line_of_bindep_is_read() -> None:
    wanted = dict(doctor.wanted_packages(doctor.BINDEP.read_text()))
    assert wanted["gcc"] == ("base",)
    assert wanted["mmdebstrap"] == ("lab",)
    assert {profile for profiles in wanted.values() for profile in profiles} == {"base", "test", "lab"}


@pytest.mark.parametrize("line", ["gcc", "gcc base", "gcc [Base]", "two words [base]", "gcc []"])
def test_a_line_that_the_installer_would_pass_over_is_refused(line: str) -> None:
    with pytest.raises(RuntimeError, match=r"bindep\.txt: cannot read"):
        doctor.wanted_packages(f"# comment\nmake [base]\n{line}\n")


@pytest.mark.parametrize("profile", ["base", "test", "lab"])
def test_the_installer_and_the_doctor_read_the_same_list(tmp_path: Path, profile: str) -> None:
    """The real script with a dpkg-query that notes what it is asked for and has everything."""
    asked = tmp_path / "asked"
    query = tmp_path / "dpkg-query"
    query.write_text(f'#!/bin/sh\nfor last; do :; done; echo "$last" >>{asked}; printf installed\n')
    query.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = build.REPOSITORY / "hostprep" / "packages.sh"
    subprocess.run([str(script), profile], env=environment, check=True)
    wanted = doctor.wanted_packages(doctor.BINDEP.read_text())
    assert asked.read_text().split() == [name for name, profiles in wanted if profile in profiles]


def test_a_missing_package_names_the_command() -> None:
    wanted = [("gcc", ("base",)), ("xorriso", ("lab", "test"))]
    both = doctor.judge_packages(wanted, {"gcc": "12", "xorriso": "1.5"})
    assert [one.fix for one in both] == ["", ""]
    one = doctor.judge_packages(wanted, {"gcc": "12"})[1]
    assert (one.found, one.fix) == ("missing", "hostprep/packages.sh lab")


def test_dpkg_tells_what_is_installed() -> None:
    found = doctor.installed_packages(["dpkg", "no-such-package-here"])
    assert set(found) == {"dpkg"}
    assert found["dpkg"][0].isdigit()


@pytest.mark.parametrize("version", ["12", "13"])
def test_debian_12_and_13_will_do(version: str) -> None:
    assert not doctor.judge_release(OS_RELEASE.replace("12", version)).fix


@pytest.mark.parametrize(
    "text",
    [
        OS_RELEASE.replace("12", "11"),
        OS_RELEASE.replace('VERSION_ID="12"\n', ""),
        OS_RELEASE.replace("ID=debian", "ID=ubuntu"),
        OS_RELEASE.replace("ID=debian", "ID=other\nID_LIKE=debian"),
        "",
    ],
)
def test_other_distributions_will_not(text: str) -> None:
    assert "Debian 12 or 13" in doctor.judge_release(text).fix


def test_what_is_too_little_is_a_miss() -> None:
    assert not doctor.judge_cores(2).fix
    assert doctor.judge_cores(1).fix
    assert not doctor.judge_python((3, 11)).fix
    assert doctor.judge_python((3, 10)).fix
    enough_kib = doctor.MIN_MEMORY_MIB * 1024
    assert not doctor.judge_memory(MEMINFO.format(enough_kib), lab_runs=False).fix
    assert doctor.judge_memory(MEMINFO.format(enough_kib - 1024), lab_runs=False).fix
    assert not doctor.judge_memory(MEMINFO.format(1024), lab_runs=True).fix
    assert doctor.judge_memory("", lab_runs=False).fix
    assert not doctor.judge_disk(Path("/x"), 100, 100).fix
    assert "100 MiB" in doctor.judge_disk(Path("/x"), 99, 100).fix


def test_root_is_needed_only_until_the_image_is_built() -> None:
    assert not doctor.judge_user(0, sudo=False, image_built=False).fix
    assert not doctor.judge_user(1000, sudo=True, image_built=False).fix
    assert not doctor.judge_user(1000, sudo=False, image_built=True).fix
    assert doctor.judge_user(1000, sudo=False, image_built=False).fix


def test_a_miss_is_marked_and_decides_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [doctor.Finding("cores", "2"), doctor.Finding("a longer name", "yes")]
    monkeypatch.setattr(doctor, "examine", lambda: good)
    assert doctor.main() == 0
    assert capsys.readouterr().out == "ok  cores          2\nok  a longer name  yes\n"
    monkeypatch.setattr(doctor, "examine", lambda: [*good, doctor.Finding("gcc", "missing", "get gcc")])
    assert doctor.main() == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[2] == "miss  gcc            missing  -> get gcc"
    assert "1 missing" in shown.err


def test_this_machine_is_examined_without_changing_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BULKHEAD_LAB_DIR", str(tmp_path / "lab"))
    rows = {one.what.split(" (")[0]: one for one in doctor.examine()}
    assert {"distribution", "user", "cores", "memory", "package gcc", "QEMU for the lab"} <= set(rows)
    assert rows["lab host image"].found.startswith("not built")
    assert not list(tmp_path.iterdir())

"""The lab's QEMU is made once and known by its recipe; KVM needs flags, module and a trial start to agree."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from images.labhost import debian, qemu

BANNER = "QEMU emulator version {} (Debian 1:x)"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recipe, to change, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "emulator"
    shutil.copytree(qemu.RECIPE, copy)
    monkeypatch.setattr(qemu, "RECIPE", copy)
    return copy


class Bootstrap:
    """Stands for mmdebstrap: leaves what the last hook would unpack, and keeps what it was asked."""

    def __init__(self, banner: str, error: str = "") -> None:
        self.calls: list[dict[str, Any]] = []
        self._banner = banner
        self._error = error

    def __call__(self, **asked: Any) -> None:
        self.calls.append(asked)
        if self._error:
            raise RuntimeError(self._error)
        out = Path(asked["hooks"][-1].rsplit(" -C ", 1)[1].split()[0])
        # The loader runs the program, which alone would not find its libraries.
        program(out / "lib" / qemu.LOADER, f"echo '{self._banner}'")
        program(out / qemu.PROGRAM, "exit 1")


def test_it_is_made_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap = Bootstrap(BANNER.format("7.2.22"))
    monkeypatch.setattr(debian, "bootstrap", bootstrap)
    said: list[str] = []
    assert qemu.if_made() is None

    first = qemu.make(said.append)
    second = qemu.make(lambda text: pytest.fail("it is there"))

    assert first == second == qemu.if_made()
    assert first.version == "7.2.22"
    assert first.command[0] == str(qemu.folder() / "lib" / qemu.LOADER)
    assert len(bootstrap.calls) == 1
    assert bootstrap.calls[0]["suite"] == "bookworm"
    assert "minutes" in said[0]
    assert [path.name for path in qemu.folder().parent.iterdir()] == [qemu.folder().name]


def test_another_patch_is_another_qemu(recipe: Path) -> None:
    before = qemu.folder()
    patch = next(recipe.glob("*.patch"))
    patch.write_text(patch.read_text() + "\n")
    assert qemu.folder() != before


def test_what_failed_leaves_nothing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "bootstrap", Bootstrap("", error="mmdebstrap of bookworm failed (1)"))
    with pytest.raises(RuntimeError, match="mmdebstrap of bookworm failed"):
        qemu.make(lambda text: None)
    assert qemu.if_made() is None
    assert list(qemu.folder().parent.iterdir()) == []


def test_a_program_without_a_version_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "bootstrap", Bootstrap("hello"))
    with pytest.raises(RuntimeError, match="does not tell its version"):
        qemu.make(lambda text: None)


# -- the accelerator


@pytest.fixture
def nesting(tmp_path: Path) -> Path:
    """The root of a machine whose kernel allows nested KVM."""
    for name, text in {
        "proc/cpuinfo": "flags\t\t: fpu svm npt\n",
        "sys/module/kvm_amd/parameters/nested": "1\n",
        "dev/kvm": "",
    }.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "root"


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> qemu.Qemu:
    """A QEMU that runs until it is ended."""
    monkeypatch.setattr(qemu, "TRIAL_S", 0.2)
    return qemu.Qemu((str(program(tmp_path / "lives", "exec sleep 1000")),), "7.2.0")


def test_kvm_is_used_when_all_agree(nesting: Path, lives: qemu.Qemu) -> None:
    assert qemu.judge_accelerator(lives, nesting)[0] == "kvm"


def test_intel_nests_too(nesting: Path, lives: qemu.Qemu) -> None:
    (nesting / "proc/cpuinfo").write_text("flags : fpu vmx\n")
    assert qemu.judge_accelerator(lives, nesting) == ("tcg", "kvm_intel is not loaded")
    nested = nesting / "sys/module/kvm_intel/parameters/nested"
    nested.parent.mkdir(parents=True)
    nested.write_text("Y\n")
    assert qemu.judge_accelerator(lives, nesting)[0] == "kvm"


def test_a_device_alone_proves_nothing(nesting: Path, lives: qemu.Qemu) -> None:
    (nesting / "proc/cpuinfo").write_text("flags\t\t: fpu svm_lock avx vmxon\n")
    assert qemu.judge_accelerator(lives, nesting) == ("tcg", "the CPU shows neither svm nor vmx")


def test_a_module_without_nesting_is_not_enough(nesting: Path, lives: qemu.Qemu) -> None:
    (nesting / "sys/module/kvm_amd/parameters/nested").write_text("0\n")
    assert qemu.judge_accelerator(lives, nesting) == ("tcg", "kvm_amd does not allow nesting")


def test_without_the_device_there_is_no_kvm(nesting: Path, lives: qemu.Qemu) -> None:
    (nesting / "dev/kvm").unlink()
    assert qemu.judge_accelerator(lives, nesting) == ("tcg", "/dev/kvm may not be opened")


def test_a_trial_that_aborts_decides_against_kvm(nesting: Path, tmp_path: Path) -> None:
    dies = qemu.Qemu((str(program(tmp_path / "dies", "exit 134")),), "7.2.0")
    accelerator, reason = qemu.judge_accelerator(dies, nesting)
    assert accelerator == "tcg"
    assert "trial start ended" in reason


def test_the_trial_leaves_no_process(
    nesting: Path, lives: qemu.Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    assert qemu.judge_accelerator(lives, nesting)[0] == "kvm"
    assert [process.returncode for process in started] == [-signal.SIGKILL]

"""Which QEMU runs the lab, and that KVM is believed only after flags, module and a trial start agree."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from images.labhost import qemu

BANNER = "QEMU emulator version {} (Debian 1:x)"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without QEMU and with an empty cache; its PATH is `bin`."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(qemu.FORCE_BOOKWORM, raising=False)
    return tmp_path


def install(machine: Path, version: str) -> Path:
    return program(machine / "bin" / qemu.PROGRAM, f"echo '{BANNER.format(version)}'")


def unpack(machine: Path, version: str) -> Path:
    """A bookworm root in the cache whose loader answers like the QEMU it would run."""
    root = qemu.bookworm_folder()
    loader = root / qemu.LIBRARIES / "ld-linux-x86-64.so.2"
    program(loader, f'test "$QEMU_MODULE_DIR" && echo "{BANNER.format(version)}"')
    program(root / "usr/bin" / qemu.PROGRAM, "exit 1")  # only by its own loader
    return root


@pytest.mark.parametrize("version", ["7.2.0", "7.2.22"])
def test_an_installed_7_2_is_taken(machine: Path, version: str) -> None:
    path = install(machine, version)
    chosen = qemu.choose(lambda text: pytest.fail("unpacked something"))
    assert chosen == qemu.Qemu((str(path),), version)


@pytest.mark.parametrize("version", ["10.0.8", "7.20.1", "7.1.0", "8.2.0"])
def test_any_other_version_gives_way_to_the_unpacked_one(machine: Path, version: str) -> None:
    install(machine, version)
    root = unpack(machine, "7.2.17")
    chosen = qemu.choose(lambda text: pytest.fail("it is unpacked already"))
    assert chosen.version == "7.2.17"
    assert chosen.command[0].startswith(str(root))
    assert str(root / "usr/bin" / qemu.PROGRAM) in chosen.command
    assert chosen.environment["QEMU_MODULE_DIR"].startswith(str(root))
    found, reason = qemu.installed_choice()
    assert found is None
    assert version in reason


def test_without_an_installed_one_the_unpacked_one_is_taken(machine: Path) -> None:
    assert qemu.unpacked() is None
    unpack(machine, "7.2.17")
    assert qemu.choose(lambda text: None).version == "7.2.17"
    assert qemu.installed_choice()[1].startswith("no qemu-system")


def test_the_unpacked_one_can_be_asked_for(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(machine, "7.2.22")
    unpack(machine, "7.2.17")
    monkeypatch.setenv(qemu.FORCE_BOOKWORM, "bookworm")
    assert qemu.choose(lambda text: None).version == "7.2.17"


def test_a_program_without_a_version_is_refused(machine: Path) -> None:
    program(machine / "bin" / qemu.PROGRAM, "echo hello")
    with pytest.raises(RuntimeError, match="does not tell its version"):
        qemu.choose(lambda text: None)


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

"""What a console, an emulator's log and a pid tell about the lab host's death."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from images.labhost import watch

BOOT = "[    0.000000] Linux version 6.12.0-amd64 (debian-kernel)\n"


@pytest.mark.parametrize(
    "line",
    [
        "[   12.3] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        "[   12.3] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
        "[   12.3] BUG: unable to handle page fault for address: ffffc90000000000",
    ],
)
def test_a_panic_is_a_death_in_the_kernels_words(line: str) -> None:
    found = watch.console_death(f"{BOOT}[ 1.0] fine\n{line}\n[ 12.4] CPU: 0 PID: 1\n")
    assert found is not None
    assert found.endswith(line.split("] ", 1)[1])


@pytest.mark.parametrize(
    "line",
    [
        "[ 3.0] systemd[1]: Starting a panic room",
        "[ 3.0] bug fix loaded",
        "[ 3.0] Kernel command line: panic=0",
    ],
)
def test_what_only_sounds_like_a_panic_is_none(line: str) -> None:
    assert watch.console_death(BOOT + line + "\n") is None


@pytest.mark.parametrize(
    "line",
    [
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 3-... } 21 jiffies",
    ],
)
def test_a_stall_is_known(line: str) -> None:
    found = watch.console_stall(f"{BOOT}[ 99.0] {line}\n")
    assert found == f"the lab host hangs: {line}"
    assert watch.console_death(f"{BOOT}[ 99.0] {line}\n") is None


def test_the_last_stall_is_told() -> None:
    first = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks: first"
    last = "rcu: INFO: rcu_preempt self-detected stall on CPU last"
    found = watch.console_stall(f"{BOOT}{first}\n{last}\n")
    assert found is not None
    assert found.endswith("last")
    assert watch.console_stall(BOOT + "rcu: Hierarchical RCU implementation.\n") is None


def test_only_the_last_boot_counts() -> None:
    panic = "Kernel panic - not syncing: old\n"
    assert watch.since_last_boot(f"a\n{BOOT}{panic}[ 0.0] {BOOT}fine\n").endswith("fine\n")
    assert watch.console_death(BOOT + panic + BOOT + "fine\n") is None
    assert watch.console_death(BOOT + panic + BOOT + panic.replace("old", "new")) is not None
    assert watch.console_stall(BOOT + "rcu: INFO: rcu_preempt detected stalls\n" + BOOT) is None
    # Before the banner, or with a console cut off at its start, everything counts.
    assert watch.since_last_boot(panic) == panic


@pytest.mark.parametrize(
    "said",
    [
        "qemu: ../accel/tcg/tcg-accel-ops.c:79: tcg_handle_interrupt: Assertion `bql_locked()' failed.",
        "ERROR:../hw/pci/msix.c:227:msix_table_mmio_write: assertion failed: (addr < 16)",
        "Segmentation fault",
        "Aborted (core dumped)",
    ],
)
def test_an_emulators_assertion_is_its_last_word(said: str) -> None:
    log = f"warning: nic e1000e.0 has no peer\n{said}\nmore noise\n"
    assert watch.emulator_death(log) == f"the lab host's QEMU is gone: {said}"


def test_without_an_assertion_the_last_line_is_told() -> None:
    assert watch.emulator_death("one\nterminating on signal 15\n").endswith("terminating on signal 15")
    assert watch.emulator_death("").endswith("it said nothing")


def test_a_pid_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    started = watch.process_start(os.getpid())
    assert started is not None
    assert watch.is_running(os.getpid(), started)
    assert not watch.is_running(os.getpid(), str(int(started) + 1))


def test_a_zombie_and_a_process_that_ended_are_gone() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    started = watch.process_start(process.pid)
    assert started is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    assert not watch.is_running(process.pid, started)
    process.wait()
    assert watch.process_start(process.pid) is None


def test_a_zombie_whose_threads_still_end_holds_its_files(tmp_path: Path) -> None:
    """QEMU's lock on its disk outlives its first thread."""
    folder = tmp_path / "7"
    folder.mkdir()
    for threads, gone in ((2, False), (1, True)):
        fields = ["Z", *("0" for _ in range(16)), str(threads), "0", "4242"]
        (folder / "stat").write_text(f"7 (qemu) {' '.join(fields)}\n")
        assert (watch.process_start(7, tmp_path) is None) == gone


def test_a_name_with_brackets_and_spaces_does_not_shift_the_fields(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    fields = ["S", *("0" for _ in range(18)), "4242", "0"]
    (folder / "stat").write_text(f"7 (a ) (b c) {' '.join(fields)}\n")
    assert watch.process_start(7, tmp_path) == "4242"


def test_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert watch.read_tail(log) == ""
    log.write_bytes(b"a" * 100 + b"\xff end")
    assert watch.read_tail(log, 5) == "\ufffd end"
    assert len(watch.read_tail(log)) == 105

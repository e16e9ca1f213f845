"""The real worker: processes that write real files; a FIFO nobody reads is the kernel that hangs."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.devices import VfioDevices
from orchestrator.agent.devices.worker import BusyError, OverdueError, ProcessWorker, Write, WriteFailedError
from orchestrator.model.errors import DeviceError, HostError
from tests.unit.devices.fakesys import GPU, FakeSys

OTHER = "0000:22:00.0"


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """A file whose writer hangs until `release` reads it; whoever still hangs at the end is let go."""
    path = tmp_path / "unbind"
    os.mkfifo(path)
    yield path
    release(path)


def release(fifo: Path) -> None:
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    time.sleep(0.05)
    os.close(descriptor)


def stubborn(marks: Path, deadline_s: float = 0.5) -> ProcessWorker:
    """A worker whose processes do not die when killed, as in an uninterruptible kernel call."""
    return ProcessWorker(marks, deadline_s, kill=lambda _process: None)


def eventually(what: str, truth: object, timeout_s: float = 10.0) -> None:
    assert callable(truth)
    end = time.monotonic() + timeout_s
    while not truth():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def files(tmp_path: Path, *names: str) -> list[Path]:
    made = [tmp_path / name for name in names]
    for path in made:
        path.touch()
    return made


def test_writes_happen_in_order_and_leave_no_mark(tmp_path: Path, marks: Path) -> None:
    one, two = files(tmp_path, "one", "two")
    ProcessWorker(marks, 10).write(
        GPU, "bind", [Write(one, "a"), Write(tmp_path / "gone", "x", optional=True), Write(two, "b")]
    )
    assert (one.read_text(), two.read_text()) == ("a", "b")
    assert list(marks.iterdir()) == []


def test_the_first_failure_ends_it_and_is_named(tmp_path: Path, marks: Path) -> None:
    one, two = files(tmp_path, "one", "two")
    with pytest.raises(WriteFailedError) as caught:
        ProcessWorker(marks, 10).write(
            GPU, "bind", [Write(one, "a"), Write(tmp_path / "gone", "x"), Write(two, "b")]
        )
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, str(tmp_path / "gone"))
    assert (one.read_text(), two.read_text()) == ("a", "")
    assert list(marks.iterdir()) == []


def test_an_optional_file_excuses_only_its_absence(tmp_path: Path, marks: Path) -> None:
    with pytest.raises(WriteFailedError) as caught:
        ProcessWorker(marks, 10).write(GPU, "bind", [Write(tmp_path, "x", optional=True)])
    assert caught.value.errno == errno.EISDIR


def test_reading_gives_the_text_or_none(tmp_path: Path, marks: Path) -> None:
    (tmp_path / "value").write_text("vfio-pci\n")
    worker = ProcessWorker(marks, 10)
    assert worker.read(GPU, tmp_path / "value") == "vfio-pci"
    assert worker.read(GPU, tmp_path / "gone") is None


def test_past_the_deadline_a_process_that_can_die_is_gone(fifo: Path, marks: Path) -> None:
    worker = ProcessWorker(marks, 0.5)
    with pytest.raises(OverdueError) as caught:
        worker.write(GPU, "bind", [Write(fifo, "x")])
    assert caught.value.stuck is False
    assert worker.in_flight(GPU) is None
    assert list(marks.iterdir()) == []


def test_a_stuck_process_keeps_the_device_until_it_is_gone(tmp_path: Path, fifo: Path, marks: Path) -> None:
    (one,) = files(tmp_path, "one")
    worker = stubborn(marks)
    began = time.monotonic()
    with pytest.raises(OverdueError) as caught:
        worker.write(GPU, "bind", [Write(fifo, "x")])
    assert caught.value.stuck is True
    assert time.monotonic() - began < 5

    earlier = worker.in_flight(GPU)
    assert earlier is not None
    assert earlier.action == "bind"
    assert Path(f"/proc/{earlier.pid}").exists()
    with pytest.raises(BusyError, match=str(earlier.pid)):
        worker.write(GPU, "bind", [Write(one, "second")])
    with pytest.raises(BusyError):
        worker.read(GPU, one)
    assert one.read_text() == ""

    # Another device is not concerned.
    worker.write(OTHER, "bind", [Write(one, "other")])
    assert one.read_text() == "other"

    release(fifo)
    eventually("the mark goes with its process", lambda: worker.in_flight(GPU) is None)
    worker.write(GPU, "bind", [Write(one, "second")])
    assert list(marks.iterdir()) == []


def test_the_mark_outlives_the_agent_that_set_it(tmp_path: Path, fifo: Path, marks: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.agent.devices.worker import OverdueError, ProcessWorker, Write\n"
        "try:\n"
        f"    worker = ProcessWorker(Path({str(marks)!r}), 0.5, kill=lambda p: None)\n"
        f"    worker.write({GPU!r}, 'bind', [Write(Path({str(fifo)!r}), 'x')])\n"
        "except OverdueError:\n"
        "    os._exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False).returncode == 7
    fresh = ProcessWorker(marks, 10)
    earlier = fresh.in_flight(GPU)
    assert earlier is not None
    assert earlier.pid is not None
    os.kill(earlier.pid, signal.SIGKILL)
    eventually("the mark goes with its process", lambda: fresh.in_flight(GPU) is None)


def test_the_agent_may_be_killed_while_it_waits(tmp_path: Path, fifo: Path, marks: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from orchestrator.agent.devices.worker import ProcessWorker, Write\n"
        f"ProcessWorker(Path({str(marks)!r}), 60).write({GPU!r}, 'bind', [Write(Path({str(fifo)!r}), 'x')])\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", code])
    fresh = ProcessWorker(marks, 10)
    eventually(
        "the worker starts", lambda: (found := fresh.in_flight(GPU)) is not None and found.pid is not None
    )
    agent.kill()
    agent.wait()
    assert fresh.in_flight(GPU) is not None
    release(fifo)
    eventually("the worker ends by itself", lambda: fresh.in_flight(GPU) is None)


def test_a_file_left_by_a_dead_process_is_no_mark(marks: Path) -> None:
    marks.mkdir()
    (marks / f"{GPU}.json").write_text(json.dumps({"pid": 1, "action": "bind"}))
    worker = ProcessWorker(marks, 10)
    assert worker.in_flight(GPU) is None
    assert list(marks.iterdir()) == []


def test_two_at_once_are_one(fifo: Path, marks: Path) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            ProcessWorker(marks, 60).write(GPU, "bind", [Write(fifo, "x")])
            outcomes.append("done")
        except (BusyError, OverdueError) as exc:
            outcomes.append(type(exc).__name__)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually("all but one are turned away", lambda: len(outcomes) == 3)
    # Open until all are through: the one worker may not have come to its write yet.
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for thread in threads:
        thread.join()
    os.close(reader)
    assert outcomes == ["BusyError", "BusyError", "BusyError", "done"]


def test_a_folder_that_cannot_hold_marks_stops_everything(tmp_path: Path) -> None:
    (one,) = files(tmp_path, "one")
    with pytest.raises(HostError, match=r"device\.worker_failed"):
        ProcessWorker(one / "marks", 10).write(GPU, "bind", [Write(one, "x")])
    assert one.read_text() == ""


def test_a_worker_that_dies_has_not_succeeded(
    tmp_path: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.agent.devices.worker.sys.executable", "/bin/false")
    with pytest.raises(HostError, match=r"device\.worker_died"):
        ProcessWorker(marks, 10).write(GPU, "bind", [Write(tmp_path / "one", "x")])


def test_a_hanging_unbind_leaves_the_caller_responsive(tmp_path: Path, marks: Path) -> None:
    """All of it together: VfioDevices, the real worker, an unbind that hangs."""
    tree = FakeSys(tmp_path / "root")
    tree.driver("vfio-pci")
    tree.function(GPU, driver="nvidia", group=7)
    unbind = tree.root / "sys/bus/pci/drivers/nvidia/unbind"
    unbind.unlink()
    os.mkfifo(unbind)
    devices = VfioDevices(tree.root, worker=stubborn(marks))
    try:
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"device\.bind_timeout"):
            devices.bind(GPU, "vfio-pci")
        assert time.monotonic() - began < 5
        assert (tree.folder(GPU) / "driver_override").read_text().startswith("vfio-pci")
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"device\.bind_in_flight"):
            devices.bind(GPU, "vfio-pci")
        seen = devices.observe(GPU)
        assert time.monotonic() - began < 5
        assert seen is not None
        assert seen.driver == "nvidia"
    finally:
        release(unbind)
    eventually("the worker ends", lambda: stubborn(marks).in_flight(GPU) is None)
    assert (tree.root / "sys/bus/pci/drivers_probe").read_text().startswith(GPU)

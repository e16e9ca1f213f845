"""What threads used for a moment goes back to the system; without the settings it would stay."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.processes.heap import give_back, keep_small

#: Eight threads fill 12 MiB each in blocks that a small one, kept, lies behind; prints the MiB that stay.
CHURN = """
import sys, threading
from orchestrator.processes.heap import keep_small
if sys.argv[1] == "small":
    assert keep_small()
kept, gate = [], threading.Barrier(8)
def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
def churn():
    for _ in range(4):
        blocks = [bytearray(b"x") * 600_000 for _ in range(20)]
        gate.wait()
        kept.append(bytearray(4000))
        blocks.clear()
before = held()
threads = [threading.Thread(target=churn) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
print((held() - before) // 1024)
"""


def stays_mib(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_threads_used_for_a_moment_goes_back() -> None:
    assert stays_mib("small") <= 8
    assert stays_mib("as it was") >= 24


def test_what_is_free_between_blocks_goes_back_when_asked() -> None:
    program = """
from orchestrator.processes.heap import give_back
blocks = [bytearray(b"x") * 20_000 for _ in range(2000)]
del blocks[::2]
print(give_back())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    assert keep_small() is False
    assert give_back() is False

"""A process ends when the other end of its lifeline closes, and not before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.model.errors import InvalidInputError
from orchestrator.processes.lifeline import hold_to

ROOT = Path(__file__).parents[3]
CHILD = """
import signal, sys, time
from orchestrator.processes.lifeline import hold_to
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
hold_to(int(sys.argv[1]), end_s=0.2)
print("here", flush=True)
time.sleep(600)
"""


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """Both ends; a test takes out what it closes."""
    ends = list(os.pipe())
    yield ends
    for each in ends:
        os.close(each)


@pytest.mark.parametrize(("ears", "ended_by"), [("keen", signal.SIGTERM), ("deaf", signal.SIGKILL)])
def test_it_ends_when_nobody_holds_the_other_end(pipe: list[int], ears: str, ended_by: int) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(pipe[0]), ears],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        pass_fds=(pipe[0],),
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == b"here\n"
        # Bytes are no end of it.
        os.write(pipe[1], b"x")
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(1)
        os.close(pipe.pop())
        assert running.wait(60) == -ended_by
    finally:
        running.kill()
        running.communicate()


def test_a_descriptor_that_is_not_open(pipe: list[int]) -> None:
    with pytest.raises(InvalidInputError) as told:
        hold_to(4000)
    assert (told.value.code, told.value.field) == ("serve.lifeline", "--lifeline-fd")

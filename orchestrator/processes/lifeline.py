"""Ends a process when the one that started it is gone, also when that was killed: a pipe tells.

Whoever starts others holds the end that writes and never writes to it; the kernel closes it however that
process ends. `machine` holds one for the controller and the agent of `bulkhead serve`.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from orchestrator.model.errors import InvalidInputError
from orchestrator.processes.supervise import END_S

OPTION = "--lifeline-fd"


def hold_to(descriptor: int, *, end_s: float = END_S) -> None:
    """From now on, end as by SIGTERM when the other end of this pipe closes; be killed `end_s` later.

    Raises:
        InvalidInputError: `serve.lifeline`: no such descriptor is open.
    """
    try:
        os.fstat(descriptor)
    except OSError as exc:
        raise InvalidInputError(
            "serve.lifeline", f"descriptor {descriptor} is not open: {exc.strerror}", field=OPTION
        ) from exc
    threading.Thread(target=_wait, args=(descriptor, end_s), name="lifeline", daemon=True).start()


def _wait(descriptor: int, end_s: float) -> None:
    # Bytes mean nothing, only their end does; what cannot be read has no other end either.
    try:
        while os.read(descriptor, 64):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(end_s)
    os.kill(os.getpid(), signal.SIGKILL)

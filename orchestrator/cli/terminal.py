"""Joins the terminal to an instance's console: every key goes to the instance, but Ctrl-], which leaves.

The terminal is as it was before, however it ends: the instance's end, an error, a signal. Decides nothing
else. `instance console` calls it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from types import FrameType

from orchestrator.cli.messages import say
from orchestrator.client.console import Console, End
from orchestrator.model.errors import InvalidInputError

#: Ctrl-], as telnet and virsh have it: no shell or editor wants it.
LEAVE = b"\x1d"
_READ_BYTES = 4096
#: What ends a terminal's programs by default, and would leave it raw.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def check_terminal() -> None:
    """Refuse to join what is no terminal.

    Raises:
        InvalidInputError: `console.no_terminal`.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidInputError(
            "console.no_terminal",
            "a console needs a terminal on standard input and output",
            hint="to read what was said: bulkhead instance log NAME",
        )


def join(opening: AbstractAsyncContextManager[Console], name: str) -> End | None:
    """Open a console and join the terminal to it; return how it ended, None when the user left.

    Raises:
        BulkheadError: it cannot be opened.
    """
    there, here = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(there)
    try:
        with _signals_raise():
            return asyncio.run(_joined(opening, name, there, here))
    finally:
        # What was typed for the instance must not run in the shell.
        termios.tcsetattr(there, termios.TCSAFLUSH, before)


async def _joined(
    opening: AbstractAsyncContextManager[Console], name: str, there: int, here: int
) -> End | None:
    async with opening as console:
        say(f"console of {name}; Ctrl-] leaves")
        tty.setraw(there)
        ways = [
            asyncio.create_task(_show(console, here)),
            asyncio.create_task(_type(there, console)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
            return console.end
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            os.write(here, b"\r\n")


async def _show(console: Console, here: int) -> None:
    while data := await console.read():
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(here, rest) :]


async def _type(there: int, console: Console) -> None:
    """Send what is typed until the key that leaves, the terminal's end, or the console's."""
    while console.end is None:
        data = await _typed(there)
        before, leave, _ = data.partition(LEAVE)
        if before:
            await console.write(before)
        if leave or not data:
            return


async def _typed(there: int) -> bytes:
    """Wait for keys; a look without any would block, since the shell's terminal must stay as it is."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(there, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(there)
    try:
        return os.read(there, _READ_BYTES)
    except OSError:
        # The terminal was taken away.
        return b""


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals that end the program unwind it instead."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Reads one answer from a hostile guest, in a process that has nothing to lose. Standard library only.

Run as `python -I worker.py FD UID GID TIMEOUT_S`, request on standard input. Gives up all rights and bounds
itself before the first byte of the guest is read; prints the answer as canonical JSON. `channel.py` starts
it, once per question, and reads its output with the same `parse`.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import resource
import socket
import sys
import time
import unicodedata
from typing import Any, NoReturn

#: One line of the guest; what the protocol promises.
MAX_LINE_BYTES = 256 * 1024
#: Everything that the guest may say until its answer comes.
MAX_TOTAL_BYTES = 4 * 1024 * 1024
#: Lines that are no answer to this question: of earlier ones, or noise.
MAX_OTHER_LINES = 64
MAX_DEPTH = 16
MAX_VALUES = 20_000
MAX_DIGITS = 19
#: An answer in canonical form; escapes of quotes can double a line.
MAX_OUTPUT_BYTES = 2 * MAX_LINE_BYTES + 1024
EXIT_NO_ANSWER = 3
EXIT_BAD_ANSWER = 4
_ADDRESS_SPACE_BYTES = 256 * 1024 * 1024
#: Processor time beyond the question's own: for a worker whose parent died before it could kill it.
_CPU_GRACE_S = 10
#: Also outside strings, where they are no JSON: a parser that meets one there goes no deeper.
_ESCAPES = re.compile(rb"\\.", re.DOTALL)
_STRINGS = re.compile(rb'"[^"]*"?')
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: prctl(2), linux/prctl.h.
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


class BadAnswer(Exception):
    """What the guest said is not an answer; the text is ours, never the guest's."""


class NoAnswer(Exception):
    """Nothing came in time."""


def parse(line: bytes) -> dict[str, Any]:
    """Read one line as a JSON object within all bounds; strings lose their control characters.

    Raises:
        BadAnswer: it is not such an object.
    """
    if len(line) > MAX_LINE_BYTES * 2:
        raise BadAnswer("line too long")
    _expect_shallow(line)
    try:
        text = line.decode("utf-8")
        found = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except BadAnswer:
        raise
    except UnicodeDecodeError as exc:
        raise BadAnswer("not UTF-8") from exc
    except (ValueError, RecursionError, MemoryError) as exc:
        raise BadAnswer("not JSON") from exc
    if not isinstance(found, dict):
        raise BadAnswer("not an object")
    count = [0]
    cleaned = _clean(found, count)
    if not isinstance(cleaned, dict):
        raise BadAnswer("not an object")
    return cleaned


def is_answer(reply: dict[str, Any], number: int) -> bool:
    """Whether it answers question `number`."""
    found = reply.get("id")
    return type(found) is int and found == number


def expect_shape(reply: dict[str, Any]) -> None:
    """Refuse an answer that does not say whether it is one of success."""
    if not isinstance(reply.get("ok"), bool):
        raise BadAnswer("ok is not true or false")


def _expect_shallow(line: bytes) -> None:
    """Count brackets outside strings, so that no parser recurses deeper than we allow."""
    depth = 0
    for byte in _STRINGS.sub(b"", _ESCAPES.sub(b"", line)).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            raise BadAnswer("nested too deeply")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {_printable(key): value for key, value in pairs}
    if len(found) != len(pairs):
        raise BadAnswer("a name stands twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS + 1 or not -(2**63) <= int(digits) < 2**63:
        raise BadAnswer("number too large")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > 64 or not math.isfinite(float(digits)):
        raise BadAnswer("number too large")
    return float(digits)


def _constant(_: str) -> NoReturn:
    raise BadAnswer("not a number")


def _printable(text: str) -> str:
    """Take out control, format, surrogate, private and unassigned characters."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if not unicodedata.category(c).startswith("C"))


def _clean(value: Any, count: list[int]) -> Any:
    count[0] += 1
    if count[0] > MAX_VALUES:
        raise BadAnswer("too many values")
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, list):
        return [_clean(item, count) for item in value]
    if isinstance(value, dict):
        return {key: _clean(item, count) for key, item in value.items()}
    return value


def confine(uid: int, gid: int, timeout_s: float) -> None:
    """Give up rights and bound this process, for good. Without root there are no rights to give up.

    `timeout_s` is the question's own. Processor time follows it: on an emulated or crowded host, what others
    take counts as ours, so a small fixed bound would kill workers that only were slow.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    cpu_s = math.ceil(timeout_s) + _CPU_GRACE_S
    for resource_kind, limit in (
        (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        # Open descriptors stay open and none can be added; poll(2) refuses more entries than the limit, hence
        # 1.
        (resource.RLIMIT_NOFILE, 1),
    ):
        resource.setrlimit(resource_kind, (limit, limit))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        # After the change of uid, which counts against it. No fork, no thread.
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for option, argument in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, argument, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    os.environ.clear()
    os.chdir("/")


class _Lines:
    """Cuts a socket's bytes into lines, within bounds of length, number and time."""

    def __init__(self, connection: socket.socket, ends_s: float) -> None:
        self._connection = connection
        self._ends_s = ends_s
        self._buffer = bytearray()
        self._searched = 0
        self._total = 0

    def next(self) -> bytes:
        while True:
            at = self._buffer.find(b"\n", self._searched)
            if at >= 0:
                line = bytes(self._buffer[:at])
                del self._buffer[: at + 1]
                self._searched = 0
                if len(line) > MAX_LINE_BYTES:
                    raise BadAnswer("line too long")
                return line
            if len(self._buffer) > MAX_LINE_BYTES:
                raise BadAnswer("line too long")
            self._searched = len(self._buffer)
            self._fill()

    def _fill(self) -> None:
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise NoAnswer("nothing in time")
        self._connection.settimeout(left_s)
        try:
            chunk = self._connection.recv(65536)
        except OSError as exc:
            raise NoAnswer("nothing in time" if isinstance(exc, TimeoutError) else "connection lost") from exc
        if not chunk:
            raise NoAnswer("the guest closed the channel")
        self._total += len(chunk)
        if self._total > MAX_TOTAL_BYTES:
            raise BadAnswer("too many bytes")
        self._buffer += chunk


def converse(connection: socket.socket, request: bytes, number: int, timeout_s: float) -> dict[str, Any]:
    """Send the request line and wait for its answer, passing over lines that are none.

    Raises:
        NoAnswer: nothing usable in time.
        BadAnswer: the answer is wrong, or only noise came.
    """
    ends_s = time.monotonic() + timeout_s
    connection.settimeout(timeout_s)
    try:
        # The empty line ends whatever an earlier connection left half said.
        connection.sendall(b"\n" + request + b"\n")
    except OSError as exc:
        raise NoAnswer("the guest does not listen") from exc
    lines, noise = _Lines(connection, ends_s), False
    for _ in range(MAX_OTHER_LINES + 1):
        try:
            line = lines.next()
        except NoAnswer:
            if noise:
                raise BadAnswer("nothing but noise in time") from None
            raise
        try:
            reply = parse(line)
        except BadAnswer:
            # Perhaps the rest of an earlier answer; but told if nothing better comes.
            noise = True
            continue
        if is_answer(reply, number):
            expect_shape(reply)
            return reply
    raise BadAnswer("too many lines that are no answer")


def encode(reply: dict[str, Any]) -> bytes:
    """Write an answer in its one form."""
    text = json.dumps(reply, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    found = text.encode("utf-8")
    if len(found) > MAX_OUTPUT_BYTES:
        raise BadAnswer("answer too long")
    return found


def main(arguments: list[str]) -> int:
    """Ask once. Exit status 0: answer on standard output; 3 no answer, 4 bad answer: the reason there."""
    number, uid, gid, timeout_s = int(arguments[0]), int(arguments[1]), int(arguments[2]), float(arguments[3])
    connection = socket.socket(fileno=number)
    request = sys.stdin.buffer.read()
    wanted = json.loads(request)["id"]
    confine(uid, gid, timeout_s)
    try:
        told, status = encode(converse(connection, request, wanted, timeout_s)), 0
    except NoAnswer as exc:
        told, status = str(exc).encode(), EXIT_NO_ANSWER
    except BadAnswer as exc:
        told, status = str(exc).encode(), EXIT_BAD_ANSWER
    except (MemoryError, RecursionError):
        told, status = b"out of bounds", EXIT_BAD_ANSWER
    sys.stdout.buffer.write(told)
    sys.stdout.buffer.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

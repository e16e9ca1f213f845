"""A recorded look at a host: what was read of it, as one JSON file that replays anywhere without root.

`Recorder` stands where the host's root stands and notes what passes; `Recording` stands there afterwards and
gives it back. Nothing is ever unpacked to a disk. A recording comes from strangers (a bug report), so reading
one is bounded and refuses what no recorder writes. What was not read then is unknown now, never absent.
Secrets stay out: `keep` says of which files only known parts are kept.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from hostprep.probe.files import HostPath
from hostprep.probe.keep import kept
from hostprep.probe.pci import serial_place
from orchestrator.model.errors import ConflictError, InvalidInputError

VERSION = 1
#: A host of 8,192 functions with 4 KiB of configuration space each takes 70 MiB as hexadecimal text.
MAX_BYTES = 128 * 1024 * 1024
_MAX_ENTRIES = 1_000_000
_MAX_TEXT = 1024 * 1024
_SECTIONS = ("texts", "bytes", "links", "folders", "commands")
_ROOTS = frozenset({"boot", "dev", "etc", "proc", "run", "sys", "var"})
_PART = re.compile(r"^[^/\x00-\x1f\x7f]{1,255}$")
_HEX = re.compile(r"^(?:[0-9a-f]{2})*$")

Command = tuple[str, ...]
#: Runs a program that changes nothing and returns what it printed; None where it is missing or fails.
Run = Callable[[Command], str | None]


class Recording:
    """What was read of a host, by path below its root and by command line."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.bytes: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: dict[str, tuple[str, ...]] = {}
        self.commands: dict[str, str] = {}

    @property
    def root(self) -> RecordedPath:
        """The root to read it from."""
        return RecordedPath(self, PurePosixPath())

    def run(self, command: Command) -> str | None:
        """Return what the command printed then."""
        return self.commands.get(" ".join(command))

    def encode(self, *, redact: bool = False) -> bytes:
        """Write it as JSON, a line per entry.

        Args:
            redact: leave out what tells one machine of a kind from another: serial numbers and the boot id.
        """
        found = _redacted(self) if redact else self
        body = {
            "bulkhead_recording": VERSION,
            "texts": found.texts,
            "bytes": {path: raw.hex() for path, raw in found.bytes.items()},
            "links": found.links,
            "folders": found.folders,
            "commands": found.commands,
        }
        return json.dumps(body, sort_keys=True, indent=0).encode()


class RecordedPath:
    """A path of a recording (`files.HostPath`)."""

    def __init__(self, recording: Recording, path: PurePosixPath) -> None:
        self._recording, self._path = recording, path

    def __truediv__(self, part: str, /) -> RecordedPath:
        return RecordedPath(self._recording, self._path / part)

    def __str__(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.name

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:  # noqa: ARG002
        """Return the text that was read."""
        return self._recording.texts[self._known(self._recording.texts)]

    def read_bytes(self) -> bytes:
        """Return the bytes that were read."""
        return self._recording.bytes[self._known(self._recording.bytes)]

    def readlink(self) -> PurePath:
        """Return where the link pointed."""
        return PurePosixPath(self._recording.links[self._known(self._recording.links)])

    def iterdir(self) -> Iterator[RecordedPath]:
        """Return what the folder held."""
        return iter([self / name for name in self._recording.folders[self._known(self._recording.folders)]])

    def _known(self, section: Mapping[str, Any]) -> str:
        if str(self._path) not in section:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        return str(self._path)


class RecordingPath:
    """A path of this machine (`files.HostPath`) that notes what is read through it."""

    def __init__(self, recording: Recording, root: HostPath, path: PurePosixPath) -> None:
        self._recording, self._here, self._path = recording, root, path

    def __truediv__(self, part: str, /) -> RecordingPath:
        return RecordingPath(self._recording, self._here / part, self._path / part)

    def __str__(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.name

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read, and note what may be kept of it; the reader gets no more than that either."""
        text = kept(str(self._path), self._here.read_text(encoding, errors))[:_MAX_TEXT]
        self._recording.texts[str(self._path)] = text
        return text

    def read_bytes(self) -> bytes:
        """Read, and note."""
        raw = self._here.read_bytes()[:_MAX_TEXT]
        self._recording.bytes[str(self._path)] = raw
        return raw

    def readlink(self) -> PurePath:
        """Read, and note."""
        target = self._here.readlink()
        self._recording.links[str(self._path)] = str(target)
        return target

    def iterdir(self) -> Iterator[RecordingPath]:
        """List, and note."""
        names = tuple(sorted(each.name for each in self._here.iterdir()))
        self._recording.folders[str(self._path)] = names
        return iter([self / name for name in names])


class Recorder:
    """Notes what is read of this machine."""

    def __init__(self, root: HostPath = Path("/"), run: Run = lambda _command: None) -> None:
        self.recording = Recording()
        self.root = RecordingPath(self.recording, root, PurePosixPath())
        self._run = run

    def run(self, command: Command) -> str | None:
        """Run a command and note what may be kept of its output."""
        said = self._run(command)
        if said is None:
            return None
        line = " ".join(command)
        self.recording.commands[line] = kept(line, said)[:_MAX_TEXT]
        return self.recording.commands[line]


def save(recording: Recording, file: Path, *, redact: bool) -> None:
    """Write a recording to a new file that only its owner can read.

    Raises:
        ConflictError: `recording.exists`.
        InvalidInputError: `recording.unwritable`.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(recording.encode(redact=redact))
    except FileExistsError as exc:
        raise ConflictError(
            "recording.exists", f"there is a {file} already", field="--save", hint="name another file"
        ) from exc
    except OSError as exc:
        raise InvalidInputError("recording.unwritable", f"{file}: {exc.strerror}", field="--save") from exc


def load(file: Path) -> Recording:
    """Read a recording from a file.

    Raises:
        InvalidInputError: `recording.unreadable`, `recording.invalid`, `recording.too_large`.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as exc:
        raise InvalidInputError("recording.unreadable", f"{file}: {exc.strerror}", field="--from") from exc
    return decode(raw)


def decode(raw: bytes) -> Recording:
    """Read a recording. Cost: linear in the bytes.

    Raises:
        InvalidInputError: `recording.invalid`, `recording.too_large`.
    """
    if len(raw) > MAX_BYTES:
        raise InvalidInputError("recording.too_large", f"more than {MAX_BYTES} bytes", field="--from")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise _invalid(f"no whole JSON document: {type(exc).__name__}") from None
    if not isinstance(body, dict) or body.get("bulkhead_recording") != VERSION:
        raise _invalid(f"no recording of version {VERSION}")
    if set(body) != {"bulkhead_recording", *_SECTIONS}:
        raise _invalid(f"its parts are not {', '.join(_SECTIONS)}")
    parts = {name: body[name] for name in _SECTIONS}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise _invalid("a part is no table")
    if sum(map(len, parts.values())) > _MAX_ENTRIES:
        raise InvalidInputError("recording.too_large", f"more than {_MAX_ENTRIES} entries", field="--from")
    return _checked(parts)


def _checked(parts: Mapping[str, Mapping[str, Any]]) -> Recording:
    found = Recording()
    for name in ("texts", "bytes", "links", "folders"):
        for path in parts[name]:
            _check_path(path)
    for path, text in parts["texts"].items():
        found.texts[path] = _text(path, text)
    for path, text in parts["links"].items():
        found.links[path] = _text(path, text)
    for line, text in parts["commands"].items():
        found.commands[line] = _text(line, text)
    for path, text in parts["bytes"].items():
        if not _HEX.match(_text(path, text, 2 * _MAX_TEXT)):
            raise _invalid(f"{path[:80]} holds no hexadecimal text")
        found.bytes[path] = bytes.fromhex(text)
    for path, names in parts["folders"].items():
        if not isinstance(names, list) or not all(_is_part(each) for each in names):
            raise _invalid(f"{path[:80]} holds something else than names")
        found.folders[path] = tuple(names)
    return found


def _check_path(path: str) -> None:
    """Refuse what does not lie below one of the folders that a recorder reads."""
    parts = path.split("/")
    if len(path) > 4096 or parts[0] not in _ROOTS or not all(_is_part(part) for part in parts):
        raise _invalid(f"{path[:80]!r} is no path that a recorder reads")


def _is_part(name: object) -> bool:
    return isinstance(name, str) and name not in (".", "..") and _PART.match(name) is not None


def _text(where: str, value: object, limit: int = _MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise _invalid(f"{where[:80]!r} holds no text of at most {limit} characters")
    return value


def _invalid(why: str) -> InvalidInputError:
    return InvalidInputError(
        "recording.invalid",
        f"it is no recording: {why}",
        field="--from",
        hint="make one with bulkhead agent probe --save FILE",
    )


def _redacted(recording: Recording) -> Recording:
    """Number the serials in order of appearance: which functions share one is still seen."""
    found = Recording()
    found.links, found.folders = recording.links, recording.folders
    found.commands, found.texts = recording.commands, dict(recording.texts)
    if "proc/sys/kernel/random/boot_id" in found.texts:
        found.texts["proc/sys/kernel/random/boot_id"] = "00000000-0000-4000-8000-000000000000"
    numbers: dict[bytes, bytes] = {}
    for path, raw in recording.bytes.items():
        place = serial_place(raw)
        if place is not None:
            serial = raw[place : place + 8]
            number = numbers.setdefault(serial, (len(numbers) + 1).to_bytes(8, "little"))
            raw = raw[:place] + number + raw[place + 8 :]
        found.bytes[path] = raw
    return found

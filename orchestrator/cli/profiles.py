"""Profiles: where servers are and how to get in, in one file that only its owner may read.

Decides whether the file can be trusted (regular, its owner's, closed to everybody else) and what a profile
may hold. Never shows a token. `session` reads it, `bulkhead profile` and `bulkhead login` write it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.client.http import check_url
from orchestrator.model.errors import InvalidInputError, NotFoundError

DEFAULT_NAME = "default"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
_FIELDS = ("url", "token", "ca", "tenant", "output")
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Profile:
    """One server and one principal; empty is not set. The token never shows in a repr."""

    url: str = ""
    token: str = field(default="", repr=False)
    ca: str = ""
    tenant: str = ""
    output: str = ""


@dataclass(frozen=True)
class Profiles:
    """What the file holds: every profile by name, and the one that is used when none is asked for."""

    current: str = DEFAULT_NAME
    by_name: Mapping[str, Profile] = field(default_factory=dict)

    def get(self, name: str) -> Profile:
        """Return one.

        Raises:
            NotFoundError: `profile.unknown`.
        """
        if name not in self.by_name:
            raise NotFoundError(
                "profile.unknown",
                f"there is no profile {name}",
                hint="bulkhead profile list shows those there are",
            )
        return self.by_name[name]

    def having(self, name: str, profile: Profile) -> Profiles:
        """Return these with one more, or one changed; the first one becomes the one in use."""
        current = self.current if self.by_name else name
        return Profiles(current, {**self.by_name, name: profile})

    def without(self, name: str) -> Profiles:
        """Return these without one.

        Raises:
            NotFoundError: `profile.unknown`.
        """
        self.get(name)
        return replace(self, by_name={key: each for key, each in self.by_name.items() if key != name})


def default_path() -> Path:
    """Return where the file is: `$XDG_CONFIG_HOME/bulkhead/config.toml`, usually below `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The base directory specification says to ignore a relative one.
    home = Path(base) if base.startswith("/") else Path.home() / ".config"
    return home / "bulkhead" / "config.toml"


def check_name(name: str) -> str:
    """Return a profile's name.

    Raises:
        InvalidInputError: `profile.name`.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            "profile.name", "a profile's name is a-z, 0-9, - and _, at most 64", field="NAME"
        )
    return name


def read_profiles(path: Path) -> Profiles:
    """Read the file; none is as good as an empty one.

    Raises:
        InvalidInputError: `profile.mode`, `profile.owner`, `profile.file`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Profiles()
    except OSError as exc:
        raise InvalidInputError("profile.file", f"{path}: {exc.strerror}") from exc
    try:
        _demand_private(path, os.fstat(descriptor))
        raw = _whole(descriptor)
    finally:
        os.close(descriptor)
    return _parsed(path, raw)


def _whole(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(_MAX_BYTES + 1)


def _demand_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInputError("profile.file", f"{path} is no file")
    if found.st_uid != os.geteuid():
        raise InvalidInputError(
            "profile.owner",
            f"{path} belongs to uid {found.st_uid}, not to you",
            hint=f"chown it, or remove {path}",
        )
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise InvalidInputError(
            "profile.mode",
            f"{path} holds tokens and has mode {mode:04o}: others can read or change it",
            hint=f"chmod 600 {path}, and make new tokens if somebody may have read it",
        )


def _parsed(path: Path, raw: bytes) -> Profiles:
    try:
        if len(raw) > _MAX_BYTES:
            raise ValueError("it is larger than any file of profiles")
        found = tomllib.loads(raw.decode())
    except ValueError as exc:
        # The parser's own words can quote the line, and the line can be a token.
        raise InvalidInputError("profile.file", f"{path} is not TOML", hint="mend it, or remove it") from exc
    profiles = found.get("profile", {})
    current = found.get("current", DEFAULT_NAME)
    if not isinstance(profiles, dict) or not isinstance(current, str):
        raise InvalidInputError("profile.file", f"{path}: [profile.NAME] tables and current = NAME are meant")
    return Profiles(current, {name: _profile(path, name, each) for name, each in profiles.items()})


def _profile(path: Path, name: str, found: Any) -> Profile:
    if not _NAME.fullmatch(name):
        raise InvalidInputError("profile.file", f"{path}: a profile's name is a-z, 0-9, - and _")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidInputError("profile.file", f"{path}: profile {name} is a table of texts")
    unknown = sorted(set(found) - set(_FIELDS))
    if unknown:
        raise InvalidInputError(
            "profile.file",
            f"{path}: profile {name} has a field that there is not",
            field=f"profile.{name}",
            hint=f"there are {', '.join(_FIELDS)}",
        )
    if found.get("url"):
        check_url(found["url"])
    return Profile(**found)


def write_profiles(path: Path, profiles: Profiles) -> None:
    """Replace the file at once; nobody else can read it at any moment.

    Raises:
        InvalidInputError: `profile.file`.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600 before a byte is in it.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".config-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_text(profiles).encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)  # noqa: PTH105 - names, as mkstemp gives them
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise InvalidInputError("profile.file", f"{path}: {exc.strerror}") from exc


def _text(profiles: Profiles) -> str:
    lines = [f"current = {_quoted(profiles.current)}"]
    for name, profile in profiles.by_name.items():
        lines += ["", f"[profile.{name}]"]
        for each in _FIELDS:
            value = getattr(profile, each)
            if value:
                lines.append(f"{each} = {_quoted(value)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON does not.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Answers about QEMU's argv, which itself is never kept: it holds what must not be copied.

QEMU writes an option's value as `key=value,...` (a comma doubled stands for itself) or, for objects, as JSON.
libvirt gives each secret as `data`, encrypted by a master key (`keyid`, `iv`) that is a `secret` object with
a `file`. Reads /proc/PID/cmdline and nothing else. Called by `inspector`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PAIRS = re.compile(r"((?:[^,]|,,)+)(?:,|$)")
#: `secret` holds data or a file's content; `secret_keyring` names a key that the kernel holds.
_SECRET = "secret"  # noqa: S105 - the name of a QEMU object


@dataclass(frozen=True)
class ArgvAnswers:
    """What argv says."""

    #: `-name guest=`; None without one.
    guest_name: str | None
    #: The value of the last `-sandbox`; empty without one.
    sandbox: str
    #: Secrets whose `data` is not encrypted; None when an object cannot be understood.
    plain_secrets: int | None
    #: Files that secrets are read from, the master key's among them; None as above.
    secret_files: frozenset[str] | None


def read_argv(process: Path) -> ArgvAnswers | None:
    """Ask the questions; None when the process shows no argv."""
    try:
        raw = (process / "cmdline").read_bytes()
    except OSError:
        return None
    words = raw.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    if words == [""]:
        return None
    names = [_keyval(value, "guest").get("guest") for value in _values(words, "name")]
    sandboxes = _values(words, "sandbox")
    objects = [_object(value) for value in _values(words, "object")]
    secrets = [each for each in objects if each is not None and each.get("qom-type") == _SECRET]
    known = None not in objects
    return ArgvAnswers(
        guest_name=names[-1] if names else None,
        sandbox=sandboxes[-1] if sandboxes else "",
        plain_secrets=sum(map(_is_plain, secrets)) if known else None,
        secret_files=frozenset(each["file"] for each in secrets if "file" in each) if known else None,
    )


def _values(words: list[str], option: str) -> list[str]:
    """Values of every `-option`, which QEMU takes with one dash or two."""
    spellings = (f"-{option}", f"--{option}")
    return [words[index + 1] for index, word in enumerate(words[:-1]) if word in spellings]


def _keyval(text: str, first: str) -> dict[str, str]:
    """Read `key=value,...`; a first part without `=` is the value of `first`."""
    found = {}
    for index, part in enumerate(_PAIRS.findall(text)):
        key, equals, value = part.replace(",,", ",").partition("=")
        if not equals and index == 0:
            key, value = first, key
        found[key] = value
    return found


def _object(text: str) -> Mapping[str, str] | None:
    if not text.startswith("{"):
        return _keyval(text, "qom-type")
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return {key: str(value) for key, value in found.items()}


def _is_plain(secret: Mapping[str, str]) -> bool:
    return "data" in secret and not ("keyid" in secret and "iv" in secret)

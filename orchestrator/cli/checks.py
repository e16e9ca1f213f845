"""What the command line can tell is wrong before it asks the server: names, reasons, numbers, files.

The server checks all of it again, and much more: these only spare a call and say it sooner.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from pathlib import Path
from typing import Any

from orchestrator.model.errors import InvalidInputError

#: How things are called: a name, or an id. The API's own patterns.
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PCI_MODEL = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_RECORD_KIND = re.compile(r"[a-z][a-z_]{0,40}(?:\.[a-z][a-z_]{0,40})?")
_MAX_REASON = 400
#: The API's own limit of a body.
MAX_FILE_BYTES = 1024 * 1024


def is_reference(text: str) -> bool:
    """Tell whether a text can be a name or id."""
    return _REFERENCE.fullmatch(text) is not None


def reference(noun: str, text: str) -> str:
    """Return a name or id of what there is.

    Raises:
        InvalidInputError: `NOUN.name`.
    """
    if not is_reference(text):
        raise InvalidInputError(
            f"{noun.replace(' ', '_')}.name", f"the name or id of {_a(noun)} is a-z, 0-9, - and _, at most 63"
        )
    return text


def name(noun: str, text: str) -> str:
    """Return a name for something new. Only ids have underscores, so that one text means either.

    Raises:
        InvalidInputError: `NOUN.name`.
    """
    if not _NAME.fullmatch(text):
        raise InvalidInputError(
            f"{noun.replace(' ', '_')}.name",
            f"the name of {_a(noun)} is a-z, 0-9 and -, at most 63, and begins with a letter",
        )
    return text


def reason(text: str) -> str:
    """Return a reason that says something.

    Raises:
        InvalidInputError: `reason.invalid`.
    """
    words = text.strip()
    if not words or not words.isprintable() or len(words) > _MAX_REASON:
        raise InvalidInputError(
            "reason.invalid", f"a reason is one line of at most {_MAX_REASON} characters", field="--reason"
        )
    return words


def cidr(text: str) -> str:
    """Return an IPv4 prefix in its one form.

    Raises:
        InvalidInputError: `network.cidr`.
    """
    try:
        return str(ipaddress.IPv4Network(text))
    except ValueError as exc:
        raise InvalidInputError(
            "network.cidr",
            "an IPv4 prefix is meant, without bits behind it",
            field="--cidr",
            hint="10.0.0.0/24",
        ) from exc


def digest(text: str) -> str:
    """Return an image's digest.

    Raises:
        InvalidInputError: `image.digest`.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidInputError("image.digest", "sha256: and 64 hexadecimal digits", field="--digest")
    return text


def gpu_model(text: str, *, code: str, field: str) -> str:
    """Return PCI ids, `vendor:device`.

    Raises:
        InvalidInputError: `code`.
    """
    if not _PCI_MODEL.fullmatch(text):
        raise InvalidInputError(code, "four and four hexadecimal digits", field=field, hint="10de:2330")
    return text


def kind(text: str) -> str:
    """Return the kind of an audit record, which events have too.

    Raises:
        InvalidInputError: `audit.kind`.
    """
    if not _RECORD_KIND.fullmatch(text):
        raise InvalidInputError("audit.kind", "a kind is noun.verb, or a noun", field="--kind")
    return text


def subset(texts: list[str], known: frozenset[str], code: str, field: str) -> list[str]:
    """Return texts that all must be known, sorted and each once.

    Raises:
        InvalidInputError: `code`.
    """
    if not texts or not known.issuperset(texts):
        raise InvalidInputError(
            code, "at least one of those there are", field=field, hint=f"there are {', '.join(sorted(known))}"
        )
    return sorted(set(texts))


def person(
    noun: str,
    called: str,
    roles: list[str],
    known: frozenset[str],
    service: bool,
    issuer: str,
    subject: str,
) -> dict[str, Any]:
    """Return the body that lets somebody in.

    Raises:
        InvalidInputError: `NOUN.name`, `NOUN.roles`, `NOUN.subject`.
    """
    if bool(issuer) != bool(subject):
        raise InvalidInputError(f"{noun}.subject", "issuer and subject go together", field="--subject")
    body: dict[str, Any] = {
        "name": name(noun, called),
        "kind": "service" if service else "user",
        "roles": subset(roles, known, f"{noun}.roles", "--roles"),
    }
    return {**body, "issuer": issuer, "subject": subject} if issuer else body


def read_text(path: Path, field: str) -> str:
    """Return a file's text, or of `-` what comes on stdin.

    Raises:
        InvalidInputError: `file.unreadable`, `file.too_large`, `file.not_text`.
    """
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InvalidInputError("file.unreadable", f"{path}: {exc.strerror}", field=field) from exc
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidInputError("file.too_large", f"{path} is larger than 1 MiB", field=field)
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInputError("file.not_text", f"{path} is no text in UTF-8", field=field) from exc


def read_json(path: Path, field: str) -> Any:
    """Return a file's JSON.

    Raises:
        InvalidInputError: `file.not_json`, and those of `read_text`.
    """
    text = read_text(path, field)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("file.not_json", f"{path} is not JSON", field=field) from exc


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"

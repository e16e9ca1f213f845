"""Reads an assignment from bytes that nobody has checked yet: all of it is fine, or it is refused.

Decides what is well-formed JSON of version 1, and says each problem in our words, with a stable code and the
path of the field. Never shows a seed, a long value or a control character of the input: seeds may hold
secrets, and what is shown reaches terminals and logs. The agent's commands call it, and later its link to the
controller; rules between fields are `orchestrator.isolation.admission`'s.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.model.assignment import ASSIGNMENT_VERSION, Assignment
from orchestrator.model.errors import BulkheadError, InvalidInputError

#: A thousand instances take about 2 MiB; 16 MiB hold any real host and still parse in seconds.
MAX_ASSIGNMENT_BYTES = 16 * 1024 * 1024
#: So many problems are told one by one; nobody reads more, and hostile input can hold millions.
MAX_SHOWN = 100
#: Objects and lists inside each other; an assignment needs 8.
MAX_DEPTH = 64
#: Digits of 2**64; longer numbers fit no field (and cost quadratic time to read).
_MAX_DIGITS = 20
_MAX_SHOWN_CHARACTERS = 48

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")

Location = tuple[int | str, ...]


class AssignmentRefused(InvalidInputError):
    """The assignment is wrong, for these reasons; nothing was changed.

    Args:
        problems: at least one, each with its code, sentence, field and hint; in a fixed order.
        more: how many further problems there are that were not kept.
    """

    def __init__(self, problems: Sequence[BulkheadError], *, more: int = 0) -> None:
        self.problems = tuple(problems)
        self.count = len(self.problems) + more
        words = "1 problem" if self.count == 1 else f"{self.count} problems"
        super().__init__("assignment.refused", f"the assignment has {words}; nothing was changed")

    def explain(self) -> str:
        """Say every problem on lines of its own, the first hundred of them."""
        shown = self.problems[:MAX_SHOWN]
        lines = [problem.explain() for problem in shown]
        if self.count > len(shown):
            lines.append(f"and {self.count - len(shown)} more problems")
        return "\n".join([super().explain(), *lines])

    def as_dict(self) -> dict[str, object]:
        """Return the JSON form: the refusal, how many problems there are, and the first hundred of them."""
        shown = [problem.as_dict() for problem in self.problems[:MAX_SHOWN]]
        return {**super().as_dict(), "problem_count": self.count, "problems": shown}

    def __str__(self) -> str:
        first = self.problems[0]
        return f"{super().__str__()}; the first: [{first.code}] {first.message}"


class _OddNumber:
    """Stands for a number that fits no field, so that its field is told like any other bad one.

    Those are numbers of too many digits, and all with a fraction or an exponent: some of the latter equal a
    whole number, and would pass for it where only equality is asked for.
    """

    def __init__(self, words: str) -> None:
        self.words = words


class _Repeated(dict[str, Any]):
    """An object in which a key stands more than once."""

    def __init__(self, pairs: Iterable[tuple[str, Any]], keys: tuple[str, ...]) -> None:
        super().__init__(pairs)
        self.keys_repeated = keys


def parse_assignment(raw: bytes) -> Assignment:
    """Read an assignment. Cost: linear in the bytes, under a second for a thousand instances.

    Raises:
        AssignmentRefused: `assignment.too_large`, `assignment.encoding`, `assignment.not_json`,
            `assignment.too_deep` or `assignment.version`, each alone; else any number of
            `assignment.duplicate_key`; else of `assignment.unknown_field`, `assignment.missing_field` and
            `assignment.bad_value`.
    """
    tree = _read_json(_decode(raw))
    _check_version(tree)
    try:
        return Assignment.model_validate(tree)
    except ValidationError as exc:
        details = _first_causes(exc.errors(include_url=False))
        shown = [_translate(each) for each in details[:MAX_SHOWN]]
        # The cause would show pydantic's words with the input in them, seeds included.
        raise AssignmentRefused(shown, more=len(details) - len(shown)) from None


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the assignment: the shape, not the rules between fields."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Assignment.model_json_schema(),
        "title": f"Bulkhead assignment, version {ASSIGNMENT_VERSION}",
    }


def _decode(raw: bytes) -> str:
    if len(raw) > MAX_ASSIGNMENT_BYTES:
        _refuse("too_large", f"it has {len(raw)} bytes; {MAX_ASSIGNMENT_BYTES} are allowed")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        _refuse("encoding", "it begins with a byte order mark", hint="write it as UTF-8 without one")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        _refuse("encoding", f"byte {exc.start} is not UTF-8", hint="write it as UTF-8")


def _read_json(text: str) -> Any:
    repeated: list[_Repeated] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) == len(found):
            return made
        seen: set[str] = set()
        again = tuple(dict.fromkeys(key for key, _ in found if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
        marked = _Repeated(found, again)
        repeated.append(marked)
        return marked

    try:
        tree = json.loads(
            text, object_pairs_hook=pairs, parse_int=_whole, parse_float=_broken, parse_constant=_constant
        )
    except RecursionError:
        _refuse_depth()
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        _refuse("not_json", f"{where}: {exc.msg.lower()}" if text.strip() else "it is empty")
    nodes = _walk(tree)
    if repeated:
        _refuse_repeated(nodes)
    for _ in nodes:
        pass
    return tree


def _walk(tree: Any) -> Iterator[tuple[Location, Any]]:
    """Pass every object and list with its place, in reading order, without recursion."""
    waiting: list[tuple[Location, Any]] = [((), tree)]
    while waiting:
        place, value = waiting.pop()
        if len(place) > MAX_DEPTH:
            _refuse_depth()
        if isinstance(value, dict):
            inner: Iterable[tuple[int | str, Any]] = value.items()
        elif isinstance(value, list):
            inner = enumerate(value)
        else:
            continue
        yield place, value
        below = [((*place, key), each) for key, each in inner if isinstance(each, dict | list)]
        waiting.extend(reversed(below))


def _whole(digits: str) -> int | _OddNumber:
    return int(digits) if len(digits) <= _MAX_DIGITS else _OddNumber(f"one of {len(digits)} digits")


def _broken(text: str) -> _OddNumber:
    return _OddNumber(text if len(text) <= _MAX_DIGITS else f"one of {len(text)} characters")


def _constant(name: str) -> NoReturn:
    _refuse("not_json", f"{name} is not a JSON number")


def _check_version(tree: Any) -> None:
    """Tell another version first and alone: whatever else differs in it is no mistake."""
    if not isinstance(tree, dict) or "version" not in tree:
        return
    version = tree["version"]
    if type(version) is int and version == ASSIGNMENT_VERSION:
        return
    _refuse(
        "version",
        f"this agent reads version {ASSIGNMENT_VERSION}; the assignment is of version {_show(version)}",
        field="version",
        hint="controller and agent work one version apart: bring the older one up",
    )


def _refuse(code: str, sentence: str, *, field: str | None = None, hint: str | None = None) -> NoReturn:
    problem = InvalidInputError(f"assignment.{code}", sentence, field=field, hint=hint)
    raise AssignmentRefused([problem]) from None


def _refuse_depth() -> NoReturn:
    _refuse("too_deep", f"objects and lists lie inside each other more than {MAX_DEPTH} deep")


def _refuse_repeated(nodes: Iterable[tuple[Location, Any]]) -> NoReturn:
    """Which of two values counts would depend on who reads the file, so neither does."""
    problems = [
        InvalidInputError(
            "assignment.duplicate_key",
            "the key stands more than once in the same object",
            field=field_path((*place, key)),
            hint="keep one of them",
        )
        for place, value in nodes
        if isinstance(value, _Repeated)
        for key in value.keys_repeated
    ]
    raise AssignmentRefused(problems[:MAX_SHOWN], more=max(0, len(problems) - MAX_SHOWN))


def field_path(place: Iterable[int | str]) -> str:
    """Write a place as `instances[0].cpus.pins[1].host_cpu`; keys that are no plain names are quoted, cut."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_NAME.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f"[{_show(part)}]"
    return path


def _show(value: object) -> str:
    """Show a value of the input so that it cannot move a cursor, fill a page or pass for our own words."""
    if isinstance(value, str):
        cut = value[:_MAX_SHOWN_CHARACTERS]
        return json.dumps(cut) + ("..." if len(value) > len(cut) else "")
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, _OddNumber):
        return value.words
    return "an object" if isinstance(value, dict) else "a list"


def _first_causes(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out lists that are too short only because their entries were refused."""
    parents = {each["loc"][:depth] for each in details for depth in range(len(each["loc"]))}
    return [each for each in details if each["type"] != "too_short" or each["loc"] not in parents]


def _translate(details: ErrorDetails) -> InvalidInputError:
    """Turn one of pydantic's errors into ours."""
    place: Location = details["loc"]
    field = field_path(place) or None
    if details["type"] == "missing":
        return InvalidInputError("assignment.missing_field", "the field is missing", field=field)
    if details["type"] == "extra_forbidden":
        return InvalidInputError(
            "assignment.unknown_field",
            "there is no such field",
            field=field,
            hint=_suggestion(str(place[-1]), _fields_at(place[:-1])),
        )
    secret = "seed" in place
    sentence = _sentence(details, secret=secret)
    hint = "its value is not shown, since seeds may hold secrets" if secret else None
    return InvalidInputError("assignment.bad_value", sentence, field=field, hint=hint)


def _sentence(details: ErrorDetails, *, secret: bool) -> str:
    """Say what a value must be and what stands there instead."""
    context: Mapping[str, Any] = details.get("ctx") or {}
    kind = details["type"]
    if kind == "value_error":
        # Our own validators in model/assignment.py: each is one sentence over short values.
        text = str(context["error"])
        return "".join(character if character.isprintable() else "?" for character in text)
    must = _MUST.get(kind, "must have another value").format_map(context)
    if kind == "string_pattern_mismatch":
        must = f"must be {_form(str(context['pattern']))}"
    found = "" if secret else f", not {_show(details['input'])}"
    if kind in ("too_long", "too_short"):
        found = f", not {context['actual_length']}" if context.get("actual_length") is not None else ""
    return must + found


#: What each of pydantic's kinds of error asks for; the names in braces are of its context.
_MUST: Mapping[str, str] = {
    "int_type": "must be a whole number",
    "string_type": "must be a text",
    "string_unicode": "must be valid Unicode text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}

#: The patterns of the model, by how they begin, in words.
_FORMS: Sequence[tuple[str, str]] = (
    ("^sha256:", "sha256: and 64 lower-case hex digits"),
    ("^[0-9a-f]{2}(?::", "a MAC address such as 02:00:00:00:00:01, in lower case"),
    ("^(?:[0-9a-f]{4}|", "a PCI address such as 0000:21:00.0, in lower case"),
    ("^[0-9a-f]{4}$", "four lower-case hex digits"),
    ("^[A-Za-z0-9._-]*$", "letters, digits, dots, dashes and underscores"),
    ("^[a-z0-9](?:", "lower-case letters, digits and inner dots and dashes"),
    ("^(vm|vol|gpu)_", "an id that starts with vm_, vol_ or gpu_"),
)
_ID_PATTERN = re.compile(r"\^([a-z]+_)")


def _form(pattern: str) -> str:
    prefix = _ID_PATTERN.match(pattern)
    if prefix is not None:
        return f"an id: {prefix[1]} and 1 to 40 lower-case letters, digits or inner underscores"
    return next((words for start, words in _FORMS if pattern.startswith(start)), f"of the form {pattern}")


def _suggestion(name: str, known: Iterable[str]) -> str | None:
    """Name the known field that was probably meant."""
    names = sorted(known)
    # Comparing costs the product of the lengths, and no field of ours is longer than this.
    close = difflib.get_close_matches(name, names, n=1) if len(name) <= _MAX_SHOWN_CHARACTERS else []
    if close:
        return f"did you mean {close[0]}?"
    return f"known here: {', '.join(names)}" if names else None


def _fields_at(place: Location) -> tuple[str, ...]:
    """Return the names of the fields that the object at a place may have."""
    here: Any = Assignment
    for part in place:
        if isinstance(part, str):
            here = _message_of(here.model_fields[part].annotation)
    return tuple(here.model_fields)


def _message_of(annotation: Any) -> Any:
    """Find the message inside `Message`, `Message | None` or `tuple[Message, ...]`."""
    if get_origin(annotation) is None:
        return annotation
    inner = [_message_of(each) for each in get_args(annotation)]
    return next((each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)), None)

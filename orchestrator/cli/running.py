"""What all changing commands share: asking before a deletion, waiting for the work, showing what came of it.

Decides what is printed when; the server decides everything else. The nouns' commands call it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from orchestrator.cli.columns import Column, clean
from orchestrator.cli.messages import say
from orchestrator.cli.output import Form, Output, show_list, show_object
from orchestrator.cli.progress import progress
from orchestrator.client import Answer, Client, Collection, JsonObject, Thing
from orchestrator.client.operations import resume
from orchestrator.model.errors import InvalidInputError

_TIME = re.compile(r"([0-9]{1,6})(s|m|h)?")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, None: 1}
_MAX_TIMEOUT_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Waiting:
    """Whether and how long a command waits for the work it began.

    Args:
        timeout_s: None does not wait.
    """

    timeout_s: float | None
    dry_run: bool = False


def waiting(no_wait: bool, timeout: str, dry_run: bool) -> Waiting:
    """Read the options of waiting.

    Raises:
        InvalidInputError: `wait.timeout`.
    """
    timeout_s = seconds_of(timeout)
    return Waiting(None if no_wait else timeout_s, dry_run)


def seconds_of(text: str, where: str = "--timeout") -> float:
    """Return the seconds of `30s`, `10m`, `1h`; a bare number is seconds.

    Raises:
        InvalidInputError: `wait.timeout`.
    """
    match = _TIME.fullmatch(text.strip())
    seconds = 0 if match is None else int(match[1]) * _UNIT_S[match[2]]
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise InvalidInputError("wait.timeout", "a time is 30s, 10m or 1h, and at most a week", field=where)
    return float(seconds)


def confirm(noun: str, name: str, yes: bool, verb: str = "delete") -> None:
    """Demand the name once more before something is destroyed.

    Raises:
        InvalidInputError: `confirm.needed`: there is nobody to ask; `confirm.other`: it was not the name.
    """
    if yes:
        return
    if not has_terminal():
        raise InvalidInputError(
            "confirm.needed",
            f"to {verb} {noun} {name} wants a yes, and nobody is there to ask",
            hint="add --yes",
        )
    typed = typer.prompt(
        f"Type {clean(name)} to {verb} this {noun}", default="", show_default=False, err=True
    )
    if typed.strip() != name:
        raise InvalidInputError("confirm.other", "that is not its name; nothing was done")


def has_terminal() -> bool:
    """Tell whether somebody is there to ask."""
    return sys.stdin.isatty()


def finish(
    client: Client,
    answer: Answer,
    how: Waiting,
    *,
    operations: Collection,
    columns: Sequence[Column],
    form: Form,
    subject: Thing | None,
    done: str,
) -> None:
    """Show what a change made: at once, or after its operation is over.

    Args:
        subject: what is shown when the work is done; None shows nothing.
        done: what to say then.
    """
    if how.dry_run:
        if answer.body is not None:
            show_object(answer.body, columns, form)
        say("dry run: nothing was changed")
        return
    if answer.status != 202:
        if answer.body is not None and subject is not None:
            show_object(answer.body, columns, form)
        say(done)
        return
    if how.timeout_s is None:
        show_operation(answer.body, form)
        return
    try:
        with progress() as shown:
            client.wait(answer, operations, timeout_s=how.timeout_s, told=shown.told)
    except KeyboardInterrupt:
        say(f"the work goes on; next: {resume(answer.body)}")
        raise
    if subject is not None:
        show_object(subject.get(), columns, form)
    say(done)


def show_token(answer: Answer, form: Form, dry_run: bool) -> None:
    """Show a token just made: its text alone, for a file or a variable, or the whole object."""
    made = answer.body if isinstance(answer.body, dict) else {}
    if form.output in (Output.JSON, Output.YAML):
        show_object(made, (), form)
    elif not dry_run and made.get("token"):
        print(clean(str(made["token"])))
    if dry_run:
        say("dry run: nothing was changed")
    elif made.get("token"):
        say(f"token {made.get('key_id')} of {made.get('name')}: keep it, it is not shown again")
    else:
        say(f"token {made.get('key_id')} was made by an earlier call, which showed it")


def show_operation(operation: JsonObject, form: Form) -> None:
    """Show an operation that nobody waits for: in tables its id alone, which the next command takes."""
    if form.output in (Output.JSON, Output.YAML):
        show_object(operation, (), form)
    else:
        print(clean(str(operation.get("id", ""))))


def list_all(
    collection: Collection,
    columns: Sequence[Column],
    form: Form,
    limit: int | None,
    query: dict[str, str] | None = None,
) -> None:
    """Write a whole list, of all its pages; with a limit, no page is asked for that is not needed."""
    asked = dict(query or {})
    if limit is not None:
        asked["page_size"] = str(min(limit, 1000))
    whole: JsonObject | None = None
    for page in collection.pages(asked):
        whole = {**page, "items": [*(whole["items"] if whole else []), *page["items"]]}
        if limit is not None and len(whole["items"]) >= limit:
            whole["items"] = whole["items"][:limit]
            break
    show_list(whole or {"items": [], "next_page_token": None}, columns, form)


def split_list(text: str | None) -> list[str]:
    """Return the parts of `a,b`, without empty ones."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]

"""What people are told beside the data: errors with the next command to type, and lines of progress.

Everything goes to stderr. Decides no words of an error, only how it looks.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from orchestrator.cli.columns import clean
from orchestrator.model.errors import BulkheadError

#: More single problems than a screen has lines help nobody.
_MAX_PROBLEMS = 20


def say(line: str) -> None:
    """Write one line of progress or news."""
    sys.stderr.write(clean(line) + "\n")
    sys.stderr.flush()


def print_error(error: BulkheadError) -> None:
    """Write an error: its code, a sentence, every single problem, and what to do."""
    console = Console(stderr=True, highlight=False, emoji=False, markup=False)
    for number, line in enumerate(_lines(error)):
        console.print(Text(line), style="red" if number == 0 else "", soft_wrap=True)


def _lines(error: BulkheadError) -> list[str]:
    # Here, so that a command that goes well, or calls no server, does not wait for the library of HTTP.
    from orchestrator.client.errors import ProblemAnswer

    where = f" at {clean(error.field)}" if error.field else ""
    lines = [f"{clean(error.code)}{where}: {clean(error.message)}"]
    cause = error.__cause__
    if isinstance(cause, ProblemAnswer):
        if len(cause.problems) > 1:
            lines += [f"  {_single(each)}" for each in cause.problems[:_MAX_PROBLEMS]]
        if cause.request_id:
            lines.append(f"  request: {clean(cause.request_id)}")
    if error.hint:
        lines.append(f"  next: {clean(error.hint)}")
    return lines


def _single(problem: object) -> str:
    found = problem if isinstance(problem, dict) else {}
    words = found.get("message") or found.get("detail") or ""
    field = f"{found['field']}: " if found.get("field") else ""
    return clean(f"{field}{words}")

"""What a host's doctor found, for people: a line a finding, a word in a list, a warning of what is accepted.

Decides only how it looks; JSON and YAML are the API's object. `nouns.host` and `host_summary` call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.cli.columns import Column, text_of
from orchestrator.cli.messages import say
from orchestrator.cli.output import Form, Output, show_object, show_rows
from orchestrator.client import JsonObject

#: A must check failed, as when an operation did.
EXIT_FAILED = 8
_ALL = "*"
_TABLE = "check,of,is,verdict,read"
_PASS, _FAIL = "pass", "fail"
#: Ids in one line.
_SHOWN = 6


def _verdict(finding: Mapping[str, Any]) -> str:
    return f"{finding['status']}, accepted" if finding.get("accepted") else str(finding["status"])


COLUMNS = (
    Column("check", "id"),
    Column("of", "subject", flexible=True),
    Column("is", "severity"),
    Column("verdict", _verdict),
    Column("read", "read", flexible=True),
    Column("mend", "mend", flexible=True),
    Column("expected", "expected", wide=True),
)


def word(host: Mapping[str, Any]) -> str | None:
    """Return the doctor's last word on a host, for a list; None before it spoke."""
    said = host.get("doctor")
    if not said:
        return None
    told = [f"{len(said[name])} {called}" for name, called in _COUNTED if said[name]] or ["ok"]
    return ", ".join([*told, "accepts *"] if _ALL in said["accepted"] else told)


#: What takes a host out or keeps it out, then what an operator lives with.
_COUNTED = (("failed", "fail"), ("unknown", "unknown"), ("lived_with", "accepted"))


def line(said: Mapping[str, Any] | None) -> str:
    """Return the doctor's last word with the ids of checks, for one host."""
    if not said:
        return ""
    parts = [
        f"{_ids(said[name])} {called}" for name, called in (*_COUNTED, ("warned", "to mend")) if said[name]
    ]
    counts = said["counts"]
    told = f"{counts[_PASS]} of {sum(counts.values())} pass"
    return "; ".join([told, *parts, *([_warning()] if _ALL in said["accepted"] else [])])


def show(found: JsonObject, form: Form, *, everything: bool) -> bool:
    """Write all findings to stdout, what takes the host out first; return whether a must check failed.

    Args:
        found: the API's object.
        everything: also what passed.
    """
    said = found.get("summary")
    failed = bool(said and said["failed"])
    if form.output in (Output.JSON, Output.YAML):
        show_object(found, COLUMNS, form)
        return failed
    rows = found.get("findings") or []
    shown = sorted((each for each in rows if everything or each["status"] != _PASS), key=_weight)
    # A command that was cut mends nothing: for people it stands below, whole.
    below = form.output is Output.TABLE and form.columns is None
    show_rows(shown, COLUMNS, replace(form, columns=_TABLE) if below else form)
    for each in shown if below else ():
        if each["mend"]:
            print(f"{text_of(each['id'])} {text_of(each['subject'])}: {text_of(each['mend'])}")
    if said is None:
        say(f"no doctor of host {found['host_name']} has spoken yet")
        return False
    say(f"looked at {said['checked_at']}, agent {said['agent_version']}: {line(said)}")
    return failed


def _weight(finding: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Sort must checks before others, failures before what is unknown, passes last; else as they came."""
    must = finding["severity"] == "must" and not finding["accepted"]
    return finding["status"] == _PASS, not must, finding["status"] != _FAIL


def _ids(ids: Sequence[str]) -> str:
    more = len(ids) - _SHOWN
    return " ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _warning() -> str:
    return "WARNING: its agent's settings accept every check (*)"

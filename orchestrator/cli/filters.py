"""Options that narrow a list: what they are called, what they may be, and what the API calls them.

Decides nothing about what a list holds; the server filters. Each noun names its own, `verbs` reads them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from orchestrator.cli import checks
from orchestrator.model.errors import InvalidInputError

_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,62}")
_KIND = re.compile(r"[a-z_]{1,31}\.[a-z_]{1,31}")


@dataclass(frozen=True)
class Filter:
    """One option of a list.

    Args:
        option: without its dashes.
        query: the API's parameter.
        metavar, help: for the help.
        check: returns what is sent, or raises what is wrong with it.
    """

    option: str
    query: str
    metavar: str
    help: str
    check: Callable[[str], str]

    @property
    def parameter(self) -> inspect.Parameter:
        """As a command's function has it."""
        option = typer.Option(f"--{self.option}", metavar=self.metavar, help=self.help)
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
        )

    @property
    def name(self) -> str:
        """Of its parameter; no other of a command's begins like that."""
        return f"only_{self.query}"


def query_of(filters: Sequence[Filter], given: Mapping[str, Any]) -> dict[str, str]:
    """Return what is asked of the server.

    Raises:
        InvalidInputError: what an option's check says.
    """
    return {each.query: each.check(given[each.name]) for each in filters if given.get(each.name) is not None}


def by_state(states: type[StrEnum]) -> Filter:
    """Only what is in one state. What is deleted is in no list."""
    names = [each.value for each in states if each.value != "deleted"]

    def check(text: str) -> str:
        if text not in names:
            raise InvalidInputError(
                "list.state", "there is no such state", field="--state", hint=f"there are {', '.join(names)}"
            )
        return text

    return Filter("state", "state", "STATE", "Only those in this state.", check)


def by_reference(option: str, query: str, help_: str, noun: str | None = None) -> Filter:
    """Only what belongs to one thing, by its name or id."""
    called = noun or option
    return Filter(option, query, option.upper(), help_, lambda text: checks.reference(called, text))


def by_name_prefix() -> Filter:
    """Only what is named like that."""

    def check(text: str) -> str:
        if not _PREFIX.fullmatch(text):
            raise InvalidInputError(
                "list.name", "a name begins with a letter, then a-z, 0-9 and -", field="--name"
            )
        return text

    return Filter("name", "name_prefix", "BEGIN", "Only those whose names begin so.", check)


def by_gpu_model() -> Filter:
    """Only GPUs of one model."""
    return Filter(
        "model",
        "model",
        "IDS",
        "Only this model: 10de:2330.",
        lambda text: checks.gpu_model(text, code="gpu.model", field="--model"),
    )


def by_kind() -> Filter:
    """Only operations of one kind."""

    def check(text: str) -> str:
        if not _KIND.fullmatch(text):
            raise InvalidInputError(
                "list.kind", "a kind is noun.verb", field="--kind", hint="instance.create"
            )
        return text

    return Filter("kind", "kind", "KIND", "Only of this kind: instance.create.", check)

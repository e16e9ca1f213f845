"""The root of the command line: finds a noun's commands when they are asked for, and tells errors.

Decides exit statuses: an error's own, 2 for what the parser refuses, 130 when interrupted, 1 for what nobody
foresaw. Loads only the noun that was typed, so that a command begins at once and needs no library of another.
`orchestrator.__main__` builds the program of it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup
from typer.exceptions import TyperException

from orchestrator.cli.columns import clean
from orchestrator.cli.messages import print_error, say
from orchestrator.model.errors import BulkheadError, InvalidInputError

INTERRUPTED = 130
#: `orchestrator.cli.nouns.NAME` holds each noun's `app`.
_NOUNS = "orchestrator.cli.nouns"
_COMPLETION = frozenset({"install_completion", "show_completion"})


@dataclass(frozen=True)
class Noun:
    """A noun as the root lists it.

    Args:
        module: where its `app` is: a Typer of several commands, or of one that is the noun itself.
    """

    name: str
    help: str
    module: str


def noun(name: str, help_: str) -> Noun:
    """Return one of the command line's own nouns."""
    return Noun(name, help_, f"{_NOUNS}.{name.replace('-', '_')}")


#: In the order of their use: what tenants work with, then the platform's, then this program's own.
NOUNS: tuple[Noun, ...] = (
    noun("status", "Show in one look what runs, what waits and what is wrong."),
    noun("instance", "Virtual machines of a tenant."),
    noun("volume", "Encrypted volumes of a tenant."),
    noun("network", "Networks of a tenant."),
    noun("image", "What instances boot."),
    noun("type", "Instance types: the shapes that tenants choose from."),
    noun("operation", "Work that was asked for, and how far it is."),
    noun("request", "What waits for capacity, and why."),
    noun("event", "What happens, as it happens."),
    noun("audit", "The audit log: export it, verify exports."),
    noun("user", "A tenant's people and service accounts."),
    noun("token", "API tokens."),
    noun("tenant", "Tenants of the platform."),
    noun("quota", "What a tenant may use, and uses."),
    noun("deployment", "The deployment as a whole, and going on after a restore."),
    noun("host", "GPU hosts."),
    noun("gpu", "GPUs of the pool."),
    noun("operator", "The platform's own people and their tokens."),
    noun("whoami", "Show whose token this is and what it may do."),
    noun("login", "Keep a server's address and a token in a profile."),
    noun("profile", "Servers and tokens that this command line knows."),
    noun("api", "Call the API directly."),
)


class Later(TyperGroup):
    """A command whose module is loaded when it is run, asked for help, or completed."""

    def __init__(self, found: Noun) -> None:
        super().__init__(name=found.name, help=found.help, short_help=found.help, rich_markup_mode=None)
        self._noun = found

    def load(self) -> Any:
        """Return the real command."""
        return _command_of(self._noun)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse with the real command, which the context then names as its own."""
        return self.load().make_context(info_name, args, parent=parent, **extra)


@cache
def _command_of(found: Noun) -> Any:
    """Build a noun's command, once in a process."""
    command: Any = typer.main.get_command(import_module(found.module).app)
    command.name = found.name
    # Each Typer offers to install completion; only the program itself should.
    command.params = [each for each in command.params if each.name not in _COMPLETION]
    if not command.help:
        command.help = found.help
    return command


class Root(TyperGroup):
    """The program: its own nouns, and those that `__main__` adds."""

    #: Set by `__main__`: what runs on hosts and servers.
    more: Sequence[Noun] = ()

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for each in (*NOUNS, *self.more):
            self.add_command(Later(each))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end with an exit status in every case."""
        run = partial(
            super().main,
            args,
            prog_name,
            complete_var,
            False,
            windows_expand_args=windows_expand_args,
            **extra,
        )
        if not standalone_mode:
            return run()
        sys.exit(_status(run))


def _status(run: Callable[[], Any]) -> int:
    try:
        ended = run()
    except BulkheadError as exc:
        print_error(exc)
        return exc.exit_code
    except typer.Abort:
        say("interrupted")
        return INTERRUPTED
    except TyperException as exc:
        return _refused(exc)
    except OSError as exc:
        print_error(BulkheadError("system.failed", f"{exc.filename or 'the system'}: {exc.strerror}"))
        return BulkheadError.exit_code
    except Exception as exc:
        # The last resort: a fault of ours. Its trace can hold what was typed, so it is shown on demand.
        if os.environ.get("BULKHEAD_TRACE"):
            traceback.print_exc()
        hint = "run it again with BULKHEAD_TRACE=1 and report what it prints"
        print_error(BulkheadError("internal", f"something unforeseen: {type(exc).__name__}", hint=hint))
        return BulkheadError.exit_code
    return ended if isinstance(ended, int) else 0


def _refused(found: TyperException) -> int:
    """Tell what the parser refuses; a noun without a verb shows what there is."""
    context = getattr(found, "ctx", None)
    message = found.format_message() if hasattr(found, "format_message") else str(found)
    if context is not None and type(found).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(context.get_help() + "\n")
        return InvalidInputError.exit_code
    path = context.command_path if context is not None else "bulkhead"
    print_error(InvalidInputError("usage.invalid", clean(message), hint=f"{path} --help"))
    return InvalidInputError.exit_code

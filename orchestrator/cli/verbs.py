"""The verbs that are alike for most nouns: list, show, delete. Each noun says which it has.

Decides nothing but how these verbs are spelled and what they print. `nouns` call it.
"""

# Annotations are values here, not texts: Typer reads them, and those of the argument name the noun's names.
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column
from orchestrator.cli.completion import names_of
from orchestrator.cli.filters import Filter, query_of
from orchestrator.cli.options import (
    DEFAULT_TIMEOUT,
    ColumnsOption,
    DryRunOption,
    LimitOption,
    NewestOption,
    NoHeadersOption,
    NoWaitOption,
    OutputOption,
    PlatformOption,
    TenantOption,
    TimeoutOption,
    YesOption,
)
from orchestrator.cli.output import show_object
from orchestrator.cli.running import confirm, finish, list_all, waiting
from orchestrator.cli.session import Session, session_of
from orchestrator.client import Client, Collection, TenantClient


@dataclass(frozen=True)
class Kind:
    """A noun as the shared verbs know it.

    Args:
        noun: for people, in the singular.
        columns: of its tables.
        of_tenant: where a tenant's own stand; None for what is the platform's.
        of_platform: where the platform's stand; None for what is a tenant's alone.
        summary: makes of one what people see of it, where all of it is too much.
    """

    noun: str
    columns: tuple[Column, ...]
    of_tenant: Callable[[TenantClient], Collection] | None = None
    of_platform: Callable[[Client], Collection] | None = None
    summary: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    @contextmanager
    def open(
        self, session: Session, tenant: str | None, *, platform: bool = False
    ) -> Iterator[tuple[Client, Collection, Collection]]:
        """Open the client, the collection, and where its operations stand."""
        if self.of_tenant is None or platform:
            assert self.of_platform is not None  # noqa: S101 - a noun is somebody's
            with session.client() as client:
                yield client, self.of_platform(client), client.operations
            return
        with session.tenant(tenant) as (client, scope):
            yield client, self.of_tenant(scope), scope.operations


def add_list(app: typer.Typer, kind: Kind, help_: str, filters: Sequence[Filter] = ()) -> None:
    """Give a noun its `list`, with the options that narrow it."""

    def list_(
        context: typer.Context,
        tenant: TenantOption = None,
        platform: PlatformOption = False,
        newest: NewestOption = False,
        limit: LimitOption = None,
        output: OutputOption = None,
        columns: ColumnsOption = None,
        no_headers: NoHeadersOption = False,
        **given: str | None,
    ) -> None:
        session = session_of(context)
        form = session.form(output, columns, no_headers, kind.columns)
        query = query_of(filters, given)
        if newest:
            query["order"] = "newest"
        with kind.open(session, tenant, platform=platform) as (_, things, _operations):
            list_all(things, kind.columns, form, limit, query)

    own = dict(inspect.signature(list_).parameters)
    del own["given"]
    if kind.of_tenant is None:
        del own["tenant"]
    if kind.of_tenant is None or kind.of_platform is None:
        del own["platform"]
    # Typer reads options from the signature; those of the filters are known here only.
    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.values()]
    parameters = [keyword[0], *(each.parameter for each in filters), *keyword[1:]]
    list_.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command("list", help=help_)(list_)


def add_show(app: typer.Typer, kind: Kind, help_: str) -> None:
    """Give a noun its `show`."""

    def of_tenant(
        context: typer.Context,
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="Name or id.", autocompletion=names_of(kind.open))
        ],
        tenant: TenantOption = None,
        output: OutputOption = None,
        columns: ColumnsOption = None,
        no_headers: NoHeadersOption = False,
    ) -> None:
        session = session_of(context)
        form = session.form(output, columns, no_headers, kind.columns)
        checks.reference(kind.noun, name)
        with kind.open(session, tenant) as (_, things, _operations):
            show_object(things[name].get(), kind.columns, form, kind.summary)

    def of_platform(
        context: typer.Context,
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="Name or id.", autocompletion=names_of(kind.open))
        ],
        output: OutputOption = None,
        columns: ColumnsOption = None,
        no_headers: NoHeadersOption = False,
    ) -> None:
        of_tenant(context, name, None, output, columns, no_headers)

    app.command("show", help=help_)(of_platform if kind.of_tenant is None else of_tenant)


def add_delete(app: typer.Typer, kind: Kind, help_: str) -> None:
    """Give a noun its `delete`, which asks for the name once more and waits until it is gone."""

    def of_tenant(
        context: typer.Context,
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="Name or id.", autocompletion=names_of(kind.open))
        ],
        tenant: TenantOption = None,
        yes: YesOption = False,
        dry_run: DryRunOption = False,
        no_wait: NoWaitOption = False,
        timeout: TimeoutOption = DEFAULT_TIMEOUT,
        output: OutputOption = None,
    ) -> None:
        session = session_of(context)
        form = session.form(output, None, False)
        how = waiting(no_wait, timeout, dry_run)
        checks.reference(kind.noun, name)
        session.access()
        with kind.open(session, tenant) as (client, things, operations):
            confirm(kind.noun, name, yes or dry_run)
            answer = things[name].delete(dry_run=dry_run)
            finish(
                client,
                answer,
                how,
                operations=operations,
                columns=kind.columns,
                form=form,
                subject=None,
                done=f"{kind.noun} {name} deleted",
            )

    def of_platform(
        context: typer.Context,
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="Name or id.", autocompletion=names_of(kind.open))
        ],
        yes: YesOption = False,
        dry_run: DryRunOption = False,
        no_wait: NoWaitOption = False,
        timeout: TimeoutOption = DEFAULT_TIMEOUT,
        output: OutputOption = None,
    ) -> None:
        of_tenant(context, name, None, yes, dry_run, no_wait, timeout, output)

    app.command("delete", help=help_)(of_platform if kind.of_tenant is None else of_tenant)

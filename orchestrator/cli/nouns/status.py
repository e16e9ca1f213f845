"""`bulkhead status`: in one look what runs, what waits and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import typer

from orchestrator.cli.columns import Column, text_of
from orchestrator.cli.messages import say
from orchestrator.cli.nouns import gpu, host, instance, request
from orchestrator.cli.nouns.quota import COLUMNS as QUOTA_COLUMNS
from orchestrator.cli.nouns.quota import rows_of
from orchestrator.cli.options import OutputOption, PlatformOption, TenantOption
from orchestrator.cli.output import Form, Output, show_rows, write_value
from orchestrator.cli.session import session_of
from orchestrator.client import Client, JsonObject
from orchestrator.model.errors import InvalidInputError

app = typer.Typer(rich_markup_mode=None)

_COUNTS = (Column("what", "what"), Column("state", "state"), Column("count", "count", number=True))
#: What somebody should look at.
_WRONG = frozenset({"error", "needs_attention", "unreachable", "fenced", "quarantined", "missing"})


@app.command()
def status(
    context: typer.Context,
    tenant: TenantOption = None,
    platform: PlatformOption = False,
    output: OutputOption = None,
) -> None:
    """Show in one look what runs, what waits and what is wrong.

    Of a tenant when one is set, else of the platform. -o json gives everything that was counted.
    """
    session = session_of(context)
    form = session.form(output, None, False)
    if form.output in (Output.CSV, Output.NAME):
        raise InvalidInputError("output.unknown", "status is written as table, wide, json or yaml")
    name = None if platform else tenant or session.profile.tenant
    with session.client() as client:
        found = _of_tenant(client, session.tenant_name(name)) if name else _of_platform(client)
    if form.output in (Output.JSON, Output.YAML):
        write_value(found, form.output)
    else:
        _print(found, form)


def _of_tenant(client: Client, name: str) -> JsonObject:
    scope = client.tenant(name)
    return {
        "tenant": scope.get(),
        "quota": scope.quota.get(),
        "instances": list(scope.instances),
        "requests": _waiting(scope.requests),
    }


def _of_platform(client: Client) -> JsonObject:
    return {
        "deployment": client.deployment.get(),
        "hosts": list(client.hosts),
        "gpus": list(client.gpus),
        "requests": _waiting(client.requests),
    }


def _waiting(requests: Iterable[JsonObject]) -> list[JsonObject]:
    return [each for each in requests if each.get("state") == "waiting"]


def _print(found: Mapping[str, Any], form: Form) -> None:
    if found.get("deployment", {}).get("observe_only"):
        print("the database was restored and only observes; next: bulkhead deployment show\n")
    wide = Form(form.output, None, heads=True)
    counts = _counts(found)
    show_rows(counts, _COUNTS, Form(heads=bool(counts)))
    parts: tuple[tuple[str, list[Any], tuple[Column, ...]], ...] = (
        ("quota", rows_of(found["quota"]) if "quota" in found else [], QUOTA_COLUMNS),
        ("waiting for capacity", found["requests"], request.COLUMNS),
        ("instances to look at", _wrong(found.get("instances", ())), instance.COLUMNS),
        ("hosts to look at", _wrong_hosts(found.get("hosts", ())), host.COLUMNS),
        ("gpus to look at", _wrong(found.get("gpus", ())), gpu.COLUMNS),
    )
    for title, items, columns in parts:
        if items:
            print(f"\n{text_of(title)}")
            show_rows(items, columns, wide)
    if not any(found.get(each) for each in ("instances", "hosts")):
        say(
            "next: bulkhead instance create --help"
            if "tenant" in found
            else "next: bulkhead host create --help"
        )


def _counts(found: Mapping[str, Any]) -> list[JsonObject]:
    counts = [
        {"what": noun, "state": state, "count": count}
        for noun in ("instances", "hosts", "gpus")
        for state, count in sorted(Counter(str(each.get("state")) for each in found.get(noun, ())).items())
    ]
    failed = sum(int(each.get("failed_checks") or 0) for each in found.get("hosts", ()))
    return [*counts, *([{"what": "host checks", "state": "failed", "count": failed}] if failed else [])]


def _wrong(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in items if each.get("state") in _WRONG]


def _wrong_hosts(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A host with an error is in any state, and takes nothing new."""
    return [each for each in items if each.get("state") in _WRONG or each.get("error")]

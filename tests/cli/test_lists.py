"""Lists and shows: JSON is the API's object, tables and help stand in golden files, CSV runs no formula."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer.main
import yaml

from orchestrator.__main__ import app
from orchestrator.cli.root import NOUNS
from orchestrator.cli.yaml_text import yaml_text
from tests.cli import objects
from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import FakeApi, T

GOLDEN = Path(__file__).parent / "golden"
#: Set it to write the golden files anew, then read the difference.
REGENERATE = "REGENERATE_GOLDEN"

LISTS = {
    "tenant list": "/v1/tenants",
    "instance list": f"{T}/instances",
    "volume list": f"{T}/volumes",
    "network list": f"{T}/networks",
    "operation list": f"{T}/operations",
    "operation list --platform": "/v1/operations",
    "request list": f"{T}/requests",
    "request list --platform": "/v1/requests",
    "user list": f"{T}/users",
    "token list": f"{T}/tokens",
    "image list": "/v1/images",
    "type list": "/v1/instance-types",
    "host list": "/v1/hosts",
    "gpu list": "/v1/gpus",
    "operator list": "/v1/operators",
    "operator token list root": "/v1/operators/root/tokens",
}
SHOWS = {
    "tenant show acme": "/v1/tenants/acme",
    "quota show": f"{T}/quota",
    "instance show train": f"{T}/instances/train",
    f"instance show {objects.VM2}": f"{T}/instances/{objects.VM2}",
    f"instance show {objects.VM3}": f"{T}/instances/{objects.VM3}",
    "instance evidence train": f"{T}/instances/train/evidence",
    "volume show data": f"{T}/volumes/data",
    "network show back": f"{T}/networks/back",
    f"operation show {objects.OP2}": f"{T}/operations/{objects.OP2}",
    "user show alice": f"{T}/users/alice",
    "image show debian-13": "/v1/images/debian-13",
    "type show gpu-1": "/v1/instance-types/gpu-1",
    "deployment show": "/v1/deployment",
    "host show gpu-02": "/v1/hosts/gpu-02",
    "host evidence gpu-02": "/v1/hosts/gpu-02/evidence",
    "gpu show gpu_k2l3m4n5o6p7q2r3s4t5": "/v1/gpus/gpu_k2l3m4n5o6p7q2r3s4t5",
    "whoami": "/v1/whoami",
}
TABLES = [*LISTS, *SHOWS, "status", "status --platform"]


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that there is, from the program itself."""
    if command is None:
        command = typer.main.get_command(app)
    if hasattr(command, "load"):
        command = command.load()
    yield words
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from commands(inner, (*words, name))


HELP = list(commands())
#: Not of the API: what is kept on this machine, and what has other tables of its own.
LOCAL = {"profile list", "profile show"}


def test_every_list_and_show_there_is_has_its_tables() -> None:
    """The tables below are named by hand; a new command must be among them."""
    known = {" ".join(words) for words in HELP if words and words[-1] in ("list", "show")}
    named = {words.split(" --", 1)[0] for words in TABLES}
    missing = {
        words for words in known - LOCAL if not any(f"{each} ".startswith(f"{words} ") for each in named)
    }
    assert missing == set()
    assert {" ".join(words) for words in HELP} >= LOCAL


@pytest.mark.parametrize("noun", [each.name for each in NOUNS])
def test_every_noun_is_in_the_tree(noun: str) -> None:
    """The tree is read from the program, so that a new noun cannot be left out of the golden files."""
    assert (noun,) in HELP


def golden(name: str, text: str) -> None:
    """Hold a text against its golden file, byte for byte."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get(REGENERATE):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode())
    assert text.encode() == file.read_bytes(), f"{file.name} differs: {REGENERATE}=1 writes it anew"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("words", HELP, ids="-".join)
def test_help(
    bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ran = bulkhead(*words, "--help")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert max(map(len, ran.stdout.splitlines())) <= width
    golden(f"help-{width}-{'-'.join(words) or 'bulkhead'}", ran.stdout)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("words", TABLES)
def test_tables(bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch, words: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ran = bulkhead(*words.split())
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert max(map(len, ran.stdout.splitlines())) <= width
    golden(f"table-{width}-{words.replace(' ', '-')}", ran.stdout)


@pytest.mark.parametrize("words", LISTS)
def test_wide_shows_every_column_and_cuts_none(bulkhead: Bulkhead, api: FakeApi, words: str) -> None:
    ran = bulkhead(*words.split(), "-o", "wide")
    assert "…" not in ran.stdout
    golden(f"wide-{words.replace(' ', '-')}", ran.stdout)


def test_status_counts_the_checks_of_hosts_that_did_not_pass(bulkhead: Bulkhead, api: FakeApi) -> None:
    assert "host checks" not in bulkhead("status", "--platform").stdout
    error = {"code": "host.checks_failed", "message": "2 of 3", "field": None, "hint": None}
    api.lists["/v1/hosts"][0] |= {"failed_checks": 2, "error": error}
    api.lists["/v1/hosts"][1] |= {"failed_checks": None}
    shown = bulkhead("status", "--platform").stdout
    assert ["host", "checks", "failed", "2"] in [line.split() for line in shown.splitlines()]
    assert "host.checks_failed" in shown.partition("hosts to look at")[2]


def test_every_golden_file_is_of_something() -> None:
    names = {f"help-{width}-{'-'.join(words) or 'bulkhead'}" for words in HELP for width in (80, 120)}
    names |= {f"table-{width}-{words.replace(' ', '-')}" for words in TABLES for width in (80, 120)}
    names |= {f"wide-{words.replace(' ', '-')}" for words in LISTS}
    # Of `test_host_doctor`, which asks with options.
    names |= {f"table-{width}-host-doctor-gpu-02{end}" for end in ("", "-all") for width in (80, 120)}
    assert {file.stem for file in GOLDEN.iterdir()} == names


@pytest.mark.parametrize(("words", "path"), LISTS.items())
def test_a_list_as_json_and_yaml_is_what_the_api_said(
    bulkhead: Bulkhead, api: FakeApi, words: str, path: str
) -> None:
    said = {"items": api.lists[path], "next_page_token": None}
    assert json.loads(bulkhead(*words.split(), "-o", "json").stdout) == said
    assert yaml.safe_load(bulkhead(*words.split(), "-o", "yaml").stdout) == said


@pytest.mark.parametrize(("words", "path"), SHOWS.items())
def test_a_show_as_json_and_yaml_is_what_the_api_said(
    bulkhead: Bulkhead, api: FakeApi, words: str, path: str
) -> None:
    ran = bulkhead(*words.split(), "-o", "json")
    assert api.calls == [f"GET {path}"]
    raw = json.loads(bulkhead("api", "GET", path).stdout)
    assert json.loads(ran.stdout) == raw
    assert yaml.safe_load(bulkhead(*words.split(), "-o", "yaml").stdout) == raw


def test_pages_are_fetched_until_there_are_no_more(bulkhead: Bulkhead, api: FakeApi) -> None:
    path = f"{T}/volumes"
    api.lists[path] = [objects.volume(f"v{at}", f"vol_{at:020}") for at in range(7)]
    api.page_size = 3
    ran = bulkhead("volume", "list", "-o", "json")
    assert json.loads(ran.stdout) == {"items": api.lists[path], "next_page_token": None}
    assert [each.url.params.get("page_token") for each in api.requests] == [None, "3", "6"]


def test_a_limit_asks_for_no_more_than_it_shows(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.lists[f"{T}/volumes"] = [objects.volume(f"v{at}", f"vol_{at:020}") for at in range(7)]
    ran = bulkhead("volume", "list", "--limit", 2, "-o", "json")
    assert json.loads(ran.stdout) == {"items": api.lists[f"{T}/volumes"][:2], "next_page_token": "2"}
    assert [each.url.params["page_size"] for each in api.requests] == ["2"]


def test_a_server_that_repeats_a_page_token_is_not_followed_for_ever(
    bulkhead: Bulkhead, api: FakeApi
) -> None:
    page = {"items": [objects.network()], "next_page_token": "again"}
    api.reply(f"GET {T}/networks", httpx2.Response(200, json=page))
    ran = bulkhead("network", "list")
    assert ran.exit_code == 1
    assert ran.stderr.startswith("api.unexpected: ")
    assert len(api.requests) == 2


@pytest.mark.parametrize(
    ("words", "path", "query"),
    [
        (
            "instance list --state running --type gpu-1 --host gpu-01 --name tr --newest",
            f"{T}/instances",
            {"state": "running", "type": "gpu-1", "host": "gpu-01", "name_prefix": "tr", "order": "newest"},
        ),
        (
            "volume list --instance train --state in_use",
            f"{T}/volumes",
            {"instance": "train", "state": "in_use"},
        ),
        (
            f"operation list --kind instance.create --state failed --subject {objects.VM1}",
            f"{T}/operations",
            {"kind": "instance.create", "state": "failed", "subject": objects.VM1},
        ),
        ("operation list --platform --newest", "/v1/operations", {"order": "newest"}),
        ("request list --state waiting", f"{T}/requests", {"state": "waiting"}),
        ("request list --platform --state placed", "/v1/requests", {"state": "placed"}),
        ("host list --state cordoned --name gpu", "/v1/hosts", {"state": "cordoned", "name_prefix": "gpu"}),
        (
            "gpu list --state clean --host gpu-01 --model 10de:2330",
            "/v1/gpus",
            {"state": "clean", "host": "gpu-01", "model": "10de:2330"},
        ),
        ("user list --newest", f"{T}/users", {"order": "newest"}),
        ("operator token list root --newest", "/v1/operators/root/tokens", {"order": "newest"}),
    ],
)
def test_what_narrows_a_list_is_asked_of_the_server(
    bulkhead: Bulkhead, api: FakeApi, words: str, path: str, query: dict[str, str]
) -> None:
    assert bulkhead(*words.split()).exit_code == 0
    (asked,) = api.requests
    assert (asked.url.path, {**asked.url.params}) == (path, {**query, "page_size": "1000"})


def test_names_alone_are_for_the_next_command(bulkhead: Bulkhead) -> None:
    assert bulkhead("instance", "list", "-o", "name").stdout.split() == ["train", objects.LONG_NAME, "serve"]
    assert bulkhead("gpu", "list", "-o", "name").stdout.split()[0] == "gpu_a2b3c4d5e6f7g2h3i4j5"
    assert bulkhead("token", "list", "-o", "name").stdout == "ci\n"


def test_columns_are_chosen_and_their_heads_left_out(bulkhead: Bulkhead) -> None:
    ran = bulkhead("instance", "list", "--columns", "state,NAME", "--no-headers")
    assert ran.stdout.splitlines()[0] == "running          train"
    assert bulkhead("volume", "list", "--columns", "id,gib", "-o", "csv").stdout.splitlines() == [
        "id,gib",
        "vol_a2b3c4d5e6f7g2h3i4j5,200",
        "vol_k2l3m4n5o6p7q2r3s4t5,200",
    ]


def test_csv_runs_no_formula_and_keeps_numbers(bulkhead: Bulkhead, api: FakeApi) -> None:
    for number, reason in enumerate(['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\ttab", "fine"]):
        api.lists["/v1/hosts"].append(objects.host(f"h{number}", f"hst_{number:020}", "cordoned", reason))
    ran = bulkhead("host", "list", "-o", "csv", "--columns", "name,free_gib,reason")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(ran.stdout))}
    assert [rows[f"h{number}"]["reason"] for number in range(6)] == [
        '\'=HYPERLINK("http://x")',
        "'+1",
        "'-1",
        "'@SUM(A1)",
        "\\ttab",
        "fine",
    ]
    assert rows["gpu-01"]["free_gib"] == "3500"
    assert rows["gpu-01"]["reason"] == ""


def test_what_a_guest_or_server_says_steers_no_terminal(bulkhead: Bulkhead, api: FakeApi) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202egnp"
    error = {"code": evil, "message": evil, "retryable": False}
    api.lists[f"{T}/instances"] = [objects.instance("train", objects.VM1, "error", error=error)]
    for words in ("instance list", "instance list -o wide", "instance show train", "status"):
        shown = bulkhead(*words.split()).stdout
        assert not [mark for mark in shown if not mark.isprintable() and mark != "\n"], words
    assert json.loads(bulkhead("instance", "list", "-o", "json").stdout)["items"][0]["error"] == error
    assert bulkhead("instance", "list", "-o", "json").stdout.isascii()
    assert bulkhead("instance", "list", "-o", "yaml").stdout.isascii()


def test_a_pipe_gets_whole_values(bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = bulkhead("instance", "list").stdout
    monkeypatch.delenv("COLUMNS")
    assert objects.LONG_NAME in bulkhead("instance", "list").stdout
    assert objects.LONG_NAME not in narrow
    assert "…" in narrow


@pytest.mark.parametrize("form", ["table", "json", "yaml", "csv", "name", "wide"])
def test_an_empty_list_is_one(bulkhead: Bulkhead, api: FakeApi, form: str) -> None:
    api.lists[f"{T}/volumes"] = []
    ran = bulkhead("volume", "list", "-o", form)
    assert (ran.exit_code, ran.stderr) == (0, "")
    empty = {"items": [], "next_page_token": None}
    if form in ("json", "yaml"):
        assert yaml.safe_load(ran.stdout) == empty
    else:
        assert ran.stdout.splitlines() == {"name": []}.get(form, [ran.stdout.strip()])


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        [[]],
        [[1, [2]], {"a": [{"b": None}]}],
        {"on": "off", "y": "no", "null": "~", "1": "1", "x y": "a: b", "": ""},
        [
            "1e3",
            "0x1f",
            "12:30:45",
            "2026-03-01",
            "- a",
            "#a",
            "a #b",
            "|",
            ">",
            "%",
            "@",
            "`",
            "&a",
            "*a",
            "!a",
        ],
        ["line\nline", "tab\t", "\x7f", "\x85\u2028", "caf\u00e9", "\U0001f600", "\ufeff", "quote\"'"],
        [True, False, None, 0, -1, 1.5, 10**30],
        {"a": {"b": {"c": ["d", {"e": "f"}]}}},
        "text",
    ],
    ids=str,
)
def test_yaml_reads_back_as_what_it_was(value: Any) -> None:
    assert yaml.safe_load(yaml_text(value)) == value

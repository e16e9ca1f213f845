"""Commands that change something: what is sent, what is waited for, what is asked first."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx2
import pytest
from rich.console import Console
from rich.text import Text

from orchestrator.cli import running
from orchestrator.cli.progress import Progress
from orchestrator.client import clock
from tests.cli import objects
from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import FakeApi, T, problem

WHERE = f"/v1/tenants/{objects.ACME}/operations/{objects.OP1}"
CREATE = ("instance", "create", "train", "--type", "gpu-1", "--image", "debian-13", "--network", "back")
DIGEST = "sha256:" + "0123456789abcdef" * 4

#: Command, the call it makes, and the body it sends.
SENT: list[tuple[str, str, Any]] = [
    (
        "tenant create acme --limit gpus=4 --limit memory-mib=1024",
        "POST /v1/tenants",
        {"name": "acme", "limits": {"gpus": 4, "memory_mib": 1024}},
    ),
    ("tenant set acme --name acme-2", f"PUT {T}", {"name": "acme-2"}),
    ("tenant delete acme --yes", f"DELETE {T}", None),
    ("quota set --limit gpus=8", f"PUT {T}/quota", {"limits": {"gpus": 8}}),
    (
        "network create back --cidr 10.0.0.0/24",
        f"POST {T}/networks",
        {"name": "back", "cidr": "10.0.0.0/24"},
    ),
    ("network delete back --yes", f"DELETE {T}/networks/back", None),
    ("volume create data --size-gib 200", f"POST {T}/volumes", {"name": "data", "size_gib": 200}),
    (
        "volume attach data train",
        f"POST {T}/instances/train/actions/attach-volume",
        {"volume": "data"},
    ),
    (
        "volume detach data train",
        f"POST {T}/instances/train/actions/detach-volume",
        {"volume": "data"},
    ),
    ("volume delete data --yes", f"DELETE {T}/volumes/data", None),
    ("instance start train", f"POST {T}/instances/train/actions/start", None),
    ("instance stop train", f"POST {T}/instances/train/actions/stop", None),
    ("instance restart train", f"POST {T}/instances/train/actions/restart", None),
    ("instance delete train --yes", f"DELETE {T}/instances/train", None),
    (
        f"image create debian-13 --digest {DIGEST} --size-bytes 1024 --for-tenant acme",
        "POST /v1/images",
        {"name": "debian-13", "digest": DIGEST, "size_bytes": 1024, "firmware": "uefi", "tenant": "acme"},
    ),
    ("image delete debian-13 --yes", "DELETE /v1/images/debian-13", None),
    (
        "type create gpu-1 --vcpus 8 --memory-mib 65536 --disk-gib 100 --gpus 1 --gpu-model 10de:2330",
        "POST /v1/instance-types",
        {
            "name": "gpu-1",
            "vcpus": 8,
            "memory_mib": 65536,
            "page_size_kib": 2048,
            "threads_per_core": 1,
            "gpus": 1,
            "gpu_model": "10de:2330",
            "disk_gib": 100,
            "isolation": "dedicated",
        },
    ),
    ("type delete gpu-1 --yes", "DELETE /v1/instance-types/gpu-1", None),
    ("host create gpu-01 --disk-gib 4000", "POST /v1/hosts", {"name": "gpu-01", "disk_gib": 4000}),
    ("host cordon gpu-01 --reason broken", "POST /v1/hosts/gpu-01/actions/cordon", {"reason": "broken"}),
    ("host uncordon gpu-01 --reason mended", "POST /v1/hosts/gpu-01/actions/uncordon", {"reason": "mended"}),
    (
        "host fence gpu-01 --reason stolen --powered-off --yes",
        "POST /v1/hosts/gpu-01/actions/fence",
        {"reason": "stolen", "powered_off": True},
    ),
    (
        "host evacuate gpu-01 --reason burnt --yes",
        "POST /v1/hosts/gpu-01/actions/evacuate",
        {"reason": "burnt"},
    ),
    (
        "host drain gpu-01 --reason dimm --deadline 30m --yes",
        "POST /v1/hosts/gpu-01/actions/drain",
        {"reason": "dimm", "policy": "each", "deadline_s": 1800},
    ),
    (
        "host drain gpu-01 --reason dimm --policy wait",
        "POST /v1/hosts/gpu-01/actions/drain",
        {"reason": "dimm", "policy": "wait", "deadline_s": 3600},
    ),
    (
        f"host remove-stray gpu-01 instance {objects.VM1} --reason forgotten --yes",
        "POST /v1/hosts/gpu-01/actions/remove-stray",
        {"kind": "instance", "id": objects.VM1, "reason": "forgotten"},
    ),
    (
        "deployment resume --reason looked --yes",
        "POST /v1/deployment/actions/resume",
        {"reason": "looked", "force": False},
    ),
    (
        "deployment resume --reason looked --yes --force",
        "POST /v1/deployment/actions/resume",
        {"reason": "looked", "force": True},
    ),
    (
        "host remove gpu-01 --reason sold --yes",
        "POST /v1/hosts/gpu-01/actions/remove",
        {"reason": "sold", "lost": False},
    ),
    (
        "host remove gpu-01 --reason burnt --lost --yes",
        "POST /v1/hosts/gpu-01/actions/remove",
        {"reason": "burnt", "lost": True},
    ),
    ("host revoke gpu-01 --reason key --yes", "POST /v1/hosts/gpu-01/actions/revoke", {"reason": "key"}),
    ("host join-token gpu-01", "POST /v1/hosts/gpu-01/actions/join-token", None),
    (
        "gpu quarantine gpu_a2b3c4d5e6f7g2h3i4j5 --reason hangs",
        "POST /v1/gpus/gpu_a2b3c4d5e6f7g2h3i4j5/actions/quarantine",
        {"reason": "hangs"},
    ),
    (
        "gpu release gpu_k2l3m4n5o6p7q2r3s4t5 --reason replaced",
        "POST /v1/gpus/gpu_k2l3m4n5o6p7q2r3s4t5/actions/release",
        {"reason": "replaced"},
    ),
    (
        "user create alice --roles tenant-admin,member",
        f"POST {T}/users",
        {"name": "alice", "kind": "user", "roles": ["member", "tenant-admin"]},
    ),
    ("user set alice --roles auditor", f"PUT {T}/users/alice/roles", {"roles": ["auditor"]}),
    ("user delete alice --yes", f"DELETE {T}/users/alice", None),
    (
        "token create ci --user alice --scopes read,write --days 30",
        f"POST {T}/tokens",
        {"name": "ci", "scopes": ["read", "write"], "days": 30, "user": "alice"},
    ),
    (f"token delete {objects.TOKEN_ID} --yes", f"DELETE {T}/tokens/{objects.TOKEN_ID}", None),
    (
        "operator create carol --roles auditor --service --issuer https://idp --subject carol",
        "POST /v1/operators",
        {
            "name": "carol",
            "kind": "service",
            "roles": ["auditor"],
            "issuer": "https://idp",
            "subject": "carol",
        },
    ),
    ("operator delete root --yes", "DELETE /v1/operators/root", None),
    (
        "operator token create root ops --scopes admin",
        "POST /v1/operators/root/tokens",
        {"name": "ops", "scopes": ["admin"], "days": 90},
    ),
    (
        f"operator token delete root {objects.TOKEN_ID} --yes",
        f"DELETE /v1/operators/root/tokens/{objects.TOKEN_ID}",
        None,
    ),
    (f"operation cancel {objects.OP1}", f"POST {T}/operations/{objects.OP1}/actions/cancel", None),
]


def the_change(api: FakeApi) -> httpx2.Request:
    (change,) = [each for each in api.requests if each.method != "GET"]
    return change


@pytest.mark.parametrize(("words", "call", "body"), SENT, ids=[words for words, _, _ in SENT])
def test_a_command_sends_one_change(
    bulkhead: Bulkhead, api: FakeApi, words: str, call: str, body: Any
) -> None:
    ran = bulkhead(*words.split())
    assert ran.exit_code == 0, ran.stderr
    change = the_change(api)
    assert f"{change.method} {change.url.path}" == call
    assert (json.loads(change.content) if change.content else None) == body
    assert change.url.params.get("dry_run") is None
    assert bool(change.headers.get("idempotency-key")) == (change.method == "POST")
    assert change.headers.get("if-match") == ('"7"' if change.method == "PUT" else None)


@pytest.mark.parametrize(("words", "call", "body"), SENT, ids=[words for words, _, _ in SENT])
def test_a_dry_run_says_so_to_the_server_and_waits_for_nothing(
    bulkhead: Bulkhead, api: FakeApi, words: str, call: str, body: Any
) -> None:
    ran = bulkhead(*[word for word in words.split() if word != "--yes"], "--dry-run")
    assert ran.exit_code == 0, ran.stderr
    assert the_change(api).url.params["dry_run"] == "true"
    assert ran.stderr.splitlines()[-1] == "dry run: nothing was changed"
    assert WHERE not in [each.url.path for each in api.requests]


def test_create_waits_and_shows_what_was_made(bulkhead: Bulkhead, api: FakeApi) -> None:
    ran = bulkhead(*CREATE, "-o", "json")
    assert ran.exit_code == 0
    assert api.calls == [f"POST {T}/instances", f"GET {WHERE}", f"GET {T}/instances/train"]
    assert json.loads(ran.stdout) == api.lists[f"{T}/instances"][0]
    assert api.requests[1].url.params["wait"] == "5s"
    assert ran.stderr.splitlines() == [
        "  instance.create 1/3 accepted done",
        "  instance.create 2/3 placed done",
        "  instance.create 3/3 running done",
        "instance train runs",
    ]
    body = {
        "type": "gpu-1",
        "image": "debian-13",
        "networks": ["back"],
        "volumes": [],
        "on_no_capacity": "wait",
        "on_drain": "stop",
    }
    assert api.body(0) == {"name": "train", **body}


def test_create_sends_how_long_it_may_run_on_in_a_drain(bulkhead: Bulkhead, api: FakeApi) -> None:
    assert bulkhead(*CREATE, "--drain-deadline", "2h").exit_code == 0
    assert api.body(0)["drain_deadline_s"] == 7200


def test_create_polls_until_it_is_over_and_says_each_step_once(bulkhead: Bulkhead, api: FakeApi) -> None:
    running = httpx2.Response(200, json=objects.operation(state="running"))
    api.reply(f"GET {WHERE}", running, running, httpx2.Response(200, json=objects.operation()))
    ran = bulkhead(*CREATE)
    assert ran.exit_code == 0
    assert api.calls.count(f"GET {WHERE}") == 3
    assert ran.stderr.count("accepted done") == 1


def test_a_wait_says_what_is_short_and_who_is_before_it(bulkhead: Bulkhead, api: FakeApi) -> None:
    def held(ahead: int, message: str | None) -> httpx2.Response:
        reason = None if message is None else {"code": "gpu.short", "message": message, "retryable": True}
        return httpx2.Response(
            200, json=objects.operation(state="running", waits={"reason": reason, "ahead": ahead})
        )

    short = "no host has room: GPUs are short on 2 of 2 hosts"
    looks = [held(1, None), held(1, short), held(1, short), held(0, short + "\x1b[2J")]
    api.reply(f"GET {WHERE}", *looks, httpx2.Response(200, json=objects.operation()))
    told = bulkhead(*CREATE).stderr.splitlines()
    assert [line for line in told if "waits" in line] == [
        "  instance.create waits behind 1 of your own",
        f"  instance.create waits behind 1 of your own: {short}",
        f"  instance.create waits: {short}\\x1b[2J",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_moving_line_stays_one(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    waits = {"reason": {"message": "no host has room: " + "GPUs are short, " * 20}, "ahead": 3}
    with console.status(Text("waiting")) as status:
        Progress(status).told(objects.operation(state="running", waits=waits))
        lines = console.render_lines(status.renderable, pad=False)
    assert len(lines) == 1
    shown = "".join(segment.text for segment in lines[0])
    assert "waits behind 3 of your own: no host has room" in shown
    assert len(shown) <= width


def test_no_wait_prints_the_operation_and_asks_no_more(bulkhead: Bulkhead, api: FakeApi) -> None:
    assert bulkhead(*CREATE, "--no-wait").stdout == f"{objects.OP1}\n"
    assert api.calls == [f"POST {T}/instances"]
    as_json = json.loads(bulkhead(*CREATE, "--no-wait", "-o", "json").stdout)
    assert as_json == objects.operation(state="running")


def test_a_failed_operation_is_exit_8_with_its_own_words(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.reply(f"GET {WHERE}", httpx2.Response(200, json=objects.failed()))
    ran = bulkhead(*CREATE)
    assert (ran.exit_code, ran.stdout) == (8, "")
    assert "device.bind_timeout: instance.create of" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "  next: bulkhead instance delete train"


def test_a_cancelled_operation_is_exit_8(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.reply(f"GET {WHERE}", httpx2.Response(200, json=objects.operation(state="cancelled")))
    ran = bulkhead(*CREATE)
    assert ran.exit_code == 8
    assert "operation.cancelled: " in ran.stderr


def test_a_wait_that_ends_early_is_exit_7_and_says_how_to_go_on(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def hold(_request: httpx2.Request) -> httpx2.Response:
        now[0] += 5
        return httpx2.Response(200, json=objects.operation(state="running"))

    monkeypatch.setattr(clock, "now", lambda: now[0])
    api.reply(f"GET {WHERE}", hold)
    ran = bulkhead(*CREATE, "--timeout", "12s")
    assert (ran.exit_code, ran.stdout) == (7, "")
    assert f"next: bulkhead operation wait {objects.OP1} --tenant {objects.ACME}\n" in ran.stderr
    waits = [each.url.params.get("wait") for each in api.requests if each.url.path == WHERE]
    assert waits == ["5s", "5s", "2s"]


def test_interrupting_a_wait_is_130(bulkhead: Bulkhead, api: FakeApi) -> None:
    def interrupt(_request: httpx2.Request) -> httpx2.Response:
        raise KeyboardInterrupt

    api.reply(f"GET {WHERE}", interrupt)
    ran = bulkhead(*CREATE)
    assert ran.exit_code == 130
    resume = f"bulkhead operation wait {objects.OP1} --tenant {objects.ACME}"
    assert ran.stderr.splitlines()[-1] == f"the work goes on; next: {resume}"


def test_instance_wait_looks_until_the_state_is_there(bulkhead: Bulkhead, api: FakeApi) -> None:
    path = f"GET {T}/instances/train"
    states = ["pending", "scheduled", "provisioning", "running"]
    api.reply(
        path, *[httpx2.Response(200, json=objects.instance("train", objects.VM1, each)) for each in states]
    )
    assert bulkhead("instance", "wait", "train", "--for", "running").exit_code == 0
    assert api.calls == [path] * 4


def test_instance_wait_gives_up_on_an_error(bulkhead: Bulkhead, api: FakeApi) -> None:
    ran = bulkhead("instance", "wait", "serve", "--for", "running")
    assert ran.exit_code == 8
    assert ran.stderr.startswith("device.bind_timeout: instance serve is needs_attention")
    assert bulkhead("instance", "wait", "serve", "--for", "needs_attention").exit_code == 0


def test_operation_wait(bulkhead: Bulkhead, api: FakeApi) -> None:
    assert bulkhead("operation", "wait", objects.OP1).exit_code == 0
    assert bulkhead("operation", "wait", objects.OP2).exit_code == 8


@pytest.mark.parametrize(
    "words",
    [
        "tenant delete acme",
        "network delete back",
        "volume delete data",
        "instance delete train",
        "image delete debian-13",
        "type delete gpu-1",
        "host remove gpu-01 --reason sold",
        "host revoke gpu-01 --reason key",
        "host fence gpu-01 --reason stolen --powered-off",
        "host evacuate gpu-01 --reason burnt",
        "host drain gpu-01 --reason dimm",
        f"host remove-stray gpu-01 volume {objects.VM1} --reason x",
        "deployment resume --reason x",
        "user delete alice",
        f"token delete {objects.TOKEN_ID}",
        "operator delete root",
        f"operator token delete root {objects.TOKEN_ID}",
    ],
)
def test_nothing_is_destroyed_unasked(bulkhead: Bulkhead, api: FakeApi, words: str) -> None:
    ran = bulkhead(*words.split())
    assert ran.exit_code == 2
    assert ran.stderr.startswith("confirm.needed: ")
    assert ran.stderr.splitlines()[-1] == "  next: add --yes"
    assert api.requests == []


def test_deleting_wants_the_name(bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = ["tarin", "train"]

    def prompt(text: str, **_options: Any) -> str:
        asked.append(text)
        return answers.pop(0)

    monkeypatch.setattr(running.typer, "prompt", prompt)
    monkeypatch.setattr(running, "has_terminal", lambda: True)
    wrong = bulkhead("instance", "delete", "train")
    assert (wrong.exit_code, wrong.stderr.split(":")[0]) == (2, "confirm.other")
    assert api.requests == []
    assert bulkhead("instance", "delete", "train").exit_code == 0
    assert asked == ["Type train to delete this instance"] * 2
    assert api.calls[0] == f"DELETE {T}/instances/train"


def test_a_token_is_shown_once_and_alone(bulkhead: Bulkhead, api: FakeApi) -> None:
    ran = bulkhead("token", "create", "ci", "--scopes", "read")
    assert ran.stdout == "bh_made_once\n"
    assert "bh_made_once" not in ran.stderr
    again = httpx2.Response(201, json={**objects.token(), "token": None})
    api.reply(f"POST {T}/tokens", again)
    ran = bulkhead("token", "create", "ci", "--scopes", "read")
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert "was made by an earlier call" in ran.stderr


def test_a_join_token_is_shown_once_and_alone(bulkhead: Bulkhead) -> None:
    ran = bulkhead("host", "create", "gpu-03", "--disk-gib", 1)
    assert ran.stdout == "bhj_made_once\n"
    assert "bulkhead agent enrol" in ran.stderr


def test_user_data_comes_from_a_file_or_stdin(bulkhead: Bulkhead, api: FakeApi, home: Any) -> None:
    file = home / "cloud.yaml"
    file.write_text("#cloud-config\npackages: [caf\u00e9]\n")
    bulkhead(*CREATE, "--user-data", file, "--no-wait")
    assert api.body()["user_data"] == file.read_text()
    bulkhead(*CREATE, "--user-data", "-", "--no-wait", stdin="#cloud-config\n")
    assert api.body()["user_data"] == "#cloud-config\n"


def test_a_lost_answer_to_a_create_is_asked_again_with_the_same_key(bulkhead: Bulkhead, api: FakeApi) -> None:
    def lose(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadError("reset")

    running = objects.operation(state="running")
    api.reply(f"POST {T}/instances", lose, httpx2.Response(202, json=running, headers={"location": WHERE}))
    assert bulkhead(*CREATE, "--no-wait").exit_code == 0
    first, second = api.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.content == second.content


def test_two_creates_have_two_keys(bulkhead: Bulkhead, api: FakeApi) -> None:
    bulkhead(*CREATE, "--no-wait")
    bulkhead(*CREATE, "--no-wait")
    first, second = api.requests
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


@pytest.mark.parametrize(
    "words", ["instance restart train", "host cordon gpu-01 --reason x", "volume delete data --yes"]
)
def test_a_lost_answer_to_what_could_be_done_twice_is_told(
    bulkhead: Bulkhead, api: FakeApi, words: str
) -> None:
    def lose(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadError("reset")

    for call in (
        f"POST {T}/instances/train/actions/restart",
        "POST /v1/hosts/gpu-01/actions/cordon",
        f"DELETE {T}/volumes/data",
    ):
        api.reply(call, lose)
    ran = bulkhead(*words.split())
    assert ran.exit_code == 8
    assert ran.stderr.startswith("api.answer_lost: ")
    assert "look whether it was done" in ran.stderr
    assert len(api.requests) == 1


def test_a_quota_that_somebody_else_changed_is_a_conflict(bulkhead: Bulkhead, api: FakeApi) -> None:
    api.reply(f"PUT {T}/quota", problem(412, "quota.changed", hint="read it again"))
    ran = bulkhead("quota", "set", "--limit", "gpus=8")
    assert ran.exit_code == 5
    assert api.calls == [f"GET {T}/quota", f"PUT {T}/quota"]

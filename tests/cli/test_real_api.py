"""The command line against the API itself, over a store: what one sends the other takes.

No network and no host: what waits for a host waits. Event streams never end in process, so they are not here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from orchestrator.__main__ import app
from orchestrator.cli import session
from orchestrator.cli.columns import at
from orchestrator.client import clock
from orchestrator.controller import hosts
from orchestrator.model.actor import CONTROLLER
from orchestrator.store.tables.fleet import GpuRow, HostRow
from orchestrator.store.tables.instances import InstanceRow
from orchestrator.store.unit_of_work import table_of
from tests.api.conftest import deployed, sqlite_store
from tests.api.deployment import DIGEST, Deployment
from tests.cli.conftest import Ran
from tests.cli.test_lists import HELP, LOCAL
from tests.databases import sqlite_template

__all__ = ["deployed", "sqlite_store", "sqlite_template"]

As = Callable[..., Ran]


@pytest.fixture
def bulkhead(deployed: Deployment, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[As]:
    """Run a command as somebody of the deployment."""
    monkeypatch.setenv("BULKHEAD_URL", "https://api.test")
    monkeypatch.setenv("BULKHEAD_TENANT", "acme")
    monkeypatch.setattr(session, "transport", lambda: deployed.client()._transport)
    monkeypatch.setattr(clock, "sleep", lambda _seconds: None)

    def run(who: str, words: str) -> Ran:
        monkeypatch.setenv("BULKHEAD_TOKEN", deployed.people[who].text)
        done = CliRunner().invoke(app, words.split(), prog_name="bulkhead")
        return Ran(done.exit_code, done.stdout, done.stderr)

    # The server's log must not stand in the command's output, as it would in one process.
    with structlog.testing.capture_logs():
        yield run


def done(run: As, who: str, words: str) -> str:
    ran = run(who, words)
    assert ran.exit_code == 0, f"{words}: {ran.stderr}"
    return ran.stdout


def made(run: As, who: str, words: str) -> dict[str, object]:
    found = json.loads(done(run, who, f"{words} -o json"))
    assert isinstance(found, dict)
    return found


def names(run: As, who: str, words: str) -> list[str]:
    return done(run, who, f"{words} -o name").split()


def test_an_operators_day(bulkhead: As) -> None:
    me = "operator"
    assert made(bulkhead, me, "tenant create initech --limit gpus=4")["name"] == "initech"
    assert made(bulkhead, me, "tenant set initech --name initrode")["name"] == "initrode"
    quota = made(bulkhead, me, "quota set --tenant initrode --limit vcpus=7")
    assert (at(quota, "limits.gpus"), at(quota, "limits.vcpus")) == (4, 7)
    assert "vcpus" in done(bulkhead, me, "quota show --tenant initrode")
    assert done(bulkhead, me, "tenant delete initrode --yes") == ""
    assert sorted(names(bulkhead, me, "tenant list")) == ["acme", "globex"]

    shape = "--vcpus 2 --memory-mib 512 --disk-gib 4 --gpus 1 --gpu-model 10de:2330"
    assert made(bulkhead, me, f"type create big {shape}")["gpu_model"] == "10de:2330"
    image = f"image create alpine --digest {DIGEST[:-1]}2 --size-bytes 1024"
    assert made(bulkhead, me, image)["tenant_id"] is None
    assert done(bulkhead, me, "type delete big --yes") == ""
    assert done(bulkhead, me, "image delete alpine --yes") == ""

    assert made(bulkhead, me, "operator create carol --roles auditor")["roles"] == ["auditor"]
    token = done(bulkhead, me, "operator token create carol audits --scopes audit,read").strip()
    assert token.startswith("bh_")
    (kept,) = json.loads(done(bulkhead, me, "operator token list carol -o json"))["items"]
    assert done(bulkhead, me, f"operator token delete carol {kept['key_id']} --yes") == ""
    assert done(bulkhead, me, "operator delete carol --yes") == ""


def test_the_fleet(bulkhead: As, deployed: Deployment) -> None:
    me = "operator"
    assert done(bulkhead, me, "host create node2 --disk-gib 100").startswith("bhj_")
    assert "join_token" not in made(bulkhead, me, "host show node2")
    assert done(bulkhead, me, "host revoke node2 --reason leak --yes -o name")
    assert done(bulkhead, me, "host join-token node2").startswith("bhj_")
    assert made(bulkhead, me, "host remove node2 --reason sold --yes")["state"] == "removed"
    assert bulkhead(me, "host show node2").exit_code == 3
    add_gpu(deployed)
    assert made(bulkhead, me, "host cordon node1 --reason memory-errors")["reason"] == "memory-errors"
    assert made(bulkhead, me, "host uncordon node1 --reason mended")["state"] == "ready"
    assert made(bulkhead, me, "gpu quarantine gpu_1 --reason it-hangs")["state"] == "quarantined"
    assert bulkhead(me, "gpu quarantine gpu_1 --reason it-hangs").exit_code == 5
    assert "gpus to look at" in done(bulkhead, me, "status --platform")
    assert made(bulkhead, me, "gpu release gpu_1 --reason replaced")["state"] != "quarantined"
    assert made(bulkhead, me, "host cordon node1 --reason stolen")["state"] == "cordoned"
    assert made(bulkhead, me, "host fence node1 --reason stolen --powered-off --yes")["state"] == "fenced"


def add_gpu(deployed: Deployment) -> None:
    """Let node1 be ready, with one clean GPU, as its agent would have reported."""
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        host = hosts.get(tx, "node1")
        tx.execute(table_of(HostRow).update().values(state="ready"))
        tx.execute(
            table_of(GpuRow)
            .insert()
            .values(
                id="gpu_1",
                host_id=host.id,
                address="0000:01:00.0",
                vendor="10de",
                device="2330",
                serial="",
                node=0,
                previous="verifying",
                state="clean",
                tenancy=0,
                reason="",
                generation=1,
                created_ms=1,
            )
        )
        tx.record("host.ready", ("host", host.id), tenant=None)


def test_a_tenants_day(bulkhead: As, deployed: Deployment) -> None:
    me = "acme-member"
    assert made(bulkhead, me, "whoami")["tenant_id"] == deployed.tenants["acme"]
    assert made(bulkhead, me, "network create back --cidr 10.0.0.0/24")["cidr"] == "10.0.0.0/24"
    assert made(bulkhead, me, "volume create data --size-gib 2")["size_gib"] == 2

    create = "instance create train --type small --image debian --network back"
    operation = made(bulkhead, me, f"{create} --no-wait")
    assert operation["kind"] == "instance.create"
    shown = made(bulkhead, me, "instance show train")
    assert (shown["state"], at(shown, "operation_id")) == ("pending", operation["id"])
    ran = bulkhead(me, f"operation wait {operation['id']} --timeout 1s")
    assert ran.exit_code == 7
    assert "\noperation.still_running: " in ran.stderr
    assert names(bulkhead, me, "instance list") == ["train"]
    assert "train" in done(bulkhead, me, "instance list -o wide")
    assert at(made(bulkhead, me, "request list"), "next_page_token") is None
    assert bulkhead(me, "instance evidence train").stderr.startswith("instance train has not run yet")
    assert made(bulkhead, me, f"operation cancel {operation['id']}")["state"] == "cancelled"
    assert bulkhead(me, f"operation wait {operation['id']}").exit_code == 8
    assert bulkhead(me, "instance delete train --yes --timeout 5s").exit_code == 0

    create = "instance create serve --type small --image debian --volume data"
    assert made(bulkhead, me, f"{create} --no-wait")["kind"] == "instance.create"
    held = made(bulkhead, me, "instance show serve")["volumes"]
    assert [each["name"] for each in held] == ["serve-boot", "data"]  # type: ignore[index, attr-defined]
    ran = bulkhead(me, "volume detach data serve")
    assert (ran.exit_code, ran.stderr.split(":")[0]) == (5, "instance.not_stopped")
    stop(deployed, "serve")
    assert at(made(bulkhead, me, "volume detach data serve"), "generation") == 2
    assert made(bulkhead, me, "volume show data")["state"] == "available"
    assert at(made(bulkhead, me, "volume attach data serve"), "generation") == 3
    assert bulkhead(me, "volume delete data --yes").exit_code == 5
    assert bulkhead(me, "instance delete serve --yes").exit_code == 0

    assert made(bulkhead, me, "quota show")["tenant_id"] == deployed.tenants["acme"]
    assert "quota" in done(bulkhead, me, "status")
    assert done(bulkhead, me, "network delete back --yes") == ""
    assert bulkhead(me, "volume delete data --yes").exit_code == 0


def stop(deployed: Deployment, name: str) -> None:
    """Let an instance be stopped, as if it had run."""
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(
            table_of(InstanceRow).update().where(table_of(InstanceRow).c.name == name).values(state="stopped")
        )


def test_a_tenants_people(bulkhead: As) -> None:
    me = "acme-admin"
    assert made(bulkhead, me, "user create alice --roles member")["name"] == "alice"
    assert made(bulkhead, me, "user set alice --roles auditor,member")["roles"] == ["auditor", "member"]
    token = made(bulkhead, me, "token create ci --user alice --scopes read --days 1")
    assert str(token["token"]).startswith("bh_")
    assert token["key_id"] in done(bulkhead, me, "token list")
    assert done(bulkhead, me, f"token delete {token['key_id']} --yes") == ""
    assert done(bulkhead, me, "user delete alice --yes") == ""


def test_every_dry_run_is_one(bulkhead: As) -> None:
    before = names(bulkhead, "acme-admin", "user list")
    for who, words in (
        ("operator", "tenant create initech"),
        ("operator", "tenant set acme --name acme-2"),
        ("operator", "quota set --limit gpus=1"),
        ("operator", "host create node2 --disk-gib 1"),
        ("acme-member", "network create back --cidr 10.0.0.0/24"),
        ("acme-member", "volume create data --size-gib 1"),
        ("acme-member", "instance create train --type small --image debian"),
        ("acme-admin", "user create alice --roles member"),
        ("acme-admin", "user set acme-member --roles auditor"),
        ("acme-admin", "user delete acme-member"),
        ("acme-admin", "token create ci --scopes read"),
    ):
        ran = bulkhead(who, f"{words} --dry-run")
        assert ran.exit_code == 0, f"{words}: {ran.stderr}"
        assert ran.stderr.endswith("dry run: nothing was changed\n")
        assert "bh_" not in ran.stdout
    assert sorted(names(bulkhead, "operator", "tenant list")) == ["acme", "globex"]
    assert names(bulkhead, "operator", "host list") == ["node1"]
    assert names(bulkhead, "acme-admin", "user list") == before
    for noun in ("network", "volume", "instance"):
        assert names(bulkhead, "acme-member", f"{noun} list") == []


def test_lists_as_json_are_the_apis(bulkhead: As, deployed: Deployment) -> None:
    for number in range(5):
        done(bulkhead, "acme-member", f"volume create v{number} --size-gib 1")
    tenant = "/v1/tenants/acme"
    lists = (
        ("tenant list", "/v1/tenants"),
        ("host list", "/v1/hosts"),
        ("gpu list", "/v1/gpus"),
        ("request list --platform", "/v1/requests"),
        ("operation list --platform", "/v1/operations"),
        ("operator list", "/v1/operators"),
        ("type list", "/v1/instance-types"),
        ("image list", "/v1/images"),
        ("volume list", f"{tenant}/volumes"),
        ("network list", f"{tenant}/networks"),
        ("instance list", f"{tenant}/instances"),
        ("operation list", f"{tenant}/operations"),
        ("request list", f"{tenant}/requests"),
        ("user list", f"{tenant}/users"),
        ("token list", f"{tenant}/tokens"),
        ("operator token list operator", "/v1/operators/operator/tokens"),
    )
    in_tree = {" ".join(words) for words in HELP if words and words[-1] == "list"} - LOCAL
    assert {words.split(" --")[0].removesuffix(" operator") for words, _ in lists} == in_tree
    for words, path in lists:
        raw = deployed.client("operator").get(path, params={"page_size": 1000}).json()
        assert made(bulkhead, "operator", words) == raw, words
        assert done(bulkhead, "operator", f"{words} -o csv")
    limited = made(bulkhead, "operator", "volume list --limit 2")
    assert len(limited["items"]) == 2  # type: ignore[arg-type]


def test_refusals(bulkhead: As) -> None:
    assert bulkhead("globex-member", "instance list").exit_code == 3
    assert bulkhead("acme-member", "host list").exit_code == 4
    assert bulkhead("operator", "instance show nothing").exit_code == 3
    done(bulkhead, "acme-member", "volume create data --size-gib 1")
    assert bulkhead("acme-member", "volume create data --size-gib 1").exit_code == 5
    ran = bulkhead("acme-member", "volume create large --size-gib 10000")
    assert (ran.exit_code, ran.stderr.split(":")[0]) == (6, "quota.exceeded")
    ran = bulkhead("acme-member", "network create back --cidr 8.8.8.0/24")
    assert ran.exit_code == 2
    assert "  request: " in ran.stderr


def test_an_audit_export_verifies(bulkhead: As, home: Path) -> None:
    done(bulkhead, "acme-member", "volume create data --size-gib 1")
    whole = done(bulkhead, "acme-auditor", "audit export")
    assert "volume.create" in whole
    file = home / "acme.jsonl"
    file.write_text(whole)
    assert "none is missing" in done(bulkhead, "acme-auditor", f"audit verify {file}")
    file.write_text(whole.replace("volume.create", "volume.delete"))
    assert bulkhead("acme-auditor", f"audit verify {file}").exit_code == 5
    some = done(bulkhead, "operator", "audit export --platform --kind host --from 2020-01-01T00:00:00Z")
    assert "host.create" in some
    assert bulkhead("acme-member", "audit export").exit_code == 4

"""What is wrong is told with a code and a next step, and nothing is asked of the server."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.cli.conftest import Bulkhead
from tests.cli.fake_api import FakeApi, T

LONG = "a" * 64
DIGEST = "sha256:" + "0123456789abcdef" * 4
CREATE = "instance create train --type gpu-1 --image debian-13"
TYPE = "type create big --vcpus 8 --memory-mib 1024 --disk-gib 10"
IMAGE = f"image create debian --size-bytes 1024 --digest {DIGEST}"

#: Words, the code that is told. `_` in a word stands for a space.
CASES: list[tuple[str, str]] = [
    # Nouns, verbs and options that there are not.
    ("instanec list", "usage.invalid"),
    ("instance lst", "usage.invalid"),
    ("instance list --otuput json", "usage.invalid"),
    ("instance list extra", "usage.invalid"),
    ("instance show", "usage.invalid"),
    ("instance show train extra", "usage.invalid"),
    ("volume create data", "usage.invalid"),
    ("network create back", "usage.invalid"),
    ("host cordon gpu-01", "usage.invalid"),
    ("host fence gpu-01 --yes", "usage.invalid"),
    ("gpu quarantine gpu_a", "usage.invalid"),
    ("quota set", "usage.invalid"),
    # Forms of output.
    ("instance list -o jsn", "output.unknown"),
    ("instance list -o JSON,YAML", "output.unknown"),
    ("instance list --columns name,nmae", "output.column"),
    ("instance list --columns ,", "output.column"),
    ("instance list -o json --columns bogus", "output.column"),
    ("status -o csv", "output.unknown"),
    ("event watch -o csv", "output.unknown"),
    ("instance list --limit 0", "usage.invalid"),
    ("instance list --limit 1001", "usage.invalid"),
    ("instance list --limit some", "usage.invalid"),
    # Lists of some.
    ("instance list --state runing", "list.state"),
    ("instance list --state deleted", "list.state"),
    ("instance list --type G", "instance_type.name"),
    ("instance list --host a/b", "host.name"),
    ("instance list --name %", "list.name"),
    ("volume list --state free", "list.state"),
    ("volume list --instance ../x", "instance.name"),
    ("operation list --kind instance", "list.kind"),
    ("operation list --state over --platform", "list.state"),
    ("operation list --subject A", "subject.name"),
    ("request list --state late", "list.state"),
    ("gpu list --model H100", "gpu.model"),
    ("gpu list --state new", "list.state"),
    ("host list --state tired", "list.state"),
    ("event watch --kind Instance", "audit.kind"),
    # Names and ids.
    ("instance show Train", "instance.name"),
    ("instance show ../../tenants", "instance.name"),
    ("instance show a/b", "instance.name"),
    ("instance show a?dry_run=true", "instance.name"),
    ("instance show _leading", "instance.name"),
    (f"instance show {LONG}", "instance.name"),
    ("instance show train --tenant a/b", "tenant.name"),
    ("volume create data_1 --size-gib 1", "volume.name"),
    ("volume create -- -x --size-gib", "usage.invalid"),
    ("volume create 1data --size-gib 1", "volume.name"),
    ("volume create data- --size-gib 1", "volume.name"),
    ("tenant create Acme", "tenant.name"),
    ("tenant set acme --name a_b", "tenant.name"),
    ("user create alice@example.com --roles member", "user.name"),
    ("token create CI --scopes read", "token.name"),
    ("operator create x_y --roles operator", "operator.name"),
    ("operation show op/1", "operation.name"),
    ("gpu show GPU", "gpu.name"),
    # Numbers and times.
    ("volume create data --size-gib 0", "usage.invalid"),
    ("volume create data --size-gib -5", "usage.invalid"),
    ("volume create data --size-gib 1.5", "usage.invalid"),
    ("volume create data --size-gib 1000001", "usage.invalid"),
    (f"{CREATE} --timeout soon", "wait.timeout"),
    (f"{CREATE} --timeout 0", "wait.timeout"),
    (f"{CREATE} --timeout -1s", "wait.timeout"),
    (f"{CREATE} --timeout 8d", "wait.timeout"),
    (f"{CREATE} --timeout 169h", "wait.timeout"),
    ("operation wait op_1 --timeout never", "wait.timeout"),
    ("token create ci --scopes read --days 367", "usage.invalid"),
    ("token create ci --scopes read --days 0", "usage.invalid"),
    # Quotas.
    ("quota set --limit gpus", "quota.limit"),
    ("quota set --limit gpus=", "quota.limit"),
    ("quota set --limit gpus=-1", "quota.limit"),
    ("quota set --limit gpus=1.5", "quota.limit"),
    ("quota set --limit gpus=1000000001", "quota.limit"),
    ("quota set --limit gpus=99999999999999999999", "quota.limit"),
    ("quota set --limit gpus=1 --limit gpus=2", "quota.limit"),
    ("quota set --limit cores=1", "quota.limit"),
    ("quota set --limit =1", "quota.limit"),
    ("tenant create acme --limit x", "quota.limit"),
    # Each noun's own.
    ("network create back --cidr 10.0.0.1/24", "network.cidr"),
    ("network create back --cidr 10.0.0.0/33", "network.cidr"),
    ("network create back --cidr fd00::/64", "network.cidr"),
    ("network create back --cidr back", "network.cidr"),
    (f"{CREATE} --network a/b", "network.name"),
    (f"{CREATE} --volume a/b", "volume.name"),
    ("volume attach data", "usage.invalid"),
    ("volume attach Data train", "volume.name"),
    ("volume attach data a/b", "instance.name"),
    ("volume detach ../data train", "volume.name"),
    (f"{CREATE} --on-no-capacity give-up", "instance.on_no_capacity"),
    (f"{CREATE} --user-data /nonexistent", "file.unreadable"),
    (f"{CREATE} --user-data /", "file.unreadable"),
    (f"{CREATE} --user-data BINARY", "file.not_text"),
    (f"{CREATE} --user-data LARGE", "file.too_large"),
    ("instance create train --type G --image debian-13", "instance_type.name"),
    ("instance create train --type gpu-1 --image a:b", "image.name"),
    ("instance wait train --for runing", "instance.state"),
    (f"{TYPE} --page-size-kib 8", "instance_type.page_size"),
    (f"{TYPE} --isolation shared", "instance_type.isolation"),
    (f"{TYPE} --gpu-model 10de:2330", "instance_type.no_gpu"),
    (f"{TYPE} --gpus 1 --gpu-model H100", "instance_type.gpu_model"),
    (f"{TYPE} --threads-per-core 3", "usage.invalid"),
    (f"{IMAGE} --firmware coreboot", "image.firmware"),
    ("image create debian --size-bytes 1024 --digest sha256:00", "image.digest"),
    (f"image create debian --size-bytes 1024 --digest {DIGEST.upper()}", "image.digest"),
    (f"{IMAGE} --for-tenant a/b", "tenant.name"),
    ("host cordon gpu-01 --reason _", "reason.invalid"),
    ("host doctor a/b", "host.name"),
    ("host doctor gpu-02 --columns cats", "output.column"),
    ("host doctor gpu-02 --now --timeout soon", "wait.timeout"),
    ("host drain gpu-01 --yes --reason _", "reason.invalid"),
    ("host drain gpu-01 --yes --reason x --policy move", "host.drain_policy"),
    ("host drain gpu-01 --yes --reason x --deadline soon", "wait.timeout"),
    ("host remove-stray gpu-01 port prt_a --reason x --yes", "stray.kind"),
    ("host remove-stray gpu-01 volume a/b --reason x --yes", "stray.name"),
    ("deployment resume --yes --reason _", "reason.invalid"),
    ("host uncordon gpu-01 --reason line\nline", "reason.invalid"),
    (f"host fence gpu-01 --yes --reason {'x' * 401}", "reason.invalid"),
    ("host fence gpu-01 --yes --reason stolen", "host.power_unsure"),
    ("host drain gpu-01 --yes --reason x --policy some", "host.drain_policy"),
    ("instance create a --type b --image c --on-drain die", "instance.on_drain"),
    ("instance create a --type b --image c --drain-deadline never", "wait.timeout"),
    (f"host evacuate gpu-01 --yes --reason {'x' * 401}", "reason.invalid"),
    ("gpu release gpu_a --reason \x1b[2J", "reason.invalid"),
    ("user create alice --roles root", "user.roles"),
    ("user create alice --roles operator", "user.roles"),
    ("user create alice --roles ,", "user.roles"),
    ("user create alice --roles member --issuer https://idp", "user.subject"),
    ("user set alice --roles member,root", "user.roles"),
    ("operator create carol --roles member", "operator.roles"),
    ("operator create carol --roles operator --subject x", "operator.subject"),
    ("token create ci --scopes everything", "token.scopes"),
    ("token create ci --scopes ,", "token.scopes"),
    ("event watch --after 12", "event.position"),
    ("event watch --after acme:x", "event.position"),
    ("event watch --count 0", "usage.invalid"),
    ("audit export --from yesterday", "audit.time"),
    ("audit export --until 2026-01-31", "audit.time"),
    ("audit export --kind Instance", "audit.kind"),
    ("audit export --outcome maybe", "audit.outcome"),
    ("audit export --actor a/b", "audit.id"),
    ("audit verify /nonexistent", "file.unreadable"),
    # The raw call.
    ("api PATCH /v1/tenants", "api.method"),
    ("api GET v1/tenants", "api.path"),
    ("api GET https://evil.test/v1", "api.path"),
    ("api GET //evil.test/v1", "api.path"),
    ("api GET /v1/../livez", "api.path"),
    ("api GET /v1/tenants#x", "api.path"),
    ("api GET /v1/a\\b", "api.path"),
    ("api GET /v1/tenants --data EMPTY", "api.data"),
    ("api POST /v1/tenants --data EMPTY", "file.not_json"),
    ("api PUT /v1/tenants/acme --data BINARY --if-match x", "file.not_text"),
    ("api DELETE /v1/tenants/acme --if-match a\nb", "api.header"),
    # Where and as whom.
    ("--url ftp://api.test whoami", "api.url"),
    ("--url http://api.test whoami", "api.url"),
    ("--url https://user:secret@api.test whoami", "api.url"),
    ("--url https://api.test/prefix whoami", "api.url"),
    ("--url https://api.test:99999 whoami", "api.url"),
    ("--url api.test whoami", "api.url"),
    ("--profile bogus! profile set", "profile.name"),
    ("login --token-file /nonexistent", "file.unreadable"),
    ("login --token-file EMPTY", "token.not_given"),
    ("login --tenant a/b --token-file EMPTY", "tenant.name"),
    ("login", "token.not_given"),
    ("login --name Bad", "profile.name"),
    ("profile set --url http://api.test", "api.url"),
    ("profile set --output xml", "output.unknown"),
    ("profile set --ca /nonexistent", "file.unreadable"),
    ("profile set --tenant a/b", "tenant.name"),
    ("profile set a.b", "profile.name"),
]


def test_there_are_many_and_none_twice() -> None:
    assert len(CASES) >= 150
    assert len({code for _, code in CASES}) >= 50
    assert len(dict(CASES)) == len(CASES)


@pytest.mark.parametrize(("words", "code"), CASES, ids=[words[:60] for words, _ in CASES])
def test_bad_input_is_told_and_nothing_is_asked(
    bulkhead: Bulkhead, api: FakeApi, home: Path, words: str, code: str
) -> None:
    files = {"BINARY": b"\xff\xfe\x00", "LARGE": b"a" * (2**20 + 1), "EMPTY": b""}
    for name, raw in files.items():
        (home / name).write_bytes(raw)
    typed = [str(home / word) if word in files else word for word in words.split(" ")]
    ran = bulkhead(*[" " if word == "_" else word for word in typed])
    assert (ran.exit_code, ran.stdout) == (2, ""), ran.stderr
    told = ran.stderr.split(":")[0].split(" at ")[0]
    assert told == code
    assert api.requests == []
    assert not [mark for mark in ran.stderr if not mark.isprintable() and mark != "\n"]
    assert "secret" not in ran.stderr


@pytest.mark.parametrize("words", ["", "instance", "volume", "profile", "operator token"])
def test_a_noun_without_a_verb_shows_what_there_is(bulkhead: Bulkhead, api: FakeApi, words: str) -> None:
    ran = bulkhead(*words.split())
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("Usage: bulkhead")
    assert "Commands:" in ran.stderr


def test_a_slip_of_the_fingers_is_answered_with_a_guess(bulkhead: Bulkhead) -> None:
    ran = bulkhead("instnce", "list")
    assert "Did you mean 'instance'" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "  next: bulkhead --help"
    ran = bulkhead("instance", "shwo", "x")
    assert "Did you mean 'show'" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "  next: bulkhead instance --help"


def test_good_input_is_asked(bulkhead: Bulkhead, api: FakeApi) -> None:
    """The same words, but right: so the cases above are refused for what they try."""
    api.reply(f"GET {T}/audit", httpx2.Response(200, text="{}\n"))
    for words in (
        "instance list --limit 1 --columns name,state -o csv",
        f"{CREATE} --timeout 168h --no-wait --on-no-capacity fail --network back",
        f"{TYPE} --gpus 1 --gpu-model 10de:2330 --threads-per-core 2 --page-size-kib 4",
        f"{IMAGE} --firmware bios",
        "quota set --limit gpus=1000000000",
        f"gpu release gpu_k2l3m4n5o6p7q2r3s4t5 --reason {'x' * 400}",
        "audit export --from 2026-01-31T00:00:00Z --kind instance.create --outcome denied",
        "api GET /v1/tenants/acme/instances?page_size=1&order=-created_at",
    ):
        assert bulkhead(*words.split()).exit_code == 0, words
    assert len(api.requests) == 9

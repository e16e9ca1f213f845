"""Profiles: a file that only its owner may read, precedence, and no token anywhere it does not belong."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from orchestrator.cli import profiles
from orchestrator.cli.nouns import login as login_noun
from orchestrator.cli.profiles import Profile, Profiles, read_profiles, write_profiles
from orchestrator.model.errors import InvalidInputError
from tests.cli import objects
from tests.cli.conftest import Bulkhead, Ran
from tests.cli.fake_api import TOKEN, URL, FakeApi, problem

OTHER = "https://other.test"


def file_of(home: Path) -> Path:
    return home / "config" / "bulkhead" / "config.toml"


def log_in(run: Bulkhead, *words: object) -> Ran:
    return run("login", "--url", URL, "--token-file", "-", *words, stdin=f"{TOKEN}\n")


def test_login_tries_the_token_and_keeps_it_closed(anew: Bulkhead, api: FakeApi, home: Path) -> None:
    ran = log_in(anew)
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert ran.stderr == f"profile default: alice at {URL}\n"
    assert api.calls == ["GET /v1/whoami"]
    assert stat.S_IMODE(file_of(home).stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of(home).parent.stat().st_mode) == 0o700
    assert [each.name for each in file_of(home).parent.iterdir()] == ["config.toml"]
    api.lists[f"/v1/tenants/{objects.ACME}/networks"] = []
    # The token's own tenant is the usual one.
    assert anew("network", "list").exit_code == 0


def test_a_token_that_does_not_work_is_not_kept(anew: Bulkhead, api: FakeApi, home: Path) -> None:
    api.reply("GET /v1/whoami", problem(401, "token.expired"))
    assert log_in(anew).exit_code == 4
    assert not file_of(home).exists()


def test_login_asks_without_showing(anew: Bulkhead, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def prompt(text: str, **options: object) -> str:
        asked.append((text, options["hide_input"]))
        return TOKEN

    monkeypatch.setattr(login_noun, "has_terminal", lambda: True)
    monkeypatch.setattr(login_noun.typer, "prompt", prompt)
    assert anew("login", "--url", URL).exit_code == 0
    assert asked == [("Token", True)]
    assert read_profiles(file_of(home)).by_name["default"].token == TOKEN


@pytest.mark.parametrize(
    "words",
    [
        "profile list",
        "profile list -o wide",
        "profile list -o json",
        "profile show",
        "profile show -o json",
        "profile show -o yaml",
        "profile set --tenant acme",
        "profile use default",
        "profile delete default --yes",
        "--debug whoami",
    ],
)
def test_a_token_is_never_printed(anew: Bulkhead, words: str) -> None:
    log_in(anew)
    ran = anew(*words.split())
    assert ran.exit_code == 0, ran.stderr
    assert TOKEN[:12] not in ran.stdout + ran.stderr


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o644, 0o777])
def test_a_file_that_others_may_touch_is_refused(anew: Bulkhead, api: FakeApi, home: Path, mode: int) -> None:
    log_in(anew)
    api.requests.clear()
    file_of(home).chmod(mode)
    for words in ("whoami", "profile list", "profile set --tenant x", "login --token-file -"):
        ran = anew(*words.split(), stdin=TOKEN)
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert ran.stderr.startswith("profile.mode: ")
        assert f"next: chmod 600 {file_of(home)}" in ran.stderr
    assert api.requests == []
    assert stat.S_IMODE(file_of(home).stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_its_owner_alone_is_read(anew: Bulkhead, home: Path, mode: int) -> None:
    log_in(anew)
    file_of(home).chmod(mode)
    assert anew("whoami").exit_code == 0


def test_a_file_of_somebody_else_is_refused(
    anew: Bulkhead, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(anew)
    monkeypatch.setattr(profiles.os, "geteuid", lambda: os.getuid() + 1)
    ran = anew("whoami")
    assert (ran.exit_code, ran.stderr.split(":")[0]) == (2, "profile.owner")


def test_what_is_no_file_is_refused_and_not_waited_for(anew: Bulkhead, home: Path) -> None:
    file_of(home).parent.mkdir(parents=True)
    os.mkfifo(file_of(home), 0o600)
    assert anew("whoami").stderr.startswith("profile.file: ")
    file_of(home).unlink()
    file_of(home).mkdir()
    assert anew("whoami").stderr.startswith("profile.file: ")


@pytest.mark.parametrize(
    "text",
    [
        "[profile.default\n",
        f'token = "{TOKEN}\n',
        f'[profile.default]\ntoken = "{TOKEN}"\npassword = "x"\n',
        "[profile.default]\ntoken = 7\n",
        '[profile."Bad Name"]\nurl = ""\n',
        "profile = 7\n",
        "profile.default = 7\n",
        "current = 7\n",
        '[profile.default]\nurl = "http://plain.test"\n',
        "\x00",
        "#" * (2**20 + 1),
    ],
    ids=range(11),
)
def test_a_broken_file_is_refused_and_not_repeated(anew: Bulkhead, home: Path, text: str) -> None:
    file_of(home).parent.mkdir(parents=True)
    file_of(home).write_text(text)
    file_of(home).chmod(0o600)
    ran = anew("whoami")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.split(":")[0].split(" at ")[0] in ("profile.file", "api.url")
    assert TOKEN not in ran.stderr
    assert file_of(home).read_text() == text


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    strange = 'a "quote", a \\, a \x7f, a \t and \u00e9\U0001f600'
    wanted = Profiles(
        "second",
        {
            "first": Profile(url=URL, token=strange, ca="/a b", tenant="acme", output="json"),
            "second": Profile(),
        },
    )
    path = tmp_path / "a" / "config.toml"
    write_profiles(path, wanted)
    assert read_profiles(path) == wanted
    assert TOKEN not in repr(Profile(token=TOKEN))


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    write_profiles(path, Profiles("a", {"a": Profile(url=URL)}))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profiles.os, "fsync", full)
    with pytest.raises(InvalidInputError, match="No space left"):
        write_profiles(path, Profiles())
    monkeypatch.undo()
    assert read_profiles(path).by_name["a"].url == URL
    assert [each.name for each in tmp_path.iterdir()] == ["config.toml"]


def test_flag_before_environment_before_profile(
    anew: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(anew, "--tenant", "by-profile")
    anew("profile", "set", "--output", "json")
    api.lists = {f"/v1/tenants/by-{each}/networks": [] for each in ("profile", "environment", "flag")}

    def asked(*words: str) -> tuple[str, str]:
        ran = anew("network", "list", *words)
        assert ran.exit_code == 0, ran.stderr
        return api.requests[-1].url.path.split("/")[3], ran.stdout[:1]

    assert asked() == ("by-profile", "{")
    monkeypatch.setenv("BULKHEAD_TENANT", "by-environment")
    monkeypatch.setenv("BULKHEAD_OUTPUT", "csv")
    assert asked() == ("by-environment", "n")
    assert asked("--tenant", "by-flag", "-o", "table") == ("by-flag", "N")


def test_profiles_by_flag_and_environment(
    anew: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(anew, "--tenant", "acme")
    log_in(anew, "--name", "second", "--tenant", "globex")
    api.lists["/v1/tenants/globex/networks"] = []
    anew("network", "list")
    anew("--profile", "second", "network", "list")
    monkeypatch.setenv("BULKHEAD_PROFILE", "second")
    anew("network", "list")
    anew("--profile", "default", "network", "list")
    monkeypatch.delenv("BULKHEAD_PROFILE")
    anew("profile", "use", "second")
    anew("network", "list")
    tenants = [each.url.path.split("/")[3] for each in api.requests if "networks" in each.url.path]
    assert tenants == ["acme", "globex", "globex", "acme", "globex"]
    shown = json.loads(anew("profile", "list", "-o", "json").stdout)["items"]
    assert [(each["name"], each["current"]) for each in shown] == [("default", False), ("second", True)]


def test_a_profiles_token_goes_to_its_own_server_only(
    anew: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(anew)
    api.requests.clear()
    ran = anew("--url", OTHER, "whoami")
    assert (ran.exit_code, ran.stderr.split(":")[0]) == (2, "profile.token_elsewhere")
    assert api.requests == []
    monkeypatch.setenv("BULKHEAD_TOKEN", TOKEN)
    assert anew("--url", OTHER, "whoami").exit_code == 0
    assert api.requests[-1].url.host == "other.test"


def test_setting_another_url_forgets_the_token(anew: Bulkhead, home: Path) -> None:
    log_in(anew)
    anew("profile", "set", "--url", URL, "--tenant", "acme")
    assert read_profiles(file_of(home)).by_name["default"].token == TOKEN
    anew("profile", "set", "--url", OTHER)
    assert read_profiles(file_of(home)).by_name["default"] == Profile(url=OTHER, tenant="acme")


@pytest.mark.parametrize(
    ("words", "exit_code", "code", "step"),
    [
        ("whoami", 2, "profile.no_url", "bulkhead login --url https://HOST:PORT"),
        (f"--url {URL} whoami", 4, "profile.no_token", f"bulkhead login --url {URL}"),
        ("--profile nope whoami", 3, "profile.unknown", "bulkhead profile list shows those there are"),
        ("profile use nope", 3, "profile.unknown", "bulkhead profile list shows those there are"),
        ("profile delete nope --yes", 3, "profile.unknown", "bulkhead profile list shows those there are"),
        ("profile show", 3, "profile.unknown", "bulkhead profile list shows those there are"),
    ],
)
def test_without_settings_the_next_step_is_told(
    anew: Bulkhead, api: FakeApi, words: str, exit_code: int, code: str, step: str
) -> None:
    ran = anew(*words.split())
    assert (ran.exit_code, ran.stderr.split(":")[0]) == (exit_code, code)
    assert ran.stderr.splitlines()[-1] == f"  next: {step}"
    assert api.requests == []


def test_without_a_tenant_it_is_asked_which(
    bulkhead: Bulkhead, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BULKHEAD_TENANT")
    ran = bulkhead("instance", "list")
    assert (ran.exit_code, ran.stderr.split(":")[0]) == (2, "tenant.not_named at --tenant")
    assert api.requests == []


def test_status_without_a_tenant_is_the_platforms(
    bulkhead: Bulkhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BULKHEAD_TENANT")
    ran = bulkhead("status", "-o", "json")
    assert {"deployment", "hosts", "gpus", "requests"} == set(json.loads(ran.stdout))
    shown = bulkhead("status").stdout
    assert "gpus to look at" in shown
    assert "quarantined" in shown


def test_no_command_takes_a_token_as_an_argument() -> None:
    from tests.cli.test_lists import commands

    assert ("token", "create") in set(commands())
    for file in (Path(__file__).parent / "golden").glob("help-80-*.txt"):
        options = {word for word in file.read_text().split() if word.startswith("--token")}
        assert options <= {"--token-file"}, file.name

"""`bulkhead agent enrol` and `serve`: what they print, their exit status, and where a token may not stand."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from orchestrator.__main__ import app
from orchestrator.agent.lock import host_lock
from orchestrator.agent.sim import sim_host
from orchestrator.processes import agent_commands
from tests.unit.agent.fleet import Fleet
from tests.unit.link.controller import HOST, Controller
from tests.unit.link.listener import eventually


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    made = Fleet(tmp_path)
    monkeypatch.setattr(agent_commands, "real_host", lambda _settings, keys: sim_host(made.world, keys))
    (tmp_path / "agent.toml").write_text(
        f'state_dir = "{made.settings.state_dir}"\nrun_dir = "{made.settings.run_dir}"\n'
    )
    return made


def bulkhead(fleet: Fleet, *words: object, stdin: str | None = None) -> Result:
    settings = ["--settings", fleet.settings.state_dir.parent / "agent.toml"]
    return CliRunner().invoke(app, ["agent", *map(str, [*words, *settings])], input=stdin)


def enrol(fleet: Fleet, controller: Controller, token: str) -> Result:
    return bulkhead(
        fleet, "enrol", "--controller", controller.public.url, "--token-file", "-", stdin=token + "\n"
    )


def serve_until(fleet: Fleet, holds: Callable[[], object]) -> Result:
    """Serve in this thread, as signals want it; another one says when it was enough."""
    over = threading.Event()

    def watch() -> None:
        with contextlib.suppress(AssertionError):
            eventually(lambda: over.is_set() or holds())
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = bulkhead(fleet, "serve")
    finally:
        over.set()
        watcher.join()
    assert holds()
    return result


@pytest.fixture
def folder(fleet: Fleet) -> Path:
    return fleet.settings.state_dir / "agent" / "link"


def test_enrol_then_serve_follows_orders_until_told_to_end(controller: Controller, fleet: Fleet) -> None:
    joined = enrol(fleet, controller, controller.join_token(HOST))
    assert (joined.exit_code, joined.stdout) == (0, f"{HOST}\n")
    controller.assign(fleet.two_tenants())

    served = serve_until(fleet, lambda: controller.followed(1))

    assert served.exit_code == 0
    assert served.stdout == ""
    assert f"{HOST} of dep_lab" in served.stderr
    assert "start domain" in served.stderr
    assert all(domain.pid for domain in fleet.world.domains.values())
    assert len(fleet.world.domains) == 2


def test_serve_takes_up_where_it_was(controller: Controller, fleet: Fleet) -> None:
    enrol(fleet, controller, controller.join_token(HOST))
    controller.assign(fleet.two_tenants())
    serve_until(fleet, lambda: controller.followed(1))
    pids = {name: domain.pid for name, domain in fleet.world.domains.items()}
    controller.reports.clear()

    serve_until(fleet, lambda: controller.followed(1))

    assert {name: domain.pid for name, domain in fleet.world.domains.items()} == pids


def test_token_from_a_file_is_the_same(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(controller.join_token("hst_file") + "\n")

    joined = bulkhead(fleet, "enrol", "--controller", controller.public.url, "--token-file", file)

    assert (joined.exit_code, joined.stdout) == (0, "hst_file\n")


def test_second_enrolment_is_5_and_uses_up_no_token(
    controller: Controller, fleet: Fleet, folder: Path
) -> None:
    enrol(fleet, controller, controller.join_token(HOST))
    identity = (folder / "identity.pem").read_bytes()
    token = controller.join_token("hst_two")

    again = enrol(fleet, controller, token)

    assert again.exit_code == 5
    assert "agent.enrolled" in again.stderr
    assert (folder / "identity.pem").read_bytes() == identity
    assert token.split("bhj_")[1].split("_")[0] == "jt"
    assert len(controller.joins) == 1


def test_used_token_is_8_and_not_shown(controller: Controller, fleet: Fleet, folder: Path) -> None:
    token = controller.join_token(HOST)
    controller.joins.clear()

    result = enrol(fleet, controller, token)

    assert result.exit_code == 8
    assert "join_token.used" in result.stderr
    assert token not in result.stdout + result.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("stdin", "code"),
    [("nonsense", "join_token.malformed"), ("", "join_token.malformed"), ("ä", "join_token.unreadable"),
     ("x" * 10_000, "join_token.unreadable")],
)  # fmt: skip
def test_what_is_no_token_is_2_and_not_shown(
    controller: Controller, fleet: Fleet, stdin: str, code: str
) -> None:
    result = bulkhead(fleet, "enrol", "--controller", controller.public.url, "--token-file", "-", stdin=stdin)

    assert result.exit_code == 2
    assert code in result.stderr
    assert "nonsense" not in result.stderr


def test_token_file_that_is_not_there_is_2(controller: Controller, fleet: Fleet, tmp_path: Path) -> None:
    result = bulkhead(
        fleet, "enrol", "--controller", controller.public.url, "--token-file", tmp_path / "none"
    )

    assert result.exit_code == 2
    assert "join_token.unreadable at --token-file" in result.stderr


def test_token_has_no_place_on_the_command_line(controller: Controller, fleet: Fleet) -> None:
    token = controller.join_token(HOST)

    result = bulkhead(fleet, "enrol", "--controller", controller.public.url, "--token", token)

    assert result.exit_code == 2
    assert len(controller.joins) == 1


def test_plain_http_is_2(controller: Controller, fleet: Fleet) -> None:
    token = controller.join_token(HOST)

    result = bulkhead(fleet, "enrol", "--controller", "http://127.0.0.1:1", "--token-file", "-", stdin=token)

    assert result.exit_code == 2
    assert "link.url at --controller" in result.stderr


def test_serve_before_enrol_is_3_and_touches_nothing(fleet: Fleet) -> None:
    result = bulkhead(fleet, "serve")

    assert result.exit_code == 3
    assert "next: bulkhead agent enrol" in result.stderr
    assert fleet.world.changes == 0


def test_second_agent_is_5(controller: Controller, fleet: Fleet) -> None:
    enrol(fleet, controller, controller.join_token(HOST))
    with host_lock(fleet.settings.lock_path):
        result = bulkhead(fleet, "serve")

    assert result.exit_code == 5
    assert "agent.already_running" in result.stderr


def test_nothing_of_the_identity_is_for_others(controller: Controller, fleet: Fleet, folder: Path) -> None:
    enrol(fleet, controller, controller.join_token(HOST))

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}


def test_leave_ends_what_enrol_began(controller: Controller, fleet: Fleet, folder: Path) -> None:
    enrol(fleet, controller, controller.join_token(HOST))

    done = bulkhead(fleet, "leave")

    assert done.exit_code == 0
    assert done.stdout.startswith("left ")
    assert list(folder.iterdir()) == []
    assert bulkhead(fleet, "leave").stdout == "this host belonged to no deployment\n"
    assert enrol(fleet, controller, controller.join_token("hst_two")).exit_code == 0


def test_leave_beside_a_running_agent_is_5(controller: Controller, fleet: Fleet, folder: Path) -> None:
    enrol(fleet, controller, controller.join_token(HOST))

    with host_lock(fleet.settings.lock_path):
        done = bulkhead(fleet, "leave")

    assert done.exit_code == 5
    assert "agent.already_running" in done.stderr
    assert (folder / "enrolment.json").exists()

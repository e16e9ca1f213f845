"""The command line against a real server: TLS that is checked, and events as they happen."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import uvicorn
from typer.testing import CliRunner

from orchestrator.__main__ import app
from orchestrator.client import Client, clock
from orchestrator.client.errors import UnreachableError
from tests.api.conftest import deployed, sqlite_store
from tests.api.deployment import Deployment, key
from tests.cli.certificates import authority, server_certificate
from tests.databases import sqlite_template

__all__ = ["deployed", "sqlite_store", "sqlite_template"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, its server's certificate for 127.0.0.1, and an authority of somebody else."""
    place = tmp_path_factory.mktemp("certificates")
    own, other = authority(), authority()
    certificate, secret = server_certificate(own, "127.0.0.1")
    (place / "server.pem").write_bytes(certificate)
    (place / "server.key").write_bytes(secret)
    (place / "ca.pem").write_bytes(own.pem)
    (place / "other.pem").write_bytes(other.pem)
    return place


@pytest.fixture
def url(deployed: Deployment, certificates: Path, home: Path) -> Iterator[str]:
    """The deployment's API, served on this machine until the test ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        deployed.app,
        ssl_certfile=str(certificates / "server.pem"),
        ssl_keyfile=str(certificates / "server.key"),
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with structlog.testing.capture_logs():
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def test_login_and_events_over_tls(
    url: str, deployed: Deployment, certificates: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bulkhead(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
        ran = CliRunner().invoke(app, list(words), input=stdin, prog_name="bulkhead")
        return ran.exit_code, ran.stdout, ran.stderr

    token = deployed.people["acme-member"].text
    login = ("login", "--url", url, "--ca", str(certificates / "ca.pem"), "--token-file", "-")
    code, _, told = bulkhead(*login, stdin=token)
    assert (code, told) == (0, f"profile default: acme-member at {url}\n")
    body = {"name": "data", "size_gib": 1}
    deployed.client("acme-member").post("/v1/tenants/acme/volumes", json=body, headers=key())
    code, out, told = bulkhead("event", "watch", "--from-start", "--count", "2", "-o", "json")
    assert code == 0, told
    first, second = map(json.loads, out.splitlines())
    assert int(second["id"].split(":")[1]) == int(first["id"].split(":")[1]) + 1
    code, out, _ = bulkhead("event", "watch", "--after", first["id"], "--count", "1", "-o", "json")
    assert (code, json.loads(out)) == (0, second)


@pytest.mark.parametrize("ca", ["other.pem", None])
def test_a_server_that_our_authority_does_not_know_gets_no_token(
    url: str, deployed: Deployment, certificates: Path, monkeypatch: pytest.MonkeyPatch, ca: str | None
) -> None:
    monkeypatch.setattr(clock, "sleep", lambda _seconds: None)
    trusted = None if ca is None else certificates / ca
    with Client(url, deployed.people["acme-member"].text, ca=trusted) as client:
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            client.whoami()


def test_a_certificate_of_another_name_gets_no_token(
    url: str, deployed: Deployment, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "sleep", lambda _seconds: None)
    elsewhere = url.replace("127.0.0.1", "localhost")
    with Client(elsewhere, deployed.people["acme-member"].text, ca=certificates / "ca.pem") as client:
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            client.whoami()
    with Client(url, deployed.people["acme-member"].text, ca=certificates / "ca.pem") as client:
        assert client.whoami()["name"] == "acme-member"

"""The controller of a lab: a process of its own on this machine.

Agents dial out of the lab host through a port that ssh forwards back here; nothing else of this machine can
be reached from there. State lies in `.lab/controller` and goes with `down`. Repeatable: what runs already
stays. Called by the showcase, the lab tests and `prepared`, which lets hosts in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from images.labhost import build, lab, watch
from orchestrator.cli.profiles import Profile, Profiles, write_profiles
from orchestrator.client import Client, Collection
from orchestrator.model.errors import NotFoundError

#: Where it listens, and where the lab host finds it by the forwarded port; its certificates name it so.
ADDRESS = "127.0.0.1"
START_LIMIT_S = 180
STOP_LIMIT_S = 30


@dataclass(frozen=True)
class Running:
    """The record of a started controller."""

    pid: int
    started: str
    public_port: int
    agents_port: int


class LabController:
    """One controller, running or not.

    Args:
        folder: its state, its record and its log; made with mode 0700.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or lab.lab_folder() / "controller"
        #: The checkout whose code its next start runs.
        self.source = build.REPOSITORY

    # -- its process

    def start(self) -> Running:
        """Start it where it does not run, on the ports it had before; return once it is ready.

        Raises:
            lab.LabError: it ends at once or is not ready in time.
        """
        found = self.running()
        if found is not None:
            return found
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        public, agents = self._ports()
        self._settings().write_text(
            f'state_dir = "{self.folder / "state"}"\npublic_port = {public}\nagents_port = {agents}\n'
            f'names = ["{ADDRESS}", "localhost"]\nallow_keys_in_files = true\n'
        )
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*bulkhead(), "controller", "serve", "--settings", str(self._settings())],
                cwd=self.source, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        record = Running(process.pid, watch.process_start(process.pid) or "gone", public, agents)
        self._record().write_text(json.dumps(asdict(record)))
        end = time.monotonic() + START_LIMIT_S
        while not self._ready(record):
            if process.poll() is not None or time.monotonic() > end:
                raise lab.LabError(f"the controller does not come up; see {self.folder / 'log'}")
            time.sleep(0.2)
        return record

    def running(self) -> Running | None:
        """Return the record of the process that runs, or None."""
        try:
            record = Running(**json.loads(self._record().read_text()))
        except FileNotFoundError:
            return None
        return record if watch.is_running(record.pid, record.started) else None

    def stop(self) -> None:
        """End it: asked first, killed after a while. Its state stays."""
        record = self.running()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if record is None:
                break
            os.kill(record.pid, number)
            end = time.monotonic() + STOP_LIMIT_S
            while (record := self.running()) is not None and time.monotonic() < end:
                time.sleep(0.1)
        self._record().unlink(missing_ok=True)

    def remove(self) -> None:
        """End it and forget everything, keys and all; the log stays in the lab's folder."""
        self.stop()
        if self.folder.exists():
            (self.folder / "log").replace(self.folder.parent / f"{self.folder.name}.log")
            shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """The public API's address."""
        return f"https://{ADDRESS}:{self._must_run().public_port}"

    @property
    def authority(self) -> Path:
        """The file with the authority that its certificate is of."""
        return self.folder / "state" / "authority" / "ca.pem"

    # -- its people

    def operator(self) -> Client:
        """Return the API as the operator sees it; the token is made once and kept, 0600."""
        path = self.folder / "operator-token"
        if not path.exists():
            words = ("controller", "operator-token", "operator", "--settings", str(self._settings()))
            done = subprocess.run(
                [*bulkhead(), *words], cwd=build.REPOSITORY, capture_output=True, text=True, check=True
            )
            _write_private(path, done.stdout.strip())
        return Client(self.url, path.read_text(), ca=self.authority)

    def admin_of(self, name: str, limits: Mapping[str, int]) -> Client:
        """Return the API as a tenant's administrator sees it; tenant, administrator, token are made once."""
        path = self.folder / f"token-{name}"
        if not path.exists():
            with self.operator() as operator:
                ensure(operator.tenants, {"name": name, "limits": dict(limits)})
                own = operator.tenant(name)
                ensure(own.users, {"name": f"{name}-admin", "kind": "user", "roles": ["tenant-admin"]})
                wanted = {"user": f"{name}-admin", "name": "lab", "days": 7}
                scopes = ["read", "write", "admin", "audit"]
                made = own.tokens.create({**wanted, "scopes": scopes})
            _write_private(path, str(made.body["token"]))
        return Client(self.url, path.read_text(), ca=self.authority)

    def write_profiles(self) -> Path:
        """Write profiles of the operator and of every tenant; return the folder for XDG_CONFIG_HOME."""
        ca = str(self.authority)
        token = (self.folder / "operator-token").read_text()
        profiles = Profiles().having("operator", Profile(url=self.url, token=token, ca=ca))
        for path in sorted(self.folder.glob("token-*")):
            name = path.name.removeprefix("token-")
            profile = Profile(url=self.url, token=path.read_text(), ca=ca, tenant=name)
            profiles = profiles.having(name, profile)
        path = self.folder / "config" / "bulkhead" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_profiles(path, profiles)
        return path.parent.parent

    def ports(self) -> tuple[int, int]:
        """The public API's port and the agents' listener's."""
        record = self._must_run()
        return record.public_port, record.agents_port

    # -- inside

    def _must_run(self) -> Running:
        record = self.running()
        if record is None:
            raise lab.LabError("the lab's controller does not run")
        return record

    def _ready(self, record: Running) -> bool:
        try:
            trusted = ssl.create_default_context(cafile=self.authority)
            url = f"https://{ADDRESS}:{record.public_port}/readyz"
            with urllib.request.urlopen(url, context=trusted, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # not there yet: the authority's file, the listener, or the database behind it
            return False

    def _ports(self) -> tuple[int, int]:
        """The ports of last time: agents know the address of their listener. Else two free ones."""
        path = self.folder / "ports.json"
        if not path.exists():
            path.write_text(json.dumps([lab.free_port(), lab.free_port()]))
        first, second = json.loads(path.read_text())
        return first, second

    def _settings(self) -> Path:
        return self.folder / "controller.toml"

    def _record(self) -> Path:
        return self.folder / "running.json"


def found(things: Collection, name: str) -> dict[str, Any] | None:
    """Return the thing of this name, or None."""
    try:
        return things[name].get()
    except NotFoundError:
        return None


def ensure(things: Collection, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the thing of the wanted name; made if it is not there, else as it is."""
    return found(things, str(wanted["name"])) or dict(things.create(wanted).body)


def bulkhead() -> list[str]:
    """Return the argv of this checkout's command line, without its words."""
    return [sys.executable, "-m", "orchestrator"]


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)

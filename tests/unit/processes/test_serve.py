"""`bulkhead serve --simulated` as real processes: it enrols once, restarts who dies, and ends all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.model.errors import BulkheadError
from orchestrator.processes.control import open_parts, operator_token
from orchestrator.processes.control_settings import read_control_settings
from orchestrator.processes.supervise import RETRY_LONGEST_S, STEADY_S, Supervisor
from tests.unit.link.listener import eventually

ROOT = Path(__file__).parents[3]
#: Processes are started again and again here, and the machine may be busy with others.
LONG_S = 240.0
pytestmark = pytest.mark.timeout(1200)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def is_alive(pid: int) -> bool:
    """Whether it runs; who is dead and waits for its parent's look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Serving:
    """One `bulkhead serve`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = folder / "words"
        public, agents = free_ports()
        (folder / "controller.toml").write_text(
            f'state_dir = "{folder}/controller"\npublic_port = {public}\nagents_port = {agents}\n'
            "allow_keys_in_files = true\n"
        )
        (folder / "agent.toml").write_text(f'state_dir = "{folder}/host"\nrun_dir = "{folder}/run"\n')
        self.running: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        argv = [sys.executable, "-m", "orchestrator", "serve", "--simulated", "--host-name", "node1", *more]
        argv += ["--controller-settings", str(self.folder / "controller.toml")]
        argv += ["--agent-settings", str(self.folder / "agent.toml")]
        with self.words.open("ab") as words:
            self.running = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=words, stderr=words
            )

    def end(self) -> int:
        assert self.running is not None
        if self.running.poll() is None:
            self.running.terminate()
        return self.running.wait(LONG_S)

    def child(self, word: str) -> int | None:
        """Pid of the child that serves as `controller` or `agent`."""
        assert self.running is not None
        path = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children")
        for pid in map(int, path.read_text().split()):
            # One that ends between the two looks serves as nothing.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if argv[3:5] == [word, "serve"]:
                    return pid
        return None

    def client(self) -> Client:
        parts = open_parts(read_control_settings(self.folder / "controller.toml"))
        token = operator_token(parts, "root")
        parts.control.store.database.dispose()
        url = f"https://localhost:{parts.settings.public_port}"
        return Client(url, token, ca=parts.authority.certificate_path)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    yield made
    if made.running is not None:
        made.end()


def test_it_enrols_once_restarts_who_dies_and_ends_all(serving: Serving) -> None:
    serving.start("--disk-gib", "50")
    eventually(lambda: serving.child("agent"), within_s=LONG_S)
    with serving.client() as client:

        def host() -> dict[str, object]:
            try:
                return client.hosts["node1"].get()
            except BulkheadError:
                return {}

        first = eventually(lambda: (now := host()).get("state") == "ready" and now, within_s=LONG_S)
        assert first["disk_gib"] == 50
        boot, agent, controller = first["boot_id"], serving.child("agent"), serving.child("controller")
        assert agent is not None
        assert controller is not None

        os.kill(agent, signal.SIGKILL)
        # The simulated host is gone with its agent: the next one has another boot.
        eventually(lambda: host().get("boot_id") not in (None, boot), within_s=LONG_S)
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: serving.child("controller") not in (None, controller), within_s=LONG_S)
        eventually(lambda: host().get("id") == first["id"], within_s=LONG_S)
        children = [serving.child("agent"), serving.child("controller")]

        assert serving.end() == 0
        assert [Path(f"/proc/{pid}").exists() for pid in children] == [False, False]

        # Once more: it is a host already, and no token is made.
        serving.start()
        eventually(lambda: serving.child("agent"), within_s=LONG_S)
        eventually(lambda: host().get("state") == "ready", within_s=LONG_S)
        assert [each["id"] for each in client.hosts] == [first["id"]]
    assert serving.end() == 0
    words = serving.words.read_text()
    assert "controller ended with -9, again in 1 s" in words
    assert "agent started again" in words
    assert "bhj_" not in words


def test_both_end_with_it_when_it_is_killed_and_leave_their_ports(serving: Serving) -> None:
    serving.start("--disk-gib", "50")
    eventually(lambda: serving.child("agent"), within_s=LONG_S)
    assert serving.running is not None
    left = {word: serving.child(word) for word in ("agent", "controller")}
    assert None not in left.values()

    serving.running.kill()
    serving.running.wait(LONG_S)
    eventually(lambda: not any(is_alive(pid) for pid in left.values() if pid), within_s=LONG_S)
    serving.start()
    eventually(lambda: serving.child("agent"), within_s=LONG_S)
    assert "again in" not in serving.words.read_text()


@pytest.mark.parametrize(
    ("spoil", "status", "told"),
    [
        ("public_port = 0", 2, "serve.ports"),
        ("nonsense = 1", 2, "settings.invalid"),
        ('keys = "kms://nowhere"', 8, "serve.controller"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_left_running(
    serving: Serving, spoil: str, status: int, told: str
) -> None:
    file = serving.folder / "controller.toml"
    kept = [line for line in file.read_text().splitlines() if line.split(" ")[0] != spoil.split(" ")[0]]
    file.write_text("\n".join([*kept, spoil, ""]))
    serving.start()
    assert serving.running is not None
    assert serving.running.wait(LONG_S) == status
    assert told in serving.words.read_text()


def test_a_user_that_is_not_there(serving: Serving) -> None:
    serving.start("--controller-user", "nobody-of-that-name")
    assert serving.running is not None
    assert serving.running.wait(LONG_S) == 2
    assert "serve.user" in serving.words.read_text()


def started(words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", words], stdin=subprocess.DEVNULL)


def test_who_ends_again_and_again_is_started_ever_more_slowly() -> None:
    now, said = [0.0], []
    supervisor = Supervisor(said.append, clock=lambda: now[0])
    supervisor.keep("it", ["exit 3"], lambda argv: started(argv[0]))
    (child,) = supervisor.children
    waits = []
    for _ in range(8):
        child.running.wait(LONG_S)
        supervisor.look(child)
        assert child.again_at is not None
        waits.append(child.again_at - now[0])
        now[0] = child.again_at - 0.01
        supervisor.look(child)
        assert child.again_at is not None
        now[0] += 0.01
        supervisor.look(child)
        assert child.again_at is None
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert max(waits) == RETRY_LONGEST_S

    child.running.wait(LONG_S)
    now[0] += STEADY_S
    supervisor.look(child)
    assert child.again_at == now[0] + 1
    assert said[0] == "it ended with 3, again in 1 s"
    supervisor.end()


def test_all_are_ended_the_last_one_first(tmp_path: Path) -> None:
    supervisor, ended = Supervisor(lambda _line: None), threading.Event()
    out = tmp_path / "order"
    for name in ("first", "second"):
        trap = (
            f"trap 'echo {name} >> {out}; exit 0' TERM; touch {tmp_path / name}; while :; do sleep 0.05; done"
        )
        supervisor.keep(name, [trap], lambda argv: started(argv[0]))
    eventually(lambda: (tmp_path / "first").exists() and (tmp_path / "second").exists())
    watching = threading.Thread(target=supervisor.run, args=(ended,))
    watching.start()
    ended.set()
    watching.join(30)
    supervisor.end()
    assert out.read_text().split() == ["second", "first"]
    assert [child.running.poll() for child in supervisor.children] == [0, 0]

"""The agent as a daemon: joins a host's drivers to its link. Nothing here decides.

`agent_commands` calls it. The token comes from a file or standard input, never from the command line, where
everybody on the machine could read it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import random
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.agent.effects import Progress
from orchestrator.agent.host import AgentSettings, Host
from orchestrator.agent.journal import Journal
from orchestrator.agent.link.certificates import Certificates, FreshKey, Identity, already_enrolled
from orchestrator.agent.link.client import Link, enrol
from orchestrator.agent.link.consoles import HostConsoles
from orchestrator.agent.link.controller_keys import ControllerKeys
from orchestrator.agent.link.pace import Pace
from orchestrator.agent.link.rounds import Rounds
from orchestrator.agent.link.session import Session
from orchestrator.agent.link.streams import Consoles, Streams
from orchestrator.agent.link.upkeep import keep_fresh
from orchestrator.agent.ports import Keys
from orchestrator.agent.reconcile import Agent
from orchestrator.model.doctor import Finding
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.host import HostFacts

MakeHost = Callable[[AgentSettings, Keys], Host]
Examine = Callable[[HostFacts], tuple[Finding, ...]]
#: A token has 200 characters; what is much longer is another file.
_MAX_TOKEN_FILE = 4096


def certificates_of(settings: AgentSettings) -> Certificates:
    """Where this host keeps who it is."""
    return Certificates(settings.state_dir / "agent" / "link")


def read_token(file: Path) -> str:
    """Read a join token from a file, or from standard input for `-`.

    Raises:
        InvalidInputError: `join_token.unreadable`.
    """
    try:
        if str(file) == "-":
            raw = sys.stdin.buffer.read(_MAX_TOKEN_FILE + 1)
        else:
            with file.open("rb") as opened:
                raw = opened.read(_MAX_TOKEN_FILE + 1)
        if len(raw) > _MAX_TOKEN_FILE:
            raise ValueError("too long")
        return raw.decode("ascii").strip()
    except OSError as exc:
        raise InvalidInputError(
            "join_token.unreadable", f"{file}: {exc.strerror}", field="--token-file"
        ) from exc
    except ValueError:
        # The cause is left out on purpose: it would quote the file.
        raise InvalidInputError(
            "join_token.unreadable", f"{file} holds no join token", field="--token-file"
        ) from None


def enrol_host(settings: AgentSettings, controller_url: str, token: str, *, again: bool = False) -> Identity:
    """Make this machine a host of a controller.

    Args:
        again: it is one already, and its certificate ended or was taken back; what runs here is not touched.

    Raises:
        ConflictError: `agent.enrolled`: before the token is used up; `agent.another_host`.
        InvalidInputError: `join_token.malformed`, `link.url`.
        HostError: `link.*`, `agent.identity_unwritable`.
    """
    certificates = certificates_of(settings)
    if certificates.enrolled and not again:
        raise already_enrolled(settings.state_dir / "agent" / "link")
    key = FreshKey.make()
    answer, authority_pem = asyncio.run(enrol(controller_url, token, key.csr_pem))
    return certificates.enrol(key, answer, authority_pem, again=again)


async def serve(
    settings: AgentSettings,
    make_host: MakeHost,
    *,
    progress: Progress,
    say: Callable[[str], None],
    consoles: Consoles | None = None,
    examine: Examine | None = None,
    pace: Pace | None = None,
) -> None:
    """Live as this host's agent until SIGTERM or SIGINT; VMs run on. The caller holds the host's lock.

    Args:
        examine: the host's doctor; None is the one of this machine.

    Raises:
        NotFoundError: `agent.not_enrolled`.
        HostError: a driver cannot be reached, `agent.identity_damaged`.
    """
    certificates = certificates_of(settings)
    identity = certificates.identity()
    link = Link(identity.agents_url, certificates.tls(), not_after=identity.not_after)
    loop = asyncio.get_running_loop()
    # Jitter, not secrets.
    jitter = random.random
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="host") as threads:
        host = await loop.run_in_executor(threads, make_host, settings, ControllerKeys(link, loop))
        journal = Journal(settings.journal_path)
        agent = Agent(host, journal, settings, host_id=identity.host, progress=progress)
        session = Session(
            link,
            agent,
            host.inspector.host,
            threads=threads,
            jitter=jitter,
            version=__version__,
            pace=pace,
            rounds=Rounds(
                link,
                examine or _examiner(settings),
                settings.doctor_accepted,
                version=__version__,
                jitter=jitter,
                pace=pace,
                first=journal.state.revision == 0,
                say=say,
            ),
            say=say,
        )
        ends = consoles or HostConsoles(settings.console_path, _pty_of)
        streams = Streams(link, ends, jitter=jitter, pace=pace, say=say)
        say(f"{identity.host} of {identity.deployment}, controller {identity.agents_url}")
        try:
            await _until_told(session.run(), streams.run(), keep_fresh(certificates, link, now=_now, say=say))
        finally:
            await link.close()


async def _until_told(*lives: Coroutine[Any, Any, None]) -> None:
    """Run all of them until a signal comes or one fails; the others end with it."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(each) for each in (*lives, told.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _examiner(settings: AgentSettings) -> Examine:
    from hostprep.doctor import examine

    return lambda facts: examine(facts, settings.bridge)


def _pty_of(instance: str) -> str:
    from orchestrator.agent.libvirt.connection import Connection
    from orchestrator.agent.libvirt.consoles import pty_of

    connection = Connection()
    try:
        return pty_of(connection, instance)
    finally:
        connection.close()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)

"""The lab host for tests: booted once, shared, brought down at the end if it was not up before.

A lab host that dies by itself (emulation) is started again, at most twice for each test; the report at the
end says so.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from images.labhost import commands, lab
from images.labhost.session import LabSession, open_session
from images.labhost.tenants import (
    ACME,
    GLOBEX,
    HELPER,
    assignment_of,
    everything_absent,
    instance_for,
    made_again,
)
from orchestrator.model.assignment import Assignment, ImageRef, Instance
from tests.lab.deployment import Deployment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lab tests build on each other's running VMs: keep the files' order, tests of one file together."""
    items.sort(key=lambda item: item.path.name if "tests/lab" in str(item.path) else "")
    for item in items:
        if "tests/lab" in str(item.path) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


class Lab:
    """The lab session, the tenants' instances, and the revision counter."""

    def __init__(self, session: LabSession) -> None:
        self.session = session
        self.host = session.host
        self.facts = session.probe()
        image = ImageRef(digest=session.image.digest, size_bytes=session.image.size_bytes)
        self.image = image
        self.acme = instance_for(ACME, self.facts, image)
        self.helper = instance_for(HELPER, self.facts, image, core=1)
        self.globex = instance_for(GLOBEX, self.facts, image)
        self.revision = session.followed()
        self.last: Assignment | None = None

    @property
    def all(self) -> list[Instance]:
        return [self.acme, self.helper, self.globex]

    def back_again(self, test_run: str) -> None:
        """Start a dead lab host again, at most once for a test's run, and let it run what it last ran.

        What it was last told to remove is fenced there: these instances' next orders are of a new generation.
        """
        self.host.restart_once(test_run)
        if self.last is None:
            return
        self.session.apply(self.last)
        removed = {each.id for each in self.last.absent}
        for name in ("acme", "helper", "globex"):
            if (instance := getattr(self, name)).id in removed:
                setattr(self, name, made_again(instance))

    def order(self, instances: list[Instance], absent: tuple = ()) -> Assignment:
        """A new assignment under the next revision."""
        self.revision += 1
        self.last = assignment_of(instances, revision=self.revision, absent=absent)
        return self.last

    def gone(self, instances: list[Instance]) -> Assignment:
        """A new assignment that takes these away without a trace."""
        return self.order([], everything_absent(instances))

    def settled(self, order: Assignment) -> dict[str, Any]:
        """Apply as the agent's loop does: again while each error is one that may pass, three times at most.

        A switch that has just booted may take longer to answer here than its caller waits.
        """
        for _ in range(2):
            report = self.session.apply(order)
            errors = [each["error"] for each in report["instances"] if each["error"]]
            if not errors or not all(error["retryable"] for error in errors):
                return report
            _say(f"\nnot as ordered yet: {errors}")
        return self.session.apply(order)

    def sh(self, command: str, timeout_s: float = 120) -> str:
        """Run a shell command in the lab host and return what it printed."""
        return self.host.sh(command, timeout_s)

    def run(self, instance: Instance, script: str, timeout_s: int = 60) -> tuple[int, str]:
        """Run a script inside a guest; return its exit code and output."""
        answer = self.session.ask(instance.id, {"op": "run", "script": script, "timeout_s": timeout_s})
        assert answer["ok"], answer
        return answer["exit_code"], base64.b64decode(answer["output_b64"]).decode(errors="replace")


#: Of one test, if the lab host dies under it.
RUNS = 3
#: For one test with its fixtures. The most that one does on a slow machine: install and enrol the host
#: (350 s), then start four VMs (300 s). Waits have limits of their own, and say what they waited for.
LIMIT_S = 1500
LAB = pytest.StashKey[Lab]()
BOOTED_HERE = pytest.StashKey[bool]()


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def lab_host(request: pytest.FixtureRequest) -> Lab:
    stash = request.session.stash
    stash[BOOTED_HERE] = lab.LabHost(1).running() is None
    try:
        stash[LAB] = Lab(open_session(_say))
    except lab.LabDiedError as exc:
        host = lab.LabHost(1)
        _say(f"the lab host itself died before the first test: {exc}\n{host.last_words()}")
        host.restart_once()
        stash[LAB] = Lab(open_session(_say))
    return stash[LAB]


@pytest.fixture(scope="session")
def deployment(lab_host: Lab) -> Iterator[Deployment]:
    """A controller with the lab host as its host; from here on it alone says what runs there."""
    made = Deployment(lab_host)
    yield made
    made.end()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell how often the lab host died, and take it down if it was not up before."""
    if (lab_ := session.stash.get(LAB, None)) is not None:
        for death in lab_.host.report()["deaths"]:
            _say(f"\nthe lab host itself died during the tests: {death}")
        lab_.session.preloaded.close()
    if session.stash.get(BOOTED_HERE, False):
        commands.down(lambda words: None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test again, twice at most, if the lab host itself died under it: that says nothing of ours."""
    if "lab_host" not in getattr(item, "fixturenames", ()):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for run in range(2, RUNS + 1):
        lab_ = item.session.stash.get(LAB, None)
        reason = None if lab_ is None else _death(lab_, reports)
        if lab_ is None or reason is None:
            break
        _say(
            f"\nthe lab host itself died (emulation, not the code under test): {reason}\n"
            f"{lab_.host.last_words()}"
        )
        lab_.back_again(f"{item.nodeid}, run {run}")
        _forget_failed_fixtures(item)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _death(lab_: Lab, reports: list[pytest.TestReport]) -> str | None:
    """Return why the lab host counts as dead, if the test failed and it does."""
    failed = [report for report in reports if report.failed]
    if not failed:
        return None
    # One that hangs says nothing on its console: where something did not answer, ask it over ssh too.
    silent = any(lab.LabDiedError.__name__ in report.longreprtext for report in failed)
    return lab_.host.died_reason(quick=not silent)


def _forget_failed_fixtures(item: pytest.Item) -> None:
    """A module's fixture that failed with the lab host would fail again from pytest's memory."""
    item._initrequest()  # type: ignore[attr-defined]
    for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
        for definition in definitions:
            if definition.cached_result is not None and definition.cached_result[2] is not None:
                definition.finish(item._request)  # type: ignore[attr-defined]

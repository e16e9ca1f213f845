"""Every bad assignment is refused with exactly its code and field, by the library and by the commands, and
leaves the host as it was."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from orchestrator.agent.journal import Journal
from orchestrator.agent.sim import everyday_world, sim_host
from orchestrator.isolation.admission import problems
from orchestrator.model.errors import BulkheadError
from orchestrator.model.parsing import AssignmentRefused, parse_assignment
from orchestrator.processes import agent_commands
from tests.unit.admission.cases import CASES, SECRET, Case, good, raw
from tests.unit.agent.fleet import Fleet

FACTS = everyday_world().facts()
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def found(raw_file: bytes, *, on_host: bool) -> tuple[BulkheadError, ...]:
    """All problems of a file."""
    try:
        assignment = parse_assignment(raw_file)
    except AssignmentRefused as refused:
        return refused.problems
    return problems(assignment, FACTS if on_host else None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A host that runs the good assignment. No test here may change it, which each checks itself."""
    fleet = Fleet(tmp_path_factory.mktemp("host"))
    settings = fleet.settings.state_dir.parent / "agent.toml"
    settings.write_text(f'state_dir = "{fleet.settings.state_dir}"\nrun_dir = "{fleet.settings.run_dir}"\n')
    assert fleet.apply(parse_assignment(raw(good()))).ok
    return fleet


def command(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, verb: str, file: bytes) -> tuple[int, str, str]:
    """Run `bulkhead agent VERB FILE` on the simulated host: exit status, stdout, stderr."""
    monkeypatch.setattr(agent_commands, "real_host", lambda _settings, _keys: sim_host(fleet.world))
    folder = fleet.settings.state_dir.parent
    (folder / "assignment.json").write_bytes(file)
    words = [verb, str(folder / "assignment.json")]
    if verb == "apply":
        words += ["--settings", str(folder / "agent.toml")]
    result = CliRunner().invoke(agent_commands.app, words)
    return result.exit_code, result.stdout, result.stderr


def test_the_good_assignment_is_fine() -> None:
    assert found(raw(good()), on_host=True) == ()


def test_there_are_enough_cases_and_no_name_stands_twice() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@each_case
def test_exactly_this_code_and_field(case: Case) -> None:
    assert [(p.code, p.field) for p in found(case.file(), on_host=True)] == [(case.code, case.field)]


@each_case
def test_without_a_host_only_what_the_host_knows_is_missed(case: Case) -> None:
    expected = [] if case.on_host else [case.code]
    assert [problem.code for problem in found(case.file(), on_host=False)] == expected


@each_case
def test_messages_are_one_short_printable_sentence_and_hold_no_secret(case: Case) -> None:
    for problem in found(case.file(), on_host=True):
        text = problem.message + (problem.hint or "") + (problem.field or "")
        assert problem.message
        assert len(text) < 400
        assert text.isprintable()
        assert text.isascii()
        assert SECRET not in text


@each_case
def test_apply_exits_2_says_why_and_leaves_the_host(
    case: Case, running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_it() -> object:
        journal = Journal(running.settings.journal_path).state
        return running.snapshot(), running.world.changes, journal

    before = all_of_it()

    status, out, err = command(running, monkeypatch, "apply", case.file(revision=2))

    assert (status, out) == (2, "")
    assert f"{case.code} at {case.field}:" in err if case.field else f"{case.code}:" in err
    assert SECRET not in err
    assert all_of_it() == before


@each_case
def test_check_says_the_same_without_a_host(
    case: Case, running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = command(running, monkeypatch, "check", case.file())

    if case.on_host:
        assert (status, err) == (0, "")
        assert out.startswith("fine: 2 instances")
    else:
        assert (status, out) == (2, "")
        assert case.code in err


def test_a_good_file_passes_the_same_two_commands(running: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(running, monkeypatch, "check", raw(good()))[0] == 0
    changes = running.world.changes

    status, out, _ = command(running, monkeypatch, "apply", raw(good()))

    assert status == 0
    assert "vm_acme" in out
    assert running.world.changes == changes


def test_all_problems_are_told_at_once() -> None:
    tree = good()
    tree["instances"][0]["name"] = "A B"
    tree["instances"][1]["cpuz"] = 1
    del tree["absent"][0]["generation"]

    told = [(p.code, p.field) for p in found(raw(tree), on_host=False)]

    assert sorted(told) == [
        ("assignment.bad_value", "instances[0].name"),
        ("assignment.missing_field", "absent[0].generation"),
        ("assignment.unknown_field", "instances[1].cpuz"),
    ]


def test_a_mistyped_field_is_guessed() -> None:
    tree = good()
    tree["instances"][1]["cpuz"] = tree["instances"][1]["cpus"]

    (problem,) = found(json.dumps(tree).encode(), on_host=False)

    assert problem.hint == "did you mean cpus?"

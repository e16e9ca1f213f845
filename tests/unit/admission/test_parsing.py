"""How bad input is told: limits, order, the JSON Schema, and that parsing loses nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from orchestrator.agent.sim import everyday_world
from orchestrator.isolation.admission import problems
from orchestrator.model import parsing
from orchestrator.model.assignment import Assignment
from orchestrator.model.errors import InvalidInputError
from orchestrator.model.parsing import MAX_SHOWN, AssignmentRefused, field_path, parse_assignment, schema
from tests.unit.admission.cases import CASES, good, raw

#: What the schema cannot say: rules over several fields, and over the bytes of the file.
SHAPES = [
    case
    for case in CASES
    if case.code in ("assignment.bad_value", "assignment.unknown_field", "assignment.missing_field")
    # Python's own json refuses so many digits.
    and case.name != "huge number"
]
#: Validators of the model that no schema keyword expresses, and a file that is no JSON Schema's business.
BEYOND_SCHEMA = {
    "multicast MAC",
    "vendor's MAC",
    "no address",
    "address of the network",
    "multicast address",
    "loopback address",
    "address not in short form",
    "address with a zone",
    "prefix too long",
    "absent id of another kind",
    "seed that is no Unicode",
    # For JSON Schema 1.0 is an integer, and Python's `re` lets $ stand before a last line end.
    "revision with a fraction",
    "name with a line end",
}


def refused(file: bytes) -> AssignmentRefused:
    with pytest.raises(AssignmentRefused) as caught:
        parse_assignment(file)
    return caught.value


def test_what_is_read_is_what_was_written() -> None:
    tree = good()

    assert json.loads(parse_assignment(raw(tree)).model_dump_json()) == tree


def test_defaults_need_not_be_written() -> None:
    tree = good()
    written = parse_assignment(raw(tree))
    for name in ("power", "seed"):
        del tree["instances"][0][name]
    del tree["observe_only"], tree["instances"][0]["devices"][0]["serial"]

    read = parse_assignment(raw(tree))

    assert read.instances[0].power == written.instances[0].power
    assert read.instances[0].seed.user_data == "#cloud-config\n{}\n"
    assert read.observe_only is False


def test_refusal_holds_the_first_hundred_and_counts_the_rest() -> None:
    tree = good()
    tree["absent"] = [{"kind": "volume", "id": "nothing", "generation": 1}] * 250

    error = refused(raw(tree))

    assert (len(error.problems), error.count) == (MAX_SHOWN, 250)
    text = error.explain()
    assert text.splitlines()[-1] == "and 150 more problems"
    assert text.count("assignment.bad_value at absent[") == 100
    assert error.as_dict()["problem_count"] == 250


def test_exactly_a_hundred_leaves_none_out() -> None:
    tree = good()
    tree["absent"] = [{"kind": "volume", "id": "nothing", "generation": 1}] * 100

    assert "more problems" not in refused(raw(tree)).explain()


def test_refusal_is_bad_input_with_every_problem_in_its_json_form() -> None:
    error = refused(b"{}")

    assert isinstance(error, InvalidInputError)
    assert (error.code, error.exit_code, error.http_status) == ("assignment.refused", 2, 422)
    listed = error.as_dict()["problems"]
    assert {each["field"] for each in listed} == {"version", "deployment", "host", "epoch", "revision"}
    assert str(error).startswith("[assignment.refused] the assignment has 5 problems")


def test_long_values_are_cut() -> None:
    tree = good()
    tree["host"] = "x" * 100_000

    (problem,) = refused(raw(tree)).problems

    assert len(problem.message) < 200
    assert problem.message.endswith('xxx"...')


def test_no_traceback_leads_to_the_input() -> None:
    tree = good()
    tree["instances"][0]["seed"]["user_data"] = ["s3cret"]

    error = refused(raw(tree))

    assert error.__cause__ is None
    assert error.__suppress_context__
    assert "s3cret" not in error.explain() + str(error) + json.dumps(error.as_dict())


def test_list_that_lost_its_entries_to_errors_is_not_called_too_short() -> None:
    tree = good()
    tree["instances"][0]["volumes"][0]["size_gib"] = "1"

    assert [p.field for p in refused(raw(tree)).problems] == ["instances[0].volumes[0].size_gib"]


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ((), ""),
        (("instances", 0, "cpus", "pins", 1, "host_cpu"), "instances[0].cpus.pins[1].host_cpu"),
        (("a b",), '["a b"]'),
        (("\n\x1b",), '["\\n\\u001b"]'),
        (("\ud800",), '["\\ud800"]'),
    ],
)
def test_field_path(place: tuple[int | str, ...], path: str) -> None:
    assert field_path(place) == path


def test_schema_is_a_schema_and_the_good_one_fits() -> None:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)

    jsonschema.Draft202012Validator(made).validate(good())

    assert "$id" not in made
    assert made["title"] == "Bulkhead assignment, version 1"
    assert made["description"]


@pytest.mark.parametrize("case", SHAPES, ids=[case.name for case in SHAPES])
def test_schema_refuses_what_the_parser_refuses(case) -> None:
    tree = json.loads(case.file())

    fits = jsonschema.Draft202012Validator(schema()).is_valid(tree)

    assert fits == (case.name in BEYOND_SCHEMA)


def test_every_pattern_of_the_schema_is_told_in_words() -> None:
    """What people read says what a value looks like, never a regular expression."""
    patterns = set(patterns_in(schema()))
    assert len(patterns) > 8

    assert [each for each in patterns if "of the form" in parsing._form(each)] == []


def patterns_in(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("pattern"), str):
            yield tree["pattern"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from patterns_in(each)


def test_schema_is_the_same_every_time_and_changes_nobody() -> None:
    first = json.dumps(schema(), sort_keys=True)
    schema()["title"] = "other"

    assert json.dumps(schema(), sort_keys=True) == first


def test_example_of_the_guide_is_read_whole_and_admitted() -> None:
    page = (Path(__file__).parents[3] / "docs" / "assignment.md").read_text()
    example = page.split("```json\n")[1].split("```")[0]

    assignment = parse_assignment(example.encode())

    assert json.loads(assignment.model_dump_json()) == json.loads(example), (
        "the example spells every field out"
    )
    assert problems(assignment, everyday_world().facts()) == ()


def test_every_field_stands_in_the_guide() -> None:
    page = (Path(__file__).parents[3] / "docs" / "assignment.md").read_text()
    names = set(schema()["properties"])
    for definition in schema()["$defs"].values():
        names |= set(definition.get("properties", {}))

    assert {name for name in names if f"`{name}`" not in page} == set()


def test_a_thousand_instances(capsys: pytest.CaptureFixture[str]) -> None:
    first = good()["instances"][0]
    text = json.dumps(first)
    tree = good()
    tree["instances"] = [json.loads(text.replace("acme", f"t{n}")) for n in range(1000)]
    file = raw(tree)

    began = time.perf_counter()
    assignment = parse_assignment(file)
    took_s = time.perf_counter() - began

    assert isinstance(assignment, Assignment)
    assert len(assignment.instances) == 1000
    with capsys.disabled():
        print(f"\nparse 1000 instances, {len(file)} bytes: {took_s:.3f} s")

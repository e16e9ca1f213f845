"""The guest's C code: it compiles without a warning; its JSON parser agrees with Python's (sanitized)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from images.probe.build import COMPILE
from images.probe.recipe import HERE

SOURCES = HERE / "src"
Parse = Callable[[list[str]], list[str]]

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii", min_codepoint=32)), inner)
    ),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """The guest's parser as a program on this machine."""
    program = tmp_path_factory.mktemp("json") / "json_check"
    sources = [
        str(Path(__file__).with_name("json_check.c")),
        str(SOURCES / "json.c"),
        str(SOURCES / "util.c"),
    ]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}"]
    subprocess.run(["gcc", *flags, "-o", str(program), *sources, "-lm"], check=True)

    def run(lines: list[str]) -> list[str]:
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        done = subprocess.run([str(program)], input=text, capture_output=True, check=True)
        # Not splitlines: text may hold what Unicode takes for a line's end, U+0085 for one.
        return done.stdout.decode().removesuffix("\n").split("\n")

    return run


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "0",
        "-1.5e3",
        "true",
        "null",
        '"a\\u00e9\\n\\"\\\\\\/"',
        '"\\ud83d\\ude00"',
        '"ünï"',
        '"\x85\u2028"',
        "9009000000000001",
        ' { "a" : [ 1 , { "b" : null } ] } ',
        "[" * 32 + "]" * 32,
    ],
)
def test_good_json_means_the_same_to_the_guest(parse: Parse, text: str) -> None:
    (answer,) = parse([text])
    assert json.loads(answer) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        '{"a"}',
        '{"a":1,}',
        "{'a':1}",
        '"open',
        '"bad\\x"',
        '"\\u12"',
        '"\\ud83d"',
        '"\\ude00"',
        '"tab\there"',
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e999",
        "0x10",
        "nan",
        "Infinity",
        "truex",
        "1 2",
        '{"a":1,"a":2}',
        '"\\u0000"',
        "[" * 34 + "]" * 34,
    ],
)
def test_bad_json_is_refused(parse: Parse, text: str) -> None:
    (answer,) = parse([text])
    assert answer.startswith("!"), answer
    assert len(answer) > 5, "a refusal says why"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(JSON_VALUES, min_size=1, max_size=10))
def test_any_json_comes_through(parse: Parse, values: list[Any]) -> None:
    answers = parse([json.dumps(value) for value in values])
    assert [json.loads(answer) for answer in answers] == values


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.sampled_from(list('{}[]",:\\u0019aeE+-. tfn\x7f')), max_size=40), min_size=1, max_size=30
    )
)
def test_garbage_neither_breaks_it_nor_passes(parse: Parse, texts: list[str]) -> None:
    for text, answer in zip(texts, parse(texts), strict=True):
        if not answer.startswith("!"):
            assert json.loads(answer) == json.loads(text)


def test_every_source_file_compiles_without_a_warning(tmp_path: Path) -> None:
    strict = [*COMPILE, "-Wshadow", "-Wvla", "-Wstrict-prototypes", "-Wmissing-prototypes"]
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    done = subprocess.run([*strict, "-o", str(tmp_path / "tools"), *sources], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_compiler_flags_turn_a_warning_into_a_failure(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { int unused; return 0; }\n")
    done = subprocess.run([*COMPILE, "-o", str(tmp_path / "x"), str(source)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "unused" in done.stderr

"""Settings: defaults, then the file, then the environment; what is not understood is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.agent.host import AgentSettings
from orchestrator.model.errors import InvalidInputError
from orchestrator.processes import control_settings
from orchestrator.processes.control_settings import read_control_settings
from orchestrator.processes.settings import DEFAULT_FILE, read_settings


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "agent.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_defaults_where_the_usual_file_is_missing() -> None:
    assert not DEFAULT_FILE.exists()
    assert read_settings(DEFAULT_FILE, {"HOME": "/root"}) == AgentSettings()


def test_file_sets_every_kind_of_value(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        'state_dir = "/srv/bulkhead"\nuid_base = 3000000\nstop_grace_s = 5\n'
        'host_cpus = "0-1,8"\nuplink = "eth1"\n',
    )

    found = read_settings(file, {})

    assert found.state_dir == Path("/srv/bulkhead")
    assert found.uid_base == 3_000_000
    assert (found.stop_grace_s, type(found.stop_grace_s)) == (5.0, float)
    assert found.host_cpus == frozenset({0, 1, 8})
    assert found.uplink == "eth1"
    assert found.bridge == AgentSettings().bridge


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'bridge = "br-file"\nrun_dir = "/run/file"\n')

    found = read_settings(file, {"BULKHEAD_AGENT_BRIDGE": "br-env", "BRIDGE": "br-none"})

    assert (found.bridge, found.run_dir) == ("br-env", Path("/run/file"))


@pytest.mark.parametrize(
    ("text", "environment", "field"),
    [
        ('bridgee = "x"\n', {}, "bridgee"),
        ("", {"BULKHEAD_AGENT_BRIDGEE": "x"}, "bridgee"),
        ('uid_base = "many"\n', {}, "uid_base"),
        ("uid_base = 1.5\n", {}, "uid_base"),
        ("", {"BULKHEAD_AGENT_STOP_GRACE_S": "soon"}, "stop_grace_s"),
        ('host_cpus = "3-1"\n', {}, "host_cpus"),
    ],
)
def test_unknown_names_and_bad_values_are_refused(
    tmp_path: Path, text: str, environment: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        read_settings(written(tmp_path, text), environment)

    assert (refused.value.code, refused.value.field) == ("settings.invalid", field)


def test_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as refused:
        read_settings(written(tmp_path, "nope = 1\n"), {})

    assert refused.value.hint is not None
    assert "bind_deadline_s, bridge, doctor_accepted, gpu_models" in refused.value.hint


@pytest.mark.parametrize("text", [b"bridge = \n", b'bridge = "\xff"\n', b"[[["])
def test_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, text: bytes) -> None:
    file = written(tmp_path, text)

    with pytest.raises(InvalidInputError) as refused:
        read_settings(file, {})

    assert refused.value.code == "settings.invalid"
    assert str(file) in refused.value.message


@pytest.mark.parametrize(
    ("read", "default"),
    [(read_settings, DEFAULT_FILE), (read_control_settings, control_settings.DEFAULT_FILE)],
    ids=["agent", "controller"],
)
def test_a_file_that_was_named_must_be_there(tmp_path, monkeypatch, read, default):
    missing = tmp_path / "nowhere.toml"
    with pytest.raises(InvalidInputError) as told:
        read(missing)
    assert (told.value.code, told.value.field) == ("settings.missing", "--settings")
    assert str(missing) in told.value.message
    with pytest.raises(InvalidInputError) as told:
        read(tmp_path)
    assert told.value.code == "settings.invalid"
    with pytest.raises(InvalidInputError) as told:
        read(missing, option="--other-settings")
    assert told.value.field == "--other-settings"
    assert "--other-settings" in (told.value.hint or "")
    # The usual file may be missing: then there are defaults.
    assert not default.exists()
    assert read(default) is not None


@pytest.mark.parametrize(
    "words",
    [
        ("agent", "serve"),
        ("agent", "probe"),
        ("controller", "serve"),
        ("controller", "migrate"),
        ("controller", "operator-token", "root"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_missing_settings_file(tmp_path, words):
    missing = tmp_path / "nowhere.toml"
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words, "--settings", str(missing)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "settings.missing" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_models_of_gpus_are_a_list_or_words(tmp_path: Path) -> None:
    file = written(tmp_path, 'gpu_models = ["data-centre", "10de:2684"]\n')
    assert read_settings(file, {}).gpu_models == ("data-centre", "10de:2684")
    said = {"BULKHEAD_AGENT_GPU_MODELS": "display, 1002:*"}
    assert read_settings(file, said).gpu_models == ("display", "1002:*")


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"gpu_models\.invalid.*'h100'"):
        read_settings(written(tmp_path, 'gpu_models = ["h100"]\n'), {})


@pytest.mark.parametrize("option", ["--controller-settings", "--agent-settings"])
def test_serve_names_its_own_option_for_a_missing_file(tmp_path, option):
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "serve", option, str(tmp_path / "nowhere.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"settings.missing at {option}:" in done.stderr
    assert f"leave {option} out" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_all_checks_are_accepted_by_the_settings_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('doctor_accepted = ["*"]\n')
    assert read_settings(file, {}).doctor_accepted == ("*",)
    assert read_settings(file, {"BULKHEAD_AGENT_DOCTOR_ACCEPTED": "K7,L8"}).doctor_accepted == ("K7", "L8")
    for value in ("*", "K7,*", "K7 *"):
        with pytest.raises(InvalidInputError, match="settings file alone"):
            read_settings(file, {"BULKHEAD_AGENT_DOCTOR_ACCEPTED": value})

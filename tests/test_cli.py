"""The command line of app.py: what it takes, what it refuses, what a host's environment sets."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gradio.state_holder import SessionState
from processes import python

import app
from app import read_options


def test_defaults_are_a_private_app_on_loopback() -> None:
    options = read_options([], {})
    assert options.host == "127.0.0.1"
    assert not (options.share or options.public or options.auth or options.mcp)
    assert options.runs_dir == Path("runs")


def test_the_environment_sets_what_a_host_sets() -> None:
    options = read_options([], {"RUNS_DIR": "/data/runs", "PUBLIC_DEMO": "1"})
    assert options.runs_dir == Path("/data/runs")
    assert options.public


def test_the_command_line_wins_over_the_environment() -> None:
    assert read_options(["--runs-dir", "mine"], {"RUNS_DIR": "theirs"}).runs_dir == Path("mine")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--public"], {}), (["--share", "--auth", "me:secret"], {}), ([], {"SPACE_ID": "me/demo"})],
)
def test_strangers_meet_the_limits(arguments: list[str], environment: dict[str, str]) -> None:
    assert read_options(arguments, environment).public


def test_auth_is_a_name_and_a_password() -> None:
    assert read_options(["--auth", "me:a:b"], {}).auth == ("me", "a:b")


def test_share_alone_is_refused_with_the_reason() -> None:
    done = python("app.py", "--share")
    assert done.returncode == 2
    assert "--auth USER:PASS" in done.stderr and "--public" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("given", ["me", "me:", ":secret"])
def test_half_an_auth_is_refused(given: str) -> None:
    done = python("app.py", "--auth", given)
    assert done.returncode == 2
    assert "USER:PASS" in done.stderr


def test_help_names_every_flag() -> None:
    done = python("app.py", "--help")
    assert done.returncode == 0
    for flag in ("--host", "--port", "--share", "--public", "--auth", "--runs-dir", "--mcp"):
        assert flag in done.stdout


def test_calls_of_the_api_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **named: given.update(named))
    app.main()
    tracemalloc.start()
    try:
        kept = SessionState(app.demo)  # what gradio keeps of each caller
        each, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.config_values
    assert given["state_session_capacity"] * each < 200e6

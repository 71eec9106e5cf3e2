"""The command line of app.py: what it takes, what it refuses, what a host's environment sets."""

import asyncio
import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gradio.state_holder import SessionState
from processes import python
from starlette.applications import Starlette

import app
from app import read_options
from peft_core.access.gate import PublicGate
from peft_core.access.guard import HUGGING_FACE, PagePolicy, RequestGuard
from peft_core.access.hosts import AllowedHosts
from peft_core.access.passwords import Credentials
from peft_core.service.limits import Limits


def test_defaults_are_a_private_app_on_loopback() -> None:
    options = read_options([], {})
    assert options.host == "127.0.0.1"
    assert not (options.share or options.public or options.credentials or options.mcp)
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


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, 0),
        ([], {"SPACE_ID": "me/demo"}, 1),
        ([], {"SPACE_ID": "me/demo", "TRUSTED_PROXIES": "2"}, 2),
        ([], {"TRUSTED_PROXIES": ""}, 0),
        (["--proxies", "0"], {"TRUSTED_PROXIES": "2"}, 0),
    ],
)
def test_proxies_default_to_the_one_of_a_space(
    arguments: list[str], environment: dict[str, str], expected: int
) -> None:
    assert read_options(arguments, environment).proxies == expected


@pytest.mark.parametrize("number", ["-1", "11", "one", "1.5", "²", "0000099"])
def test_proxies_odd_number_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options([], {"TRUSTED_PROXIES": number})
    assert f"{number!r} is not a number from 0 to 10" in capsys.readouterr().err


def test_auth_is_a_name_and_a_password() -> None:
    assert read_options(["--auth", "me:a:b"], {}).credentials == Credentials("me", "a:b")
    assert read_options([], {"AUTH": "me:a:b"}).credentials == Credentials("me", "a:b")


@pytest.mark.parametrize(
    ("arguments", "environment", "flag"),
    [
        (["--share"], {}, "--share"),
        (["--host", "0.0.0.0"], {}, "--host 0.0.0.0"),
        ([], {"GRADIO_SERVER_NAME": "192.168.1.5"}, "--host 192.168.1.5"),
        (["--host", "my-laptop"], {"AUTH": ""}, "--host my-laptop"),
    ],
)
def test_app_open_to_others_is_refused_without_login_or_limits(
    arguments: list[str], environment: dict[str, str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        read_options(arguments, environment)
    said = capsys.readouterr().err
    assert refused.value.code == 2
    assert f"{flag} opens this app to" in said and "--auth USER:PASS" in said and "--public" in said
    for opened in (["--public"], ["--auth", "me:secret"]):
        assert read_options([*arguments, *opened], environment).policy.links


def test_refusal_is_a_line_and_no_traceback() -> None:
    done = python("app.py", "--share")
    assert done.returncode == 2
    assert "--auth USER:PASS" in done.stderr and "Traceback" not in done.stderr


def test_login_is_not_offered_with_mcp_which_asks_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--mcp"], {"AUTH": "me:secret"})
    said = capsys.readouterr().err
    assert "--mcp cannot ask for a password" in said and "secret" not in said


def test_space_answers_under_its_host_and_in_the_frames_of_hugging_face() -> None:
    space = {"SPACE_ID": "me/demo", "SPACE_HOST": "me-demo.hf.space", "GRADIO_SERVER_NAME": "0.0.0.0"}
    options = read_options([], space)
    assert options.hosts.is_allowed("me-demo.hf.space", "10.0.0.2")
    assert options.policy.frames == HUGGING_FACE and options.policy.links
    local = read_options([], {})
    assert not local.hosts.is_allowed("me-demo.hf.space", "127.0.0.1")
    assert local.policy == PagePolicy()


def test_names_are_allowed_by_argument_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    options = read_options(["--allow-host", "a.example"], {"ALLOW_HOST": "b.example c.example:8443"})
    for name in ("a.example", "b.example:7860", "c.example:8443"):
        assert options.hosts.is_allowed(name, "127.0.0.1")
    with pytest.raises(SystemExit):
        read_options(["--allow-host", "http://a.example"], {})
    assert "'http://a.example' is not the name of a host" in capsys.readouterr().err


def test_app_that_starts_unguarded_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **named: setattr(page, "app", Starlette()))
    with pytest.raises(SystemExit, match="guard against foreign requests is not in place"):
        app.main()


@pytest.mark.parametrize("given", ["me", "me:", ":secret"])
def test_half_an_auth_is_refused(given: str) -> None:
    done = python("app.py", "--auth", given)
    assert done.returncode == 2
    assert "USER:PASS" in done.stderr


def test_help_names_every_flag() -> None:
    done = python("app.py", "--help")
    assert done.returncode == 0
    flags = ("--host", "--port", "--share", "--public", "--auth", "--auth-file", "--allow-host", "--runs-dir")
    for flag in (*flags, "--mcp", "--proxies"):
        assert flag in done.stdout


def test_calls_of_the_api_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **named: given.update(named))
    monkeypatch.setattr(type(app.demo), "block_thread", lambda page: None)
    guarded = Starlette()
    guarded.middleware_stack = RequestGuard(guarded, AllowedHosts("127.0.0.1"), PagePolicy())
    monkeypatch.setattr(app.demo, "app", guarded, raising=False)
    app.main()
    tracemalloc.start()
    try:
        kept = SessionState(app.demo)  # what gradio keeps of each caller
        each, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.config_values == {}  # see peft_core/ui/sessions.py
    assert given["state_session_capacity"] * each < 200e6


@pytest.mark.parametrize("limits", [Limits(max_queue=7), None])
def test_main_public_app_gets_a_gate_and_a_bounded_queue(
    limits: Limits | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(app, "workbench", dataclasses.replace(app.workbench, limits=limits))
    monkeypatch.setattr(app.demo._queue, "max_size", None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **named: given.update(named))
    monkeypatch.setattr(app.demo, "app", Starlette(), raising=False)
    with pytest.raises(SystemExit):  # nothing has run the lifespan, so the guard is not in place
        app.main()
    assert app.demo._queue.max_size == (limits and 7)

    async def start() -> RequestGuard:
        served = Starlette()
        served.middleware_stack = served
        async with given["app_kwargs"]["lifespan"](served):
            return served.middleware_stack

    guard = asyncio.run(start())
    assert isinstance(guard, RequestGuard)
    assert isinstance(guard._app, PublicGate) == (limits is not None)

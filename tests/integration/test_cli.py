"""Tests of the command line of app.py: options, refusals and environment variables."""

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


def test_options_are_read_from_environment() -> None:
    options = read_options([], {"RUNS_DIR": "/data/runs", "PUBLIC_DEMO": "1"})
    assert options.runs_dir == Path("/data/runs")
    assert options.public


def test_command_line_overrides_environment() -> None:
    assert read_options(["--runs-dir", "mine"], {"RUNS_DIR": "theirs"}).runs_dir == Path("mine")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--public"], {}), (["--share", "--auth", "me:secret"], {}), ([], {"SPACE_ID": "me/demo"})],
)
def test_app_open_to_the_public_has_limits(arguments: list[str], environment: dict[str, str]) -> None:
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
def test_proxies_default_to_one_on_a_space(
    arguments: list[str], environment: dict[str, str], expected: int
) -> None:
    assert read_options(arguments, environment).proxies == expected


@pytest.mark.parametrize("number", ["-1", "11", "one", "1.5", "²", "0000099"])
def test_proxies_with_invalid_number_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options([], {"TRUSTED_PROXIES": number})
    assert f"{number!r} is not a number from 0 to 10" in capsys.readouterr().err


def test_auth_is_split_into_name_and_password() -> None:
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
    message = capsys.readouterr().err
    assert refused.value.code == 2
    assert f"{flag} opens this app to" in message and "--auth USER:PASS" in message and "--public" in message
    for opened in (["--public"], ["--auth", "me:secret"]):
        assert read_options([*arguments, *opened], environment).policy.links


def test_refused_option_prints_no_traceback() -> None:
    done = python("app.py", "--share")
    assert done.returncode == 2
    assert "--auth USER:PASS" in done.stderr and "Traceback" not in done.stderr


def test_mcp_with_login_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--mcp"], {"AUTH": "me:secret"})
    message = capsys.readouterr().err
    assert "--mcp cannot ask for a password" in message and "secret" not in message


def test_space_allows_its_host_and_hugging_face_frames() -> None:
    space = {"SPACE_ID": "me/demo", "SPACE_HOST": "me-demo.hf.space", "GRADIO_SERVER_NAME": "0.0.0.0"}
    options = read_options([], space)
    assert options.hosts.is_allowed("me-demo.hf.space", "10.0.0.2")
    assert options.policy.frames == HUGGING_FACE and options.policy.links
    local = read_options([], {})
    assert not local.hosts.is_allowed("me-demo.hf.space", "127.0.0.1")
    assert local.policy == PagePolicy()


def test_allowed_hosts_come_from_argument_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    options = read_options(["--allow-host", "a.example"], {"ALLOW_HOST": "b.example c.example:8443"})
    for name in ("a.example", "b.example:7860", "c.example:8443"):
        assert options.hosts.is_allowed(name, "127.0.0.1")
    with pytest.raises(SystemExit):
        read_options(["--allow-host", "http://a.example"], {})
    assert "'http://a.example' is not the name of a host" in capsys.readouterr().err


def test_main_without_request_guard_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **options: setattr(page, "app", Starlette()))
    with pytest.raises(SystemExit, match="guard against cross-site requests is not in place"):
        app.main()


@pytest.mark.parametrize("credentials", ["me", "me:", ":secret"])
def test_incomplete_auth_is_refused(credentials: str) -> None:
    done = python("app.py", "--auth", credentials)
    assert done.returncode == 2
    assert "USER:PASS" in done.stderr


def test_help_names_every_flag() -> None:
    done = python("app.py", "--help")
    assert done.returncode == 0
    flags = ("--host", "--port", "--share", "--public", "--auth", "--auth-file", "--allow-host", "--runs-dir")
    for flag in (*flags, "--mcp", "--proxies"):
        assert flag in done.stdout


def test_main_bounds_memory_of_api_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_options: dict[str, Any] = {}
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **options: launch_options.update(options))
    monkeypatch.setattr(type(app.demo), "block_thread", lambda page: None)
    guarded = Starlette()
    guarded.middleware_stack = RequestGuard(guarded, AllowedHosts("127.0.0.1"), PagePolicy())
    monkeypatch.setattr(app.demo, "app", guarded, raising=False)
    app.main()
    tracemalloc.start()
    try:
        session = SessionState(app.demo)  # what gradio stores for each client
        session_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert session.config_values == {}  # see peft_core/ui/sessions.py
    assert launch_options["state_session_capacity"] * session_bytes < 200e6


@pytest.mark.parametrize("limits", [Limits(max_queue=7), None])
def test_main_public_app_gets_a_gate_and_a_bounded_queue(
    limits: Limits | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_options: dict[str, Any] = {}
    monkeypatch.setattr(type(app.workbench), "start", lambda workbench: None)
    monkeypatch.setattr(app, "workbench", dataclasses.replace(app.workbench, limits=limits))
    monkeypatch.setattr(app.demo._queue, "max_size", None)
    monkeypatch.setattr(type(app.demo), "launch", lambda page, **options: launch_options.update(options))
    monkeypatch.setattr(app.demo, "app", Starlette(), raising=False)
    with pytest.raises(SystemExit):  # nothing has run the lifespan, so the guard is not in place
        app.main()
    assert app.demo._queue.max_size == (limits and 7)

    async def start() -> RequestGuard:
        served = Starlette()
        served.middleware_stack = served
        async with launch_options["app_kwargs"]["lifespan"](served):
            return served.middleware_stack

    guard = asyncio.run(start())
    assert isinstance(guard, RequestGuard)
    assert isinstance(guard._app, PublicGate) == (limits is not None)

"""Code snippets for the endpoints: each runs unchanged against the real app, with any text in it."""

import ast
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import Server, serve
from gradio_client import Client
from processes import ROOT

from peft_core.access.visitors import TOKEN_HEADER, TOKEN_STORAGE_KEY, new_token, sha256_of
from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.export.snippets import LINE_LENGTH, ApiAccess, snippets, train_snippets
from peft_core.runs import Run
from peft_core.runs.ownership import Ownership, read_ownership, write_ownership

AWKWARD = 'It\'s "bad"; $(touch pwned) `touch pwned` \\ \n%s {0} \'\'\'""" # é\u2028 @file'
URL = "http://127.0.0.1:7860/"
TOKEN = new_token()
SHORT_TRAINING = {"max_train_samples": 64, "max_eval_samples": 32, "num_train_epochs": 1}


@pytest.fixture(scope="module")
def server(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("api") / "runs"
    shutil.copytree(finished_run.folder, folder / finished_run.run_id)
    with serve(folder, "--mcp") as running:
        yield running


@pytest.fixture(scope="module")
def locked(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An app with a login."""
    folder = tmp_path_factory.mktemp("locked") / "runs"
    shutil.copytree(finished_run.folder, folder / finished_run.run_id)
    with serve(folder, AUTH="USER:PASSWORD") as running:
        yield running


@pytest.fixture(scope="module")
def public(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A public demo in which the finished run belongs to the visitor with the token TOKEN."""
    folder = tmp_path_factory.mktemp("public") / "runs"
    shutil.copytree(finished_run.folder, folder / finished_run.run_id)
    write_ownership(folder / finished_run.run_id, Ownership(owner=sha256_of(TOKEN)))
    with serve(folder, "--mcp", PUBLIC_DEMO="1") as running:
        yield running


def stdout_of(command: list[str], folder: Path) -> str:
    """Run a program in a new folder, assert that it succeeds, and return its output."""
    done = run_program(command, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_program(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a new folder without access to this project."""
    folder.mkdir(exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240, check=False
    )


def call_mcp(texts: dict[str, str]) -> dict[str, Any]:
    """Send the request of an MCP client with these settings and return its result."""
    server = json.loads(texts["mcp"])["mcpServers"]["peft-workbench"]
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(
        server["url"], texts["mcp_call"].encode(), headers | server.get("headers", {})
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    return json.loads(events[-1].removeprefix("data: "))["result"]


def answers(output: str) -> list[Any]:
    """Return the data of each `complete` event in the output of curl."""
    lines = output.splitlines()
    return [
        json.loads(data.removeprefix("data: "))[0]
        for event, data in zip(lines, lines[1:], strict=False)
        if event == "event: complete"
    ]


@pytest.mark.parametrize("text", ["The food was bad.", AWKWARD])
def test_python_and_curl_snippets_return_prediction_of_run(
    text: str, server: Server, finished_run: Run, tmp_path: Path
) -> None:
    run_id = finished_run.run_id
    expected = Client(server.url, verbose=False).predict(text, run_id, api_name="/predict")
    texts = snippets(ApiAccess(server.url), run_id, text)
    lines = stdout_of([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    answer, state = (ast.literal_eval(line) for line in lines[-2:])
    assert answer["scores"] == pytest.approx(expected["scores"])
    assert state["status"] == "FINISHED" and state["result"]["accuracy"] == finished_run.result()["accuracy"]
    answer, state = answers(stdout_of(["sh", "-c", texts["curl"]], tmp_path / "curl"))
    assert answer["scores"] == pytest.approx(expected["scores"])
    assert state["run_id"] == run_id
    assert not [*(tmp_path / "python").iterdir(), *(tmp_path / "curl").iterdir()]


def test_mcp_snippet_returns_prediction_of_run(server: Server, finished_run: Run) -> None:
    texts = snippets(ApiAccess(server.url), finished_run.run_id, AWKWARD)
    response = call_mcp(texts)
    assert not response.get("isError")
    prediction = ast.literal_eval(response["content"][0]["text"])
    assert set(prediction["scores"]) == {"bad", "good"}


def test_train_snippets_start_runs(locked: Server, settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"num_train_epochs": 1, "use_dora": True, "revision": None}
    texts = train_snippets(ApiAccess(locked.url, login=True), {**settings, **changes})
    lines = stdout_of([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    started = [
        ast.literal_eval(lines[-1]),
        *answers(stdout_of(["sh", "-c", texts["curl"]], tmp_path / "curl")),
    ]
    assert len(started) == 2
    for run in started:
        config = json.loads((locked.runs_dir / run["run_id"] / "config.json").read_text(encoding="utf-8"))
        assert config["use_dora"] is True and config["num_train_epochs"] == 1
    assert json.loads(texts["mcp_call"])["params"]["name"] == "train"


def test_snippets_for_app_with_login_send_credentials(
    locked: Server, finished_run: Run, tmp_path: Path
) -> None:
    texts = snippets(ApiAccess(locked.url, login=True), finished_run.run_id, "The food was bad.")
    lines = stdout_of([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    assert set(ast.literal_eval(lines[-2])["scores"]) == {"bad", "good"}
    answer, _ = answers(stdout_of(["sh", "-c", texts["curl"]], tmp_path / "curl"))
    assert set(answer["scores"]) == {"bad", "good"}


def test_train_snippets_with_token_train_on_public_demo(public: Server, tmp_path: Path) -> None:
    texts = train_snippets(ApiAccess(public.url, token=True), SHORT_TRAINING)
    programs = {name: texts[name].replace("TOKEN", TOKEN) for name in ("python", "curl")}
    lines = stdout_of([sys.executable, "-c", programs["python"]], tmp_path / "python").splitlines()
    (curl_answer,) = answers(stdout_of(["sh", "-c", programs["curl"]], tmp_path / "curl"))
    for answer in (ast.literal_eval(lines[-1]), curl_answer):
        assert read_ownership(public.runs_dir / answer["run_id"]).is_owned_by(sha256_of(TOKEN))


@pytest.mark.parametrize("token", [False, True])
def test_train_snippets_without_valid_token_get_header_error(
    token: bool, public: Server, tmp_path: Path
) -> None:
    """Without the header, and with the unchanged placeholder."""
    texts = train_snippets(ApiAccess(public.url, token=token), SHORT_TRAINING)
    python = run_program([sys.executable, "-c", texts["python"]], tmp_path / "python")
    curl = stdout_of(["sh", "-c", texts["curl"]], tmp_path / "curl")
    assert python.returncode != 0 and not answers(curl)
    for message in (python.stderr, curl):
        assert f"send the header {TOKEN_HEADER} with 64 random hex digits" in message
    response = call_mcp(texts)
    assert response["isError"] and f"send the header {TOKEN_HEADER}" in response["content"][0]["text"]


def test_snippets_with_token_read_run_of_visitor(public: Server, finished_run: Run, tmp_path: Path) -> None:
    texts = snippets(ApiAccess(public.url, token=True), finished_run.run_id, AWKWARD)
    programs = {name: texts[name].replace("TOKEN", TOKEN) for name in ("python", "curl")}
    lines = stdout_of([sys.executable, "-c", programs["python"]], tmp_path / "python").splitlines()
    of_python = [ast.literal_eval(line) for line in lines[-2:]]
    of_curl = answers(stdout_of(["sh", "-c", programs["curl"]], tmp_path / "curl"))
    for answer, state in (of_python, of_curl):
        assert set(answer["scores"]) == {"bad", "good"} and state["may_change"] is True


def test_mcp_snippet_with_token_reads_run_of_visitor(public: Server, finished_run: Run) -> None:
    texts = snippets(ApiAccess(public.url, token=True), finished_run.run_id, AWKWARD)
    settings = json.loads(texts["mcp"])
    headers = settings["mcpServers"]["peft-workbench"]["headers"]
    assert "64 random hex digits" in headers[TOKEN_HEADER] and TOKEN_STORAGE_KEY in headers[TOKEN_HEADER]
    assert call_mcp(texts)["isError"]
    headers[TOKEN_HEADER] = TOKEN
    response = call_mcp({**texts, "mcp": json.dumps(settings)})
    assert set(ast.literal_eval(response["content"][0]["text"])["scores"]) == {"bad", "good"}


def test_train_snippets_with_token_start_with_token_comment() -> None:
    texts = train_snippets(ApiAccess(URL, token=True), {})
    for name in ("python", "curl"):
        comment = [line for line in texts[name].splitlines() if line.startswith("# ")]
        assert texts[name].startswith("\n".join(comment)) and max(map(len, comment)) <= LINE_LENGTH
        comment_text = " ".join(line.removeprefix("# ") for line in comment)
        assert comment_text.startswith(
            "TOKEN is 64 random hex digits of your own, the same with each request"
        )
        assert TOKEN_STORAGE_KEY in comment_text
    script = (ROOT / "assets" / "visitor.js").read_text(encoding="utf-8")
    assert f"const NAME = '{TOKEN_STORAGE_KEY}'" in script


@pytest.mark.parametrize("login", [False, True])
def test_train_snippets_for_private_app_have_no_token(login: bool) -> None:
    for text in train_snippets(ApiAccess(URL, login=login), {}).values():
        assert "token" not in text.lower() and "#" not in text and "headers" not in text


def test_train_snippets_for_public_demo_with_login_send_both() -> None:
    texts = train_snippets(ApiAccess(URL, login=True, token=True), {})
    ast.parse(texts["python"])
    assert 'auth=("USER", "PASSWORD")' in texts["python"] and f'"{TOKEN_HEADER}": "TOKEN"' in texts["python"]
    calls = [line for line in texts["curl"].splitlines() if "curl -sS" in line and "/login" not in line]
    assert len(calls) == 2
    assert all("-b cookies.txt" in line and f'"{TOKEN_HEADER}: $token"' in line for line in calls)
    assert max(map(len, texts["python"].splitlines())) <= LINE_LENGTH


def test_app_with_login_rejects_anonymous_requests_and_wrong_passwords(locked: Server) -> None:
    def status(path: str, fields: dict[str, str] | None = None) -> int:
        body = urllib.parse.urlencode(fields).encode() if fields else None
        try:
            return urllib.request.urlopen(f"{locked.url}{path}", body, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code

    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/call/runs/x",
        "/gradio_api/queue/data?session_hash=x",
    ):
        assert status(path) == 401
    assert status("/gradio_api/mcp/schema") == status("/gradio_api/mcp/") == 404
    for password in ("", "password", "PASSWORD ", "PASSWORD\0"):
        assert status("/login", {"username": "USER", "password": password}) in (400, 422)
    assert status("/login", {"username": "USER", "password": "PASSWORD"}) == 200


def test_snippets_of_text_pair_contain_both_texts() -> None:
    texts = snippets(ApiAccess(URL), "run-1", "one", text_pair="two", variant="merged", tool_prefix="space_")
    call = json.loads(texts["mcp_call"])["params"]
    assert call["name"] == "space_predict"
    assert call["arguments"] == {"text": "one", "run_id": "run-1", "variant": "merged", "text_pair": "two"}
    assert 'text_pair="two"' in texts["python"] and '["one", "run-1", "merged", "two"]' in texts["curl"]
    assert "127.0.0.1:7860/gradio_api" in texts["curl"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:7860", "javascript:alert(1)", "http://", "file:///etc", "http://[", None]
)
def test_snippets_with_invalid_url_raise_config_error(url: Any) -> None:
    with pytest.raises(ConfigError, match="it must be the app's own URL"):
        snippets(ApiAccess(url), "run-1", "text")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "vera", "r": 8},
        {"target_modules": ["all-linear"], "learning_rate": 2e-3},
        {"method": "full", "target_modules": ["key"], "remedies": ["empty"], "revision": "main"},
    ],
)
def test_train_snippets_contain_only_changed_settings(settings: dict[str, Any]) -> None:
    config = TrainConfig.from_dict(settings)
    texts = train_snippets(ApiAccess(URL), config.to_dict())
    sent_settings = json.loads(texts["mcp_call"])["params"]["arguments"]["settings"]
    assert TrainConfig.from_dict(sent_settings) == config
    assert len(sent_settings) <= len(settings)

"""The endpoints as texts to copy: each runs as it stands against the real app, whatever text is in it."""

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
    """The app with a login, which its programs take as well."""
    folder = tmp_path_factory.mktemp("locked") / "runs"
    shutil.copytree(finished_run.folder, folder / finished_run.run_id)
    with serve(folder, AUTH="USER:PASSWORD") as running:
        yield running


@pytest.fixture(scope="module")
def public(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A public demo, in which the finished run belongs to the visitor whose token is TOKEN."""
    folder = tmp_path_factory.mktemp("public") / "runs"
    shutil.copytree(finished_run.folder, folder / finished_run.run_id)
    write_ownership(folder / finished_run.run_id, Ownership(owner=sha256_of(TOKEN)))
    with serve(folder, "--mcp", PUBLIC_DEMO="1") as running:
        yield running


def printed(command: list[str], folder: Path) -> str:
    """What a program prints, run in an empty folder that it leaves empty."""
    done = run_program(command, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_program(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A program that has run in an empty folder."""
    folder.mkdir(exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240, check=False
    )


def call_mcp(texts: dict[str, str]) -> dict[str, Any]:
    """The result of the request that an MCP client with these settings makes."""
    server = json.loads(texts["mcp"])["mcpServers"]["peft-workbench"]
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(
        server["url"], texts["mcp_call"].encode(), headers | server.get("headers", {})
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    return json.loads(events[-1].removeprefix("data: "))["result"]


def answers(words: str) -> list[Any]:
    """What curl prints of a stream of events: the value of each that is complete."""
    lines = words.splitlines()
    return [
        json.loads(data.removeprefix("data: "))[0]
        for event, data in zip(lines, lines[1:], strict=False)
        if event == "event: complete"
    ]


@pytest.mark.parametrize("text", ["The food was bad.", AWKWARD])
def test_python_and_curl_get_the_run_s_answer(
    text: str, server: Server, finished_run: Run, tmp_path: Path
) -> None:
    run_id = finished_run.run_id
    asked = Client(server.url, verbose=False).predict(text, run_id, api_name="/predict")
    texts = snippets(ApiAccess(server.url), run_id, text)
    said = printed([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    answer, state = (ast.literal_eval(line) for line in said[-2:])
    assert answer["scores"] == pytest.approx(asked["scores"])
    assert state["status"] == "FINISHED" and state["result"]["accuracy"] == finished_run.result()["accuracy"]
    answer, state = answers(printed(["sh", "-c", texts["curl"]], tmp_path / "curl"))
    assert answer["scores"] == pytest.approx(asked["scores"])
    assert state["run_id"] == run_id
    assert not [*(tmp_path / "python").iterdir(), *(tmp_path / "curl").iterdir()]


def test_an_mcp_client_gets_it_too(server: Server, finished_run: Run) -> None:
    texts = snippets(ApiAccess(server.url), finished_run.run_id, AWKWARD)
    result = call_mcp(texts)
    assert not result.get("isError")
    found = ast.literal_eval(result["content"][0]["text"])
    assert set(found["scores"]) == {"bad", "good"}


def test_the_texts_that_train_start_a_run(locked: Server, settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"num_train_epochs": 1, "use_dora": True, "revision": None}
    texts = train_snippets(ApiAccess(locked.url, login=True), {**settings, **changes})
    said = printed([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    started = [ast.literal_eval(said[-1]), *answers(printed(["sh", "-c", texts["curl"]], tmp_path / "curl"))]
    assert len(started) == 2
    for run in started:
        held = json.loads((locked.runs_dir / run["run_id"] / "config.json").read_text(encoding="utf-8"))
        assert held["use_dora"] is True and held["num_train_epochs"] == 1
    assert json.loads(texts["mcp_call"])["params"]["name"] == "train"


def test_an_app_that_asks_for_a_password_is_asked_with_one(
    locked: Server, finished_run: Run, tmp_path: Path
) -> None:
    texts = snippets(ApiAccess(locked.url, login=True), finished_run.run_id, "The food was bad.")
    said = printed([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    assert set(ast.literal_eval(said[-2])["scores"]) == {"bad", "good"}
    answer, _ = answers(printed(["sh", "-c", texts["curl"]], tmp_path / "curl"))
    assert set(answer["scores"]) == {"bad", "good"}


def test_code_with_token_trains_on_a_public_demo(public: Server, tmp_path: Path) -> None:
    texts = train_snippets(ApiAccess(public.url, token=True), SHORT_TRAINING)
    programs = {name: texts[name].replace("TOKEN", TOKEN) for name in ("python", "curl")}
    lines = printed([sys.executable, "-c", programs["python"]], tmp_path / "python").splitlines()
    (curl_answer,) = answers(printed(["sh", "-c", programs["curl"]], tmp_path / "curl"))
    for answer in (ast.literal_eval(lines[-1]), curl_answer):
        assert read_ownership(public.runs_dir / answer["run_id"]).is_owned_by(sha256_of(TOKEN))


@pytest.mark.parametrize("token", [False, True])
def test_code_without_a_visitor_s_token_is_told_to_send_the_header(
    token: bool, public: Server, tmp_path: Path
) -> None:
    """Without the header, and with the placeholder left as it is."""
    texts = train_snippets(ApiAccess(public.url, token=token), SHORT_TRAINING)
    python = run_program([sys.executable, "-c", texts["python"]], tmp_path / "python")
    curl = printed(["sh", "-c", texts["curl"]], tmp_path / "curl")
    assert python.returncode != 0 and not answers(curl)
    for message in (python.stderr, curl):
        assert f"send the header {TOKEN_HEADER} with 64 random hex digits" in message
    result = call_mcp(texts)
    assert result["isError"] and f"send the header {TOKEN_HEADER}" in result["content"][0]["text"]


def test_code_with_token_reads_the_visitor_s_run(public: Server, finished_run: Run, tmp_path: Path) -> None:
    texts = snippets(ApiAccess(public.url, token=True), finished_run.run_id, AWKWARD)
    programs = {name: texts[name].replace("TOKEN", TOKEN) for name in ("python", "curl")}
    lines = printed([sys.executable, "-c", programs["python"]], tmp_path / "python").splitlines()
    of_python = [ast.literal_eval(line) for line in lines[-2:]]
    of_curl = answers(printed(["sh", "-c", programs["curl"]], tmp_path / "curl"))
    for answer, state in (of_python, of_curl):
        assert set(answer["scores"]) == {"bad", "good"} and state["may_change"] is True


def test_mcp_settings_with_token_read_the_visitor_s_run(public: Server, finished_run: Run) -> None:
    texts = snippets(ApiAccess(public.url, token=True), finished_run.run_id, AWKWARD)
    settings = json.loads(texts["mcp"])
    headers = settings["mcpServers"]["peft-workbench"]["headers"]
    assert "64 random hex digits" in headers[TOKEN_HEADER] and TOKEN_STORAGE_KEY in headers[TOKEN_HEADER]
    assert call_mcp(texts)["isError"]
    headers[TOKEN_HEADER] = TOKEN
    result = call_mcp({**texts, "mcp": json.dumps(settings)})
    assert set(ast.literal_eval(result["content"][0]["text"])["scores"]) == {"bad", "good"}


def test_code_with_token_begins_with_what_the_token_is() -> None:
    texts = train_snippets(ApiAccess(URL, token=True), {})
    for name in ("python", "curl"):
        comment = [line for line in texts[name].splitlines() if line.startswith("# ")]
        assert texts[name].startswith("\n".join(comment)) and max(map(len, comment)) <= LINE_LENGTH
        sentence = " ".join(line.removeprefix("# ") for line in comment)
        assert sentence.startswith("TOKEN is 64 random hex digits of your own, the same with each request")
        assert TOKEN_STORAGE_KEY in sentence
    script = (ROOT / "assets" / "visitor.js").read_text(encoding="utf-8")
    assert f"const NAME = '{TOKEN_STORAGE_KEY}'" in script


@pytest.mark.parametrize("login", [False, True])
def test_code_for_an_app_that_is_not_public_has_no_token(login: bool) -> None:
    for text in train_snippets(ApiAccess(URL, login=login), {}).values():
        assert "token" not in text.lower() and "#" not in text and "headers" not in text


def test_code_for_a_public_demo_with_a_login_sends_both() -> None:
    texts = train_snippets(ApiAccess(URL, login=True, token=True), {})
    ast.parse(texts["python"])
    assert 'auth=("USER", "PASSWORD")' in texts["python"] and f'"{TOKEN_HEADER}": "TOKEN"' in texts["python"]
    calls = [line for line in texts["curl"].splitlines() if "curl -sS" in line and "/login" not in line]
    assert len(calls) == 2
    assert all("-b cookies.txt" in line and f'"{TOKEN_HEADER}: $token"' in line for line in calls)
    assert max(map(len, texts["python"].splitlines())) <= LINE_LENGTH


def test_nothing_is_told_before_the_login_and_wrong_passwords_do_not_enter(locked: Server) -> None:
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


def test_a_pair_has_both_its_texts() -> None:
    texts = snippets(ApiAccess(URL), "run-1", "one", text_pair="two", variant="merged", tool_prefix="space_")
    call = json.loads(texts["mcp_call"])["params"]
    assert call["name"] == "space_predict"
    assert call["arguments"] == {"text": "one", "run_id": "run-1", "variant": "merged", "text_pair": "two"}
    assert 'text_pair="two"' in texts["python"] and '["one", "run-1", "merged", "two"]' in texts["curl"]
    assert "127.0.0.1:7860/gradio_api" in texts["curl"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:7860", "javascript:alert(1)", "http://", "file:///etc", "http://[", None]
)
def test_what_is_no_address_gets_one_sentence(url: Any) -> None:
    with pytest.raises(ConfigError, match="it takes the app's own"):
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
def test_only_settings_that_were_chosen_are_written_out(settings: dict[str, Any]) -> None:
    config = TrainConfig.from_dict(settings)
    texts = train_snippets(ApiAccess(URL), config.to_dict())
    given = json.loads(texts["mcp_call"])["params"]["arguments"]["settings"]
    assert TrainConfig.from_dict(given) == config
    assert len(given) <= len(settings)

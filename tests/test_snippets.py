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

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.export.snippets import snippets, train_snippets
from peft_core.runs import Run

AWKWARD = 'It\'s "bad"; $(touch pwned) `touch pwned` \\ \n%s {0} \'\'\'""" # é\u2028 @file'
URL = "http://127.0.0.1:7860/"


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


def printed(command: list[str], folder: Path) -> str:
    """What a program prints, run in an empty folder that it leaves empty."""
    folder.mkdir(exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    texts = snippets(server.url, run_id, text)
    said = printed([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    answer, state = (ast.literal_eval(line) for line in said[-2:])
    assert answer["scores"] == pytest.approx(asked["scores"])
    assert state["status"] == "FINISHED" and state["result"]["accuracy"] == finished_run.result()["accuracy"]
    answer, state = answers(printed(["sh", "-c", texts["curl"]], tmp_path / "curl"))
    assert answer["scores"] == pytest.approx(asked["scores"])
    assert state["run_id"] == run_id
    assert not [*(tmp_path / "python").iterdir(), *(tmp_path / "curl").iterdir()]


def test_an_mcp_client_gets_it_too(server: Server, finished_run: Run) -> None:
    texts = snippets(server.url, finished_run.run_id, AWKWARD)
    url = json.loads(texts["mcp"])["mcpServers"]["peft-workbench"]["url"]
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(url, texts["mcp_call"].encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    result = json.loads(events[-1].removeprefix("data: "))["result"]
    assert not result.get("isError")
    found = ast.literal_eval(result["content"][0]["text"])
    assert set(found["scores"]) == {"bad", "good"}


def test_the_texts_that_train_start_a_run(locked: Server, settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"num_train_epochs": 1, "use_dora": True, "revision": None}
    texts = train_snippets(locked.url, {**settings, **changes}, auth=True)
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
    texts = snippets(locked.url, finished_run.run_id, "The food was bad.", auth=True)
    said = printed([sys.executable, "-c", texts["python"]], tmp_path / "python").splitlines()
    assert set(ast.literal_eval(said[-2])["scores"]) == {"bad", "good"}
    answer, _ = answers(printed(["sh", "-c", texts["curl"]], tmp_path / "curl"))
    assert set(answer["scores"]) == {"bad", "good"}


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
    texts = snippets(URL, "run-1", "one", text_pair="two", variant="merged", tool_prefix="space_")
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
        snippets(url, "run-1", "text")


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
    given = json.loads(train_snippets(URL, config.to_dict())["mcp_call"])["params"]["arguments"]["settings"]
    assert TrainConfig.from_dict(given) == config
    assert len(given) <= len(settings)

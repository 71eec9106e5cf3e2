"""Tests of the named endpoints with the real client, and of requests that are refused."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from app_server import Server, serve
from gradio_client import Client
from gradio_client.exceptions import AppError

ENDPOINTS = [
    "/train",
    "/status",
    "/stop",
    "/runs",
    "/count",
    "/merge",
    "/predict",
    "/download",
    "/delete",
    "/restore",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("api") / "runs", "--mcp") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    """A client with the origin of the app's own page, which may name local files."""
    return Client(server.url, headers={"Origin": server.url}, verbose=False)


@pytest.fixture(scope="module")
def program(server: Server) -> Client:
    return Client(server.url, verbose=False)


def wait_until_finished(client: Client, run_id: str, seconds: float = 180) -> dict[str, Any]:
    deadline = time.time() + seconds
    while time.time() < deadline:
        status = client.predict(run_id, api_name="/status")
        if status["status"] not in ("SCHEDULED", "RUNNING"):
            return status
        time.sleep(0.5)
    raise AssertionError(f"{run_id} did not end in {seconds} s: {status}")


def test_api_exposes_exactly_the_named_endpoints(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ENDPOINTS


def test_idle_app_rarely_wakes(client: Client, server: Server) -> None:
    """Gradio's own queue wakes a thousand times a second, which slows down a training."""

    def wakes() -> int:
        threads = psutil.Process(server.process.pid).threads()
        return sum(psutil.Process(thread.id).num_ctx_switches().voluntary for thread in threads)

    before = wakes()
    time.sleep(3)
    assert wakes() - before < 3 * 250


def test_count_by_hub_id_matches_article(client: Client) -> None:
    settings = {"model_name_or_path": "nlptown/bert-base-multilingual-uncased-sentiment", "num_labels": 5}
    counted = client.predict(settings, api_name="/count")
    assert (counted["trainable"], counted["total"]) == (298_757, 167_659_018)
    assert (counted["adapter"], counted["head"], counted["head_copy"]) == (294_912, 3_845, 3_845)
    assert round(counted["percent"], 4) == 0.1782


def test_count_of_folder_with_only_config_matches_article(client: Client, tmp_path: Path) -> None:
    config = {"model_type": "bert", "vocab_size": 105_879, "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    counted = client.predict({"model_name_or_path": str(tmp_path), "num_labels": 5}, api_name="/count")
    assert (counted["trainable"], counted["total"]) == (298_757, 167_659_018)


def test_api_trains_merges_and_predicts(client: Client, settings: dict[str, Any]) -> None:
    run_id = client.predict(settings, api_name="/train")["run_id"]
    state = wait_until_finished(client, run_id)
    assert state["status"] == "FINISHED", state
    assert state["result"]["accuracy"] > 0.9
    assert state["settings"]["learning_rate"] == settings["learning_rate"]
    assert run_id in [run["run_id"] for run in client.predict(api_name="/runs")]

    certificate = client.predict(run_id, api_name="/merge")
    assert certificate["holds"] and certificate["label_flips"] == 0
    assert certificate["max_logit_diff_reloaded"] <= 1e-5

    answers = {
        variant: client.predict("The plot was bad.", run_id, variant, api_name="/predict")
        for variant in ("base", "adapter", "merged")
    }
    for answer in answers.values():
        assert set(answer["scores"]) == {"bad", "good"}
        assert abs(sum(answer["scores"].values()) - 1) < 1e-6
        assert answer["label"] in answer["scores"] and answer["ms"] >= 0
    assert answers["adapter"]["label"] == answers["merged"]["label"]
    assert "logistic regression on its frozen vectors" in answers["base"]["note"]


def test_second_training_waits_and_can_be_stopped(client: Client, settings: dict[str, Any]) -> None:
    first = client.predict({**settings, "num_train_epochs": 100}, api_name="/train")
    second = client.predict(settings, api_name="/train")
    assert second["waiting_for"] == first["run_id"]
    assert client.predict(second["run_id"], api_name="/stop")["status"] == "KILLED"
    with pytest.raises(AppError, match="stop it before you delete it"):
        client.predict(first["run_id"], api_name="/delete")
    client.predict(first["run_id"], api_name="/stop")
    assert wait_until_finished(client, first["run_id"])["status"] == "KILLED"
    for run in (first, second):
        assert client.predict(run["run_id"], api_name="/delete") == {"run_id": run["run_id"], "deleted": True}
        with pytest.raises(AppError, match="There is no run"):
            client.predict(run["run_id"], api_name="/status")


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/train", [{"rank": 8}], "did you mean 'r'"),
        ("/train", [{"r": 0}], "r is 0"),
        ("/train", [{"learning_rate": 0}], "learning_rate is 0"),
        ("/train", [{"target_modules": ["nothing"]}], "matches nothing in this model; it has query"),
        ("/train", [{"max_length": 513}], "at most 512"),
        ("/train", [{"model_name_or_path": "/nowhere"}], "config.json"),
        ("/train", [{"dataset_name": "/nowhere"}], "no folder"),
        ("/count", [{"method": "magic"}], "it takes one of lora, adalora"),
        ("/status", ["../../etc"], "There is no run"),
        ("/stop", ["no-such-run"], "There is no run"),
        ("/merge", ["no-such-run"], "There is no run"),
        ("/delete", ["no-such-run"], "There is no run"),
        ("/delete", ["../../etc"], "There is no run"),
        ("/predict", ["", "no-such-run", "adapter"], "The text is empty"),
    ],
)
def test_endpoint_with_bad_input_returns_one_sentence(
    client: Client, endpoint: str, arguments: list, words: str
) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(*arguments, api_name=endpoint)
    assert words in str(refused.value)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["/train", "/count"])
@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name"])
def test_client_without_login_cannot_name_local_paths(
    program: Client, server: Server, tmp_path: Path, endpoint: str, name: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "a canary"}')
    (tmp_path / "secrets.json").write_text('[{"text": "a canary", "label": "a canary"}]')
    before = sorted(server.runs_dir.iterdir()) if server.runs_dir.exists() else []
    messages = set()
    for path in (tmp_path, tmp_path / "secrets.json", tmp_path / "missing"):
        with pytest.raises(AppError) as refused:
            program.predict({name: str(path)}, api_name=endpoint)
        messages.add(str(refused.value).replace(repr(str(path)), "PATH"))
    assert messages == {
        f"{name} is PATH, which is neither a preset, an upload nor a Hub id. Programs may name local paths "
        "only after a login: start the app with --auth, or use the page."
    }
    assert (sorted(server.runs_dir.iterdir()) if server.runs_dir.exists() else []) == before


def call_handler(url: str, number: int, data: list[Any]) -> dict[str, Any]:
    """Call one of the page's own handlers and return the last message about the call."""
    question = json.dumps({"data": data, "fn_index": number, "session_hash": f"handler{number}"}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"{url}/gradio_api/queue/join", question, headers), timeout=30
    )
    with urllib.request.urlopen(
        f"{url}/gradio_api/queue/data?session_hash=handler{number}", timeout=60
    ) as stream:
        for line in stream:
            message = json.loads(line.removeprefix(b"data: ") or b"{}") if line.strip() else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the call was not answered")


def test_handlers_fetch_no_file_from_a_requested_url(client: Client, server: Server) -> None:
    takes_files = {"file", "uploadbutton"}
    files = {part["id"] for part in client.config["components"] if part["type"] in takes_files}
    calls = 0
    for handler in client.config["dependencies"]:
        places = [place for place, part in enumerate(handler["inputs"]) if part in files]
        if not places or not handler["backend_fn"]:
            continue
        address = "https://192.0.2.1/a.csv"
        file = {"path": address, "url": address, "orig_name": "a.csv", "meta": {"_type": "gradio.FileData"}}
        data = [[file] if place in places else None for place in range(len(handler["inputs"]))]
        message = call_handler(server.url, handler["id"], data)
        assert not message["success"]
        assert "does not download files from URLs, such as 'https://192.0.2.1" in str(message["output"])
        calls += 1
    assert calls >= 2


def test_mcp_schema_lists_the_same_endpoints(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/gradio_api/mcp/schema", timeout=30) as answer:
        tools = {tool["name"] for tool in json.load(answer)}
    assert {name.removeprefix("/") for name in ENDPOINTS} <= {name.removeprefix("app_") for name in tools}

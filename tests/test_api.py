"""The named endpoints, asked by the real client, and what a public demo refuses."""

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
    """With the origin of the app's own page, which may name files."""
    return Client(server.url, headers={"Origin": server.url}, verbose=False)


@pytest.fixture(scope="module")
def program(server: Server) -> Client:
    return Client(server.url, verbose=False)


def finished(client: Client, run_id: str, seconds: float = 180) -> dict[str, Any]:
    deadline = time.time() + seconds
    while time.time() < deadline:
        state = client.predict(run_id, api_name="/status")
        if state["status"] not in ("SCHEDULED", "RUNNING"):
            return state
        time.sleep(0.5)
    raise AssertionError(f"{run_id} did not end in {seconds} s: {state}")


def test_exactly_the_named_endpoints_are_public(client: Client) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert list(named) == ENDPOINTS


def test_an_app_that_waits_does_not_wake_a_thousand_times_a_second(client: Client, server: Server) -> None:
    """As gradio's queue would, each time in the way of a training."""

    def wakes() -> int:
        threads = psutil.Process(server.process.pid).threads()
        return sum(psutil.Process(thread.id).num_ctx_switches().voluntary for thread in threads)

    before = wakes()
    time.sleep(3)
    assert wakes() - before < 3 * 250


def test_count_of_the_articles_model_by_id(client: Client) -> None:
    settings = {"model_name_or_path": "nlptown/bert-base-multilingual-uncased-sentiment", "num_labels": 5}
    counted = client.predict(settings, api_name="/count")
    assert (counted["trainable"], counted["total"]) == (298_757, 167_659_018)
    assert (counted["adapter"], counted["head"], counted["head_copy"]) == (294_912, 3_845, 3_845)
    assert round(counted["percent"], 4) == 0.1782


def test_count_of_a_folder_that_holds_only_a_config(client: Client, tmp_path: Path) -> None:
    config = {"model_type": "bert", "vocab_size": 105_879, "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    counted = client.predict({"model_name_or_path": str(tmp_path), "num_labels": 5}, api_name="/count")
    assert (counted["trainable"], counted["total"]) == (298_757, 167_659_018)


def test_the_whole_job(client: Client, settings: dict[str, Any]) -> None:
    run_id = client.predict(settings, api_name="/train")["run_id"]
    state = finished(client, run_id)
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


def test_a_second_training_waits_and_a_waiting_one_can_be_stopped(
    client: Client, settings: dict[str, Any]
) -> None:
    first = client.predict({**settings, "num_train_epochs": 100}, api_name="/train")
    second = client.predict(settings, api_name="/train")
    assert second["waiting_for"] == first["run_id"]
    assert client.predict(second["run_id"], api_name="/stop")["status"] == "KILLED"
    with pytest.raises(AppError, match="stop it before you delete it"):
        client.predict(first["run_id"], api_name="/delete")
    client.predict(first["run_id"], api_name="/stop")
    assert finished(client, first["run_id"])["status"] == "KILLED"
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
def test_bad_input_is_one_sentence(client: Client, endpoint: str, arguments: list, words: str) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(*arguments, api_name=endpoint)
    assert words in str(refused.value)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["/train", "/count"])
@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name"])
def test_program_without_login_names_no_files(
    program: Client, server: Server, tmp_path: Path, endpoint: str, name: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "a canary"}')
    (tmp_path / "secrets.json").write_text('[{"text": "a canary", "label": "a canary"}]')
    before = sorted(server.runs_dir.iterdir()) if server.runs_dir.exists() else []
    said = set()
    for path in (tmp_path, tmp_path / "secrets.json", tmp_path / "missing"):
        with pytest.raises(AppError) as refused:
            program.predict({name: str(path)}, api_name=endpoint)
        said.add(str(refused.value).replace(repr(str(path)), "PATH"))
    assert said == {
        f"{name} is PATH, which is neither a preset, an upload nor a Hub id. Programs may name local paths "
        "after a login alone: start the app with --auth, or use the page."
    }
    assert (sorted(server.runs_dir.iterdir()) if server.runs_dir.exists() else []) == before


def ask_handler(url: str, number: int, data: list[Any]) -> dict[str, Any]:
    """The last message about a call of one of the page's own handlers."""
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


def test_files_are_not_fetched_from_an_address_that_a_request_names(client: Client, server: Server) -> None:
    takes_files = {"file", "uploadbutton"}
    files = {part["id"] for part in client.config["components"] if part["type"] in takes_files}
    asked = 0
    for handler in client.config["dependencies"]:
        places = [place for place, part in enumerate(handler["inputs"]) if part in files]
        if not places or not handler["backend_fn"]:
            continue
        address = "https://192.0.2.1/a.csv"
        file = {"path": address, "url": address, "orig_name": "a.csv", "meta": {"_type": "gradio.FileData"}}
        data = [[file] if place in places else None for place in range(len(handler["inputs"]))]
        message = ask_handler(server.url, handler["id"], data)
        assert not message["success"]
        assert "fetches no file from an address, such as 'https://192.0.2.1/a.csv'" in str(message["output"])
        asked += 1
    assert asked >= 2


def test_mcp_clients_are_offered_the_same_endpoints(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/gradio_api/mcp/schema", timeout=30) as answer:
        tools = {tool["name"] for tool in json.load(answer)}
    assert {name.removeprefix("/") for name in ENDPOINTS} <= {name.removeprefix("app_") for name in tools}

"""Measures the page: how soon it starts, and how it answers while a run trains: `make bench-page`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import httpx
from app_server import free_port, serve
from bench_default import cpu_name

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.counts import count_parameters
from peft_core.runs import ENDED

TURNS = 3
EMPTY = """
import sys
import gradio as gr
with gr.Blocks() as demo:
    gr.Markdown("Empty")
demo.launch(server_port=int(sys.argv[1]))
"""
SETTINGS = {"max_train_samples": 1500, "max_eval_samples": 100}
TICK, CLICK = 1.0, 3.0  # seconds from one look of an open page to the next, and from one change to the next


def first_page(command: list[str]) -> float:
    """Seconds from starting a process to its first page."""
    port = free_port()
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                return time.perf_counter() - start
            except urllib.error.URLError:
                time.sleep(0.02)
        raise RuntimeError("the app ended before it served")
    finally:
        process.terminate()
        process.wait(timeout=30)


def twenty_counts() -> float:
    """Seconds of twenty different parameter counts, after a first one."""
    count_parameters(TrainConfig())
    start = time.perf_counter()
    for r in range(1, 21):
        count_parameters(TrainConfig(r=r))
    return time.perf_counter() - start


def watched(seed: int) -> dict[str, Any]:
    """A training that the app starts, and the seconds that each question took meanwhile.

    They are asked as a page does, over one connection; a whole client would itself take the processor.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as server,
        httpx.Client(base_url=f"{server.url}/gradio_api/call", timeout=60) as client,
    ):
        ask(client, "/count", {"r": 4})  # the worker is warm, as after a minute of use
        run = ask(client, "/train", {**SETTINGS, "seed": seed})["run_id"]
        asked: dict[str, list[float]] = {"/status": [], "/count": []}
        state: dict[str, Any] = {"status": "SCHEDULED"}
        clicked = 0.0
        while state["status"] not in ENDED:
            state = _timed(asked["/status"], client, "/status", run)
            if state.get("stage") == "training" and time.monotonic() - clicked > CLICK:
                clicked = time.monotonic()
                _timed(asked["/count"], client, "/count", {"r": 5 + len(asked["/count"])})
            time.sleep(TICK)
        return {"tokens_per_second": state["result"]["tokens_per_second"], "asked": asked}


def ask(client: httpx.Client, name: str, question: Any) -> Any:
    """What an endpoint answers."""
    event = client.post(name, json={"data": [question]}).json()["event_id"]
    return json.loads(client.get(f"{name}/{event}").text.split("data: ")[1])[0]


def _timed(seconds: list[float], client: httpx.Client, name: str, question: Any) -> Any:
    start = time.perf_counter()
    answer = ask(client, name, question)
    seconds.append(time.perf_counter() - start)
    return answer


def alone(seed: int) -> float:
    """Tokens a second of the same training without an app."""
    with tempfile.TemporaryDirectory() as folder:
        run = runs.create(Path(folder), TrainConfig(seed=seed, **SETTINGS))
        command = [sys.executable, "-m", "peft_core.train", str(run.folder)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return run.result()["tokens_per_second"]


def main() -> None:
    """Everything in turn, TURNS times; a table, and JSON."""
    found: dict[str, list[Any]] = {"ours": [], "empty": [], "counts": [], "watched": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            app = [sys.executable, "app.py", "--runs-dir", folder, "--port"]
            found["ours"].append(first_page(app))
            found["empty"].append(first_page([sys.executable, "-c", EMPTY]))
            found["counts"].append(twenty_counts())
            found["watched"].append(watched(turn))
            found["alone"].append(alone(turn))
    print(f"{os.cpu_count()} cores, {cpu_name()}\n")
    print("| | measured |")
    print("|---|---|")
    ours, empty = (statistics.median(found[name]) for name in ("ours", "empty"))
    print(f"| first page, against an empty Gradio app | {ours:.1f} s / {empty:.1f} s = {ours / empty:.2f} |")
    print(f"| 20 parameter counts, warm | {statistics.median(found['counts']):.2f} s |")
    for name in ("/status", "/count"):
        seconds = sorted(s for one in found["watched"] for s in one["asked"][name])
        late = seconds[int(0.95 * (len(seconds) - 1))]
        print(f"| {name} while a run trains, p95 of {len(seconds)} | {1000 * late:.0f} ms |")
    rates = [one["tokens_per_second"] for one in found["watched"]]
    slower = 1 - statistics.median(rates) / statistics.median(found["alone"])
    print(f"| training, watched so, slower than alone by | {slower:.1%} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

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

from app_server import free_port, serve
from bench_default import cpu_name
from gradio_client import Client

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
PAUSE = 0.5  # seconds from one question to the next, as of a page and a half that are looked at


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
    """A training that the app starts, and the seconds that each question took meanwhile."""
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "runs") as server:
        client = Client(server.url, verbose=False)
        client.predict({"r": 4}, api_name="/count")  # the worker is warm, as after a minute of use
        run = client.predict({**SETTINGS, "seed": seed}, api_name="/train")["run_id"]
        asked: dict[str, list[float]] = {"/status": [], "/count": []}
        state: dict[str, Any] = {"status": "SCHEDULED"}
        while state["status"] not in ENDED:
            state = _timed(asked["/status"], client, run, "/status")
            if state.get("stage") == "training":
                _timed(asked["/count"], client, {"r": 4 + len(asked["/count"])}, "/count")
            time.sleep(PAUSE)
        return {"tokens_per_second": state["result"]["tokens_per_second"], "asked": asked}


def _timed(seconds: list[float], client: Client, question: Any, name: str) -> Any:
    start = time.perf_counter()
    answer = client.predict(question, api_name=name)
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

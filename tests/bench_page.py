"""Measures the page: how soon it starts, and how it answers while a run trains: `make bench-page`."""

import bisect
import itertools
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

from peft_core.config import TrainConfig
from peft_core.counts import count_parameters
from peft_core.runs import ENDED, Run

TURNS, STARTS = 3, 2  # turns of everything, and starts of both apps in each
EMPTY = """
import sys
import gradio as gr
with gr.Blocks() as demo:
    gr.Markdown("Empty")
demo.launch(server_port=int(sys.argv[1]))
"""
SETTINGS = {"max_train_samples": 8000, "max_eval_samples": 100}
TICK, CLICK = 1.0, 3.0  # seconds from one look of an open page to the next, and from one change to the next
WINDOW = 6.0  # seconds in which it looks, and then does not


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
    """A training that the app starts and a page looks at every other WINDOW: what each question took, and
    the seconds of a step while it was looked at and while it was not.

    Both in one run, for two runs differ by more. The questions come as from a page, over one connection: a
    whole client would itself take the processor.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as server,
        httpx.Client(base_url=f"{server.url}/gradio_api/call", timeout=60) as client,
    ):
        ask(client, "/count", {"r": 4})  # the worker is warm, as after a minute of use
        run = Run(server.runs_dir / ask(client, "/train", {**SETTINGS, "seed": seed})["run_id"])
        asked: dict[str, list[float]] = {"/status": [], "/count": []}
        windows: list[float] = []  # the ends of those in which it is looked at, and not, in turn
        while run.state().get("stage") != "training":
            time.sleep(0.1)
        while run.state()["status"] not in ENDED:
            look(client, run.run_id, asked, time.time() + WINDOW)
            windows.append(time.time())
            time.sleep(WINDOW)
            windows.append(time.time())
        return {"asked": asked, **step_seconds(run.metrics(), windows)}


def look(client: httpx.Client, run_id: str, asked: dict[str, list[float]], end: float) -> None:
    """What an open page asks until then, with somebody who changes a setting now and then."""
    clicked = 0.0
    while time.time() < end:
        _timed(asked["/status"], client, "/status", run_id)
        if time.time() - clicked > CLICK:
            clicked = time.time()
            _timed(asked["/count"], client, "/count", {"r": 5 + len(asked["/count"])})
        time.sleep(TICK)


def step_seconds(rows: list[dict[str, Any]], windows: list[float]) -> dict[str, list[float]]:
    """Of each stretch of steps from one logged loss to the next, `looked_at` or `alone`; without those in
    which the curve was measured, or that lie in two windows."""
    found: dict[str, list[float]] = {"looked_at": [], "alone": []}
    for before, after in itertools.pairwise(rows):
        first, last = (bisect.bisect(windows, row["time"]) for row in (before, after))
        if first == last < len(windows) and "loss" in before and "loss" in after:
            each = (after["time"] - before["time"]) / (after["step"] - before["step"])
            found["alone" if first % 2 else "looked_at"].append(each)
    return found


def ask(client: httpx.Client, name: str, question: Any) -> Any:
    """What an endpoint answers."""
    event = client.post(name, json={"data": [question]}).json()["event_id"]
    return json.loads(client.get(f"{name}/{event}").text.split("data: ")[1])[0]


def _timed(seconds: list[float], client: httpx.Client, name: str, question: Any) -> Any:
    start = time.perf_counter()
    answer = ask(client, name, question)
    seconds.append(time.perf_counter() - start)
    return answer


def main() -> None:
    """Everything in turn, TURNS times; a table, and JSON."""
    found: dict[str, list[Any]] = {"ours": [], "empty": [], "counts": [], "watched": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            app = [sys.executable, "app.py", "--runs-dir", folder, "--port"]
            for _ in range(STARTS):
                found["ours"].append(first_page(app))
                found["empty"].append(first_page([sys.executable, "-c", EMPTY]))
            found["counts"].append(twenty_counts())
            found["watched"].append(watched(turn))
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
    looked, alone = (
        statistics.median(s for one in found["watched"] for s in one[name]) for name in ("looked_at", "alone")
    )
    print(f"| a training step, looked at, longer than not | {looked / alone - 1:.1%} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

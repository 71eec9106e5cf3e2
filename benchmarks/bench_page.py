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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from app_server import free_port, serve
from open_page import OpenPage

from benchmarks.bench_default import cpu_name
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.counts import count_parameters
from peft_core.runs import ENDED, KILLED, Run

TURNS, STARTS = 3, 2  # turns of all measurements, and starts of both apps in each
EMPTY = """
import sys
import gradio as gr
with gr.Blocks() as demo:
    gr.Markdown("Empty")
demo.launch(server_port=int(sys.argv[1]))
"""
SETTINGS = {"max_train_samples": 8000, "max_eval_samples": 100}
POLL_SECONDS, CLICK_SECONDS = 1.0, 3.0  # between polls of an open page, and between clicks
WINDOW = 6.0  # seconds with an open page, and then seconds without one
REPEATS = 40  # of each request whose processor time is measured
POLL, STATUS, COUNT = "poll", "/status", "/count"


def first_page(command: list[str]) -> float:
    """Return the seconds from the start of a process to its first page."""
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
        raise RuntimeError("the app ended before it served a page")
    finally:
        process.terminate()
        process.wait(timeout=30)


def twenty_counts() -> float:
    """Return the seconds of twenty different parameter counts, after a first one."""
    count_parameters(TrainConfig())
    start = time.perf_counter()
    for r in range(1, 21):
        count_parameters(TrainConfig(r=r))
    return time.perf_counter() - start


def polled_training(seed: int) -> dict[str, Any]:
    """Return response times beside a training, and the seconds of its steps with and without an open page.

    Both are measured in one run, in alternating windows, because two runs differ by more. A browser would
    take the processor itself, so its requests are sent without one.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        call(client, COUNT, {"r": 4})  # the worker is warm, as after a minute of use
        run = Run(server.runs_dir / call(client, "/train", {**SETTINGS, "seed": seed})["run_id"])
        page = OpenPage(client, run.run_id)
        response_seconds: dict[str, list[float]] = {POLL: [], STATUS: [], COUNT: []}
        windows: list[float] = []  # ends of the windows, with and without a page in turn
        while run.state().stage != "training":
            time.sleep(0.1)
        while run.state().status not in ENDED:
            use_page(page, response_seconds, time.time() + WINDOW)
            windows.append(time.time())
            time.sleep(WINDOW)
            windows.append(time.time())
        return {"response_seconds": response_seconds, **step_seconds(run.metrics(), windows)}


def processor_times() -> dict[str, float]:
    """Return the milliseconds of a core that each request takes the app and its worker.

    Nothing trains meanwhile. Unlike the slowdown of a training, this does not depend on what else the machine
    does.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        run = runs.create(server.runs_dir, TrainConfig())
        run.update(status=KILLED)
        page = OpenPage(client, run.run_id)
        page.poll()
        ranks = itertools.count(4)
        requests: dict[str, Callable[[], Any]] = {
            POLL: page.poll,
            STATUS: lambda: call(client, STATUS, run.run_id),
            COUNT: lambda: call(client, COUNT, {"r": next(ranks)}, page.session),
        }
        milliseconds = {}
        for name, request in requests.items():
            request()  # the worker is warm
            before = _processor_seconds(server.process.pid)
            for _ in range(REPEATS):
                request()
            milliseconds[name] = 1000 * (_processor_seconds(server.process.pid) - before) / REPEATS
        return milliseconds


def _processor_seconds(pid: int) -> float:
    app = psutil.Process(pid)
    times = [process.cpu_times() for process in (app, *app.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def use_page(page: OpenPage, response_seconds: dict[str, list[float]], end: float) -> None:
    """Poll until `end`; at intervals change a setting and call the API, as a user of the page does."""
    clicked = 0.0
    while time.time() < end:
        _timed(response_seconds[POLL], page.poll)
        if time.time() - clicked > CLICK_SECONDS:
            clicked = time.time()
            settings = {"r": 5 + len(response_seconds[COUNT])}
            _timed(response_seconds[COUNT], call, page.client, COUNT, settings, page.session)
            _timed(response_seconds[STATUS], call, page.client, STATUS, page.run_id)
        time.sleep(POLL_SECONDS)


def step_seconds(rows: list[dict[str, Any]], windows: list[float]) -> dict[str, list[float]]:
    """Return the seconds per step between logged losses, in windows with a page and without one.

    Stretches in which the curve was measured, or that lie in two windows, are left out.
    """
    seconds: dict[str, list[float]] = {"with_page": [], "without_page": []}
    for before, after in itertools.pairwise(rows):
        first, last = (bisect.bisect(windows, row["time"]) for row in (before, after))
        if first == last < len(windows) and "loss" in before and "loss" in after:
            per_step = (after["time"] - before["time"]) / (after["step"] - before["step"])
            seconds["without_page" if first % 2 else "with_page"].append(per_step)
    return seconds


def call(client: httpx.Client, name: str, argument: Any, session: str | None = None) -> Any:
    """Return what an endpoint answers; a call without a session starts one of its own."""
    path = f"/gradio_api/call{name}"
    event = client.post(path, json={"data": [argument], "session_hash": session}).json()
    response = client.get(f"{path}/{event['event_id']}").text
    return json.loads(response.split("data: ")[-1])[0]  # after heartbeats


def _timed(seconds: list[float], request: Callable[..., Any], *arguments: Any) -> None:
    start = time.perf_counter()
    request(*arguments)
    seconds.append(time.perf_counter() - start)


def main() -> None:
    """Measure everything TURNS times in turn; print a table, and JSON."""
    results: dict[str, list[Any]] = {
        name: [] for name in ("ours", "empty", "counts", "trainings", "processor")
    }
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            app = [sys.executable, "app.py", "--runs-dir", folder, "--port"]
            for _ in range(STARTS):
                results["ours"].append(first_page(app))
                results["empty"].append(first_page([sys.executable, "-c", EMPTY]))
            results["counts"].append(twenty_counts())
            results["trainings"].append(polled_training(turn))
            results["processor"].append(processor_times())
    print_table(results)
    print(json.dumps(results))


def print_table(results: dict[str, list[Any]]) -> None:
    """Print medians over the turns, and 95th percentiles of the response times, in Markdown."""
    print(f"{os.cpu_count()} cores, {cpu_name()}\n")
    print("| | measured |")
    print("|---|---|")
    ours, empty = (statistics.median(results[name]) for name in ("ours", "empty"))
    print(f"| first page, against an empty Gradio app | {ours:.1f} s / {empty:.1f} s = {ours / empty:.2f} |")
    print(f"| 20 parameter counts, warm | {statistics.median(results['counts']):.2f} s |")
    trainings = results["trainings"]
    for name in trainings[0]["response_seconds"]:
        seconds = sorted(each for training in trainings for each in training["response_seconds"][name])
        percentile = seconds[int(0.95 * (len(seconds) - 1))]
        print(f"| {name} while a run trains, p95 of {len(seconds)} | {1000 * percentile:.0f} ms |")
    for name in results["processor"][0]:
        milliseconds = statistics.median(turn[name] for turn in results["processor"])
        print(f"| {name}, processor time of the app and its worker | {milliseconds:.0f} ms |")
    with_page, without_page = (
        statistics.median(seconds for training in trainings for seconds in training[name])
        for name in ("with_page", "without_page")
    )
    print(f"| a training step with an open page, longer than without | {with_page / without_page - 1:.1%} |")


if __name__ == "__main__":
    main()

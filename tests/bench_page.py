"""Measures the page: how soon it starts, and how it answers while a run trains: `make bench-page`."""

import bisect
import itertools
import json
import os
import secrets
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
from bench_default import cpu_name

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.counts import count_parameters
from peft_core.runs import ENDED, KILLED, Run

TURNS, STARTS = 3, 2  # turns of everything, and starts of both apps in each
EMPTY = """
import sys
import gradio as gr
with gr.Blocks() as demo:
    gr.Markdown("Empty")
demo.launch(server_port=int(sys.argv[1]))
"""
SETTINGS = {"max_train_samples": 8000, "max_eval_samples": 100}
TICK, CLICK = 1.0, 3.0  # seconds from one look of an open page to the next, and from one click to the next
WINDOW = 6.0  # seconds in which it looks, and then does not
ASKED = 40  # times each question is asked for the processor time that it takes


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

    Both in one run, for two runs differ by more. A browser would itself take the processor, so its questions
    are asked without one.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        ask(client, "/count", {"r": 4})  # the worker is warm, as after a minute of use
        run = Run(server.runs_dir / ask(client, "/train", {**SETTINGS, "seed": seed})["run_id"])
        page = OpenPage(client, run.run_id)
        asked: dict[str, list[float]] = {"a page's look": [], "/status": [], "/count": []}
        windows: list[float] = []  # the ends of those in which it is looked at, and not, in turn
        while run.state().stage != "training":
            time.sleep(0.1)
        while run.state().status not in ENDED:
            look(page, asked, time.time() + WINDOW)
            windows.append(time.time())
            time.sleep(WINDOW)
            windows.append(time.time())
        return {"asked": asked, **step_seconds(run.metrics(), windows)}


def processor_times() -> dict[str, float]:
    """Milliseconds of a core that each question takes the app and its worker, while nothing trains; unlike
    what a training loses, the same in a restless hour."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        run = runs.create(server.runs_dir, TrainConfig())
        run.update(status=KILLED)
        page = OpenPage(client, run.run_id)
        page.look()
        ranks = itertools.count(4)
        questions: dict[str, Callable[[], Any]] = {
            "a page's look": page.look,
            "/status": lambda: ask(client, "/status", run.run_id),
            "/count": lambda: ask(client, "/count", {"r": next(ranks)}, page.session),
        }
        found = {}
        for name, question in questions.items():
            question()  # the worker is warm
            before = _processor_seconds(server.process.pid)
            for _ in range(ASKED):
                question()
            found[name] = 1000 * (_processor_seconds(server.process.pid) - before) / ASKED
        return found


def _processor_seconds(pid: int) -> float:
    app = psutil.Process(pid)
    times = [one.cpu_times() for one in (app, *app.children(recursive=True))]
    return sum(one.user + one.system for one in times)


class OpenPage:
    """What the page asks of the app in a browser that shows one run."""

    def __init__(self, client: httpx.Client, run_id: str) -> None:
        self.client, self.run_id, self.session = client, run_id, secrets.token_hex(6)
        events = client.get("/config").json()["dependencies"]
        self.tick = next(one for one in events if _starts(one, "tick"))
        self.show = next(one for one in events if one["targets"] == [[self.tick["inputs"][1], "change"]])
        picker = self.tick["inputs"][:1]
        self.event(next(one for one in events if one["outputs"][:1] == picker and _starts(one, "load")), [])
        self.seen = ""

    def look(self) -> bool:
        """As every second: and if something else than its progress has changed, which it answers, all that
        shows the run."""
        question = self._asked(self.tick, [self.run_id, self.seen, None])
        answer = self.client.post("/gradio_api/run/predict", json=question)
        seen = answer.raise_for_status().json()["data"][0]
        changed = isinstance(seen, str) and seen != self.seen  # else an update that skips it
        if changed:
            self.seen = seen
            self.event(self.show, [self.run_id])
        return changed

    def event(self, event: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        """What an event of the page answers."""
        self.client.post("/gradio_api/queue/join", json=self._asked(event, data))
        with self.client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as lines:
            for line in lines.iter_lines():
                told = json.loads(line[5:] or "{}") if line.startswith("data:") else {}
                if told.get("msg") == "process_completed":
                    if not told["success"]:
                        raise RuntimeError(told["output"]["error"])
                    return told["output"]
        raise RuntimeError("the app ended its answer before it was whole")

    def _asked(self, event: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        target = event["targets"][0][0]
        return {"fn_index": event["id"], "trigger_id": target, "data": data, "session_hash": self.session}


def _starts(event: dict[str, Any], trigger: str) -> bool:
    return any(found == trigger for _, found in event["targets"])


def look(page: OpenPage, asked: dict[str, list[float]], end: float) -> None:
    """An open page until then, with somebody who changes a setting now and then, and who asks the API."""
    clicked = 0.0
    while time.time() < end:
        _timed(asked["a page's look"], page.look)
        if time.time() - clicked > CLICK:
            clicked = time.time()
            _timed(asked["/count"], ask, page.client, "/count", {"r": 5 + len(asked["/count"])}, page.session)
            _timed(asked["/status"], ask, page.client, "/status", page.run_id)
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


def ask(client: httpx.Client, name: str, question: Any, session: str | None = None) -> Any:
    """What an endpoint answers; each call without one begins a session of its own."""
    place = f"/gradio_api/call{name}"
    asked = client.post(place, json={"data": [question], "session_hash": session}).json()
    answer = client.get(f"{place}/{asked['event_id']}").text
    return json.loads(answer.split("data: ")[-1])[0]  # after heartbeats


def _timed(seconds: list[float], question: Callable[..., Any], *given: Any) -> None:
    start = time.perf_counter()
    question(*given)
    seconds.append(time.perf_counter() - start)


def main() -> None:
    """Everything in turn, TURNS times; a table, and JSON."""
    found: dict[str, list[Any]] = {"ours": [], "empty": [], "counts": [], "watched": [], "processor": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            app = [sys.executable, "app.py", "--runs-dir", folder, "--port"]
            for _ in range(STARTS):
                found["ours"].append(first_page(app))
                found["empty"].append(first_page([sys.executable, "-c", EMPTY]))
            found["counts"].append(twenty_counts())
            found["watched"].append(watched(turn))
            found["processor"].append(processor_times())
    print(f"{os.cpu_count()} cores, {cpu_name()}\n")
    print("| | measured |")
    print("|---|---|")
    ours, empty = (statistics.median(found[name]) for name in ("ours", "empty"))
    print(f"| first page, against an empty Gradio app | {ours:.1f} s / {empty:.1f} s = {ours / empty:.2f} |")
    print(f"| 20 parameter counts, warm | {statistics.median(found['counts']):.2f} s |")
    for name in found["watched"][0]["asked"]:
        seconds = sorted(s for one in found["watched"] for s in one["asked"][name])
        late = seconds[int(0.95 * (len(seconds) - 1))]
        print(f"| {name} while a run trains, p95 of {len(seconds)} | {1000 * late:.0f} ms |")
    for name in found["processor"][0]:
        milliseconds = statistics.median(one[name] for one in found["processor"])
        print(f"| {name}, processor time of the app and its worker | {milliseconds:.0f} ms |")
    looked, alone = (
        statistics.median(s for one in found["watched"] for s in one[name]) for name in ("looked_at", "alone")
    )
    print(f"| a training step, looked at, longer than not | {looked / alone - 1:.1%} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

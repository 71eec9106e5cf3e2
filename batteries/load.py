"""Many open pages of a public demo beside a training: click latency, and slowdown of the training.

Each visitor's page keeps its stream open and polls the selected run as often as the page of a public demo.
About every ten seconds the visitor clicks: a function of the page or an endpoint runs through the queue.
Meanwhile default runs train one after another, and one visitor watches them. The same training runs alone
before, between and after.

All visitors run in one low-priority process, forked from this one. They share the cores with the app, so
their processor time is reported too.
"""

import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from app_server import Server, serve

from batteries.children import Report, fork_child, outcome
from batteries.demo_client import DemoClient, PageFunctions, Reply
from batteries.result import BatteryResult
from peft_core.access.visitors import sha256_of
from peft_core.runs import ENDED, FINISHED, Run
from peft_core.runs.ownership import Ownership, write_ownership
from peft_core.ui.train import IDLE_POLL_SECONDS, POLL_SECONDS

NAME = "open pages of a public demo beside a training"
PASSES_WHEN = "95 % of clicks under 2 s, training at most 5 % slower, all refusals say why"
MINUTES = 10.0
VISITORS = 100
MOST_SECONDS = 2.0  # for 95 % of the clicks
MOST_SLOWDOWN = 0.05
LEAST_SERVED = 0.95  # of the clicks
PHASES = 2  # of load, with trainings alone before, between and after
ALONE = 2  # trainings before, between and after each
PAUSE = 10.0  # seconds between clicks on average
_NICE = 10
_LONGEST_TRAINING = 900.0  # seconds
_TEXT = "A film that is neither as bad as they say nor as good as it could be."
_MEASURES = "measures"


@dataclass
class Measures:
    """Measurements, in seconds; clicks by kind, `cpu` in cores for each phase."""

    clicks: dict[str, list[float]] = field(default_factory=dict)
    polls: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)  # number by message
    cpu: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def note(self, kind: str, reply: Reply, seconds: float) -> None:
        """Record the end of a click or a poll."""
        if reply.is_served:
            (self.polls if kind == "poll" else self.clicks.setdefault(kind, [])).append(seconds)
        elif reply.is_busy and reply.answer.error_detail().endswith("."):
            sentence = f"{kind}: {reply.text}"
            self.refused[sentence] = self.refused.get(sentence, 0) + 1
        else:
            self.problems.append(f"{kind} was answered {reply.text or 'nothing'}")

    def seconds_of_clicks(self) -> list[float]:
        """Return the sorted seconds of all clicks, without the panel, which refreshes by itself."""
        return sorted(seconds for kind, times in self.clicks.items() if kind != "panel" for seconds in times)


@dataclass(frozen=True)
class Plan:
    """Number of visitors, minutes of load, and trainings alone before, between and after."""

    minutes: float
    visitors: int
    alone: int
    seed: int


def run(
    minutes: float = MINUTES,
    seed: int = 0,
    *,
    visitors: int = VISITORS,
    alone: int = ALONE,
    most_seconds: float = MOST_SECONDS,
    finished: Run | None = None,
    broken: str = "",
) -> BatteryResult:
    """Put the app under load for so many minutes.

    Args:
        minutes: of load, without the trainings alone.
        seed: of the clicks.
        visitors: open pages.
        alone: trainings alone before, between and after; with 0 the slowdown is not checked.
        most_seconds: that 95 % of the clicks may take.
        finished: the run that each visitor gets a copy of; by default a default run is trained first.
        broken: Python that breaks the app under test.
    """
    start, plan = time.monotonic(), Plan(minutes, visitors, alone, seed)
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        runs_dir = Path(name) / "runs"
        runs_dir.mkdir()
        with serve(runs_dir, "--public", "--proxies", "1", patch=broken) as server:

            def visit(report: Report) -> None:
                os.nice(_NICE)
                measures = asyncio.run(Crowd(server, plan, finished).measure())
                report(_MEASURES, json.dumps(asdict(measures)))

            child = fork_child(visit)
            child.finish(60 * minutes + _LONGEST_TRAINING * (3 + alone * (PHASES + 1)))
    text = child.first(_MEASURES)
    measures = Measures(**json.loads(text)) if text else Measures(problems=[outcome(child)])
    return BatteryResult(
        NAME,
        len(measures.seconds_of_clicks()) + len(measures.polls),
        tuple(problems_of(measures, most_seconds)),
        tuple(sorted(_outcomes(measures).items())),
        PASSES_WHEN,
        time.monotonic() - start,
    )


class Crowd:
    """All visitors of the app, in one process."""

    def __init__(self, server: Server, plan: Plan, finished: Run | None) -> None:
        self.server, self.plan, self.finished = server, plan, finished
        self.random = random.Random(plan.seed)
        with urllib.request.urlopen(f"{server.url}/config", timeout=60) as answer:
            self.page = PageFunctions(json.load(answer))
        self.measures, self.load_over = Measures(), asyncio.Event()
        self.trainer = PageVisitor(self, 0)

    async def measure(self) -> Measures:
        """Train alone and under load in turn; return the measurements."""
        await self._warm()
        if self.finished is None:
            self.finished = await self._train()
        visitors = [self.trainer, *self._arrivals()]
        await self._train_alone()
        phases = PHASES if self.plan.alone else 1
        for _ in range(phases):
            await self._load(visitors, 60 * self.plan.minutes / phases)
            await self._train_alone()
        for visitor in visitors:
            visitor.client.close()
        return self.measures

    async def wait(self, seconds: float) -> None:
        """Sleep, at most until the load is over."""
        try:
            async with asyncio.timeout(seconds):
                await self.load_over.wait()
        except TimeoutError:
            pass

    async def _warm(self) -> None:
        """Wait until the workers have imported their modules."""
        for kind in ("count", "inspect"):
            await self.trainer.clicks()[kind]()

    def _arrivals(self) -> "list[PageVisitor]":
        """Create the visitors, each with a finished run."""
        visitors = [PageVisitor(self, number) for number in range(1, self.plan.visitors)]
        for visitor in visitors:
            folder = self.server.runs_dir / f"run-of-{visitor.number}"
            shutil.copytree(self.finished.folder, folder)
            write_ownership(folder, Ownership(owner=sha256_of(visitor.client.token)))
            visitor.run_id = folder.name
        return visitors

    async def _train_alone(self) -> None:
        for _ in range(self.plan.alone):
            await self._note_training(self.measures.alone)

    async def _load(self, visitors: "Sequence[PageVisitor]", seconds: float) -> None:
        """Keep pages open for so long and until the last training has ended; record the trainings."""
        self.load_over.clear()
        processes = {"the app": psutil.Process(self.server.process.pid), "the visitors": psutil.Process()}
        before, start = {name: _cpu(process) for name, process in processes.items()}, time.monotonic()
        pages = [asyncio.create_task(visitor.stay()) for visitor in visitors]
        end = asyncio.create_task(asyncio.sleep(seconds))
        if self.plan.alone:
            while not end.done():
                await self._note_training(self.measures.loaded)
        else:
            await self._train_until(end)
        elapsed = time.monotonic() - start
        for name, process in processes.items():
            core_shares = [*self.measures.cpu.get(name, []), (_cpu(process) - before[name]) / elapsed]
            self.measures.cpu[name] = core_shares
        self.load_over.set()
        await asyncio.gather(*pages)

    async def _train_until(self, end: asyncio.Task) -> None:
        """Train until then and stop the run, whose process would outlive the app."""
        run_id = await self._start_training()
        await end
        await self.trainer.client.call("stop", run_id)
        await self._wait_for(run_id)

    async def _note_training(self, seconds: list[float]) -> None:
        run = await self._train()
        state = run.state()
        if state.status == FINISHED:
            seconds.append(state.train_seconds or 0.0)
        else:
            self.measures.problems.append(f"a training ended {state.status}: {state.error}")

    async def _train(self) -> Run:
        """Train the default run and return it."""
        return await self._wait_for(await self._start_training())

    async def _start_training(self) -> str:
        """Press Train and return the id of the new run. Raises RuntimeError if none was started."""
        train = self.page.on_element("click", "train")
        reply = await self.trainer.client.press(train, train.arguments({}))
        picked = reply.data[0] if reply.data else None
        if not isinstance(picked, dict) or not picked.get("value"):
            raise RuntimeError(f"no training was started: {reply.data or reply.text}")
        self.trainer.run_id = picked["value"]
        return self.trainer.run_id

    async def _wait_for(self, run_id: str) -> Run:
        run, end = Run(self.server.runs_dir / run_id), time.monotonic() + _LONGEST_TRAINING
        while run.state().status not in ENDED and time.monotonic() < end:
            await asyncio.sleep(0.2)
        return run


class PageVisitor:
    """One open page and its visitor."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd, self.number, self.random = crowd, number, random.Random(crowd.random.getrandbits(64))
        token, session = f"{self.random.getrandbits(256):064x}", f"{self.random.getrandbits(80):020x}"
        address = f"10.1.{number >> 8}.{number & 255}"
        self.client = DemoClient(int(crowd.server.url.rpartition(":")[2]), token, address, session)
        self.run_id = ""
        self._last_version = ""  # run version of the last poll
        poll_function = crowd.page.triggered_by("tick")
        self._poll_function, self._panel_function = (
            poll_function,
            crowd.page.triggered_by("change", poll_function.input_ids[1]),
        )

    def clicks(self) -> dict[str, Callable[[], Awaitable[Reply]]]:
        """Return the possible clicks: edit a setting, open the data card, try the model, list runs."""
        page, press = self.crowd.page, self.client.press
        count, inspect = page.on_element("change", "r"), page.updating("data-facts")
        classify, status, runs = (
            page.on_element("click", "classify"),
            page.endpoint("status"),
            page.endpoint("runs"),
        )
        picked = {"runs": self.run_id, "text": _TEXT}
        return {
            "count": lambda: press(count, count.arguments({"r": self.random.randint(1, 64)})),
            "inspect": lambda: press(inspect, inspect.opened({})),
            "predict": lambda: press(classify, classify.arguments(picked)),
            "status": lambda: press(status, [self.run_id]),
            "list": lambda: press(runs, []),
        }

    async def stay(self) -> None:
        """Keep the page open until the load is over."""
        await self.crowd.wait(self.random.uniform(0, IDLE_POLL_SECONDS))
        async with self.client.heartbeat():
            await asyncio.gather(self._poll(), self._click())

    async def _poll(self) -> None:
        """Poll at each tick; a tick during a poll is dropped, as on the page."""
        due, pause = time.monotonic(), POLL_SECONDS if self is self.crowd.trainer else IDLE_POLL_SECONDS
        while not self.crowd.load_over.is_set():
            reply = await self._measure(
                "poll", lambda: self.client.run(self._poll_function, self._poll_arguments())
            )
            if reply.is_served and isinstance(reply.data[0], str) and reply.data[0] != self._last_version:
                self._last_version = reply.data[0]
                await self._measure(
                    "panel", lambda: self.client.press(self._panel_function, [self.run_id or None])
                )
            due += pause * max(1, -int(-(time.monotonic() - due) // pause))
            await self.crowd.wait(max(0.0, due - time.monotonic()))

    def _poll_arguments(self) -> list[Any]:
        return [self.run_id or None, self._last_version, None]

    async def _click(self) -> None:
        await self.crowd.wait(self.random.uniform(0, PAUSE))
        while not self.crowd.load_over.is_set():
            kinds = list(self.clicks())
            if self is self.crowd.trainer:  # its run has no adapter yet
                kinds = ["count", "inspect", "list"]
            kind = self.random.choice(kinds)
            await self._measure(kind, self.clicks()[kind])
            await self.crowd.wait(self.random.uniform(0.5, 1.5) * PAUSE)

    async def _measure(self, kind: str, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        start = time.monotonic()
        reply = await ask()
        self.crowd.measures.note(kind, reply, time.monotonic() - start)
        return reply


def problems_of(measures: Measures, most_seconds: float) -> list[str]:
    """Return the measurements that exceed their limits."""
    problems, clicks = list(dict.fromkeys(measures.problems)), measures.seconds_of_clicks()
    refused = sum(measures.refused.values())
    if len(clicks) < LEAST_SERVED * (len(clicks) + refused) or not clicks:
        problems.append(f"{len(clicks):,} clicks were served, {refused:,} requests refused")
    if percentile(clicks, 95) > most_seconds:
        problems.append(f"95 % of the clicks took up to {percentile(clicks, 95):.2f} s")
    slowdown = _slowdown(measures)
    if slowdown is not None and slowdown > MOST_SLOWDOWN:
        problems.append(f"trainings took {slowdown:.1%} longer than alone")
    if measures.alone and not measures.loaded:
        problems.append("no training ended under load")
    return problems


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent do not exceed; 0 if there are none."""
    return ascending[max(0, -int(-len(ascending) * percent // 100) - 1)] if ascending else 0.0


def _slowdown(measures: Measures) -> float | None:
    if not measures.alone or not measures.loaded:
        return None
    return statistics.median(measures.loaded) / statistics.median(measures.alone) - 1


def _outcomes(measures: Measures) -> dict[str, int]:
    outcomes = {f"clicks, {kind}": len(times) for kind, times in measures.clicks.items()}
    for kind, times in {"a click": measures.seconds_of_clicks(), "a look": sorted(measures.polls)}.items():
        outcomes |= {f"ms of {kind}, {at} %": round(1000 * percentile(times, at)) for at in (50, 95, 100)}
    for kind, times in measures.clicks.items():
        outcomes[f"ms of {kind}, 95 %"] = round(1000 * percentile(sorted(times), 95))
    for kind, times in {"alone": measures.alone, "under load": measures.loaded}.items():
        outcomes[f"trainings {kind}"] = len(times)
        if times:
            outcomes[f"ms of a training {kind}"] = round(1000 * statistics.median(times))
    slowdown = _slowdown(measures)
    if slowdown is not None:
        outcomes["permille that trainings took longer"] = round(1000 * slowdown)
    cpu = {
        f"percent of a core, {name}": round(100 * statistics.mean(core_shares))
        for name, core_shares in measures.cpu.items()
    }
    return outcomes | cpu | {"looks": len(measures.polls), "refused": sum(measures.refused.values())}


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system

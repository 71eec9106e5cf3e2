"""Hostile files of a visitor of a public app, while another visitor clicks once a second.

Each file is uploaded and inspected as the page does it, and taken by the Inference tab as well; some of those
that can be read are trained on and predicted. Nothing may crash, every file is read or answered by one
sentence within its deadlines, the app and its workers keep to their memory, and no click waits.
"""

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from app_server import Server, serve

from batteries.bomb_archives import ARCHIVES, Made
from batteries.bomb_tables import PARQUET, WORKBOOKS
from batteries.bomb_texts import CELLS, CSV, EXPORTS, JSON, PATTERNS
from batteries.bomb_visitors import SMALL_RUN, Clicks, Memory, Refused, Visitor, words_of
from batteries.result import BatteryResult
from peft_core.access.visitors import sha256_of
from peft_core.runs import Run
from peft_core.runs.ownership import Ownership, write_ownership
from peft_core.service.limits import Limits

NAME = "hostile files of one visitor, clicks of another"
PASSES_WHEN = "0 crashes; all read or refused in time; app and workers below {:.0f} GB; clicks below {:g} s"
FILES = 200
LONGEST_CLICK = 2.0  # seconds
MOST_MEMORY = 6e9  # bytes: 1 of the app, 1.5 of the worker of clicks, 2.8 of the one that reads, 0.7 of jobs
READING_SECONDS, TRAINING_SECONDS = Limits().reading_seconds, 120.0
TRAINED_ONE_IN, PREDICTED_ONE_IN = 4, 4  # of the files that can be read
_STARTS = 60.0  # seconds that a worker may take to start again after it was killed
FAMILIES = {
    "csv": CSV,
    "archive": ARCHIVES,
    "parquet": PARQUET,
    "json": JSON,
    "workbook": WORKBOOKS,
    "pattern": PATTERNS,
    "cell": CELLS,
    "export": EXPORTS,
}
_ENDS = {
    "took over": "killed at the deadline",
    "of memory, the most that this": "beyond the memory",
    "worker process died": "its worker died",
}
_DEADLINE = """
from peft_core.service.limits import Limits
names, values = list(Limits.__dataclass_fields__), list(Limits.__init__.__defaults__)
values[names.index("reading_seconds")] = {seconds}
Limits.__init__.__defaults__ = tuple(values)
"""


@dataclass(frozen=True)
class Bomb:
    """A hostile file; its number is the same for the same seed."""

    number: int
    family: str
    make: Callable[[random.Random], Made]
    seed: int

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{self.family} {self.number}, {self.make.__name__.replace('_', ' ')}"

    def build(self) -> Made:
        """Its name and its bytes."""
        return self.make(random.Random(f"{self.seed}/{self.number}"))


@dataclass
class Attack:
    """What the first visitor does with each file, and how it was answered."""

    visitor: Visitor
    run_id: str  # of a finished run of the visitor's
    seconds: float  # the deadline of a task that reads files
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    readable: int = 0

    def throw(self, bomb: Bomb) -> None:
        """Upload, inspect, and use one file."""
        try:
            file = self.visitor.upload(*bomb.build())
        except Refused as refusal:
            self._note(bomb, "upload", str(refusal), 0.0)
            return
        ids = self.visitor.ids
        take = self.visitor.handler(ids["upload"], answers=ids["data-facts"])
        answers = self._time(bomb, "upload", take, [[file], "lora", ["query", "value"]], tasks=2)
        self._look(bomb, file)
        name = answers.get(ids["dataset_name"])
        name = name.get("value") if isinstance(name, dict) else name
        if not isinstance(name, str) or not name.startswith("upload:"):
            return
        self.readable += 1
        self._inspect(bomb, name)
        if self.readable % TRAINED_ONE_IN == 1:
            self._train(bomb, name)

    def _time(
        self, bomb: Bomb, what: str, handler: dict, values: list, *, tasks: int, seconds: float | None = None
    ) -> dict:
        """The answer of a handler that has the file read so many times; noted with its sentence."""
        start = time.monotonic()
        try:
            answers = self.visitor.event(handler, values)
        except Refused as refusal:
            self._note(bomb, what, str(refusal), time.monotonic() - start)
            return {}
        elapsed, most = time.monotonic() - start, tasks * ((seconds or self.seconds) + _STARTS)
        if elapsed > most:
            self.failures.append(f"{bomb.title}: {what} took {elapsed:.0f} s, over {most:.0f}")
        places = [self.visitor.ids["data-facts"], self.visitor.ids["file-shown"]]
        self._count(bomb, what, next((words_of(answers[p]) for p in places if p in answers), ""))
        return answers

    def _inspect(self, bomb: Bomb, name: str) -> None:
        """As the card does whenever a setting changes."""
        ids = self.visitor.ids
        show = self.visitor.handler(ids["dataset_name"], answers=ids["data-preview"])
        self._time(bomb, "inspect", show, self.visitor.values_for(show, name), tasks=1)

    def _look(self, bomb: Bomb, file: dict) -> None:
        """Take the file in the Inference tab, and now and then predict it."""
        ids = self.visitor.ids
        look = self.visitor.handler(ids["file"], ids["runs"], answers=ids["file-text"])
        answers = self._time(bomb, "look", look, [file, self.run_id], tasks=1)
        text = answers.get(ids["file-text"])
        column = text.get("value") if isinstance(text, dict) else None
        if bomb.number % PREDICTED_ONE_IN:
            return
        predict = self.visitor.handler(ids["file"], ids["runs"], ids["file-model"], answers=ids["file-shown"])
        values = [file, self.run_id, "adapter", False, "", None, column, None, None]
        self._time(bomb, "predict", predict, values, tasks=1, seconds=Limits().job_seconds)

    def _train(self, bomb: Bomb, name: str) -> None:
        start = time.monotonic()
        try:
            run_id = self.visitor.train({**SMALL_RUN, "dataset_name": name}, TRAINING_SECONDS)
            self.outcomes[f"trained: {self.visitor.ask('status', run_id)['status'].lower()}"] += 1
        except Refused as refusal:
            self._note(bomb, "train", str(refusal), time.monotonic() - start)

    def _note(self, bomb: Bomb, what: str, sentence: str, seconds: float) -> None:
        """An error: a failure if it is not one sentence that says what is wrong."""
        if not sentence.strip() or "\n" in sentence or len(sentence) > 2000:
            self.failures.append(
                f"{bomb.title}: {what} after {seconds:.0f} s, {sentence[:200]!r} is no sentence"
            )
        self._count(bomb, what, sentence)

    def _count(self, bomb: Bomb, what: str, sentence: str) -> None:
        end = next((name for words, name in _ENDS.items() if words in sentence), None)
        if end is not None:
            self.outcomes[f"{end} ({what}): {bomb.title}"] += 1
        self.outcomes[f"{what}: {'ended by a limit' if end else 'answered'}"] += 1


def bombs(count: int, seed: int) -> list[Bomb]:
    """The first files of a seed: each family in turn, and in each its kinds in turn."""
    names = list(FAMILIES)
    made = []
    for number in range(count):
        family = names[number % len(names)]
        kinds: Sequence[Callable[[random.Random], Made]] = FAMILIES[family]
        made.append(Bomb(number, family, kinds[number // len(names) % len(kinds)], seed))
    return made


def run(
    share: float = 1.0,
    seed: int = 0,
    *,
    seconds: float = READING_SECONDS,
    longest_click: float = LONGEST_CLICK,
    finished: Run | None = None,
    broken: str = "",
) -> BatteryResult:
    """Throw `share` of all files at an app.

    Args:
        share: of the files.
        seed: of the files.
        seconds: the deadline of a task that reads files.
        longest_click: seconds that a click may take.
        finished: what each visitor's run is a copy of; by default both visitors train one first.
        broken: Python that breaks the app under test.
    """
    start, thrown = time.monotonic(), bombs(max(1, round(FILES * share)), seed)
    patch = _DEADLINE.format(seconds=seconds) + broken
    with tempfile.TemporaryDirectory(prefix="bombs-") as folder:
        runs_dir = Path(folder) / "runs"
        with serve(runs_dir, "--public", patch=patch) as server:
            bomber, other = Visitor(server.url), Visitor(server.url)
            run_ids = [_run_of(visitor, runs_dir, finished) for visitor in (bomber, other)]
            attack, clicks = Attack(bomber, run_ids[0], seconds), Clicks(other, run_ids[1])
            failures, outcomes = _attack(server, thrown, attack, clicks, longest_click)
            if server.process.poll() is not None:
                failures.append(f"the app ended with {server.process.returncode}")
        log = "".join(path.read_text("utf-8", "replace") for path in Path(folder).glob("app-*.log"))
    failures += [f"a traceback in the log of the app: {error}" for error in _errors_in(log)]
    passes_when = PASSES_WHEN.format(MOST_MEMORY / 1e9, longest_click)
    ends, elapsed = tuple(sorted(outcomes.items())), time.monotonic() - start
    return BatteryResult(NAME, len(thrown), tuple(failures), ends, passes_when, elapsed)


def _run_of(visitor: Visitor, runs_dir: Path, finished: Run | None) -> str:
    """The id of a finished run that a visitor owns."""
    if finished is None:
        return visitor.train(SMALL_RUN, 2 * TRAINING_SECONDS)
    run_id = f"run-{sha256_of(visitor.token)[:8]}"
    shutil.copytree(finished.folder, runs_dir / run_id)
    write_ownership(runs_dir / run_id, Ownership(owner=sha256_of(visitor.token)))
    return run_id


def _attack(
    server: Server, thrown: Sequence[Bomb], attack: Attack, clicks: Clicks, longest_click: float
) -> tuple[list[str], Counter[str]]:
    """Failures and outcomes of all files, and of the clicks and the memory meanwhile."""
    memory = Memory(psutil.Process(server.process.pid))
    attack.visitor.load_runs()
    with memory.going_on(), clicks.going_on():
        for bomb in thrown:
            clicks.during = bomb.title
            try:
                attack.throw(bomb)
            except httpx.HTTPError as error:
                attack.failures.append(f"{bomb.title}: {type(error).__name__}: {error}")
                if server.process.poll() is not None:
                    break
    failures, outcomes = attack.failures + clicks.failures, attack.outcomes
    failures += [
        f"a click ({name}) took {seconds:.1f} s"
        for seconds, name in clicks.seconds
        if seconds > longest_click
    ]
    if memory.together > MOST_MEMORY:
        failures.append(f"the app and its workers took {memory.together / 1e6:,.0f} MB")
    outcomes["clicks"] = len(clicks.seconds)
    outcomes["slowest click, ms"] = round(1000 * max((seconds for seconds, _ in clicks.seconds), default=0))
    outcomes["MB of app and workers"] = round(memory.together / 1e6)
    outcomes["MB of the app alone"] = round(memory.alone / 1e6)
    outcomes["MB of the worker that reads"] = round(memory.files_worker / 1e6)
    return failures, outcomes


def _errors_in(log: str) -> list[str]:
    """What ends each traceback, each once."""
    parts = log.split("Traceback (most recent call last)")[1:]
    ends = (next((line for line in part.splitlines()[1:] if line[:1].strip()), "") for part in parts)
    return list(dict.fromkeys(end[:300] for end in ends))

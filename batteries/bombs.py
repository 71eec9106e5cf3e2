"""Hostile files of a visitor of a public app, while another visitor clicks once a second.

Each file is uploaded and inspected as by the page, and previewed in the Inference tab; some readable files
are trained on and predicted. Nothing may crash, every file is read or refused with one message within its
deadlines, the app and its workers stay below their memory limits, and no click waits.
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

from batteries.bomb_archives import ARCHIVES, NamedFile
from batteries.bomb_tables import PARQUET, WORKBOOKS
from batteries.bomb_texts import CELLS, CSV, EXPORTS, JSON, PATTERNS
from batteries.bomb_visitors import SMALL_RUN, Clicks, Memory, Refused, Visitor, visible_text
from batteries.result import BatteryResult
from peft_core.access.visitors import sha256_of
from peft_core.runs import Run
from peft_core.runs.ownership import Ownership, write_ownership
from peft_core.service.limits import Limits

NAME = "hostile files of one visitor, clicks of another"
PASSES_WHEN = "0 crashes; all read or refused in time; app and workers below {:.0f} GB; clicks below {:g} s"
FILES = 200
LONGEST_CLICK = 2.0  # seconds
MOST_MEMORY = 6e9  # bytes: app 1 GB, worker of clicks 1.5, of files 2.8, of jobs 0.7
READING_SECONDS, TRAINING_SECONDS = Limits().reading_seconds, 120.0
TRAINED_ONE_IN, PREDICTED_ONE_IN = 4, 4  # of the files that can be read
_STARTS = 60.0  # seconds in which a killed worker restarts
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
    "of memory, the limit of this": "beyond the memory",
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
    make: Callable[[random.Random], NamedFile]
    seed: int

    @property
    def title(self) -> str:
        """The family, the number and the kind."""
        return f"{self.family} {self.number}, {self.make.__name__.replace('_', ' ')}"

    def build(self) -> NamedFile:
        """Return the name and the bytes of the file."""
        return self.make(random.Random(f"{self.seed}/{self.number}"))


@dataclass
class Attack:
    """Uses of each file by the first visitor, and their outcomes."""

    visitor: Visitor
    run_id: str  # a finished run of the visitor
    seconds: float  # the deadline of a task that reads files
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    readable: int = 0

    def use_file(self, bomb: Bomb) -> None:
        """Upload, preview, inspect and train one file."""
        try:
            file = self.visitor.upload(*bomb.build())
        except Refused as refusal:
            self._record_error(bomb, "upload", str(refusal), 0.0)
            return
        ids = self.visitor.ids
        upload_handler = self.visitor.handler(ids["upload"], answers=ids["data-facts"])
        answers = self._time(bomb, "upload", upload_handler, [[file], "lora", ["query", "value"]], tasks=2)
        self._preview(bomb, file)
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
        """Run a handler that reads the file in so many tasks; record its message and return its outputs."""
        start = time.monotonic()
        try:
            answers = self.visitor.event(handler, values)
        except Refused as refusal:
            self._record_error(bomb, what, str(refusal), time.monotonic() - start)
            return {}
        elapsed, most = time.monotonic() - start, tasks * ((seconds or self.seconds) + _STARTS)
        if elapsed > most:
            self.failures.append(f"{bomb.title}: {what} took {elapsed:.0f} s, over {most:.0f}")
        places = [self.visitor.ids["data-facts"], self.visitor.ids["file-shown"]]
        self._record_outcome(bomb, what, next((visible_text(answers[p]) for p in places if p in answers), ""))
        return answers

    def _inspect(self, bomb: Bomb, name: str) -> None:
        """Inspect as the data card does after a change of settings."""
        ids = self.visitor.ids
        show = self.visitor.handler(ids["dataset_name"], answers=ids["data-preview"])
        self._time(bomb, "inspect", show, self.visitor.values_for(show, name), tasks=1)

    def _preview(self, bomb: Bomb, file: dict) -> None:
        """Preview the file in the Inference tab; predict it for every n-th file."""
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
            self._record_error(bomb, "train", str(refusal), time.monotonic() - start)

    def _record_error(self, bomb: Bomb, what: str, sentence: str, seconds: float) -> None:
        """Record an error; an empty, long or multi-line message is a failure."""
        if not sentence.strip() or "\n" in sentence or len(sentence) > 2000:
            self.failures.append(
                f"{bomb.title}: {what} after {seconds:.0f} s, {sentence[:200]!r} is no sentence"
            )
        self._record_outcome(bomb, what, sentence)

    def _record_outcome(self, bomb: Bomb, what: str, sentence: str) -> None:
        end = next((name for words, name in _ENDS.items() if words in sentence), None)
        if end is not None:
            self.outcomes[f"{end} ({what}): {bomb.title}"] += 1
        self.outcomes[f"{what}: {'ended by a limit' if end else 'answered'}"] += 1


def bombs(count: int, seed: int) -> list[Bomb]:
    """Return the first files of a seed: each family in turn, and the kinds of each in turn."""
    names = list(FAMILIES)
    files = []
    for number in range(count):
        family = names[number % len(names)]
        kinds: Sequence[Callable[[random.Random], NamedFile]] = FAMILIES[family]
        files.append(Bomb(number, family, kinds[number // len(names) % len(kinds)], seed))
    return files


def run(
    share: float = 1.0,
    seed: int = 0,
    *,
    seconds: float = READING_SECONDS,
    longest_click: float = LONGEST_CLICK,
    finished: Run | None = None,
    broken: str = "",
) -> BatteryResult:
    """Send `share` of all files to an app.

    Args:
        share: of the files.
        seed: of the files.
        seconds: the deadline of a task that reads files.
        longest_click: seconds that a click may take.
        finished: the run that each visitor gets a copy of; by default both train one first.
        broken: Python that breaks the app under test.
    """
    start, hostile_files = time.monotonic(), bombs(max(1, round(FILES * share)), seed)
    patch = _DEADLINE.format(seconds=seconds) + broken
    with tempfile.TemporaryDirectory(prefix="bombs-") as folder:
        runs_dir = Path(folder) / "runs"
        with serve(runs_dir, "--public", patch=patch) as server:
            bomber, other = Visitor(server.url), Visitor(server.url)
            run_ids = [_run_of(visitor, runs_dir, finished) for visitor in (bomber, other)]
            attack, clicks = Attack(bomber, run_ids[0], seconds), Clicks(other, run_ids[1])
            failures, outcomes = _attack(server, hostile_files, attack, clicks, longest_click)
            if server.process.poll() is not None:
                failures.append(f"the app ended with {server.process.returncode}")
        log = "".join(path.read_text("utf-8", "replace") for path in Path(folder).glob("app-*.log"))
    failures += [f"a traceback in the log of the app: {error}" for error in _errors_in(log)]
    passes_when = PASSES_WHEN.format(MOST_MEMORY / 1e9, longest_click)
    ends, elapsed = tuple(sorted(outcomes.items())), time.monotonic() - start
    return BatteryResult(NAME, len(hostile_files), tuple(failures), ends, passes_when, elapsed)


def _run_of(visitor: Visitor, runs_dir: Path, finished: Run | None) -> str:
    """Return the id of a finished run that the visitor owns."""
    if finished is None:
        return visitor.train(SMALL_RUN, 2 * TRAINING_SECONDS)
    run_id = f"run-{sha256_of(visitor.token)[:8]}"
    shutil.copytree(finished.folder, runs_dir / run_id)
    write_ownership(runs_dir / run_id, Ownership(owner=sha256_of(visitor.token)))
    return run_id


def _attack(
    server: Server, hostile_files: Sequence[Bomb], attack: Attack, clicks: Clicks, longest_click: float
) -> tuple[list[str], Counter[str]]:
    """Use all files; return failures and outcomes of the files, the clicks and the memory."""
    memory = Memory(psutil.Process(server.process.pid))
    attack.visitor.load_runs()
    with memory.running(), clicks.running():
        for bomb in hostile_files:
            clicks.during = bomb.title
            try:
                attack.use_file(bomb)
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
    if memory.total > MOST_MEMORY:
        failures.append(f"the app and its workers took {memory.total / 1e6:,.0f} MB")
    outcomes["clicks"] = len(clicks.seconds)
    outcomes["slowest click, ms"] = round(1000 * max((seconds for seconds, _ in clicks.seconds), default=0))
    outcomes["MB of app and workers"] = round(memory.total / 1e6)
    outcomes["MB of the app alone"] = round(memory.app_alone / 1e6)
    outcomes["MB of the worker that reads"] = round(memory.files_worker / 1e6)
    return failures, outcomes


def _errors_in(log: str) -> list[str]:
    """Return the last line of each traceback, without duplicates."""
    parts = log.split("Traceback (most recent call last)")[1:]
    ends = (next((line for line in part.splitlines()[1:] if line[:1].strip()), "") for part in parts)
    return list(dict.fromkeys(end[:300] for end in ends))

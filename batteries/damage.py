"""Every file of a run missing, empty, truncated at a random byte, or with one random bit flipped.

Two runs and the token cache beside them are damaged: one run is finished, merged and exported in every
format, the other was interrupted after its second checkpoint. After each damage a forked process runs every
operation that reads the file. It passes if the operation raises a `PeftCoreError`, if the run lists the
damage, or if the file is written anew and every answer equals the undamaged one bit for bit.

`train.log` (free text), `lock` and `stop` (empty files whose existence matters) are exempt.
"""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from batteries.children import BUG, HANGS_AFTER, Report, outcome, run_child
from batteries.operations import CONTINUE, Operation, operations_on
from batteries.result import BatteryResult
from batteries.scenarios import train_until
from batteries.workplace import Workplace
from peft_core.errors import PeftCoreError
from peft_core.export.archives import KINDS, folder_of, zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import export_onnx
from peft_core.export.page.webpage import export_page
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.inference.predictor import Predictor
from peft_core.inference.vectors import NeighborSearch
from peft_core.merging.merge import merge
from peft_core.runs import Run

NAME = "every file of a run missing, empty, cut, one bit flipped"
PASSES_WHEN = "0 silently accepted"
COUNT = 500
EXEMPT = ("train.log", "lock", "stop")
MISSING, EMPTY, CUT, FLIPPED = "missing", "empty", "cut", "one bit flipped"
_ROUND = (FLIPPED, MISSING, CUT, EMPTY, FLIPPED, CUT, FLIPPED)  # kinds of damage, in turn
ANSWERED, REFUSED, REPORTED = "answered", "refused", "reported"


class Damage(NamedTuple):
    """Damage of one file of a run or of the token cache; `place` is a byte or a bit."""

    run: str
    path: Path
    kind: str
    place: int

    def apply(self) -> None:
        content = bytearray(self.path.read_bytes())
        if self.kind == MISSING:
            self.path.unlink()
            return
        if self.kind == FLIPPED:
            content[self.place // 8] ^= 1 << self.place % 8
        self.path.write_bytes(
            b"" if self.kind == EMPTY else content[: self.place] if self.kind == CUT else content
        )

    def describe(self, runs_dir: Path) -> str:
        at = {CUT: f" at byte {self.place}", FLIPPED: f", bit {self.place}"}.get(self.kind, "")
        return f"{self.path.relative_to(runs_dir)} {self.kind}{at}"


class Exhibit(NamedTuple):
    """The runs to damage, the folder of their copy, and the answers of the undamaged runs."""

    runs_dir: Path
    snapshot: Path
    answers: dict[tuple[str, str], str]


def run(place: Workplace, share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Damage files `share` of `COUNT` times; with a share below 1 there is no ONNX export."""
    start = time.monotonic()
    exhibit = make_exhibit(place, everything=share >= 1)
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    for damage in damages(exhibit, max(1, round(COUNT * share)), random.Random(seed)):
        problems = check(exhibit, damage)
        outcomes[damage.kind] += 1
        failures += [f"{damage.describe(exhibit.runs_dir)}: {problem}" for problem in problems]
    return BatteryResult(
        NAME,
        outcomes.total(),
        tuple(failures),
        tuple(sorted(outcomes.items())),
        PASSES_WHEN,
        time.monotonic() - start,
    )


def make_exhibit(place: Workplace, *, everything: bool) -> Exhibit:
    """Make both runs and record all answers. Raises RuntimeError if an undamaged run fails."""
    full = place.copy(place.finished, "full")
    stopped = place.create(seed=7)
    _succeed(lambda report: _make_full(full, everything))
    _succeed(lambda report: train_until(stopped, "_save_checkpoint", calls=3))
    shutil.rmtree(place.folder / "whole", ignore_errors=True)
    shutil.copytree(place.runs_dir, place.folder / "whole")
    exhibit, answers = Exhibit(place.runs_dir, place.folder / "whole", {}), {}
    for name in (full.run_id, stopped.run_id):
        for operation in operations_on(Run(place.runs_dir / name), None):
            child = run_child(lambda report, operation=operation: _ask(operation, report))
            answer = child.first(ANSWERED)
            if answer is None:
                raise RuntimeError(f"{operation.name} fails undamaged: {child.messages}")
            answers[name, operation.name] = answer
            restore(exhibit)
    return exhibit._replace(answers=answers)


def damages(exhibit: Exhibit, count: int, numbers: random.Random) -> Iterator[Damage]:
    """Yield so many damages: each file in turn, with each kind in turn."""
    names = {run for run, _ in exhibit.answers}
    files = sorted(path for path in exhibit.runs_dir.rglob("*") if path.is_file() and path.name not in EXEMPT)
    files = [path for path in files if path.relative_to(exhibit.runs_dir).parts[0] in {*names, ".tokens"}]
    if count < len(files):
        files = numbers.sample(files, count)
    for number in range(count):
        turn, place_in_turn = divmod(number, len(files))
        path, kind = files[place_in_turn], _ROUND[(turn + place_in_turn) % len(_ROUND)]
        name = path.relative_to(exhibit.runs_dir).parts[0]
        size = path.stat().st_size
        place = {CUT: numbers.randrange(max(1, size)), FLIPPED: numbers.randrange(8 * max(1, size))}
        yield Damage(next(iter(names)) if name == ".tokens" else name, path, kind, place.get(kind, 0))


def check(exhibit: Exhibit, damage: Damage) -> list[str]:
    """Damage a file, run all operations that read it, and restore it; return silent acceptances."""
    original = damage.path.read_bytes()
    damage.apply()
    damaged = _stamp(damage.path)
    child = run_child(lambda report: _use(exhibit, damage, report))
    problems, is_finished = [], False
    if outcome(child):
        problems.append(f"{child.first(BUG) or outcome(child)} within {HANGS_AFTER:.0f} s")
    for message in child.messages:
        if message.kind == ANSWERED:
            name, answer = json.loads(message.text)
            is_finished |= name == CONTINUE  # with the right adapter, and without checkpoints
            if answer != exhibit.answers.get((damage.run, name), answer):
                problems.append(f"{name!r} gives another answer")
        elif message.kind == "bad":
            problems.append(message.text)
    detected = any(message.kind in (REFUSED, REPORTED) for message in child.messages)
    was_rewritten = damage.path.exists() and _stamp(damage.path) != damaged
    undetected = not detected and not was_rewritten and not is_finished
    if not problems and undetected and not _is_same(damage.path, original):
        problems.append("nothing notices it")
    restore(exhibit)
    return problems


def restore(exhibit: Exhibit) -> None:
    """Restore every run from the snapshot."""
    shutil.rmtree(exhibit.runs_dir)
    shutil.copytree(exhibit.snapshot, exhibit.runs_dir)


def _use(exhibit: Exhibit, damage: Damage, report: Report) -> None:
    """In a child, run all operations on a damaged file and report each outcome."""
    run = Run(exhibit.runs_dir / damage.run)
    if run.damage():
        report(REPORTED)
    for operation in operations_on(run, damage.path):
        _ask(operation, report, with_name=True)


def _ask(operation: Operation, report: Report, *, with_name: bool = False) -> None:
    try:
        answer = operation.ask()
        report(ANSWERED, json.dumps([operation.name, answer]) if with_name else answer)
    except PeftCoreError as error:
        report(REFUSED, error)
        if not str(error) or "\n" in str(error):
            report("bad", f"{operation.name!r} is refused with {str(error)!r}, which is not one sentence")
    except Exception as error:  # any other error is a failure
        report("bad", f"{operation.name!r} ends with {type(error).__name__}: {str(error)[:200]}")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return inode and modification time, which change with each replacement; None for a missing file."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _is_same(path: Path, original: bytes) -> bool:
    """Whether the JSON of a file is equal in spite of other bytes (1e-05 and 1E-05)."""
    try:
        return json.loads(path.read_bytes()) == json.loads(original)
    except (OSError, ValueError):
        return False


def _make_full(run: Run, everything: bool) -> None:
    """Write every export and cache of a finished run."""
    DecisionRule(temperature=2.0).save(run, Classifier.read(run).labels)
    merge(run.folder)
    export_embeddings(run.folder)
    NeighborSearch(run.folder)
    Predictor(run.folder, "base")
    if everything:
        export_onnx(run.folder, 100.0)
        export_page(run.folder)
    for kind in KINDS:
        if (run.folder / kind).is_dir():
            folder_of(run, kind)
            zip_of(run, kind)


def _succeed(task: object) -> None:
    child = run_child(task)  # type: ignore[arg-type]
    if outcome(child):
        raise RuntimeError(f"the runs to damage could not be made: {outcome(child)}")

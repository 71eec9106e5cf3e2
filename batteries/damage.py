"""Every file of a run missing, empty, cut at a random place, or with one random bit flipped.

Two runs are damaged, and the cache of tokens beside them: one run is finished, merged and exported in every
form, the other was interrupted behind its second checkpoint. After each damage a forked process does
everything that reads the file. It passes where that is refused by a named error, where the damage is listed
among the run's own, or where the thing is made again and every answer is the undamaged one bit for bit.

`train.log` (free text), `lock` and `stop` (empty files whose being there is what they say) are exempt.
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
_ROUND = (FLIPPED, MISSING, CUT, EMPTY, FLIPPED, CUT, FLIPPED)  # how a file is damaged, in turn
ANSWERED, REFUSED, REPORTED = "answered", "refused", "reported"


class Damage(NamedTuple):
    """One file of a run (or of the cache beside it), and what happens to it; `place` is a byte or a bit."""

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
    """The runs that are damaged, where their copy lies, and what is answered while they are whole."""

    runs_dir: Path
    snapshot: Path
    answers: dict[tuple[str, str], str]


def run(place: Workplace, share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Damage files `share` of the full count of times; with less than all there is no ONNX export."""
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
    """Make both runs and ask everything once. Raises RuntimeError if an undamaged one does not answer."""
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
    """So many damages, each file in turn in every way."""
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
    """Damage a file, do all that reads it, and put everything back; what was accepted silently."""
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
            is_finished |= name == CONTINUE  # with the right adapter, and its checkpoints are gone
            if answer != exhibit.answers.get((damage.run, name), answer):
                problems.append(f"{name!r} gives another answer")
        elif message.kind == "bad":
            problems.append(message.text)
    noticed = any(message.kind in (REFUSED, REPORTED) for message in child.messages)
    made_again = damage.path.exists() and _stamp(damage.path) != damaged
    unseen = not noticed and not made_again and not is_finished
    if not problems and unseen and not _is_same(damage.path, original):
        problems.append("nothing notices it")
    restore(exhibit)
    return problems


def restore(exhibit: Exhibit) -> None:
    """Put back every run as it was."""
    shutil.rmtree(exhibit.runs_dir)
    shutil.copytree(exhibit.snapshot, exhibit.runs_dir)


def _use(exhibit: Exhibit, damage: Damage, report: Report) -> None:
    """In a child: all operations on a damaged file; each is answered, refused by a named error, or bad."""
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
    except Exception as error:  # no reader may let through anything else
        report("bad", f"{operation.name!r} ends with {type(error).__name__}: {str(error)[:200]}")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is replaced; None for a missing one."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _is_same(path: Path, original: bytes) -> bool:
    """Whether a file says the same in other bytes (1e-05 as 1E-05)."""
    try:
        return json.loads(path.read_bytes()) == json.loads(original)
    except (OSError, ValueError):
        return False


def _make_full(run: Run, everything: bool) -> None:
    """Make all that can be made of a finished run."""
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

"""A training that is killed and resumed ends with the same adapter bytes as an uninterrupted one.

Covers every method that the tiny model supports, in plain and in fast arithmetic. For fast arithmetic the
processor probe is patched to succeed and the minimum model size is lowered, so that bfloat16 weights are used
on every machine.
"""

import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from matrix import settings_of, variants

from batteries import run_checks
from batteries.children import Report, fork_child, outcome, run_child
from batteries.kills import COMMITTED, report_writes
from batteries.result import BatteryResult
from batteries.workplace import EPOCHS, Workplace
from peft_core import runs
from peft_core.config import ARITHMETIC_MODES
from peft_core.methods.registry import find_model_conflict
from peft_core.runs import FINISHED, Run
from peft_core.training import speedups
from peft_core.training.entry import train

NAME = "kill and Continue against uninterrupted"
PASSES_WHEN = "the adapter's weights are bit-identical, in plain and in fast arithmetic"
COUNT = 100
FAMILY = "bert"
HALF_WIDTH_FROM = 10_000  # frozen weights; the tiny model has more, each trained matrix fewer
DROPOUT = 0.1
SECOND_KILL_SHARE = 0.3  # share of runs that are killed again after resuming


class Case(NamedTuple):
    """A method variant with one arithmetic, and its settings."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """An uninterrupted training: hash of its adapter, and seconds after its first checkpoint."""

    sha256: str
    seconds: float


def cases() -> list[Case]:
    """Return every method variant with each arithmetic."""
    case_list = []
    for name, variant in variants().items():
        for arithmetic in ARITHMETIC_MODES:
            dropout = DROPOUT if arithmetic == "plain" else 0.0  # dropout disables the frozen layer cache
            changes = {"num_train_epochs": EPOCHS, "arithmetic": arithmetic, "dropout": dropout}
            settings = {**settings_of(variant, FAMILY), **changes}
            case_list.append(Case(f"{name}, {arithmetic}", settings))
    return case_list


def run(place: Workplace, share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Kill and resume `share` of `COUNT` trainings."""
    start, rng = time.monotonic(), random.Random(seed)
    references: dict[str, Reference] = {}
    failures, outcomes = [], Counter[str]()
    possible = [case for case in cases() if not _conflict(place, case)]
    if share < 1:
        rng.shuffle(possible)
    for number in range(max(1, round(COUNT * share))):
        case = possible[number % len(possible)]
        if case.name not in references:
            references[case.name] = train_uninterrupted(place, case)
        failures += [f"{case.name}: {problem}" for problem in check(place, case, references[case.name], rng)]
        outcomes[case.settings["arithmetic"]] += 1
    seconds = time.monotonic() - start
    return BatteryResult(
        NAME, sum(outcomes.values()), tuple(failures), tuple(sorted(outcomes.items())), PASSES_WHEN, seconds
    )


def train_uninterrupted(place: Workplace, case: Case) -> Reference:
    """Train a case without interruption. Raises RuntimeError if the training fails."""
    run = place.create(**case.settings)
    child = run_child(lambda report: _train(run, report))
    if outcome(child) or run.state().status != FINISHED:
        raise RuntimeError(f"{case.name} could not be trained: {outcome(child) or run.state().error}")
    first = next(message for message in child.messages if _is_checkpoint(run, message))
    reference = Reference(_adapter_sha256(run), child.messages[-1].time - first.time)
    runs.remove(place.runs_dir, run.run_id)
    return reference


def check(place: Workplace, case: Case, reference: Reference, rng: random.Random) -> list[str]:
    """Kill a training after its first checkpoint and resume it; return differences from the reference."""
    run = place.create(**case.settings)
    length = reference.seconds
    while not (_kill_after_checkpoint(run, rng.uniform(0, length)) and run.state().status != FINISHED):
        runs.remove(place.runs_dir, run.run_id)  # it had ended before
        run, length = place.create(**case.settings), 0.8 * length
    if rng.random() < SECOND_KILL_SHARE:
        _kill_after_checkpoint(run, rng.uniform(0, length))
    problems = _continue_problems(run) if run.state().status != FINISHED else []
    if not problems and _adapter_sha256(run) != reference.sha256:
        problems.append(f"continued from step {run.result()['resumed_from']}, its adapter has other weights")
    runs.remove(place.runs_dir, run.run_id)
    return problems


def _kill_after_checkpoint(run: Run, delay: float) -> bool:
    """Kill a training so many seconds after its first checkpoint; return False if it had ended."""
    child = fork_child(lambda report: _train(run, report))
    if child.wait_for(lambda message: _is_checkpoint(run, message)) is not None:
        time.sleep(delay)
    return child.kill()


def _continue_problems(run: Run) -> list[str]:
    """Resume a run to its end; return problems."""
    step = run_checks.chosen_step(run)
    if not step:
        return ["it has no checkpoint to continue from"]
    child = run_child(lambda report: _train(run, report))
    if outcome(child):
        return [f"it does not continue from step {step}: {outcome(child)}"]
    resumed = run.result()["resumed_from"]
    return [f"it went on from step {resumed}, not {step}"] if resumed != step else []


def _train(run: Run, report: Report) -> None:
    speedups.WORTH_IT = HALF_WIDTH_FROM  # only in this child
    speedups.is_bfloat16_faster = lambda device: True
    report_writes(report)
    train(run.folder)


def _is_checkpoint(run: Run, message: Any) -> bool:
    return message.kind == COMMITTED and message.text.startswith(f"{run.checkpoints}/checkpoint-")


def _adapter_sha256(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def _conflict(place: Workplace, case: Case) -> str:
    return find_model_conflict(place.config(**case.settings).to_dict(), FAMILY)

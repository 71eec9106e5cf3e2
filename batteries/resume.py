"""A training that is killed and continued ends with the same bytes as one that nothing disturbed.

Over every method that the tiny model takes, in plain and in fast arithmetic. For the fast one the probe of
the processor is answered with yes and the least size of a model is lowered, so that half-width weights are
used whatever the machine.
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
HALF_WIDTH_FROM = 10_000  # frozen weights; the tiny model has more, and no trained matrix has
DROPOUT = 0.1
TWICE = 0.3  # the share of runs whose continuation is killed and continued, too


class Case(NamedTuple):
    """A variant of a method in one arithmetic, and its settings."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """An uninterrupted training: the hash of its adapter, and its seconds after the first checkpoint."""

    sha256: str
    seconds: float


def cases() -> list[Case]:
    """Every variant that the tiny model takes, in each arithmetic."""
    found = []
    for name, variant in variants().items():
        for arithmetic in ARITHMETIC_MODES:
            dropout = DROPOUT if arithmetic == "plain" else 0.0  # it keeps frozen layers from running once
            changes = {"num_train_epochs": EPOCHS, "arithmetic": arithmetic, "dropout": dropout}
            settings = {**settings_of(variant, FAMILY), **changes}
            found.append(Case(f"{name}, {arithmetic}", settings))
    return found


def run(place: Workplace, share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Kill and continue `share` of the full count of trainings."""
    start, numbers = time.monotonic(), random.Random(seed)
    references: dict[str, Reference] = {}
    failures, outcomes = [], Counter[str]()
    possible = [case for case in cases() if not _unworkable(place, case)]
    if share < 1:
        numbers.shuffle(possible)
    for number in range(max(1, round(COUNT * share))):
        case = possible[number % len(possible)]
        if case.name not in references:
            references[case.name] = train_uninterrupted(place, case)
        failures += [
            f"{case.name}: {problem}" for problem in check(place, case, references[case.name], numbers)
        ]
        outcomes[case.settings["arithmetic"]] += 1
    seconds = time.monotonic() - start
    return BatteryResult(
        NAME, sum(outcomes.values()), tuple(failures), tuple(sorted(outcomes.items())), PASSES_WHEN, seconds
    )


def train_uninterrupted(place: Workplace, case: Case) -> Reference:
    """Train a case from start to end. Raises RuntimeError if that fails: then nothing can be compared."""
    run = place.create(**case.settings)
    child = run_child(lambda report: _train(run, report))
    if outcome(child) or run.state().status != FINISHED:
        raise RuntimeError(f"{case.name} could not be trained: {outcome(child) or run.state().error}")
    first = next(message for message in child.messages if _is_checkpoint(run, message))
    reference = Reference(_adapter_sha256(run), child.messages[-1].time - first.time)
    runs.remove(place.runs_dir, run.run_id)
    return reference


def check(place: Workplace, case: Case, reference: Reference, numbers: random.Random) -> list[str]:
    """Kill a training after its first checkpoint and continue it; what is not as in the reference."""
    run = place.create(**case.settings)
    length = reference.seconds
    while not (_killed(run, numbers.uniform(0, length)) and run.state().status != FINISHED):
        runs.remove(place.runs_dir, run.run_id)  # it had ended before
        run, length = place.create(**case.settings), 0.8 * length
    if numbers.random() < TWICE:
        _killed(run, numbers.uniform(0, length))
    problems = _continued(run) if run.state().status != FINISHED else []
    if not problems and _adapter_sha256(run) != reference.sha256:
        problems.append(f"continued from step {run.result()['resumed_from']}, its adapter has other weights")
    runs.remove(place.runs_dir, run.run_id)
    return problems


def _killed(run: Run, delay: float) -> bool:
    """Kill a training so many seconds after it has saved a checkpoint; False if it ended before."""
    child = fork_child(lambda report: _train(run, report))
    if child.wait_for(lambda message: _is_checkpoint(run, message)) is not None:
        time.sleep(delay)
    return child.kill()


def _continued(run: Run) -> list[str]:
    """Continue a run to its end; what is wrong with how it went on."""
    step = run_checks.chosen_step(run)
    if not step:
        return ["it has no checkpoint to continue from"]
    child = run_child(lambda report: _train(run, report))
    if outcome(child):
        return [f"it does not continue from step {step}: {outcome(child)}"]
    resumed = run.result()["resumed_from"]
    return [f"it went on from step {resumed}, not {step}"] if resumed != step else []


def _train(run: Run, report: Report) -> None:
    speedups.WORTH_IT = HALF_WIDTH_FROM  # in this child alone
    speedups.is_bfloat16_faster = lambda device: True
    report_writes(report)
    train(run.folder)


def _is_checkpoint(run: Run, message: Any) -> bool:
    return message.kind == COMMITTED and message.text.startswith(f"{run.checkpoints}/checkpoint-")


def _adapter_sha256(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def _unworkable(place: Workplace, case: Case) -> str:
    return find_model_conflict(place.config(**case.settings).to_dict(), FAMILY)

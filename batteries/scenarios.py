"""Scenarios of everything that a run writes; each calls back just before it writes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from batteries.workplace import Workplace
from peft_core import runs
from peft_core.export.archives import zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import export_onnx
from peft_core.export.onnx.report import read_onnx_report
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.inference.predictor import Predictor
from peft_core.merging.certificate import verified_certificate
from peft_core.merging.merge import merge
from peft_core.runs import FINISHED, Run
from peft_core.training.entry import train
from peft_core.training.trainer import RunTrainer

AtMoment = Callable[[], None]


class Scenario(NamedTuple):
    """`prepare` creates a run; `act` calls back and then changes it; `problems` checks it after success.

    `deletes`: the run itself may be gone afterwards.
    """

    name: str
    prepare: Callable[[Workplace], Run]
    act: Callable[[Run, AtMoment], None]
    problems: Callable[[Run], list[str]] = lambda run: []
    deletes: bool = False


def _new(place: Workplace) -> Run:
    return place.create()


def _finished(place: Workplace) -> Run:
    return place.copy(place.finished, "copy")


def _deleted(place: Workplace) -> Run:
    run = _finished(place)
    runs.delete(run.folder.parent, run.run_id)
    return run


def _merged(place: Workplace) -> Run:
    run = _finished(place)
    merge(run.folder)
    return run


def _stopped(place: Workplace) -> Run:
    """Create a run that was interrupted after its second checkpoint."""
    run = place.create()
    train_until(run, "_save_checkpoint", calls=3)
    return run


def train_until(run: Run, method: str, calls: int) -> None:
    """Train until the n-th call of a method of the trainer (n = `calls`) and interrupt it there."""
    _at_call(method, calls, _interrupt)
    train(run.folder)
    setattr(RunTrainer, method, _ORIGINAL[method])


_ORIGINAL = {name: getattr(RunTrainer, name) for name in ("_save_checkpoint", "train")}


def _at_call(method: str, calls: int, moment: AtMoment) -> None:
    """Call back at the n-th call of a method of the trainer (n = `calls`)."""
    original, count = _ORIGINAL[method], 0

    def counting(*values: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            moment()
        return original(*values, **options)

    setattr(RunTrainer, method, counting)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _at_once(act: Callable[[Run], Any]) -> Callable[[Run, AtMoment], None]:
    def acting(run: Run, moment: AtMoment) -> None:
        moment()
        act(run)

    return acting


def _save_and_finish(run: Run, moment: AtMoment) -> None:
    """Write the third checkpoint, which removes the first, and everything after it."""
    _at_call("_save_checkpoint", 3, moment)
    train(run.folder)


def _export_onnx(run: Run, moment: AtMoment) -> None:
    """Call back after torch has traced the model, which takes most of the time."""
    original = torch.onnx.export

    def exporting(*values: Any, **options: Any) -> Any:
        program = original(*values, **options)
        moment()
        return program

    torch.onnx.export = exporting
    export_onnx(run.folder)


def _start(run: Run) -> None:
    """Write everything that a training writes before its first step."""
    shutil.rmtree(run.folder.parent / ".tokens", ignore_errors=True)
    train_until(run, "train", calls=1)


def _save_rule(run: Run) -> None:
    labels = Classifier.read(run).labels
    DecisionRule(temperature=2.0).save(run, labels)


def _create(run: Run) -> None:
    runs.create(run.folder.parent, run.config())


def _delete(run: Run) -> None:
    runs.delete(run.folder.parent, run.run_id)


def _restore(run: Run) -> None:
    runs.restore(run.folder.parent, run.run_id)


def _is_finished(run: Run) -> list[str]:
    problems = [] if run.state().status == FINISHED else [f"it is {run.state().status}"]
    return problems if run.has_adapter and run.result() else [*problems, "it has no adapter"]


def _is_merged(run: Run) -> list[str]:
    return [] if verified_certificate(run).holds else ["its certificate does not hold"]


def _has(name: str) -> Callable[[Run], list[str]]:
    return lambda run: [] if (run.folder / name).is_dir() else [f"it has no {name}/"]


def _has_onnx(run: Run) -> list[str]:
    return [] if read_onnx_report(run) else ["it has no ONNX model"]


def _has_rule(run: Run) -> list[str]:
    return [] if DecisionRule.read(run).temperature == 2.0 else ["the rule is not saved"]


def _has_probe(run: Run) -> list[str]:
    return [] if Path(run.folder, "probe").is_dir() else ["it has no probe"]


SCENARIOS = (
    Scenario("create a run", _new, _at_once(_create)),
    Scenario("update the state", _new, _at_once(lambda run: run.update(step=1))),
    Scenario("ask a run to stop", _new, _at_once(lambda run: run.request_stop())),
    Scenario("start a training", _new, _at_once(_start)),
    Scenario("save a checkpoint, rotate, evaluate, save the adapter", _new, _save_and_finish, _is_finished),
    Scenario("continue a training", _stopped, _at_once(_start)),
    Scenario("merge", _finished, _at_once(lambda run: merge(run.folder)), _is_merged),
    Scenario("zip", _finished, _at_once(lambda run: zip_of(run, "adapter")), _has("downloads/adapter")),
    Scenario(
        "export the embeddings",
        _finished,
        _at_once(lambda run: export_embeddings(run.folder)),
        _has("embeddings"),
    ),
    Scenario("save a decision rule", _merged, _at_once(_save_rule), _has_rule),
    Scenario(
        "ask the base model", _finished, _at_once(lambda run: Predictor(run.folder, "base")), _has_probe
    ),
    Scenario("export as ONNX", _finished, _export_onnx, _has_onnx),
    Scenario("delete a run", _finished, _at_once(_delete), deletes=True),
    Scenario("restore a run", _deleted, _at_once(_restore), _has("adapter"), deletes=True),
)

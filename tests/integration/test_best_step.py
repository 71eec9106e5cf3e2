"""Tests of the best step by validation: its choice, survival of rotation and kills, and exact export."""

import html
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from task_runs import number_rows, topic_rows, train_on
from tiny import LABEL_WORDS

from batteries.children import KILLED, outcome, run_child
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import LabeledSplits
from peft_core.errors import ConfigError, RunError
from peft_core.export.hub.card_facts import Facts
from peft_core.export.hub.card_sections import settings as card_settings
from peft_core.files.atomic import sweep_staging
from peft_core.files.manifests import verify_folder
from peft_core.inference.metrics import task_metrics
from peft_core.inference.predictor import Predictor
from peft_core.problem_types import METRICS, MULTI, REGRESSION, SINGLE, decide
from peft_core.runs import Run, RunInTraining
from peft_core.runs.checkpoints import can_continue, list_checkpoints
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.runs.kept_step import KeptStep, Reason, metric_for_best
from peft_core.training import outputs
from peft_core.training.best import BEST, BestStep, BestWeights, StepKeeper
from peft_core.training.entry import train
from peft_core.training.losses import LabelScale, eval_loss, task_loss
from peft_core.training.results import label_array
from peft_core.training.schedule import EVAL_ROWS, evaluation_rows
from peft_core.training.trainer import RunTrainer
from peft_core.views.cards import format_metric, kept_step_line

# The labels are random, so learning the training rows makes the validation loss worse.
OVERFITTING = {
    "num_train_epochs": 8,
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "eval_steps": 10,
    "metric_for_best_model": "loss",
}


def noise_rows(count: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    words = [word for group in LABEL_WORDS for word in group]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(count)]
    return Dataset.from_dict({"text": texts, "label": rng.integers(2, size=count).tolist()})


def noise(problem_type: str = SINGLE) -> LabeledSplits:
    """Return splits whose labels are shuffled."""
    if problem_type == SINGLE:
        make, names = noise_rows, ("bad", "good")
    else:
        make, names = (topic_rows, ("food", "drink", "room")) if problem_type == MULTI else (number_rows, ())
    parts = []
    for seed, count in enumerate((160, 40, 40)):
        rows = make(count, seed)
        shuffled = np.random.default_rng(seed).permutation(count).tolist()
        labels = [rows["label"][i] for i in shuffled]
        parts.append(rows.remove_columns("label").add_column("label", labels))
    record = {"used": {"train": 160, "validation": 40, "test": 40}, "source": "files"}
    return LabeledSplits(*parts, names, True, problem_type, record)


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The rows of the single-label `noise()` as CSV files."""
    folder, data = tmp_path_factory.mktemp("noise"), noise()
    for name, rows in (("train", data.train), ("validation", data.validation), ("test", data.eval)):
        renamed = rows.map(lambda row: {"label": data.label_names[row["label"]]})
        renamed.to_csv(folder / f"{name}.csv", index=False)
    return str(folder)


def kept_step(run: Run) -> KeptStep:
    return KeptStep.from_dict(run.result()["kept"])


def evaluations(run: Run) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in run.metrics() if "eval_loss" in row}


def same_weights(first: Run, second: Run) -> bool:
    a, b = (load_file(run.adapter / "adapter_model.safetensors") for run in (first, second))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


METHODS = ("lora", "adalora", "full", "p_tuning", "head_only")
RATES = {"full": 1e-3}  # at which the method memorizes the training rows


@pytest.mark.filterwarnings(
    "ignore:The following rank_pattern keys"
)  # peft 0.21 warns for any AdaLoRA adapter
@pytest.mark.parametrize("arithmetic", ["fast", "plain"])
@pytest.mark.parametrize("method", METHODS)
def test_exported_adapter_of_best_step_reproduces_validation_metrics(
    method: str, arithmetic: str, fit: Callable[..., Run]
) -> None:
    changes = {**OVERFITTING, "learning_rate": RATES.get(method, 0.02)}
    run = fit(noise(), **changes, method=method, arithmetic=arithmetic)
    step, curve, report = kept_step(run), evaluations(run), run.result()
    assert step.reason == Reason.BEST and step.trained_steps == step.max_steps == report["steps"] == 80
    assert step.step < 80 or method in ("adalora", "head_only", "p_tuning")
    first = 56 if method == "adalora" else 0  # from here on, AdaLoRA's ranks are fixed
    assert step.value == min(row["eval_loss"] for at, row in curve.items() if at >= first)
    assert step.value == curve[step.step]["eval_loss"]
    assert_reproduced(run, SINGLE)
    if arithmetic == "plain":  # all 40 rows were evaluated, so the kept weights are those of that step
        assert step.rows == report["validation"]["rows"] == 40
        assert report["validation"]["eval_loss"] == pytest.approx(step.value, rel=1e-5)


def assert_reproduced(run: Run, problem_type: str) -> None:
    """Check that the reloaded adapter reproduces exactly the reported validation metrics and loss."""
    rows, validation = load_evaluation_rows(run, "validation"), run.result()["validation"]
    logits = Predictor(run.folder).logits(rows.texts)
    assert np.array_equal(logits, rows.logits.astype(np.float32))
    metrics = task_metrics(problem_type, decide(logits, problem_type), rows.labels)
    assert metrics == {name: validation[name] for name in METRICS[problem_type]}
    labels = label_array(noise(problem_type).train, problem_type)
    loss = task_loss(run.config(), problem_type, labels, logits.shape[1])
    if problem_type == REGRESSION:
        scale = LabelScale.from_labels(labels)
        logits = ((logits.astype(np.float64) - scale.mean) / scale.std).astype(np.float32)
    assert eval_loss(problem_type, logits, rows.labels, loss) == validation["eval_loss"]


@pytest.mark.parametrize("problem_type", [MULTI, REGRESSION])
def test_best_step_of_multi_label_and_regression_is_exported_as_measured(
    problem_type: str, fit: Callable[..., Run]
) -> None:
    run = fit(noise(problem_type), **OVERFITTING, arithmetic="plain")
    assert kept_step(run).step < 80
    assert run.result()["validation"]["eval_loss"] == pytest.approx(kept_step(run).value, rel=1e-4)
    assert_reproduced(run, problem_type)


def test_best_step_uses_first_metric_by_default(fit: Callable[..., Run]) -> None:
    run = fit(noise(), **{**OVERFITTING, "metric_for_best_model": None})
    curve = evaluations(run)
    assert kept_step(run).metric == "accuracy"
    assert kept_step(run).value == max(row["eval_accuracy"] for row in curve.values())
    (test,) = [row for row in run.metrics() if "test_accuracy" in row]
    assert test["step"] == kept_step(run).step
    assert len(curve) == 8 and set(curve) == set(range(10, 81, 10))


def train_until_killed(run: Run, step: int) -> None:
    """Train in a forked child process that kills itself during a step."""
    gradient_norm = RunTrainer._get_grad_norm

    def kill_at_step(trainer: RunTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return gradient_norm(trainer, *args, **kwargs)

    RunTrainer._get_grad_norm = kill_at_step
    train(run.folder)


@pytest.mark.parametrize(("method", "kills"), [("lora", (23, 58, 79)), ("adalora", (79,))])
def test_killed_and_continued_run_keeps_same_step_and_weights(
    method: str, kills: tuple[int, ...], settings: dict[str, Any], noise_folder: str, tmp_path: Path
) -> None:
    config = TrainConfig.from_dict(
        {
            **settings,
            **OVERFITTING,
            "learning_rate": RATES.get(method, 0.02),
            "dataset_name": noise_folder,
            "method": method,
            "eval_steps": 7,
        }
    )
    whole = runs.create(tmp_path, config)
    train(whole.folder)
    killed = runs.create(tmp_path, config)
    for step in kills:  # checkpoints are of the steps 20, 40 and 60
        assert outcome(run_child(lambda _, step=step: train_until_killed(killed, step))) == KILLED
        assert killed.state().status == "FAILED" and can_continue(killed)
    train(killed.folder)
    assert killed.result()["resumed_from"] == 60
    assert same_weights(killed, whole)
    assert kept_step(killed) == kept_step(whole)
    assert kept_step(whole).step < 60 or method == "adalora"
    assert evaluations(killed).keys() == evaluations(whole).keys()
    assert not (killed.folder / "checkpoints").exists()


def test_kill_while_saving_best_weights_leaves_only_swept_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors writes a temporary file beside the target and renames it."""

    def die_beside(_: Any, path: Path) -> None:
        (path.parent / ".tmpAbCdEf").touch()
        os._exit(1)

    monkeypatch.setattr("peft_core.training.best.save_trained", die_beside)
    run_child(lambda _: BestWeights(tmp_path).save(torch.nn.Linear(1, 1)))
    assert list(tmp_path.iterdir())
    sweep_staging(tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoint_after_best_step_has_best_weights(
    fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_core.training.entry.remove_tree", lambda _: None)
    run = fit(noise(), **OVERFITTING)
    newest = list_checkpoints(run.folder / "checkpoints")[0]
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["best_global_step"] == kept_step(run).step < 60
    assert state["best_metric"] == kept_step(run).value
    assert state["best_model_checkpoint"] is None
    assert BEST in verify_folder(newest).files
    exported = load_file(run.adapter / "adapter_model.safetensors")
    best = load_file(newest / BEST)
    for name, tensor in exported.items():
        path, _, last = name.rpartition(".")
        parts = (f"{path}.{last}", f"{path}.default.{last}", f"{path}.modules_to_save.default.{last}")
        assert any(part in best and best[part].equal(tensor) for part in parts), name


def test_cards_show_kept_step_and_validation_metrics(fit: Callable[..., Run]) -> None:
    run = fit(noise(), **OVERFITTING, early_stopping_patience=2)
    step, report = kept_step(run), run.result()
    line = html.unescape(kept_step_line(report))
    assert f"Step {step.step} is kept: of {step.evaluations} evaluated, it has the lowest loss" in line
    assert f"Training ended early, at step {step.trained_steps} of 80" in line
    assert f"reach accuracy {format_metric(report['validation']['accuracy'])}" in line
    card = card_settings(Facts.read(run))
    assert f"Step {step.step} is kept" in card and "`early_stopping_patience`" in card
    assert "`eval_steps`" in card and "| 10 |" in card
    old = {name: entry for name, entry in report.to_dict().items() if name not in ("kept", "validation")}
    assert kept_step_line(old) == ""


def test_early_stopping_finishes_run_with_reason(fit: Callable[..., Run]) -> None:
    run = fit(noise(), **OVERFITTING, early_stopping_patience=2)
    step = kept_step(run)
    assert run.state().status == "FINISHED"
    assert step.trained_steps == run.result()["steps"] == step.step + 20 < step.max_steps
    assert step.early_stopped_after == 2
    assert "Training ended early" in step.describe() and "2 evaluations in a row" in step.describe()
    assert not (run.folder / "checkpoints").exists()


def test_early_stopped_run_killed_before_result_stops_at_same_step(
    fit: Callable[..., Run], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**OVERFITTING, "early_stopping_patience": 2}
    whole = fit(noise(), **changes)
    run = runs.create(tmp_path, whole.config())
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_on(noise(), run)
    assert run.state().status == "KILLED" and can_continue(run)
    train_on(noise(), run)
    assert run.state().status == "FINISHED"
    assert kept_step(run) == kept_step(whole) and same_weights(run, whole)


def test_run_without_validation_rows_keeps_last_step(fit: Callable[..., Run]) -> None:
    data = noise()
    run = fit(replace(data, validation=data.validation.select([])), **OVERFITTING)
    step = kept_step(run)
    assert (step.reason, step.step, step.value) == (Reason.NO_VALIDATION, 80, None)
    assert "there were no validation rows" in step.describe()
    assert "validation" not in run.result()


def test_run_without_load_best_model_at_end_keeps_last_step(fit: Callable[..., Run]) -> None:
    run = fit(noise(), **OVERFITTING, load_best_model_at_end=False)
    assert (kept_step(run).reason, kept_step(run).step) == (Reason.TURNED_OFF, 80)
    best = fit(noise(), **OVERFITTING)
    assert kept_step(best).step < 80 and not same_weights(run, best)


def test_stopped_run_keeps_the_best_step_so_far(
    fit: Callable[..., Run], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(noise(), **OVERFITTING)
    run = runs.create(tmp_path, whole.config())
    log = RunInTraining.log_metrics

    def stop_at_40(self: RunInTraining, row: dict[str, Any]) -> None:
        log(self, row)
        if row["step"] >= 40 and "eval_loss" in row:
            self.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr(RunInTraining, "log_metrics", stop_at_40)
        train_on(noise(), run)
    assert run.state().status == "KILLED" and can_continue(run)
    (run.folder / "stop").unlink()
    train_on(noise(), run)
    assert kept_step(run) == kept_step(whole) and same_weights(run, whole)
    assert f"Training ran to step {kept_step(run).trained_steps} of 80" in kept_step(run).describe()


def test_damaged_best_weights_are_refused(fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(self: RunInTraining, row: dict[str, Any]) -> None:
        path = self.folder / "checkpoints" / BEST
        if row["step"] == 80 and "eval_loss" in row:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(RunInTraining, "log_metrics", flip)
    with pytest.raises(RunError, match="best step were lost or changed"):
        fit(noise(), **OVERFITTING)


def test_damaged_best_weights_are_not_copied_into_a_checkpoint(tmp_path: Path) -> None:
    """The checkpoint's manifest would otherwise cover the damaged weights."""
    model = torch.nn.Linear(2, 2)
    keeper = StepKeeper(tmp_path, BestStep("accuracy"), 10, keeps_best=True)
    state = SimpleNamespace(global_step=1, max_steps=9)
    keeper.record_evaluation(model, state, {"eval_accuracy": 1.0, "eval_loss": 0.1})
    path = tmp_path / BEST
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="best step were lost or changed"):
        keeper.save_into(tmp_path, 2)


def after(best: BestStep, *values: tuple[float, float]) -> BestStep:
    """Return the best step after evaluations with (metric, loss) at the steps 1, 2, ..."""
    for step, (score, loss) in enumerate(values, start=1):
        best = best.after(step, {f"eval_{best.metric}": score, "eval_loss": loss})
    return best


@pytest.mark.parametrize(
    ("metric", "values", "step"),
    [
        ("accuracy", [(0.5, 1.0), (0.7, 0.9), (0.6, 0.8)], 2),
        ("accuracy", [(0.7, 0.9), (0.7, 0.8), (0.7, 0.8)], 2),  # ties: the lower loss, then the earlier step
        ("mae", [(3.0, 1.0), (2.0, 2.0), (2.5, 0.1)], 2),
        ("loss", [(0.9, 0.9), (0.7, 0.7), (0.8, 0.8)], 2),
        ("spearman", [(-0.5, 1.0), (-0.1, 1.0)], 2),
    ],
)
def test_best_step_follows_the_direction_of_its_metric(
    metric: str, values: list[tuple[float, float]], step: int
) -> None:
    assert after(BestStep(metric), *values).step == step


def test_patience_counts_evaluations_without_enough_improvement() -> None:
    flat = [(0.5, 1.0), (0.52, 0.9), (0.53, 0.8)]
    assert not after(BestStep("accuracy", patience=2), *flat).exhausted
    strict = after(BestStep("accuracy", patience=2, threshold=0.05), *flat)
    assert strict.exhausted and strict.step == 3
    assert not after(BestStep("accuracy"), *[(0.5, 1.0)] * 9).exhausted


def test_evaluations_before_the_first_comparable_step_do_not_count() -> None:
    best = after(BestStep("accuracy", patience=1, first_step=3), (0.9, 0.1), (0.1, 1.0), (0.5, 0.5))
    assert (best.step, best.evaluations, best.exhausted) == (3, 1, False)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_metric_of_another_problem_type_is_refused(problem_type: str, fit: Callable[..., Run]) -> None:
    assert metric_for_best(TrainConfig(), problem_type) == METRICS[problem_type][0]
    assert metric_for_best(TrainConfig(metric_for_best_model="loss"), problem_type) == "loss"
    metric = {SINGLE: "spearman", MULTI: "accuracy", REGRESSION: "macro_f1"}[problem_type]
    with pytest.raises(ConfigError, match=f"metric_for_best_model is '{metric}'"):
        fit(noise(problem_type), metric_for_best_model=metric)


def test_every_metric_of_every_problem_type_can_be_chosen() -> None:
    for metric in {"loss", *(name for names in METRICS.values() for name in names)}:
        assert TrainConfig(metric_for_best_model=metric).metric_for_best_model == metric


@pytest.mark.parametrize(
    ("changes", "train_rows", "rows"),
    [
        ({}, 3000, 300),  # 4 evaluations read 1,200 texts; training reads 3,000
        ({"num_train_epochs": 3}, 3000, 900),
        ({"num_train_epochs": 10}, 3000, 1000),
        ({"num_train_epochs": 1}, 300, EVAL_ROWS),
        ({"eval_steps": 1}, 3000, EVAL_ROWS),
    ],
)
def test_evaluation_rows_are_limited_to_a_fifth_of_training(
    changes: dict[str, Any], train_rows: int, rows: int
) -> None:
    config = TrainConfig.from_dict(changes)
    assert evaluation_rows(config, train_rows, 1000) == rows
    assert evaluation_rows(config, train_rows, 20) == 20

"""What a step minimizes: accumulated batches, label smoothing and the norm to which gradients are clipped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripts import assert_same, run_script
from task_runs import labeled_splits, number_rows
from tiny import make_tiny_bert
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.tokens import encode
from peft_core.errors import ConfigError
from peft_core.models.encoder import load_base, set_dropout
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.service.limits import Limits
from peft_core.training import entry
from peft_core.training.arguments import training_arguments
from peft_core.training.batches import UnpaddedCollator
from peft_core.training.losses import balanced_weights, task_loss
from peft_core.training.schedule import total_steps
from peft_core.training.trainer import RunTrainer, build_trainer


class Gradients(TrainerCallback):
    """Records the gradients of each step as the optimizer receives them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append(grads)


Measure = Callable[..., tuple[list[dict[str, torch.Tensor]], RunTrainer]]


@pytest.fixture
def gradients(settings: dict[str, Any], tmp_path: Path) -> Measure:
    """Return a function that gives the gradients of one epoch with batches of the given sizes."""

    def measured(sizes: list[int], **changes: Any) -> tuple[list[dict[str, torch.Tensor]], RunTrainer]:
        small = {"num_train_epochs": 1, "learning_rate": 1e-12, "max_grad_norm": 0, "arithmetic": "plain"}
        config = TrainConfig.from_dict(
            {**settings, **small, "max_train_samples": sum(sizes), "warmup_steps": 0, **changes}
        )
        run = runs.create(tmp_path, config)
        data = load_labeled_splits(config)
        torch.manual_seed(0)
        base = load_base(config.model_name_or_path, None, data.label_names)
        set_dropout(base.model, 0.0)
        rows = encode(data.train, base.tokenizer, config.max_length, None)
        arguments = training_arguments(run, config, len(rows), curve=None, autocast=False)
        loss = task_loss(config, data.problem_type, data.train["label"][:], 2)
        trainer = build_trainer(base.model, config, arguments, base.tokenizer, rows, None, loss=loss)
        stops = np.cumsum(sizes).tolist()
        batches = [list(range(stop - size, stop)) for stop, size in zip(stops, sizes, strict=True)]
        trainer._loader = torch.utils.data.DataLoader(
            rows, batch_sampler=batches, collate_fn=UnpaddedCollator(base.tokenizer)
        )
        recorder = Gradients()
        trainer.add_callback(recorder)
        trainer.train()
        return recorder.steps, trainer

    return measured


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys() and actual
    for name, grad in actual.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("changes", [{}, {"class_weight": "balanced", "label_smoothing_factor": 0.2}])
def test_gradient_accumulation_gives_the_gradient_of_one_large_batch(
    changes: dict[str, Any], gradients: Measure
) -> None:
    """Batches of 3 and 5 texts in one step weigh their texts as a batch of 8 does."""
    two = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **changes}
    (accumulated,), accumulating = gradients([3, 5], **two)
    (whole,), single = gradients([8], per_device_train_batch_size=8, **changes)
    assert_equal(accumulated, whole)
    accumulated_loss, single_loss = (
        trainer.state.log_history[0]["loss"] for trainer in (accumulating, single)
    )
    assert accumulated_loss == pytest.approx(single_loss, rel=1e-4)


def test_gradient_accumulation_in_an_incomplete_step_keeps_text_weights(gradients: Measure) -> None:
    """The last step of an epoch has one batch of two: its texts count as they would in any other step."""
    steps, trainer = gradients([4, 4, 4], per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert len(steps) == trainer.state.global_step == total_steps(trainer_config(2), 12) == 2
    alone, _ = gradients([4, 4, 4], per_device_train_batch_size=4)
    assert_equal(steps[1], {name: grad / 2 for name, grad in alone[2].items()})
    assert_equal(steps[0], {name: (grad + alone[1][name]) / 2 for name, grad in alone[0].items()})


def trainer_config(accumulated: int) -> TrainConfig:
    return TrainConfig(
        per_device_train_batch_size=4, gradient_accumulation_steps=accumulated, num_train_epochs=1
    )


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], bool]) -> list[int]:
    """Make forward passes fail by number (from 1) and batch size; return the list of batch sizes."""
    compute_loss, calls = Trainer.compute_loss, []

    def small(self: Trainer, model: Any, inputs: Any, *args: Any) -> Any:
        calls.append(len(inputs["labels"]))
        if fails(len(calls), calls[-1]):
            raise torch.OutOfMemoryError("CUDA")
        return compute_loss(self, model, inputs, *args)

    monkeypatch.setattr(Trainer, "compute_loss", small)
    return calls


def test_out_of_memory_in_a_later_batch_loses_no_gradient(
    gradients: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    (expected,), _ = gradients([4, 4], **two)
    calls = run_out_of_memory(monkeypatch, lambda number, texts: number == 2)
    (actual,), trainer = gradients([4, 4], **two)
    assert calls == [4, 4, 2, 2, 2, 2] and trainer.parts == 2
    assert_equal(actual, expected)


def test_out_of_memory_in_an_earlier_batch_splits_it_further(
    gradients: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
    (expected,), _ = gradients([8, 2], **two)
    run_out_of_memory(monkeypatch, lambda number, texts: number > 1 and texts > 1)
    (actual,), trainer = gradients([8, 2], **two)
    assert trainer.parts == 8
    assert_equal(actual, expected)


def test_gradient_accumulation_takes_fewer_steps_and_learns(train_here: Callable[..., Run]) -> None:
    run = train_here(gradient_accumulation_steps=2, per_device_train_batch_size=8)
    run_result = run.result()
    assert run_result["steps"] == run.state().max_steps == 60
    assert run_result["accuracy"] > run_result["baseline"]["accuracy"]


@pytest.mark.parametrize("killed_at", [17, 31])
def test_gradient_accumulation_resumed_ends_with_the_same_weights(
    killed_at: int, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8, "lora_dropout": 0.1}
    whole, parted = (runs.create(tmp_path, TrainConfig.from_dict({**settings, **changes})) for _ in range(2))
    entry.train(whole.folder)
    norm = RunTrainer._get_grad_norm

    def killed(self: RunTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == killed_at:
            raise KeyboardInterrupt
        return norm(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "_get_grad_norm", killed)
        entry.train(parted.folder)
    assert parted.state().status == "KILLED" and can_continue(parted)
    entry.train(parted.folder)
    assert parted.result()["kept"] == whole.result()["kept"]
    parted_weights, whole_weights = (
        load_file(r.adapter / "adapter_model.safetensors") for r in (parted, whole)
    )
    assert all(parted_weights[name].equal(whole_weights[name]) for name in whole_weights)


@pytest.mark.parametrize("largest", [0.01, 0.0])
def test_gradients_are_clipped_to_max_grad_norm(largest: float, gradients: Measure) -> None:
    (plain,), _ = gradients([8], per_device_train_batch_size=8)
    (clipped,), _ = gradients([8], per_device_train_batch_size=8, max_grad_norm=largest)
    norm, whole = (
        float(torch.cat([g.flatten() for g in grads.values()]).norm()) for grads in (clipped, plain)
    )
    assert whole > 0.05
    assert norm == pytest.approx(largest or whole, rel=1e-3)


def logits_and_labels(problem_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(30, 3))).float()
    if problem_type == SINGLE:
        return logits, torch.from_numpy(rng.integers(3, size=30))
    return logits, torch.from_numpy(rng.integers(2, size=(30, 3))).float()


def test_smoothed_single_label_loss_equals_transformers() -> None:
    logits, labels = logits_and_labels(SINGLE)
    loss = task_loss(TrainConfig(label_smoothing_factor=0.1), SINGLE, labels.numpy(), 3)
    expected = LabelSmoother(epsilon=0.1)({"logits": logits}, labels)
    assert float(loss({"logits": logits}, labels)) == pytest.approx(float(expected), rel=1e-6)


def test_smoothed_class_weighted_loss_equals_torch() -> None:
    logits, labels = logits_and_labels(SINGLE)
    config = TrainConfig(label_smoothing_factor=0.1, class_weight="balanced")
    weights = torch.tensor(balanced_weights(np.bincount(labels, minlength=3))).float()
    expected = cross_entropy(logits, labels, weight=weights, label_smoothing=0.1, reduction="sum") / 30
    actual = task_loss(config, SINGLE, labels.numpy(), 3)({"logits": logits}, labels)
    assert float(actual) == pytest.approx(float(expected), rel=1e-6)


def test_smoothed_multi_label_loss_moves_targets_towards_one_half() -> None:
    logits, labels = logits_and_labels(MULTI)
    loss = task_loss(TrainConfig(label_smoothing_factor=0.2), MULTI, labels.numpy(), 3)
    target = torch.where(labels == 1, 0.9, 0.1)
    expected = binary_cross_entropy_with_logits(logits, target)
    assert float(loss({"logits": logits}, labels)) == pytest.approx(float(expected), rel=1e-6)


def test_task_loss_without_smoothing_is_none() -> None:
    assert task_loss(TrainConfig(), SINGLE, [0, 1], 2) is None
    assert task_loss(TrainConfig(), MULTI, [[0, 1]], 2) is None


def test_label_smoothing_of_regression_is_refused(fit: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="label_smoothing_factor is 0.1, but the labels are numbers"):
        fit(labeled_splits(number_rows, (), REGRESSION), label_smoothing_factor=0.1)


OBJECTIVES = {
    "accumulated": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8},
    "clipped": {"max_grad_norm": 0.05},
    "not clipped": {"max_grad_norm": 0.0},
    "smoothed": {"label_smoothing_factor": 0.1},
    "smoothed and weighted": {"label_smoothing_factor": 0.1, "class_weight": "balanced"},
    "evaluated often": {"eval_steps": 3},
    "stopped early": {"eval_steps": 1, "early_stopping_patience": 3},
    "best by loss": {"eval_steps": 1, "metric_for_best_model": "loss", "learning_rate": 0.5},
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_script_trains_to_the_same_weights_with_each_setting(
    case: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    small = {"max_train_samples": 64, "num_train_epochs": 4, "arithmetic": "plain"}
    run = train_here(**{**small, **OBJECTIVES[case]})
    best_step = run.result()["kept"]
    if case in ("stopped early", "best by loss"):
        assert best_step["step"] < best_step["max_steps"]
    namespace = run_script(run, tmp_path / "script")
    assert namespace["trainer"].state.global_step == best_step["step"]
    assert_same(run, tmp_path / "script", namespace)


@pytest.mark.parametrize(
    ("name", "invalid"),
    [
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", 1.5),
        ("max_grad_norm", -1),
        ("label_smoothing_factor", 1.0),
        ("eval_steps", 0),
        ("metric_for_best_model", "auc"),
        ("load_best_model_at_end", "yes"),
        ("early_stopping_patience", -1),
        ("early_stopping_threshold", float("nan")),
    ],
)
def test_setting_out_of_bounds_is_refused_by_name(name: str, invalid: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}"):
        TrainConfig.from_dict({name: invalid})


def test_public_demo_refuses_many_evaluations() -> None:
    limits = Limits()
    limits.check(TrainConfig(eval_steps=10))
    with pytest.raises(ConfigError, match="eval_steps is 1, which makes 188 evaluations"):
        limits.check(TrainConfig(eval_steps=1))
    with pytest.raises(ConfigError, match="188,000 steps|steps; this public demo"):
        limits.check(TrainConfig(gradient_accumulation_steps=1000, num_train_epochs=100))


def test_smoothed_loss_with_a_tiny_factor_equals_the_loss_of_the_base_model(tmp_path: Path) -> None:
    base = load_base(str(make_tiny_bert(tmp_path, num_labels=2)), None, ("a", "b"), base_head="by_order")
    tokens = base.tokenizer(["fine", "bad food"], padding=True, return_tensors="pt")
    labels = torch.tensor([0, 1])
    outputs = base.model(**tokens, labels=labels)
    loss = task_loss(TrainConfig(label_smoothing_factor=1e-7), SINGLE, labels.numpy(), 2)
    assert loss(outputs, labels).item() == pytest.approx(outputs.loss.item(), rel=1e-5)

"""Non-finite loss, gradients or weights stop a run at that step and are never saved in a checkpoint."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ROOT, python
from safetensors.torch import load_file

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import ModelError
from peft_core.runs import Run
from peft_core.runs.checkpoints import STATE_FILE, can_continue, choose_checkpoint
from peft_core.training import divergence, entry
from peft_core.training.trainer import RunTrainer
from peft_core.views.charts import curve, curve_frame

Poison = Callable[[RunTrainer, int], None]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def poison_at(step: int, part: str, patch: pytest.MonkeyPatch) -> None:
    """Make one trained weight infinite before the forward pass of a step."""
    training_step = RunTrainer.training_step

    def poisoned(self: RunTrainer, model: Any, *args: Any) -> torch.Tensor:
        if self.state.global_step + 1 == step:
            trained = next(p for name, p in model.named_parameters() if p.requires_grad and part in name)
            trained.data.view(-1)[0] = math.inf
        return training_step(self, model, *args)

    patch.setattr(RunTrainer, "training_step", poisoned)


def assert_finite_checkpoint(run: Run, step: int) -> None:
    choice = choose_checkpoint(run)
    assert choice is not None and choice.step == step and not choice.skipped
    checkpoint = choice.checkpoint
    weights = load_file(checkpoint / STATE_FILE)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    moments = [moment for state in optimizer.values() for moment in state.values()]
    assert moments and all(bool(torch.isfinite(torch.as_tensor(moment)).all()) for moment in moments)


def assert_valid_files(run: Run, last_step: int) -> None:
    """Check that metrics and chart data are valid JSON and end before the divergence."""
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [strict_json(line) for line in lines]
    assert rows and max(row["step"] for row in rows) <= last_step
    for kind in ("loss", "accuracy"):
        assert strict_json(json.dumps(curve(curve_frame(run.metrics()), kind, 60), allow_nan=False))


@pytest.mark.parametrize(
    ("part", "reason"), [("classifier", "the loss is "), ("lora_A", "the gradient's norm is nan")]
)
def test_poisoned_weight_stops_the_run_at_that_step(
    part: str,
    reason: str,
    settings: dict[str, Any],
    train_here: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    with monkeypatch.context() as patch:
        poison_at(37, part, patch)
        with pytest.raises(ModelError) as raised:
            entry.train(run.folder)
    state = run.state()
    assert (state.status, state.error) == ("FAILED", str(raised.value))
    assert state.error.startswith(f"Training diverged at step 37: {reason}")
    assert "Train again with a learning rate below 0.03" in state.error
    assert state.error.endswith("The checkpoint of step 30 is kept.")
    assert not run.has_adapter
    assert_finite_checkpoint(run, 30)
    assert_valid_files(run, 36)
    entry.train(run.folder)
    assert run.state().status == "FINISHED" and run.result()["resumed_from"] == 30
    uninterrupted = train_here()
    resumed, expected = (load_file(r.adapter / "adapter_model.safetensors") for r in (run, uninterrupted))
    assert all(resumed[name].equal(expected[name]) for name in expected)


def test_infinite_loss_with_finite_gradients_stops_the_run(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    compute_loss = RunTrainer.compute_loss

    def infinite(self: RunTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, model, *args, **kwargs)
        return loss + math.inf if model.training and self.state.global_step + 1 == 20 else loss

    monkeypatch.setattr(RunTrainer, "compute_loss", infinite)
    with pytest.raises(ModelError, match="diverged at step 20: the loss is inf"):
        entry.train(run.folder)
    assert_finite_checkpoint(run, 15)


def test_huge_learning_rate_stops_the_run_without_checkpoint(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict({**settings, "warmup_steps": 0}))
    training_arguments = entry.training_arguments

    def huge_learning_rate(*args: Any, **kwargs: Any) -> Any:
        arguments = training_arguments(*args, **kwargs)
        arguments.learning_rate = 1e30  # settings allow 1 at most
        return arguments

    monkeypatch.setattr(entry, "training_arguments", huge_learning_rate)
    with pytest.raises(ModelError, match=r"diverged at step \d+: .* learning rate below 1e\+30"):
        entry.train(run.folder)
    assert run.state().status == "FAILED"
    assert not can_continue(run)
    assert "is kept" not in run.state().error
    json.dumps(run.metrics(), allow_nan=False)


@pytest.mark.parametrize("evaluated", [True, False])
def test_non_finite_weights_after_a_step_are_not_saved(
    evaluated: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation before a checkpoint detects NaN, or else a check of the saved values does."""
    changes = {"eval_steps": 15 if evaluated else 60}
    run = runs.create(tmp_path, TrainConfig.from_dict({**settings, **changes}))
    save = RunTrainer._maybe_log_save_evaluate

    def poisoned(self: RunTrainer, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == 30:
            part = "classifier" if evaluated else "lora_A"
            trained = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
            next(p for name, p in trained if part in name).data.fill_(math.nan)
        save(self, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "_maybe_log_save_evaluate", poisoned)
    reason = "the loss on validation rows is nan" if evaluated else r"base_model\..* is not finite"
    with pytest.raises(ModelError, match=f"diverged at step 30: {reason}"):
        entry.train(run.folder)
    assert_finite_checkpoint(run, 15)
    assert_valid_files(run, 30)
    checkpoints = {path.name for path in (run.folder / "checkpoints").rglob("checkpoint-*")}
    assert checkpoints == {"checkpoint-15"}


def test_non_finite_weights_after_the_last_step_are_not_exported(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict({**settings, "load_best_model_at_end": False}))
    evaluate = RunTrainer._maybe_log_save_evaluate

    def poisoned(self: RunTrainer, *args: Any, **kwargs: Any) -> None:
        evaluate(self, *args, **kwargs)
        if self.state.global_step == 60:
            next(p for n, p in self.model.named_parameters() if "lora_A" in n).data.fill_(math.nan)

    monkeypatch.setattr(RunTrainer, "_maybe_log_save_evaluate", poisoned)
    with pytest.raises(ModelError, match="diverged at step 60: .* is not finite"):
        entry.train(run.folder)
    assert run.state().status == "FAILED" and not run.has_adapter


POISONED_IN_ONE_PROCESS = """
import math, os, sys
from peft_core.training import entry
from peft_core.training.trainer import RunTrainer
compute_loss = RunTrainer.compute_loss
def infinite(self, model, *args, **kwargs):
    loss = compute_loss(self, model, *args, **kwargs)
    poisoned = os.environ["RANK"] == "1" and self.state.global_step + 1 == 20
    return loss + math.inf if model.training and poisoned else loss
RunTrainer.compute_loss = infinite
sys.exit(entry.main([sys.argv[1]]))
"""


def test_infinite_loss_in_one_of_two_processes_stops_both(settings: dict[str, Any], tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict(settings))
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED_IN_ONE_PROCESS, encoding="utf-8")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script))
    done = python(*launch, str(run.folder), timeout=170, PYTHONPATH=str(ROOT))
    assert done.returncode != 0
    assert run.state().status == "FAILED"
    assert run.state().error.startswith("Training diverged at step 20: the loss is inf")
    assert can_continue(run) and not run.has_adapter


def test_first_not_finite_detects_optimizer_values() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert divergence.first_not_finite(divergence.named_values(model, optimizer)) is None
    optimizer.state[model.weight]["exp_avg_sq"].fill_(math.inf)
    assert divergence.first_not_finite(divergence.named_values(model, optimizer)) == "optimizer.exp_avg_sq"


def test_divergence_error_half_precision_suggests_plain_arithmetic() -> None:
    model = torch.nn.Linear(2, 1)
    assert "plain arithmetic" not in str(divergence.divergence_error("it", 3, model, 0.1, []))
    error = divergence.divergence_error("it", 3, model.to(torch.bfloat16), 0.1, [2, 1])
    assert "or with plain arithmetic" in str(error) and "checkpoint of step 2 is kept" in str(error)


def test_curve_frame_skips_non_finite_values() -> None:
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan}, {"step": 3, "eval_loss": math.inf}]
    frame = curve_frame(rows)
    assert frame["step"].tolist() == [1]
    assert strict_json(json.dumps(curve(frame, "loss", 3), allow_nan=False))

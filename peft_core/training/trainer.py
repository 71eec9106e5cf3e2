"""Trainer with this project's batches, checkpoints and loss: every text has the same weight.

A step whose loss or gradient is not finite raises before the optimizer's step, so that the weights in memory
and every checkpoint stay finite. The optimizer's results are checked when a checkpoint is written.
"""

# pyright: reportOperatorIssue=false
# `compute_loss`, which exported scripts contain, scales a loss whose type in Trainer includes a tuple.

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from peft_core.config import TrainConfig
from peft_core.errors import ModelError
from peft_core.files.atomic import atomic_folder
from peft_core.files.manifests import write_manifest
from peft_core.hardware import is_out_of_memory
from peft_core.inference.metrics import task_metrics
from peft_core.methods.adapters import loraplus_optimizer, without_regularizer
from peft_core.problem_types import decide
from peft_core.runs.checkpoints import STATE_FILE, list_checkpoints, remove_older, step_of
from peft_core.runs.kept_step import KeptStep, metric_for_best
from peft_core.training.batches import TokenBatches, UnpaddedCollator
from peft_core.training.best import TRAINER_STATE, BestStep, StepKeeper
from peft_core.training.divergence import divergence_error, first_not_finite, named_values, not_finite
from peft_core.training.fallback import (
    AppliedOptimizations,
    TrainingOptimizations,
    random_state,
    set_random_state,
)
from peft_core.training.losses import LabelScale, Loss
from peft_core.training.processes import broadcast_from_main, is_main_process, processes, rank
from peft_core.training.recorded_inputs import RunInputs, write_inputs
from peft_core.training.schedule import first_comparable_step, total_steps
from peft_core.training.speedups import uncompiled
from peft_core.training.trained_weights import load_trained, save_trained

GPU_WORKERS = 2  # processes that prepare batches while a GPU computes
logger = logging.getLogger(__name__)


class RunTrainer(Trainer):
    """Trainer on batches of about as many tokens each, with atomic checkpoints.

    The batches have different numbers of texts, so the mean loss of a batch is weighted by its texts: over an
    epoch every text has the same weight, also if the gradients of several batches are accumulated. Stock
    Trainer writes checkpoints in place, so a process that is killed meanwhile leaves an unusable one. Here a
    checkpoint appears under `output_dir` once all of its files are on disk.

    Attributes:
        parts: Parts into which each batch is split; doubled if memory is short.
        on_parts_change: Called with the new number of parts.
        optimizations: The optimizations of the step.
        check_stop: Called before each evaluation batch; raises `Stopped` to end the run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    loss_is_scaled_for_ga = True
    _staging: Path | None = None

    def __init__(
        self,
        *args: Any,
        loader: DataLoader,
        keeper: StepKeeper,
        inputs: RunInputs | None = None,
        parts: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._loader, self.inputs, self.keeper = loader, inputs, keeper
        self.parts = parts
        self.on_parts_change: Callable[[int], None] = lambda parts: None
        self.optimizations = AppliedOptimizations(self.model, TrainingOptimizations(), contextlib.ExitStack())
        self.check_stop: Callable[[], None] = lambda: None
        self._step_texts, self._step_loss = 0, torch.tensor(0.0)  # of the current step, once it has begun
        self._step_batches: list[Any] = []  # of the current step, with gradients
        self.add_callback(MissedEvaluationCallback(self))

    @property
    def _checkpoints_folder(self) -> Path:
        assert self.args.output_dir is not None  # `training_arguments` sets it
        return Path(self.args.output_dir)

    def get_train_dataloader(self) -> DataLoader:
        return prepare_data_loader(  # whose batches are this process's own already
            self._loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        texts = len(inputs["labels"])
        loss = super().compute_loss(model, inputs, return_outputs)
        mean_texts = self.args.train_batch_size * self.args.gradient_accumulation_steps  # of a step
        return loss * (texts / mean_texts) if model.training else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_texts = sum(len(batch["labels"]) for batch in batches)
        self._step_loss, self._step_batches = torch.tensor(0.0), []
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Override Trainer's step, and repeat it in the plain form if it fails in the optimized form.

        Returns:
            The batch's share of the mean loss over the step's texts, so that the training curve has one unit.
        """
        return self.optimizations.run(lambda: self._step_in_parts(model, inputs), self.state.global_step)

    def _step_in_parts(self, model: Any, inputs: Any) -> torch.Tensor:
        """Run a step in as many parts as memory requires; their gradients add up to the whole batch's.

        Several processes do not split batches, because their steps are synchronized.

        Returns:
            The batch's share of the mean loss over the step's texts.
        """
        step, texts, gradients_lost = super().training_step, len(inputs["labels"]), False
        while True:
            try:
                if gradients_lost:
                    for batch in self._step_batches:
                        for part in split(batch, self.parts):
                            step(model, part)
                losses = torch.stack([step(model, part) for part in split(inputs, self.parts)])
                mean_texts = self.args.train_batch_size * self.args.gradient_accumulation_steps
                loss = losses.sum() * (mean_texts / (self._step_texts or texts))
                self._step_loss = self._step_loss.to(loss.device) + loss
                self._step_batches.append(inputs)
                return loss
            except (RuntimeError, MemoryError) as error:
                largest = max(len(batch["labels"]) for batch in [*self._step_batches, inputs])
                if not is_out_of_memory(error) or self.parts >= largest or processes() > 1:
                    raise
            model.zero_grad()  # of the parts that did fit
            gc.collect()
            torch.cuda.empty_cache()
            self.parts *= 2
            logger.warning("Memory is low: from now on each batch is split into %d parts.", self.parts)
            self.on_parts_change(self.parts)
            gradients_lost = True  # also those of the step's earlier batches

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Override Trainer's method, called before the optimizer's step, to detect a divergence."""
        norm, loss = super()._get_grad_norm(model, grad_norm), self._step_loss
        assert norm is not None  # Trainer computes it if it is None
        if processes() > 1:
            loss = self.accelerator.reduce(loss, "mean")
            assert isinstance(loss, torch.Tensor)  # as its argument
        measured = {"the loss": float(loss), "the gradient's norm": float(norm)}
        for name in not_finite(measured):
            raise self._divergence(f"{name} is {measured[name]}", self.state.global_step + 1)
        return norm

    def _check_values(self) -> None:
        """Raise if a value is not finite after the optimizer's step; in every process alike, so none waits.

        The loss does not always show it: torch's attention returns finite numbers for a query of NaN.
        """
        damaged = first_not_finite(named_values(self.model, self.optimizer))
        if damaged:
            raise self._divergence(f"{damaged} is not finite", self.state.global_step)

    def finish(self) -> KeptStep:
        """Load the weights to keep into the model after training, and return their step."""
        self._check_values()
        return self.keeper.finish(self.model, self.state)

    def _divergence(self, event: str, step: int) -> ModelError:
        checkpoints = [step_of(path) for path in list_checkpoints(self._checkpoints_folder)]
        return divergence_error(event, step, self.model, self.args.learning_rate, checkpoints)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.check_stop()
        step = super().prediction_step
        return self.optimizations.run(lambda: step(*args, **kwargs), self.state.global_step)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Override Trainer's evaluation to preserve the random state of the training.

        Its DataLoader draws a number. A run that was stopped in an evaluation evaluates before Trainer
        restores the random state, and would otherwise continue with other numbers than an uninterrupted run.
        """
        rng_state = random_state()
        with uncompiled(), without_regularizer(self.model):
            metrics = super().evaluate(*args, **kwargs)
        set_random_state(rng_state)
        if not_finite({"loss": metrics["eval_loss"]}):
            event = f"the loss on validation rows is {metrics['eval_loss']}"
            raise self._divergence(event, self.state.global_step)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Override Trainer's choice of the best step; also stop early, then without another checkpoint."""
        self._check_values()
        keeper, step = self.keeper, self.state.global_step
        keeper.record_evaluation(self.model, self.state, metrics)
        self.state.best_metric, self.state.best_global_step = keeper.best.value, keeper.best.step or None
        if keeper.best.exhausted:
            self.control.should_training_stop, self.control.should_save = True, False
        return keeper.best.step == step

    def restore(self, checkpoint: Path) -> None:
        """Restore the model, the trainer's state and the best step from a verified checkpoint."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))

    def run_missed_evaluation(self) -> None:
        """Evaluate at the step that the run continues from, if it was stopped before that evaluation."""
        state = self.state
        is_due = (
            state.global_step > 0
            and self.args.eval_strategy != "no"
            and (state.global_step % state.eval_steps == 0 or state.global_step == state.max_steps)
        )
        evaluated = (row["step"] for row in state.log_history if "eval_loss" in row)
        if is_due and state.global_step not in evaluated:
            self._determine_best_metric(self.evaluate(), None)

    def save_stopped(self, tokens: int, rng_state: list[torch.Tensor], *, small: bool) -> None:
        """Save a checkpoint of the last complete step, unless an earlier one exists and saving takes long.

        Args:
            tokens: Number of tokens after that step; an interrupted step or evaluation may have changed the
                trainer's count.
            rng_state: The random state after that step, for the same reason.
            small: Whether a checkpoint takes a fraction of a second.
        """
        self.model.zero_grad()
        folder, state = self._checkpoints_folder, self.state
        saved = [step_of(path) for path in list_checkpoints(folder)]
        if state.global_step not in saved and (small or not saved):
            state.num_input_tokens_seen = tokens
            set_random_state(rng_state)
            self._save_checkpoint(self.model, None)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not is_main_process():
            return
        folder = Path(output_dir) if output_dir else self._checkpoints_folder
        save_trained(self.model, folder / STATE_FILE)
        self.keeper.save_into(folder, self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / STATE_FILE)
        self.keeper.restore(Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.state.best_model_checkpoint = None  # Trainer has set it to a path in the staging folder
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_values()
        folder = self._checkpoints_folder
        final = folder / f"checkpoint-{self.state.global_step}"
        try:
            with atomic_folder(final) if is_main_process() else contextlib.nullcontext() as staging:
                shared = broadcast_from_main(str(staging.parent) if staging else None)
                assert shared is not None  # the main process has a staging folder
                self._staging = Path(shared)
                super()._save_checkpoint(model, trial)  # other processes save only their random state
                self.accelerator.wait_for_everyone()
                if staging:
                    if self.inputs:
                        write_inputs(staging, self.inputs)
                    write_manifest(staging)
        finally:
            self._staging = None
        if is_main_process():
            remove_older(folder)


class MissedEvaluationCallback(TrainerCallback):
    """Evaluates first in a run that continues, if it was stopped before an evaluation ended."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = weakref.proxy(trainer)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.run_missed_evaluation()


def split(batch: dict[str, torch.Tensor], parts: int) -> list[dict[str, torch.Tensor]]:
    """Split a batch into about equal parts, at most one per text."""
    parts = min(parts, len(batch["labels"]))
    pieces = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]


def batch_loader(
    rows: datasets.Dataset,
    tokenizer: Any,
    config: TrainConfig,
    share: tuple[int, int] = (1, 0),
    **options: Any,
) -> DataLoader:
    """Return the padded training batches of an epoch.

    Args:
        share: The number of processes that share the batches, and the rank of this process.
        options: Arguments of `DataLoader`.
    """
    lengths = [len(tokens) for tokens in rows["input_ids"][:]]
    batches = TokenBatches(lengths, config.per_device_train_batch_size, config.seed, *share)
    return DataLoader(
        rows,  # pyright: ignore[reportArgumentType]  # any object with len() and [] will do
        batch_sampler=batches,
        collate_fn=UnpaddedCollator(tokenizer),
        **options,
    )


def prefetch_options() -> dict[str, Any]:
    """Return DataLoader's options: with a GPU, worker processes that persist over epochs prepare batches."""
    if not torch.cuda.is_available():
        return {}
    return {"num_workers": GPU_WORKERS, "persistent_workers": True, "pin_memory": True}


def build_trainer(
    model: Any,
    config: TrainConfig,
    arguments: TrainingArguments,
    tokenizer: Any,
    rows: datasets.Dataset,
    curve_rows: datasets.Dataset | None,
    *,
    loss: Loss | None = None,
    scale: LabelScale | None = None,
    inputs: RunInputs | None = None,
    parts: int = 1,
) -> RunTrainer:
    """Return the trainer of a run.

    Args:
        rows: Tokenized training rows.
        curve_rows: Tokenized validation rows, if there are any.
        loss: A loss that replaces the model's own.
        scale: The label scale of a regression.
        inputs: The run's inputs, recorded in each checkpoint; without them no run continues from it.
        parts: Parts into which each batch is split from the start.
    """
    steps = total_steps(config, len(rows), processes())
    best = BestStep(
        metric_for_best(config, model.config.problem_type),
        config.early_stopping_patience,
        config.early_stopping_threshold,
        first_comparable_step(config, steps),
    )
    assert arguments.output_dir is not None  # `training_arguments` sets it
    optimizer_class, optimizer_arguments = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return RunTrainer(
        model,
        arguments,
        optimizers=(loraplus_optimizer(model, config, optimizer_class, **optimizer_arguments), None),
        data_collator=UnpaddedCollator(tokenizer),
        train_dataset=rows,
        loader=batch_loader(rows, tokenizer, config, (processes(), rank()), **prefetch_options()),
        keeper=StepKeeper(
            Path(arguments.output_dir), best, len(curve_rows or ()), keeps_best=config.load_best_model_at_end
        ),
        parts=parts,
        inputs=inputs,
        eval_dataset=curve_rows,
        processing_class=tokenizer,
        compute_loss_func=loss,
        compute_metrics=lambda prediction: _curve_metrics(prediction, model.config.problem_type, scale),
    )


def _curve_metrics(
    prediction: transformers.EvalPrediction, problem_type: str, scale: LabelScale | None
) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    assert isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray)  # the model has a single output
    decided = decide(logits, problem_type)
    return task_metrics(problem_type, scale.inverse_transform(decided) if scale else decided, labels)

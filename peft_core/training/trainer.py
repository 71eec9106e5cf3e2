"""Trainer with this project's batches, checkpoints and loss: every text counts the same.

A step whose loss or gradient is not finite raises before the optimizer's step, so the weights in memory and
every checkpoint stay finite; what the optimizer itself makes of them is checked when a checkpoint is written.
"""

import contextlib
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from peft_core.adapters import optimizer_of, without_regularizer
from peft_core.config import TrainConfig
from peft_core.errors import ModelError
from peft_core.files import atomic_folder
from peft_core.kept_step import KeptStep, metric_for_best
from peft_core.losses import LabelScale, Loss
from peft_core.machine import is_out_of_memory
from peft_core.manifests import write_manifest
from peft_core.metrics import task_metrics
from peft_core.problems import decide
from peft_core.runs import Run
from peft_core.runs.checkpoints import STATE_FILE, list_checkpoints, remove_older, step_of
from peft_core.schedule import eval_steps, first_comparable_step, loss_steps, save_steps, total_steps
from peft_core.training.batches import TokenBatches, UnpaddedCollator
from peft_core.training.best import TRAINER_STATE, BestStep, StepKeeper
from peft_core.training.checkpoints import load_trained, save_trained
from peft_core.training.divergence import divergence_error, first_not_finite, named_values, not_finite
from peft_core.training.fallback import AppliedSpeedups, Speedups, random_state, set_random_state
from peft_core.training.inputs import RunInputs, write_inputs
from peft_core.training.processes import broadcast_from_main, is_main_process, processes, rank
from peft_core.training.speedups import uncompiled

GPU_WORKERS = 2  # processes that prepare batches while a GPU computes
EVAL_TOKENS, EVAL_TEXTS = 4096, (8, 64)  # of a batch of the curve: about so many, and no fewer or more


class RunTrainer(Trainer):
    """Trainer on batches of about as many tokens each, whose checkpoints are whole or not there.

    Its batches hold unlike numbers of texts, so a batch's mean loss counts by its texts: over an epoch every
    text weighs the same, also where the gradients of several batches accumulate. Stock Trainer writes
    checkpoints in place: a process killed while it saves leaves one that cannot be used; here one appears
    under `output_dir` when every file of it is on disk.
    """

    loss_is_scaled_for_ga = True
    _staging: Path | None = None

    def __init__(
        self,
        *given: Any,
        loader: DataLoader,
        keeper: StepKeeper,
        inputs: RunInputs | None = None,
        parts: int = 1,
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self._loader, self.inputs, self.keeper = loader, inputs, keeper
        self.parts = parts
        self.tell_parts: Callable[[int], None] = lambda parts: None
        self.speedups = AppliedSpeedups(self.model, Speedups(), contextlib.ExitStack())
        self.check_stop: Callable[[], None] = lambda: None
        self._step_texts, self._step_loss = 0, torch.tensor(0.0)  # of the present step, once it has begun
        self._step_batches: list[Any] = []  # of the present step, those whose gradients are computed
        self.add_callback(MissedEvaluationCallback(self))

    def get_train_dataloader(self) -> DataLoader:
        return prepare_data_loader(  # whose batches are this process's own already
            self._loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        texts = len(inputs["labels"])
        found = super().compute_loss(model, inputs, return_outputs)
        mean_texts = self.args.train_batch_size * self.args.gradient_accumulation_steps  # of a step
        return found * (texts / mean_texts) if model.training else found

    def get_batch_samples(self, *given: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(*given)
        self._step_texts = sum(len(batch["labels"]) for batch in batches)
        self._step_loss, self._step_batches = torch.tensor(0.0), []
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As Trainer's; repeated in the plain form if it fails in a faster one.

        Returns the batch's share of the mean loss of the step's texts: the training curve is of one unit.
        """
        return self.speedups.run(lambda: self._step_in_parts(model, inputs), self.state.global_step)

    def _step_in_parts(self, model: Any, inputs: Any) -> torch.Tensor:
        """In as many parts as memory wants: their gradients add up to the whole batch's.

        Several processes do not split: each step of one has to meet a step of every other.

        Returns the batch's share of the mean loss of the step's texts.
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
            model.zero_grad()  # of the parts that fitted
            gc.collect()
            torch.cuda.empty_cache()
            self.parts *= 2
            print(f"Memory is short: each batch is read in {self.parts} parts from here on.")
            self.tell_parts(self.parts)
            gradients_lost = True  # those of the step's earlier batches, with those of the parts

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As Trainer's, which calls it before the optimizer's step: a divergence ends here."""
        norm = super()._get_grad_norm(model, grad_norm)
        loss = self.accelerator.reduce(self._step_loss, "mean") if processes() > 1 else self._step_loss
        measured = {"the loss": float(loss), "the gradient's norm": float(norm)}
        for name in not_finite(measured):
            raise self._divergence(f"{name} is {measured[name]}", self.state.global_step + 1)
        return norm

    def _check_values(self) -> None:
        """Raise if the optimizer made a value that is not finite: in every process alike, so none waits.

        A loss does not always show it: torch's attention returns numbers for a query of NaN.
        """
        damaged = first_not_finite(named_values(self.model, self.optimizer))
        if damaged:
            raise self._divergence(f"{damaged} is not finite", self.state.global_step)

    def finish(self) -> KeptStep:
        """After training: leave the model with the weights to keep, and say which they are."""
        self._check_values()
        return self.keeper.finish(self.model, self.state)

    def _divergence(self, what: str, step: int) -> ModelError:
        kept = [step_of(checkpoint) for checkpoint in list_checkpoints(Path(self.args.output_dir))]
        return divergence_error(what, step, self.model, self.args.learning_rate, kept)

    def prediction_step(self, *given: Any, **named: Any) -> Any:
        self.check_stop()
        step = super().prediction_step
        return self.speedups.run(lambda: step(*given, **named), self.state.global_step)

    def evaluate(self, *given: Any, **named: Any) -> dict[str, float]:
        """Override Trainer's evaluation so that training's random numbers stay as they were.

        Its DataLoader draws one. A run that was stopped in an evaluation evaluates before Trainer restores
        the random state, and would go on from other numbers than a run that nothing disturbed.
        """
        random = random_state()
        with uncompiled(), without_regularizer(self.model):
            metrics = super().evaluate(*given, **named)
        set_random_state(random)
        if not_finite({"loss": metrics["eval_loss"]}):
            what = f"the loss on validation rows is {metrics['eval_loss']}"
            raise self._divergence(what, self.state.global_step)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Override Trainer's choice of the best step; stops early, too, then without another checkpoint."""
        self._check_values()
        keeper, step = self.keeper, self.state.global_step
        keeper.evaluated(self.model, self.state, metrics)
        self.state.best_metric, self.state.best_global_step = keeper.best.value, keeper.best.step or None
        if keeper.best.exhausted:
            self.control.should_training_stop, self.control.should_save = True, False
        return keeper.best.step == step

    def restore(self, checkpoint: Path) -> None:
        """Bring the model, the trainer's state and the best step to where a verified checkpoint left them."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))

    def run_missed_evaluation(self) -> None:
        """Evaluate at the step that the run continues from, if Stop came before that evaluation was done."""
        state = self.state
        is_due = (
            state.global_step > 0
            and self.args.eval_strategy != "no"
            and (state.global_step % state.eval_steps == 0 or state.global_step == state.max_steps)
        )
        done = (logged["step"] for logged in state.log_history if "eval_loss" in logged)
        if is_due and state.global_step not in done:
            self._determine_best_metric(self.evaluate(), None)

    def save_stopped(self, tokens: int, random: list[torch.Tensor], *, small: bool) -> None:
        """Save a checkpoint of the last whole step, unless an earlier one exists and saving takes long.

        Args:
            tokens: Seen after that step. A step or a curve that was left in the middle may have changed the
            count.
            random: The state of the random numbers after that step, for the same reason.
            small: Whether a checkpoint takes a fraction of a second.
        """
        self.model.zero_grad()
        folder, state = Path(self.args.output_dir), self.state
        saved = [step_of(path) for path in list_checkpoints(folder)]
        if state.global_step not in saved and (small or not saved):
            state.num_input_tokens_seen = tokens
            set_random_state(random)
            self._save_checkpoint(self.model, None)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not is_main_process():
            return
        folder = Path(output_dir or self.args.output_dir)
        save_trained(self.model, folder / STATE_FILE)
        self.keeper.save_into(folder, self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / STATE_FILE)
        self.keeper.restore(Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.state.best_model_checkpoint = None  # Trainer has just put a path in the staging folder there
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_values()
        folder = Path(self.args.output_dir)
        final = folder / f"checkpoint-{self.state.global_step}"
        try:
            with atomic_folder(final) if is_main_process() else contextlib.nullcontext() as staging:
                self._staging = Path(broadcast_from_main(str(staging.parent) if staging else None))
                super()._save_checkpoint(model, trial)  # of the others only their random numbers
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
    """Has a run that continues evaluate first where it was stopped before an evaluation was done."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = weakref.proxy(trainer)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.run_missed_evaluation()


def split(batch: dict[str, torch.Tensor], parts: int) -> list[dict[str, torch.Tensor]]:
    """A batch's texts in about equal parts, as many as it has texts for."""
    parts = min(parts, len(batch["labels"]))
    pieces = {name: value.tensor_split(parts) for name, value in batch.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]


def batch_loader(
    rows: datasets.Dataset,
    tokenizer: Any,
    config: TrainConfig,
    share: tuple[int, int] = (1, 0),
    **options: Any,
) -> DataLoader:
    """The padded training batches of an epoch.

    `share`: how many processes share them, and the number of this one. `options` are DataLoader's.
    """
    lengths = [len(tokens) for tokens in rows["input_ids"][:]]
    batches = TokenBatches(lengths, config.per_device_train_batch_size, config.seed, *share)
    return DataLoader(rows, batch_sampler=batches, collate_fn=UnpaddedCollator(tokenizer), **options)


def prefetch_options() -> dict[str, Any]:
    """DataLoader's options: on a GPU processes that stay for all epochs prepare the batches."""
    if not torch.cuda.is_available():
        return {}
    return {"num_workers": GPU_WORKERS, "persistent_workers": True, "pin_memory": True}


def training_arguments(
    run: Run, config: TrainConfig, rows: int, *, curve: datasets.Dataset | None, autocast: bool
) -> TrainingArguments:
    """Trainer's own arguments for a run of so many rows; `curve`: the tokens that it is measured on."""
    steps, gpu = total_steps(config, rows, processes()), torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        max_grad_norm=config.max_grad_norm,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        per_device_eval_batch_size=_eval_batch_size(curve),
        eval_strategy="steps" if curve else "no",
        eval_steps=eval_steps(config, steps),
        save_strategy="steps",
        save_steps=save_steps(steps),
        logging_steps=loss_steps(steps),
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not gpu,
        ddp_broadcast_buffers=False,  # nothing writes into them
        ddp_find_unused_parameters=False,
        bf16=autocast and gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=gpu,
    )


def _eval_batch_size(curve: datasets.Dataset | None) -> int:
    """Texts of a batch of the curve: long ones in larger batches take longer each, and more memory."""
    least, most = EVAL_TEXTS
    if not curve or torch.cuda.is_available():
        return most
    lengths = [len(tokens) for tokens in curve["input_ids"][:]]
    return max(least, min(most, EVAL_TOKENS * len(lengths) // sum(lengths)))


def build_trainer(
    model: Any,
    config: TrainConfig,
    arguments: TrainingArguments,
    tokenizer: Any,
    rows: datasets.Dataset,
    curve_rows: datasets.Dataset | None,
    loss: Loss | None,
    scale: LabelScale | None,
    *,
    inputs: RunInputs | None = None,
    parts: int = 1,
) -> RunTrainer:
    """The trainer of a run; `loss` stands in for the model's own, `scale` brings numbers to their unit.

    Each batch is read in `parts` from the start; each checkpoint records the run's `inputs`,
    without which no run continues from it.
    """
    steps = total_steps(config, len(rows), processes())
    best = BestStep(
        metric_for_best(config, model.config.problem_type),
        config.early_stopping_patience,
        config.early_stopping_threshold,
        first_comparable_step(config, steps),
    )
    optimizer_class, optimizer_arguments = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return RunTrainer(
        model,
        arguments,
        optimizers=(optimizer_of(model, config, optimizer_class, **optimizer_arguments), None),
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
        compute_metrics=lambda seen: _curve_metrics(seen, model.config.problem_type, scale),
    )


def _curve_metrics(
    seen: transformers.EvalPrediction, problem_type: str, scale: LabelScale | None
) -> dict[str, float]:
    decided = decide(seen.predictions, problem_type)
    return task_metrics(problem_type, scale.real(decided) if scale else decided, seen.label_ids)

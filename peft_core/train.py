"""The training process: python -m peft_core.train RUN_DIR trains the run in its folder."""

import contextlib
import itertools
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed

from peft_core.adapters import (
    RankSchedule,
    apply_method,
    optimizer_of,
    start_from_data,
    trained_state,
)
from peft_core.checkpoints import CheckpointingTrainer, latest_checkpoint, step_of
from peft_core.config import TrainConfig
from peft_core.counts import count_model
from peft_core.data.labelled import LabelledText, encode, load_labelled_text
from peft_core.encoder import BaseModel, check_max_length, load_base
from peft_core.errors import PeftCoreError, RunError
from peft_core.inference.classifier import CLASSIFIER_FILE, Classifier
from peft_core.losses import LabelScale, Loss, check_class_weight, task_loss
from peft_core.methods import bits_of, virtual_tokens
from peft_core.metrics import task_metrics
from peft_core.problems import METRICS, REGRESSION, decide
from peft_core.results import label_array, measure
from peft_core.runs import (
    FAILED,
    FINISHED,
    KILLED,
    RUNNING,
    Run,
    is_disk_full,
    whole_folder,
    write_json,
)
from peft_core.schedule import CURVE_ROWS, START_BATCHES, curve_steps, loss_steps, total_steps


class Stopped(Exception):
    """The person pressed Stop before there was anything to keep."""


def train(run_dir: str | Path) -> None:
    """Start this folder's run, or continue it from its newest whole checkpoint.

    Its status ends FINISHED, FAILED (with `error`) or KILLED.

    Raises what failed: PeftCoreError for what a person can mend, anything else is a bug.
    """
    run = Run(Path(run_dir))
    config = run.config()
    with run.lock():
        run.update(status=RUNNING, pid=os.getpid(), started=time.time(), error=None)
        try:
            status = _setup_and_train(run, config)
            run.update(status=status, ended=time.time())
        except (Stopped, SystemExit, KeyboardInterrupt):
            run.update(status=KILLED, ended=time.time())
        except BaseException as error:
            with contextlib.suppress(RunError):  # on a full disk the lock alone tells that the run is over
                run.update(status=FAILED, ended=time.time(), error=failure_sentence(error))
            raise


def failure_sentence(error: BaseException) -> str:
    """What a person reads of an error that ended a run."""
    if isinstance(error, PeftCoreError):
        return str(error)
    if is_disk_full(error):
        return "The disk is full: free some space and try again; nothing half-written is left."
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "The machine ran out of memory: take a smaller batch size or max length."
    return f"{type(error).__name__}: {error} (a bug; its traceback is in the run's log)"


def _setup_and_train(run: Run, config: TrainConfig) -> str:
    _stage(run, "reading the data")
    data = load_labelled_text(config)
    check_class_weight(config, data.problem_type)
    run.update(problem_type=data.problem_type)
    _stage(run, "loading the base model")
    set_seed(config.seed)
    base = load_base(
        config.model_name_or_path,
        config.revision,
        data.label_names,
        named=data.named,
        problem_type=data.problem_type,
        bits=bits_of(config.to_dict()),
    )
    check_max_length(base.model.config, config.max_length, virtual_tokens(config.to_dict()))
    model = apply_method(
        base.model,
        config,
        base.untrained,
        base=base.source,
        steps=total_steps(config, len(data.train)),
    )
    _stage(run, "encoding the texts")
    checkpoint = latest_checkpoint(run.folder / "checkpoints")
    if checkpoint is not None:
        run.forget_metrics_after(step_of(checkpoint))
    rows = encode(data.train, base.tokenizer, config.max_length)
    curve = data.validation.select(range(min(CURVE_ROWS, len(data.validation))))
    curve_rows = encode(curve, base.tokenizer, config.max_length) if len(curve) else None

    loss, scale = _objective(config, model, base, data)
    trainer = _trainer(run, config, model, base.tokenizer, rows, curve_rows, loss, scale)
    progress = RunProgress(run, data.problem_type)
    trainer.add_callback(progress)
    trainer.add_callback(RankSchedule())
    if checkpoint is None:
        start_from_data(model, itertools.islice(trainer.get_train_dataloader(), START_BATCHES))
    _stage(run, "training")
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - start
    if scale:
        scale.fold_into(model)

    run.update(stage="evaluating")
    result = _evaluate(run, config, model, base, data, loss)
    result["data"] = data.record
    result |= {"train_seconds": seconds, "resumed_from": step_of(checkpoint) if checkpoint else 0}
    result |= progress.totals()
    progress.log_result(result, trainer.state.epoch)
    run.update(stage="saving")
    _save_adapter(run, config, model, base, data)
    write_json(run.folder / "result.json", result)
    if run.stop_requested():
        return KILLED
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return FINISHED


def _objective(
    config: TrainConfig, model: Any, base: BaseModel, data: LabelledText
) -> tuple[Loss | None, LabelScale | None]:
    """The loss, and the scale in which numbers are learned; a head that knows numbers is brought to it."""
    labels = label_array(data.train, data.problem_type)
    scale = LabelScale.of(labels) if data.problem_type == REGRESSION else None
    if scale and not base.head_is_fresh:
        scale.take_out_of(model)
    return task_loss(data.problem_type, config.class_weight, labels, model.config.num_labels), scale


def _stage(run: Run, name: str) -> None:
    """Say what begins now, unless the person has pressed Stop."""
    if run.stop_requested():
        raise Stopped
    run.update(stage=name)


def _trainer(
    run: Run,
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    curve_rows: datasets.Dataset | None,
    loss: Loss | None,
    scale: LabelScale | None,
) -> CheckpointingTrainer:
    steps = total_steps(config, len(rows))
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=64,
        eval_strategy="no" if curve_rows is None else "steps",
        eval_steps=curve_steps(steps),
        save_strategy="steps",
        save_steps=curve_steps(steps),
        logging_steps=loss_steps(steps),
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not gpu,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=gpu,
    )
    optimizer_class, optimizer_arguments = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return CheckpointingTrainer(
        model,
        arguments,
        optimizers=(optimizer_of(model, config, optimizer_class, **optimizer_arguments), None),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows,
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


class RunProgress(TrainerCallback):
    """Writes what Trainer does into the run folder, and stops it when the folder says so."""

    def __init__(self, run: Run, problem_type: str) -> None:
        self.run, self.metrics = run, METRICS[problem_type]
        self.step_seconds = 0.0
        self.steps = self.tokens = 0
        self._step_start = self._written = 0.0
        self._steps_before = self._tokens_before = 0

    def totals(self) -> dict[str, Any]:
        """Steps, tokens (padding left out) and tokens a second of the steps alone."""
        seen = self.tokens - self._tokens_before
        speed = seen / self.step_seconds if self.step_seconds else 0.0
        return {"steps": self.steps, "tokens": self.tokens, "tokens_per_second": speed}

    def log_result(self, result: dict[str, Any], epoch: float) -> None:
        """The result as a point of its own: it is of the test rows, the curve of the validation rows."""
        row = {f"test_{name}": result[name] for name in self.metrics}
        row["test_loss"] = result["eval_loss"]
        self.run.log_metrics({"step": self.steps, "epoch": epoch, "time": time.time(), **row})

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps_before, self._tokens_before = state.global_step, int(state.num_input_tokens_seen)
        self.run.update(step=state.global_step, max_steps=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.step_seconds += now - self._step_start
        self.steps, self.tokens = state.global_step, int(state.num_input_tokens_seen)
        if now - self._written > 0.5 or state.global_step == state.max_steps:
            self._written = now
            left = state.max_steps - state.global_step
            speed = self.totals()["tokens_per_second"]
            eta = left * self.step_seconds / (self.steps - self._steps_before)
            self.run.update(step=self.steps, tokens_per_second=speed, eta=eta)
        if state.global_step >= state.max_steps:  # the curve reaches the end; the adapter comes next anyway
            control.should_evaluate, control.should_save = args.eval_strategy != "no", False
        if self.run.stop_requested():
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        kept = ("loss", "learning_rate", "grad_norm", "eval_loss", *(f"eval_{name}" for name in self.metrics))
        row = {key: float(logs[key]) for key in kept if key in logs}
        if row:
            self.run.log_metrics(
                {"step": state.global_step, "epoch": state.epoch, "time": time.time(), **row}
            )


def _evaluate(
    run: Run, config: TrainConfig, model: Any, base: BaseModel, data: LabelledText, loss: Loss | None
) -> dict[str, Any]:
    """The result on every test row, and what made it."""
    return {
        **measure(run, model, base.tokenizer, data, config.max_length, loss),
        "parameters": count_model(model).to_dict(),
        "head_is_fresh": base.head_is_fresh,
        "untrained": list(base.untrained),
        "base_revision": base.source.revision,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, datasets)},
    }


def _save_adapter(run: Run, config: TrainConfig, model: Any, base: BaseModel, data: LabelledText) -> None:
    """`adapter/`: the adapter and what started untrained, the tokenizer, and `classifier.json`."""
    classifier = Classifier(
        labels=tuple(model.config.id2label.values()),
        max_length=config.max_length,
        base_model_name_or_path=base.source.name,
        base_revision=base.source.revision,
        untrained=base.untrained,
        head_is_fresh=base.head_is_fresh,
        problem_type=data.problem_type,
        text_pair="text_pair" in data.train.column_names,
    )
    with whole_folder(run.folder / ".adapter", run.adapter) as staging:
        if isinstance(model, peft.PeftModel):
            model.save_pretrained(staging, save_embedding_layers=False)
        else:
            save_file(trained_state(model), staging / "adapter_model.safetensors", metadata={"format": "pt"})
        base.tokenizer.save_pretrained(staging)
        (staging / "README.md").unlink(missing_ok=True)  # a card of blanks, worse than none
        write_json(staging / CLASSIFIER_FILE, classifier.to_dict())


def main(arguments: list[str]) -> int:
    """Train the run in the folder given; 0, 1 for a bug (traceback printed), 2 after one line on stderr."""
    if len(arguments) != 1:
        print("usage: python -m peft_core.train RUN_DIR", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    datasets.disable_progress_bars()
    try:
        train(arguments[0])
    except PeftCoreError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

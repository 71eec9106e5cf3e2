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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers import set_seed

from peft_core.adapters import RankSchedule, apply_method, start_from_data, trained_state
from peft_core.certificate import sha256_of_adapter
from peft_core.config import TrainConfig
from peft_core.counts import count_model
from peft_core.data.labelled import LabelledText, load_labelled_text
from peft_core.data.tokens import encode
from peft_core.encoder import BaseModel, check_max_length, load_base, set_dropout
from peft_core.errors import PeftCoreError, RunError
from peft_core.files import disk_sentence, write_json
from peft_core.inference.classifier import CLASSIFIER_FILE, Classifier
from peft_core.losses import LabelScale, Loss, check_class_weight, task_loss
from peft_core.machine import expect_many_shapes
from peft_core.methods import bits_of, virtual_tokens
from peft_core.problems import REGRESSION
from peft_core.results import label_array, measure
from peft_core.runs import FAILED, FINISHED, KILLED, RunInTraining, RunResult
from peft_core.runs.checkpoints import CheckpointChoice, choose_checkpoint
from peft_core.runs.run import RESULT_FILE
from peft_core.schedule import CURVE_ROWS, START_BATCHES, total_steps
from peft_core.sources import hub_commit
from peft_core.training.inputs import RunInputs, begin_inputs, check_inputs, inputs_of, read_inputs
from peft_core.training.lower_layers import Texts
from peft_core.training.memory import MemoryPlan, checkpointed, plan_memory
from peft_core.training.processes import (
    FollowedRun,
    is_shared,
    launch_command,
    leads,
    own_device,
    part,
    processes,
)
from peft_core.training.reporting import RunProgress, log_result
from peft_core.training.speedups import faster
from peft_core.training.trainer import batch_loader, build_trainer, is_out_of_memory, training_arguments

TOKENS = ".tokens"  # beside the runs: texts that were tokenised before


class Stopped(Exception):
    """The person pressed Stop before there was anything to keep."""


def train(run_dir: str | Path) -> None:
    """Start this folder's run, or continue it from its newest whole checkpoint.

    Its status ends FINISHED, FAILED (with `error`) or KILLED. Of several processes that train it (started by
    `accelerate launch`), each takes batches of `per_device_train_batch_size`, and the first alone writes.

    Raises what failed: PeftCoreError for what a person can mend, anything else is a bug.
    """
    run = RunInTraining(Path(run_dir)) if leads() else FollowedRun(Path(run_dir))
    config = run.config()
    with run.lock():
        run.begin()
        try:
            status = _setup_and_train(run, config)
            run.update(status=status, ended=time.time())
            if status == FINISHED and leads():  # not before: until the state is written they are all there is
                shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
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
    disk = disk_sentence(error)
    if disk is not None:
        return disk
    if is_out_of_memory(error):
        return "The machine ran out of memory: take a smaller batch size or max length."
    return f"{type(error).__name__}: {error} (a bug; its traceback is in the run's log)"


def _setup_and_train(run: RunInTraining, config: TrainConfig) -> str:
    _stage(run, "reading the data")
    data = load_labelled_text(config)
    check_class_weight(config, data.problem_type)
    run.update(problem_type=data.problem_type)
    _stage(run, "loading the base model")
    set_seed(config.seed)
    choice = choose_checkpoint(run)
    before = read_inputs(choice.checkpoint) if choice else None
    base = load_base(
        config.model_name_or_path,
        (before and hub_commit(before.base_revision)) or config.revision,
        data.label_names,
        named=data.named,
        problem_type=data.problem_type,
        bits=bits_of(config.to_dict()),
    )
    inputs = inputs_of(config, data, base)
    _begin_or_check(run, choice, before, inputs)
    check_max_length(base.model.config, config.max_length, virtual_tokens(config.to_dict()))
    set_dropout(base.model, config.dropout)
    steps = total_steps(config, len(data.train), processes())
    model = apply_method(base.model, config, base.untrained, base=base.source, steps=steps)
    _stage(run, "encoding the texts")
    rows, curve_rows = _encoded(config, data, base.tokenizer, run.folder.parent / TOKENS)
    loss, scale = _objective(config, model, base, data)
    trained = _fit(run, config, model, base.tokenizer, rows, curve_rows, loss, scale, choice, inputs)
    part()
    if not leads():
        return FINISHED
    if scale:
        scale.fold_into(model)

    run.update(stage="evaluating")
    with run.new_folder(run.folder / "evaluation") as staging:
        result = _evaluate(staging, config, model, base, data, loss)
        result |= {**trained, "data": data.record}
        log_result(run, result)
        run.update(stage="saving")
        _save_adapter(run, config, model, base, data)
        proofs = {"adapter_sha256": sha256_of_adapter(run), "metrics_check": run.live.metrics_check}
        write_json(staging / RESULT_FILE, RunResult.from_dict({**result, **proofs}).to_dict())
    return KILLED if run.stop_requested() else FINISHED


def _begin_or_check(
    run: RunInTraining, choice: CheckpointChoice | None, before: RunInputs | None, now: RunInputs
) -> None:
    """Record the inputs of a run that starts; of one that continues, see that they are the same and say from
    where it goes on."""
    if not leads():
        return
    if choice is None or before is None:
        begin_inputs(run, now)
        return
    check_inputs(before, now)
    run.note(f"Continued from the checkpoint of step {choice.step}.")
    for sentence in choice.skipped:
        run.note(sentence)
        print(sentence)


def _encoded(
    config: TrainConfig, data: LabelledText, tokenizer: Any, cache: Path
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The tokens of the training rows, and of the rows of the curve, the longest first, if there are any."""
    rows = encode(data.train, tokenizer, config.max_length, cache)
    curve = data.validation.select(range(min(CURVE_ROWS, len(data.validation))))
    if not len(curve):
        return rows, None
    curve = encode(curve, tokenizer, config.max_length, cache)
    lengths = np.array([len(tokens) for tokens in curve["input_ids"][:]])
    return rows, curve.select(np.argsort(-lengths, kind="stable"))


def _fit(
    run: RunInTraining,
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    curve_rows: datasets.Dataset | None,
    loss: Loss | None,
    scale: LabelScale | None,
    choice: CheckpointChoice | None,
    inputs: RunInputs,
) -> dict[str, Any]:
    """Train the model, from the chosen checkpoint if there is one; what the result says of it."""
    before = None
    device = own_device()
    if not getattr(model, "is_quantized", False):
        model.to(device)
    loader = batch_loader(rows, tokenizer, config)
    first = _on(device, next(iter(loader)))
    if choice is None:
        start_from_data(model, (_on(device, batch) for batch in itertools.islice(loader, START_BATCHES)))
    else:
        run.forget_metrics_after(choice.step)
        before = run.current.speedups
    _stage(run, "training")
    start = time.perf_counter()
    texts = _texts(run, config, tokenizer, [part for part in (rows, curve_rows) if part])
    steps = total_steps(config, len(rows), processes())
    with contextlib.ExitStack() as stack:
        speedups = stack.enter_context(faster(model, config, first, steps, before, texts))
        memory = _planned_memory(run, model, first)
        stack.enter_context(checkpointed(model, memory.checkpointing))
        run.update(speedups=speedups.to_dict(), stage="training")
        arguments = training_arguments(run, config, len(rows), curve=curve_rows, autocast=speedups.autocast)
        trainer = build_trainer(
            model,
            config,
            arguments,
            tokenizer,
            rows,
            curve_rows,
            loss,
            scale,
            inputs=inputs,
            parts=memory.parts,
        )
        trainer.tell_parts = lambda parts: run.update(batch_parts=parts)
        progress = RunProgress(run, model.config.problem_type)
        trainer.add_callback(progress)
        trainer.add_callback(RankSchedule())
        trainer.train(resume_from_checkpoint=str(choice.checkpoint) if choice else None)
    return {
        "train_seconds": time.perf_counter() - start,
        "resumed_from": choice.step if choice else 0,
        "epochs": trainer.state.epoch,
        "speedups": speedups.to_dict(),
        "batch_parts": trainer.parts,
        "gradient_checkpointing": memory.checkpointing,
        **progress.totals(),
    }


def _planned_memory(run: RunInTraining, model: Any, batch: dict[str, torch.Tensor]) -> MemoryPlan:
    """What the forecast wants, or what the run that is continued had to do; it says so."""
    plan = plan_memory(model, batch, may_split=processes() == 1)
    plan = replace(plan, parts=max(plan.parts, run.current.batch_parts or 1))
    if plan.parts > 1 or plan.checkpointing:
        again = ", and the layers run again in the backward pass" if plan.checkpointing else ""
        print(
            f"A batch would take {plan.needed / 1e9:.1f} GB of {plan.free / 1e9:.1f} GB that are free: it is "
            f"read in {plan.parts} parts{again}."
        )
    run.update(batch_parts=plan.parts, gradient_checkpointing=plan.checkpointing)
    return plan


def _texts(run: RunInTraining, config: TrainConfig, tokenizer: Any, parts: list[datasets.Dataset]) -> Texts:
    """What the frozen layers may run for once."""
    lengths = [len(tokens) for part in parts for tokens in part["input_ids"][:]]
    batches = itertools.chain(*(batch_loader(part, tokenizer, config) for part in parts))
    return Texts(batches, sum(lengths), run.folder, _told(run, len(lengths)))


def _told(run: RunInTraining, texts: int) -> Callable[[int], None]:
    """Who says, twice a second, for how many of the texts the frozen layers have run, and hears of Stop."""
    last = 0.0

    def told(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            _stage(run, f"running the frozen layers once: {done:,} of {texts:,} texts")

    return told


def _on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def _objective(
    config: TrainConfig, model: Any, base: BaseModel, data: LabelledText
) -> tuple[Loss | None, LabelScale | None]:
    """The loss, and the scale in which numbers are learned; a head that knows numbers is brought to it."""
    labels = label_array(data.train, data.problem_type)
    scale = LabelScale.of(labels) if data.problem_type == REGRESSION else None
    if scale and not base.head_is_fresh:
        scale.take_out_of(model)
    return task_loss(data.problem_type, config.class_weight, labels, model.config.num_labels), scale


def _stage(run: RunInTraining, name: str) -> None:
    """Say what begins now, unless the person has pressed Stop."""
    if run.stop_requested():
        raise Stopped
    run.update(stage=name)


def _evaluate(
    folder: Path, config: TrainConfig, model: Any, base: BaseModel, data: LabelledText, loss: Loss | None
) -> dict[str, Any]:
    """The result on every test row, whose outputs are written into the folder, and what made it."""
    return {
        **measure(folder, model, base.tokenizer, data, config.max_length, loss),
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


def _save_adapter(
    run: RunInTraining, config: TrainConfig, model: Any, base: BaseModel, data: LabelledText
) -> None:
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
    with run.new_folder(run.adapter) as staging:
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
    if torch.cuda.device_count() > 1 and not is_shared():
        os.execv(sys.executable, launch_command(torch.cuda.device_count(), arguments[0]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    datasets.disable_progress_bars()
    expect_many_shapes()
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

"""The training process, from the settings in a run's folder to its adapter and its results."""

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch

from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError, RunError, reason_of
from peft_core.files.atomic import describe_disk_error, remove_tree
from peft_core.hardware import expect_many_shapes, is_out_of_memory
from peft_core.methods.adapters import RankSchedule, initialize_from_data
from peft_core.runs import FAILED, FINISHED, KILLED, SCHEDULED, RunInTraining
from peft_core.runs.checkpoints import describe_early_stop
from peft_core.training import outputs
from peft_core.training.arguments import training_arguments
from peft_core.training.fallback import AppliedOptimizations, TrainingOptimizations
from peft_core.training.garbage import resume_collection
from peft_core.training.lower_layers import TextsToCache
from peft_core.training.memory import MemoryPlan, checkpointed, plan_memory
from peft_core.training.processes import (
    ReadOnlyRun,
    is_main_process,
    is_shared,
    launch_command,
    leave_process_group,
    own_device,
    processes,
)
from peft_core.training.reporting import RunProgress
from peft_core.training.schedule import START_BATCHES, total_steps
from peft_core.training.setup import TrainingSetup, begin_stage, prepare_training
from peft_core.training.speedups import optimize_training
from peft_core.training.stopped import (
    mark_stopped,
    note_after_training,
    remove_evaluation,
    train_until_stopped,
)
from peft_core.training.stopping import StopCheck, Stopped
from peft_core.training.trainer import RunTrainer, batch_loader, build_trainer

logger = logging.getLogger(__name__)


def train(run_dir: str | Path, *, only_if_scheduled: bool = False) -> None:
    """Train a run, or continue it from its newest complete checkpoint.

    Its final status is FINISHED, FAILED (with `error`) or KILLED. If several processes train it (started by
    `accelerate launch`), each takes batches of `per_device_train_batch_size`; only the main process writes.

    Args:
        run_dir: The run's folder.
        only_if_scheduled: Refuse a run that is not waiting in the queue any more. Two apps over one folder of
            runs may both start its next run; the later process must not train it again.

    Raises:
        PeftCoreError: An error that the user can fix; any other error is a bug.
    """
    run = RunInTraining(Path(run_dir)) if is_main_process() else ReadOnlyRun(Path(run_dir))
    config = run.config()
    with run.lock():
        if is_main_process():
            _check_trainable(run, only_if_scheduled)
        try:
            run.begin()
            status = _setup_and_train(run, config)
            run.update(status=status, ended=time.time(), evaluate_only=False)
            if status == FINISHED and is_main_process():
                remove_tree(run.checkpoints)  # not before the state is written: it is all there is
        except (Stopped, SystemExit, KeyboardInterrupt):
            mark_stopped(run, describe_early_stop(run, run.current.stage or "starting"))
        except BaseException as error:
            reason = describe_failure(error)
            with contextlib.suppress(RunError):  # on a full disk only the lock tells that the run has ended
                run.update(status=FAILED, ended=time.time(), error=reason, evaluate_only=False)
            if describe_disk_error(error) == reason:
                raise RunError(reason) from error
            raise


def _check_trainable(run: RunInTraining, only_if_scheduled: bool) -> None:
    """Raise RunError for a run that is finished, or that another process has started meanwhile."""
    status = run.state().status
    if only_if_scheduled and status != SCHEDULED:
        raise RunError(f"The run {run.run_id!r} was started by another process.")
    if status == FINISHED:
        raise RunError(f"The run {run.run_id!r} has finished; train its settings as a new run.")


def describe_failure(error: BaseException) -> str:
    """Return the message on the page for an error that ended a run; it names no folder."""
    if isinstance(error, PeftCoreError):
        return str(error)
    disk_error = describe_disk_error(error)
    if disk_error is not None:
        return disk_error
    if is_out_of_memory(error):
        return "The machine ran out of memory: use a smaller batch size or max length."
    if isinstance(error, OSError):
        return f"The system reported an error: {reason_of(error)}; the run's log says where."
    return f"{type(error).__name__}: {reason_of(error)} (a bug; its traceback is in the run's log)"


def _setup_and_train(run: RunInTraining, config: TrainConfig) -> str:
    """Train the run and write its outputs; return its final status."""
    stop = StopCheck(run.stop_requested)
    setup = stop.interruptible(lambda: prepare_training(run, config))
    trained, stopped = _fit(setup, stop)
    leave_process_group()
    if not is_main_process():
        return KILLED if stopped else FINISHED
    if setup.scale:
        setup.scale.fold_into(setup.model)
    try:
        if stopped:
            raise Stopped
        outputs.evaluate_and_save(setup, trained, stop)
    except Stopped:
        run.update(stage="saving")
        remove_evaluation(run)
        outputs.save_adapter(setup)
        mark_stopped(run, note_after_training(run, trained["steps"], run.current.max_steps or 0))
        return KILLED
    return KILLED if run.current.evaluate_only else FINISHED


def _prepare_steps(
    setup: TrainingSetup, stack: contextlib.ExitStack
) -> tuple[float, AppliedOptimizations, MemoryPlan]:
    """Optimize the steps and fit them into memory, until the stack is closed.

    Returns:
        When the training began, on the clock of `time.perf_counter` (for a run that continues, as if it had
        not been interrupted), the optimizations, and the memory plan.
    """
    run, choice = setup.run, setup.choice
    first = _prepare_first_batch(setup)
    begin_stage(run, "training")
    start = time.perf_counter() - (run.current.train_seconds or 0.0 if choice else 0.0)
    optimizations = stack.enter_context(_optimize(setup, first))
    memory = optimizations.run(lambda: _plan_memory(run, setup.model, first))
    return start, optimizations, memory


def _fit(setup: TrainingSetup, stop: StopCheck) -> tuple[dict[str, Any], bool]:
    """Train the model, from the chosen checkpoint if there is one.

    Returns:
        The fields of the result that describe the training, and whether it was stopped.

    Raises:
        Stopped: Before the first step.
    """
    run, model, choice = setup.run, setup.model, setup.choice
    if not getattr(model, "is_quantized", False):
        model.to(own_device())
    with contextlib.ExitStack() as stack:
        start, optimizations, memory = stop.interruptible(lambda: _prepare_steps(setup, stack))
        stack.enter_context(checkpointed(model, memory.checkpointing))
        run.update(speedups=optimizations.record.to_dict(), stage="training")
        trainer = _build_trainer(setup, optimizations, memory)
        progress = RunProgress(run, model.config.problem_type, start)
        trainer.add_callback(progress)
        trainer.add_callback(RankSchedule())
        stopped = train_until_stopped(trainer, progress, choice.checkpoint if choice else None, stop)
        kept_step = {} if stopped else {"kept": trainer.finish().to_dict()}
        progress.note_seconds()
    return {
        **kept_step,
        "train_seconds": run.current.train_seconds,
        "resumed_from": choice.step if choice else 0,
        "epochs": trainer.state.epoch,
        "speedups": optimizations.record.to_dict(),
        "batch_parts": trainer.parts,
        "gradient_checkpointing": memory.checkpointing,
        **progress.totals(),
    }, stopped


def _prepare_first_batch(setup: TrainingSetup) -> dict[str, torch.Tensor]:
    """Return the first batch; initialize methods that use data, and drop metrics of later steps."""
    device = own_device()
    loader = batch_loader(setup.rows, setup.tokenizer, setup.config)
    first = _to_device(next(iter(loader)), device)
    if setup.choice is None:
        batches = itertools.islice(loader, START_BATCHES)
        initialize_from_data(setup.model, (_to_device(batch, device) for batch in batches))
    setup.run.forget_metrics_after(setup.choice.step if setup.choice else 0)
    return first


def _optimize(
    setup: TrainingSetup, first: dict[str, torch.Tensor]
) -> contextlib.AbstractContextManager[AppliedOptimizations]:
    """Optimize the steps; a run that continues has the optimizations that it had at that step."""
    run, config, rows = setup.run, setup.config, setup.rows
    choice = setup.choice
    before = TrainingOptimizations.at_step(run.current.speedups, choice.step) if choice else None
    texts = _texts_to_cache(setup, [split for split in (rows, setup.curve_rows) if split])
    forward_passes = total_steps(config, len(rows), processes()) * config.gradient_accumulation_steps
    return optimize_training(setup.model, config, first, forward_passes, before, texts)


def _build_trainer(
    setup: TrainingSetup, optimizations: AppliedOptimizations, memory: MemoryPlan
) -> RunTrainer:
    """Return the trainer of a run, which writes changes of the plan into the run's folder."""
    run, config, rows, curve_rows = setup.run, setup.config, setup.rows, setup.curve_rows
    autocast = optimizations.record.autocast
    arguments = training_arguments(run, config, len(rows), curve=curve_rows, autocast=autocast)
    trainer = build_trainer(
        setup.model,
        config,
        arguments,
        setup.tokenizer,
        rows,
        curve_rows,
        loss=setup.loss,
        scale=setup.scale,
        inputs=setup.inputs,
        parts=memory.parts,
    )
    trainer.on_parts_change = lambda parts: run.update(batch_parts=parts)
    optimizations.on_fall_back = lambda record: run.update(speedups=record.to_dict())
    trainer.optimizations = optimizations
    return trainer


def _plan_memory(run: RunInTraining, model: Any, batch: dict[str, torch.Tensor]) -> MemoryPlan:
    """Return the memory plan, with at least as many parts as the run had before, and log and record it."""
    plan = plan_memory(model, batch, may_split=processes() == 1)
    plan = replace(plan, parts=max(plan.parts, run.current.batch_parts or 1))
    if plan.parts > 1 or plan.checkpointing:
        logger.info(
            "A batch would need %.1f GB of the %.1f GB of free memory: it is split into %d parts%s.",
            plan.needed / 1e9,
            plan.free / 1e9,
            plan.parts,
            ", with gradient checkpointing" if plan.checkpointing else "",
        )
    run.update(batch_parts=plan.parts, gradient_checkpointing=plan.checkpointing)
    return plan


def _texts_to_cache(setup: TrainingSetup, splits: list[datasets.Dataset]) -> TextsToCache:
    """Return the texts for which frozen layers may run once."""
    lengths = [len(tokens) for split in splits for tokens in split["input_ids"][:]]
    batches = itertools.chain(*(batch_loader(split, setup.tokenizer, setup.config) for split in splits))
    return TextsToCache(batches, sum(lengths), setup.run.folder, _report_texts(setup.run, len(lengths)))


def _report_texts(run: RunInTraining, texts: int) -> Callable[[int], None]:
    """Return a callback that writes progress at most twice a second, and raises `Stopped` once requested."""
    last = 0.0

    def on_progress(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            begin_stage(run, f"caching the outputs of the frozen layers: {done:,} of {texts:,} texts")

    return on_progress


def _to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def log_to_stdout() -> None:
    """Log this package's messages to stdout, which the launcher redirects to the run's log, as plain text."""
    package = logging.getLogger("peft_core")
    package.addHandler(logging.StreamHandler(sys.stdout))
    package.setLevel(logging.INFO)


def main(arguments: list[str]) -> int:
    """Train the run in a folder; return 0, 1 for a bug (with traceback), or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m peft_core.train", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR")
    scheduled = "exit with an error unless the run is waiting in the queue"
    parser.add_argument("--only-if-scheduled", action="store_true", help=scheduled)
    options = parser.parse_args(arguments)
    resume_collection()
    if torch.cuda.device_count() > 1 and not is_shared():
        os.execv(sys.executable, launch_command(torch.cuda.device_count(), arguments))
    if is_main_process():
        log_to_stdout()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    datasets.disable_progress_bars()
    expect_many_shapes()
    try:
        train(options.run_dir, only_if_scheduled=options.only_if_scheduled)
    except PeftCoreError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0

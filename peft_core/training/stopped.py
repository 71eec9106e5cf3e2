"""Run the trainer until it ends or is stopped, and record what a stopped run keeps."""

import contextlib
import time
from pathlib import Path

from peft_core.errors import RunError
from peft_core.files.atomic import remove_tree
from peft_core.runs import KILLED, RunInTraining
from peft_core.runs.checkpoints import list_checkpoints, step_of
from peft_core.training.processes import processes
from peft_core.training.reporting import SMALL, RunProgress, count_trained
from peft_core.training.stopping import StopCheck, Stopped
from peft_core.training.trainer import RunTrainer


def train_until_stopped(
    trainer: RunTrainer, progress: RunProgress, checkpoint: Path | None, stop: StopCheck
) -> bool:
    """Run the trainer, from a checkpoint if there is one; return whether it was stopped after a step.

    A run that is only evaluated takes no step: it has the checkpoint's weights.

    A single process also stops within a step; processes that share a run stop together, between two steps.

    Raises:
        Stopped: Before the first step.
    """
    is_single, compiled = processes() == 1, trainer.optimizations.record.compiled
    if is_single:
        trainer.check_stop = stop
    # hooks that read the disk would break the compiled graph; steps that are worth compiling are short
    layers = stop.between_layers(trainer.model) if is_single and not compiled else contextlib.nullcontext()
    try:
        with layers:
            if progress.run.current.evaluate_only:
                _restore(trainer, progress, checkpoint)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Stopped:
        if not trainer.state.global_step:
            raise
        small = count_trained(trainer.model) <= SMALL
        trainer.save_stopped(progress.tokens, progress.rng_state, small=small)
        return True
    return False


def _restore(trainer: RunTrainer, progress: RunProgress, checkpoint: Path | None) -> None:
    """Restore model and trainer from a checkpoint. Raises RunError if there is none."""
    if checkpoint is None:
        raise RunError("There is no checkpoint to evaluate; continue the run, or train it again.")
    trainer.restore(checkpoint)
    progress.on_train_begin(trainer.args, trainer.state, trainer.control)
    trainer.run_missed_evaluation()
    step, max_steps = trainer.state.global_step, trainer.state.max_steps
    rest = " Continue resumes from there." if step < max_steps else ""
    progress.run.note(f"Evaluated without further training, from the checkpoint of step {step:,}.{rest}")


def remove_evaluation(run: RunInTraining) -> None:
    """Remove the result of an earlier adapter, because the test rows are not evaluated with the new one."""
    remove_tree(run.folder / "evaluation")


def mark_stopped(run: RunInTraining, note: str) -> None:
    """Set the status to KILLED with a note; ignore signals that arrive while it is written."""
    note = " ".join(filter(None, (run.stop_reason(), note)))
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            run.update(
                status=KILLED, ended=time.time(), notes=[*run.current.notes, note], evaluate_only=False
            )
            return


def note_after_training(run: RunInTraining, step: int, max_steps: int) -> str:
    """Return the note of a run that was stopped and keeps the adapter after `step` of `max_steps` steps."""
    if step < max_steps:
        words = f"Stopped at step {step:,} of {max_steps:,}. The adapter of that step is kept"
    else:
        words = f"Stopped after all {max_steps:,} steps. The adapter is kept"
    words, checkpoint = f"{words}; the test rows were not evaluated", _newest_checkpoint(run)
    if checkpoint is None:
        return f"{words}, and there is no checkpoint to continue from."
    if checkpoint == max_steps:
        return f"{words}. Continue evaluates them."
    return (
        f"{words}. Continue resumes from step {checkpoint:,}; Evaluate evaluates the best step so far "
        "without further training."
    )


def _newest_checkpoint(run: RunInTraining) -> int | None:
    return next((step_of(path) for path in list_checkpoints(run.checkpoints)), None)

"""Prepare a training before its first step: rows, base model, method, tokens and loss, all checked."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import set_seed

from peft_core.config import TrainConfig
from peft_core.data.labelled import LabeledSplits, load_labeled_splits
from peft_core.data.tokens import encode
from peft_core.methods.adapters import apply_method
from peft_core.methods.registry import bits_of, virtual_tokens
from peft_core.models.encoder import BaseModel, check_max_length, load_base, set_dropout
from peft_core.models.sources import hub_commit
from peft_core.problem_types import REGRESSION
from peft_core.runs import RunInTraining
from peft_core.runs.checkpoints import CheckpointChoice, choose_checkpoint
from peft_core.training.losses import LabelScale, Loss, check_objective, task_loss
from peft_core.training.processes import is_main_process, processes
from peft_core.training.recorded_inputs import RunInputs, begin_inputs, check_inputs, inputs_of, read_inputs
from peft_core.training.results import label_array
from peft_core.training.schedule import evaluation_rows, total_steps
from peft_core.training.stopping import Stopped

TOKENS = ".tokens"  # folder of the token cache, beside the runs
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """A run that is ready for its first step, or for the next step after a checkpoint.

    Attributes:
        model: The base model with the method applied.
        rows: Tokens of the training rows.
        curve_rows: Tokens of the validation rows of an evaluation, longest first; None if there are none.
        loss: A loss of this project, or None for the model's own.
        scale: The scale of a regression's labels, which its head learns standardized.
        choice: The checkpoint to continue from, or None.
        inputs: The inputs of the run, for its checkpoints.
    """

    run: RunInTraining
    config: TrainConfig
    data: LabeledSplits
    base: BaseModel
    model: Any
    rows: datasets.Dataset
    curve_rows: datasets.Dataset | None
    loss: Loss | None
    scale: LabelScale | None
    choice: CheckpointChoice | None
    inputs: RunInputs

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base model."""
        return self.base.tokenizer


def prepare_training(run: RunInTraining, config: TrainConfig) -> TrainingSetup:
    """Read, load and check everything; a run that continues must have the inputs that it began with.

    Raises:
        PeftCoreError: An error that the user can fix.
        Stopped: Between two stages, once the user asks for it.
    """
    begin_stage(run, "reading the data")
    data = load_labeled_splits(config)
    check_objective(config, data.problem_type)
    begin_stage(run, "loading the base model")
    set_seed(config.seed)
    choice = choose_checkpoint(run)
    before = read_inputs(choice.checkpoint) if choice else None
    base = _load_base(config, data, before)
    inputs = inputs_of(config, data, base)
    _begin_or_check(run, choice, before, inputs)
    run.update(problem_type=data.problem_type)
    check_max_length(base.model.config, config.max_length, virtual_tokens(config.to_dict()))
    set_dropout(base.model, config.dropout)
    steps = total_steps(config, len(data.train), processes())
    model = apply_method(base.model, config, base.untrained, base=base.source, steps=steps)
    begin_stage(run, "encoding the texts")
    rows, curve_rows = _encoded(config, data, base.tokenizer, run.folder.parent / TOKENS)
    loss, scale = _objective(config, model, base, data)
    return TrainingSetup(
        run, config, data, base, model, rows, curve_rows, loss, scale, choice=choice, inputs=inputs
    )


def begin_stage(run: RunInTraining, name: str) -> None:
    """Write the name of the stage that begins; raise `Stopped` if the user has asked for it."""
    if run.stop_requested():
        raise Stopped
    run.update(stage=name)


def _load_base(config: TrainConfig, data: LabeledSplits, before: RunInputs | None) -> BaseModel:
    """Load the base model; a run that continues uses the commit on the Hub that it began with."""
    return load_base(
        config.model_name_or_path,
        (before and hub_commit(before.base_revision)) or config.revision,
        data.label_names,
        has_label_names=data.has_label_names,
        problem_type=data.problem_type,
        bits=bits_of(config.to_dict()),
        base_head=config.base_head,
    )


def _begin_or_check(
    run: RunInTraining, choice: CheckpointChoice | None, before: RunInputs | None, now: RunInputs
) -> None:
    """Record the inputs of a run that starts, or check those of a run that continues and note its step."""
    if not is_main_process():
        return
    if choice is None or before is None:
        begin_inputs(run, now)
        run.update(notes=[])
        return
    check_inputs(before, now)
    run.update(notes=[])  # only now: a run that is refused keeps its notes
    if not run.current.evaluate_only:
        run.note(f"Continued from the checkpoint of step {choice.step}.")
    for sentence in choice.skipped:
        run.note(sentence)
        logger.warning("%s", sentence)


def _encoded(
    config: TrainConfig, data: LabeledSplits, tokenizer: Any, cache: Path
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the tokens of the training rows, and of the curve's validation rows (longest first), if any."""
    rows = encode(data.train, tokenizer, config.max_length, cache)
    evaluated = evaluation_rows(config, len(data.train), len(data.validation), processes())
    curve = data.validation.select(range(evaluated))
    if not len(curve):
        return rows, None
    curve = encode(curve, tokenizer, config.max_length, cache)
    lengths = np.array([len(tokens) for tokens in curve["input_ids"][:]])
    return rows, curve.select(np.argsort(-lengths, kind="stable"))


def _objective(
    config: TrainConfig, model: Any, base: BaseModel, data: LabeledSplits
) -> tuple[Loss | None, LabelScale | None]:
    """Return the loss, and a regression's label scale, to which a base model's head is converted."""
    labels = label_array(data.train, data.problem_type)
    scale = LabelScale.from_labels(labels) if data.problem_type == REGRESSION else None
    if scale and not base.head_is_fresh:
        scale.unfold_from(model)
    return task_loss(config, data.problem_type, labels, model.config.num_labels), scale

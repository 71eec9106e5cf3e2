"""The inputs of a training run (`inputs.json`), so that it continues on the same rows, labels and base model.

The record is written when a run starts, and into each checkpoint. A run that continues computes it again and
compares it with the checkpoint's record. Any difference would change the meaning of the weights (labels in
another order, training rows among the test rows), so the run is refused and nothing is changed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers

from peft_core.config import TrainConfig
from peft_core.data.labelled import LabeledSplits
from peft_core.data.tokens import rows_digest, tokenizer_digest
from peft_core.errors import InputsChangedError
from peft_core.files.atomic import write_json
from peft_core.files.hashing import sha256_of_file
from peft_core.files.manifests import write_manifest
from peft_core.files.records import Record, read_record
from peft_core.models.encoder import BaseModel
from peft_core.models.heads import label_names
from peft_core.runs import Run
from peft_core.runs.checkpoints import INPUTS_FILE
from peft_core.runs.run import CONFIG_FILE

_SPLITS = ("train", "validation", "test")


class SplitDigest(Record):
    """The number of rows of a split, and the SHA-256 of their texts and labels in order."""

    rows: int
    sha256: str


class RunInputs(Record):
    """Everything that determines the trained weights, as digests and names."""

    splits: dict[str, SplitDigest]
    problem_type: str
    label_names: list[str]
    base_model_name_or_path: str
    base_revision: str | None
    base_config_sha256: str
    tokenizer_sha256: str
    settings: dict[str, Any]
    versions: dict[str, str]


def inputs_of(config: TrainConfig, data: LabeledSplits, base: BaseModel) -> RunInputs:
    """Return the inputs of a run that starts now."""
    rows = zip(_SPLITS, (data.train, data.validation, data.eval), strict=True)
    return RunInputs(
        splits={name: SplitDigest(rows=len(split), sha256=rows_digest(split)) for name, split in rows},
        problem_type=data.problem_type,
        label_names=label_names(base.model.config),
        base_model_name_or_path=base.source.name,
        base_revision=base.source.revision,
        base_config_sha256=sha256_of_file(base.source.folder / "config.json"),
        tokenizer_sha256=tokenizer_digest(base.tokenizer),
        settings=json.loads(config.to_json()),
        versions={module.__name__: module.__version__ for module in (torch, transformers, peft, datasets)},
    )


def write_inputs(folder: Path, inputs: RunInputs) -> None:
    """Write `inputs.json` into a folder."""
    write_json(folder / INPUTS_FILE, inputs.to_dict())


def begin_inputs(run: Run, inputs: RunInputs) -> None:
    """Record the inputs of a run that starts from its first step."""
    write_inputs(run.folder, inputs)
    write_manifest(run.folder, CONFIG_FILE, INPUTS_FILE)


def read_inputs(folder: Path) -> RunInputs:
    """Read the inputs of a checkpoint whose files have been verified."""
    return read_record(folder / INPUTS_FILE, RunInputs)


def check_inputs(before: RunInputs, now: RunInputs) -> None:
    """Raise InputsChangedError, which names the first difference, unless both are equal."""
    difference = next(differences(before, now), None)
    if difference:
        raise InputsChangedError(
            f"The run cannot continue: {difference}. Nothing was changed; restore it, or train as a new run."
        )


def differences(before: RunInputs, now: RunInputs) -> Iterator[str]:
    """Yield a description of each difference, the most important first."""
    if before.problem_type != now.problem_type:
        yield f"the labels were read as {before.problem_type}, and are read as {now.problem_type} now"
    if before.label_names != now.label_names:
        yield f"the labels were {_listed(before.label_names)}, and are {_listed(now.label_names)} now"
    for name in _SPLITS:
        yield from _split_differences(name, before.splits.get(name), now.splits.get(name))
    if before.base_model_name_or_path != now.base_model_name_or_path:
        names = before.base_model_name_or_path, now.base_model_name_or_path
        yield f"the base model was {names[0]!r}, and is {names[1]!r} now"
    if before.base_revision != now.base_revision or before.base_config_sha256 != now.base_config_sha256:
        yield (
            f"the files of the base model {now.base_model_name_or_path!r} have changed since it began "
            f"(they were {before.base_revision}, and are {now.base_revision} now)"
        )
    if before.tokenizer_sha256 != now.tokenizer_sha256:
        yield "the tokenizer of the base model has changed since it began"
    yield from _changed_entries("the setting", before.settings, now.settings)
    yield from _changed_entries("the version of", before.versions, now.versions)


def _split_differences(name: str, before: SplitDigest | None, now: SplitDigest | None) -> Iterator[str]:
    if before is None or now is None or before == now:
        return
    if before.rows != now.rows:
        yield f"it began with {before.rows:,} {name} rows, and there are {now.rows:,} now"
    else:
        yield f"the {name} rows have changed since it began (their texts, labels or order)"


def _changed_entries(kind: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in sorted(set(before) | set(now)):
        if before.get(name) != now.get(name):
            yield f"{kind} {name} was {before.get(name)!r}, and is {now.get(name)!r} now"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (" …" if len(names) > 8 else "")

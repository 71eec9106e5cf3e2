"""Changes of a run's inputs between a kill and Continue: rows, labels, base model, settings, versions."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import make_tiny, make_tiny_bert

from peft_core.config import TrainConfig
from peft_core.files.atomic import write_json
from peft_core.files.manifests import write_manifest
from peft_core.files.records import SCHEMA_VERSION
from peft_core.runs import Run
from peft_core.runs.checkpoints import INPUTS_FILE
from peft_core.runs.run import CONFIG_FILE

Row = list[str]
SPLITS = ("train", "validation", "test")


class Inputs(NamedTuple):
    """An interrupted run and the folders of its inputs."""

    run: Run
    data: Path
    model: Path


class InputChange(NamedTuple):
    """A named change, and a word that the refusal must contain."""

    name: str
    apply: Callable[[Inputs], None]
    word: str


def _edit(split: str, edit: Callable[[list[Row]], list[Row]]) -> Callable[[Inputs], None]:
    """Return a change of the rows (text and label) of a split."""

    def apply(inputs: Inputs) -> None:
        path = inputs.data / f"{split}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *edit(rows)])

    return apply


def _edit_all(edit: Callable[[list[Row]], list[Row]]) -> Callable[[Inputs], None]:
    return lambda inputs: [_edit(split, edit)(inputs) for split in SPLITS] and None


def _rename_labels(**names: str) -> Callable[[Inputs], None]:
    """Return a change that renames labels in every split."""
    return _edit_all(lambda rows: [[text, names.get(label, label)] for text, label in rows])


def _change_setting(name: str, new_value: Any) -> InputChange:
    """Return a change of one setting, with a valid manifest.

    The refusal names the rows if the setting determines them.
    """

    def apply(inputs: Inputs) -> None:
        settings = {**inputs.run.config().to_dict(), name: new_value}
        values = json.loads(TrainConfig.from_dict(settings).to_json())
        write_json(inputs.run.folder / CONFIG_FILE, {**values, "schema_version": SCHEMA_VERSION})
        write_manifest(inputs.run.folder, CONFIG_FILE, INPUTS_FILE)

    return InputChange(f"setting {name}", apply, "train rows" if name == "seed" else f"setting {name}")


def _change_version(module: Any) -> InputChange:
    """Return a change of a library's version, applied in a forked process, which ends afterwards."""

    def apply(inputs: Inputs) -> None:
        module.__version__ = "0.0.1"

    return InputChange(f"version of {module.__name__}", apply, f"version of {module.__name__}")


def _swap(rows: list[Row]) -> list[Row]:
    return [rows[1], rows[0], *rows[2:]]


def _change_text(rows: list[Row]) -> list[Row]:
    return [[rows[0][0].replace("The", "This", 1), rows[0][1]], *rows[1:]]


def _change_label(rows: list[Row]) -> list[Row]:
    return [[rows[0][0], rows[1][1]], *rows[1:]]


def _move_row_to_test(inputs: Inputs) -> None:
    """Exchange a training row and a test row."""
    moved: list[Row] = []
    _edit("train", lambda rows: moved.append(rows[0]) or rows[1:])(inputs)
    _edit("test", lambda rows: moved.append(rows[0]) or [moved[0], *rows[1:]])(inputs)
    _edit("train", lambda rows: [moved[1], *rows])(inputs)


def _edit_tensor(inputs: Inputs, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = inputs.model / "model.safetensors"
    tensors = load_file(path)
    name = "embeddings.word_embeddings.weight"
    save_file({**tensors, name: change(tensors[name])}, path, metadata={"format": "pt"})


def _flip_bit(inputs: Inputs) -> None:
    path = inputs.model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _edit_json(inputs: Inputs, name: str, **entries: Any) -> None:
    path = inputs.model / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def _edit_tokenizer(inputs: Inputs, change: Callable[[dict[str, Any]], None]) -> None:
    path = inputs.model / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _swap_words(content: dict[str, Any]) -> None:
    words = content["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]


def _use_another_base(inputs: Inputs) -> None:
    """Name another base model of the same architecture in the settings."""
    folder = inputs.model.with_name("another")
    make_tiny_bert(folder, with_head=False)
    _change_setting("model_name_or_path", str(folder)).apply(inputs)


def _move_data(inputs: Inputs) -> None:
    folder = inputs.data.with_name("copy-of-data")
    folder.mkdir()
    for path in inputs.data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    _change_setting("dataset_name", str(folder)).apply(inputs)


_NEW = ["The pizza was amazing and the coffee excellent, really best.", "good"]
_SPLIT_CHANGES = [
    change
    for split in SPLITS
    for change in (
        InputChange(f"{split}: a row added", _edit(split, lambda rows: [*rows, _NEW]), f"{split} rows"),
        InputChange(f"{split}: the first row removed", _edit(split, lambda rows: rows[1:]), f"{split} rows"),
        InputChange(
            f"{split}: half the rows", _edit(split, lambda rows: rows[::2] + rows[1:2]), f"{split} rows"
        ),
        InputChange(f"{split}: a text changed", _edit(split, _change_text), f"{split} rows"),
        InputChange(f"{split}: a label changed", _edit(split, _change_label), f"{split} rows"),
        InputChange(f"{split}: two rows swapped", _edit(split, _swap), f"{split} rows"),
    )
]
_LABEL_CHANGES = [
    InputChange("a label renamed, its place kept", _rename_labels(good="great"), "labels"),
    InputChange("a label renamed, the order turned", _rename_labels(bad="worse"), "labels"),
    InputChange("a label in capitals", _rename_labels(good="Good"), "labels"),
    InputChange("the labels exchanged", _rename_labels(good="bad", bad="good"), "rows"),
    InputChange("a third label", _edit_all(lambda rows: [*rows, [_NEW[0], "middling"]] * 1), "labels"),
    InputChange("labels as numbers", _rename_labels(good="4.5", bad="1.25"), "labels"),
    InputChange("training rows in reverse", _edit("train", lambda rows: rows[::-1]), "train rows"),
    InputChange("a training row is a test row now", _move_row_to_test, "rows"),
]
_BASE_CHANGES = [
    InputChange("one bit of the base weights", _flip_bit, "base model"),
    InputChange(
        "a tensor of the base scaled", lambda inputs: _edit_tensor(inputs, lambda t: t * 1.01), "base model"
    ),
    InputChange(
        "a tensor of the base zero", lambda inputs: _edit_tensor(inputs, torch.zeros_like), "base model"
    ),
    InputChange(
        "the base's layer norm", lambda i: _edit_json(i, "config.json", layer_norm_eps=1e-5), "base model"
    ),
    InputChange(
        "the base's activation", lambda i: _edit_json(i, "config.json", hidden_act="relu"), "base model"
    ),
    InputChange("another base in the folder", lambda i: make_tiny(i.model, "electra") and None, "base model"),
    InputChange("another base by name", _use_another_base, "base model"),
    InputChange(
        "two words of the tokenizer exchanged", lambda i: _edit_tokenizer(i, _swap_words), "tokenizer"
    ),
    InputChange(
        "the tokenizer minds capitals",
        lambda i: _edit_json(i, "tokenizer_config.json", do_lower_case=False),
        "tokenizer",
    ),
    InputChange(
        "the tokenizer cuts at the left",
        lambda i: _edit_json(i, "tokenizer_config.json", truncation_side="left"),
        "tokenizer",
    ),
]
_SETTING_CHANGES = [
    InputChange("the data set by another name", _move_data, "setting dataset_name"),
    *(
        _change_setting(name, value)
        for name, value in (
            ("learning_rate", 0.02),
            ("num_train_epochs", 3),
            ("per_device_train_batch_size", 8),
            ("seed", 43),
            ("r", 4),
            ("lora_alpha", 32),
            ("max_length", 32),
            ("warmup_steps", 0.2),
            ("weight_decay", 0.1),
            ("dropout", 0.1),
            ("lr_scheduler_type", "cosine"),
            ("arithmetic", "plain"),
            ("class_weight", "balanced"),
        )
    ),
]
CHANGES = (
    *_SPLIT_CHANGES,
    *_LABEL_CHANGES,
    *_BASE_CHANGES,
    *_SETTING_CHANGES,
    *(_change_version(module) for module in (torch, transformers, peft, datasets)),
)

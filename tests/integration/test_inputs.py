"""Continued runs: refused if their inputs have changed, resumed from an intact checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import copy_of
from safetensors.torch import load_file, save_file

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, InputsChangedError
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue, choose_checkpoint, list_checkpoints
from peft_core.service.launcher import Launcher
from peft_core.training.entry import train


@pytest.fixture(scope="module")
def stopped(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped after two checkpoints, with its own copies of base model and data."""
    root = tmp_path_factory.mktemp("stopped")
    base = shutil.copytree(settings["model_name_or_path"], root / "base")
    data = shutil.copytree(settings["dataset_name"], root / "data")
    own = {**settings, "model_name_or_path": str(base), "dataset_name": str(data)}
    run = runs.create(root / "runs", TrainConfig.from_dict(own))
    with mock.patch.object(Run, "stop_requested", lambda run: len(list_checkpoints(run.checkpoints)) > 1):
        train(run.folder)
    assert run.state().status == "KILLED" and len(list_checkpoints(run.checkpoints)) == 2
    return run


@pytest.fixture
def own(stopped: Run, tmp_path: Path) -> Run:
    """A copy of the stopped run to continue; it reads the same base model and data."""
    return copy_of(stopped, tmp_path)


@pytest.fixture
def changeable(stopped: Run, tmp_path: Path) -> Any:
    """The folder of base model and data, restored after the test."""
    root = stopped.folder.parent.parent
    for name in ("base", "data"):
        shutil.copytree(root / name, tmp_path / "before" / name)
    yield root
    for name in ("base", "data"):
        shutil.rmtree(root / name)
        shutil.copytree(tmp_path / "before" / name, root / name)


def rename_label(root: Path) -> None:
    for path in (root / "data").glob("*.csv"):
        path.write_text(path.read_text().replace(",bad\n", ",zbad\n"))


def edit_rows(name: str, edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "data" / name
        header, *rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join([header, *edit(rows)]))

    return change


def change_base_weights(root: Path) -> None:
    path = root / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def change_base_config(root: Path) -> None:
    path = root / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))


def change_tokenizer(root: Path) -> None:
    path = root / "base" / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_label, r"the labels were 'bad', 'good', and are 'good', 'zbad' now"),
        (
            edit_rows("train.csv", lambda rows: rows[1:]),
            "it began with 160 train rows, and there are 159 now",
        ),
        (edit_rows("train.csv", lambda rows: [*rows, rows[0]]), "160 train rows, and there are 161"),
        (edit_rows("train.csv", lambda rows: rows[::-1]), "the train rows have changed"),
        (edit_rows("test.csv", lambda rows: [*rows[1:], rows[0]]), "the test rows have changed"),
        (edit_rows("validation.csv", lambda rows: rows[2:]), "validation rows, and there are"),
        (change_base_weights, "the files of the base model .* have changed"),
        (change_base_config, "the files of the base model .* have changed"),
        (change_tokenizer, "the tokenizer of the base model has changed"),
    ],
)
def test_train_continued_on_changed_inputs_is_refused(
    change: Callable[[Path], None], words: str, own: Run, changeable: Path
) -> None:
    before = {path: path.read_bytes() for path in own.folder.rglob("*") if path.is_file()}
    notes, problem_type = own.state().notes, own.state().problem_type
    change(changeable)
    with pytest.raises(InputsChangedError, match=words) as refusal:
        train(own.folder)
    assert "train as a new run" in str(refusal.value)
    state = own.state()
    assert (state.status, state.error) == ("FAILED", str(refusal.value))
    assert notes and (state.notes, state.problem_type) == (notes, problem_type)
    after = {path: path.read_bytes() for path in own.folder.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert changed <= {"status.json"}, "nothing but the status is written"


def test_train_continued_with_another_version_is_refused(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.__version__", "0.99.0")
    with pytest.raises(InputsChangedError, match="the version of peft was '.*', and is '0.99.0' now"):
        train(own.folder)


def test_train_continued_after_a_refusal_gives_the_uninterrupted_weights(
    own: Run, changeable: Path, tmp_path: Path
) -> None:
    path = changeable / "data" / "train.csv"
    rows = path.read_bytes()
    path.write_bytes(rows + b"one more,good\n")
    with pytest.raises(InputsChangedError):
        train(own.folder)
    path.write_bytes(rows)
    (own.folder / "stop").unlink(missing_ok=True)
    train(own.folder)
    straight = runs.create(tmp_path / "straight", own.config())
    train(straight.folder)
    resumed, uninterrupted = (load_file(run.adapter / "adapter_model.safetensors") for run in (own, straight))
    assert all(resumed[name].equal(uninterrupted[name]) for name in resumed)
    assert [row["step"] for row in own.metrics()] == [row["step"] for row in straight.metrics()]


def damage_newest(run: Run, count: int = 1) -> list[Path]:
    damaged = list_checkpoints(run.checkpoints)[:count]
    for checkpoint in damaged:
        path = checkpoint / "trained.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    return damaged


def test_train_with_a_damaged_checkpoint_continues_from_the_older_one(own: Run) -> None:
    newest, older = list_checkpoints(own.checkpoints)
    damage_newest(own)
    choice = choose_checkpoint(own)
    assert choice is not None and choice.checkpoint == older
    train(own.folder)
    state = own.state()
    assert state.status == "FINISHED"
    assert any(f"step {choice.step}." in note for note in state.notes)
    assert any(newest.name in note and "damaged" in note for note in state.notes)
    steps = [row["step"] for row in own.metrics() if "loss" in row]
    assert steps == sorted(set(steps))
    assert own.result()["resumed_from"] == choice.step


def test_resume_with_every_checkpoint_damaged_is_refused(own: Run) -> None:
    damage_newest(own, 2)
    assert not can_continue(own)
    with pytest.raises(DamagedError, match="No checkpoint of .* is intact"):
        Launcher(own.folder.parent).resume(own.run_id)
    with pytest.raises(DamagedError, match="train it as a new run"):
        train(own.folder)
    assert not any("step 0" in note for note in own.state().notes)


def test_inputs_record_is_copied_into_each_checkpoint(own: Run) -> None:
    written = (own.folder / "inputs.json").read_bytes()
    for checkpoint in list_checkpoints(own.checkpoints):
        assert (checkpoint / "inputs.json").read_bytes() == written
    inputs = json.loads(written)
    assert inputs["label_names"] == ["bad", "good"]
    assert inputs["splits"]["train"]["rows"] == 160
    assert inputs["base_revision"].startswith("sha256:")

"""Training runs from start to end, and every way in which they end early, by the real command if possible."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from processes import answer, python, start_python, wait_for
from safetensors import safe_open
from small_data import write_csv
from tiny import make_tiny_bert
from transformers import set_seed

from batteries.children import BUG, ERROR, KILLED, outcome, run_child
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import DataError, ModelError, RunError
from peft_core.files import atomic
from peft_core.inference.predictor import Predictor
from peft_core.models.encoder import load_base
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue, list_checkpoints, step_of
from peft_core.training import trainer
from peft_core.training.entry import train

TEXTS = ["The food was awful and the staff rude.", "Wonderful, the best pizza.", "😀 😀", "room " * 500]
STOCK_PEFT = """
import json, sys, torch
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
adapter = sys.argv[1]
held = json.load(open(adapter + "/classifier.json"))
base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
torch.manual_seed(int(sys.argv[2]))
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(held["id2label"]))
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.inference_mode():
    rows = [
        tokenizer(text, truncation=True, max_length=held["max_length"], return_tensors="pt")
        for text in json.loads(sys.argv[3])
    ]
    print(json.dumps([model(**row).logits[0].tolist() for row in rows]))
"""


def digest(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def stock_logits(run: Run, texts: list[str], seed: int = 7) -> np.ndarray:
    """Return logits of stock PEFT, one text at a time, in a process with a seed other than the training's."""
    return np.asarray(answer(STOCK_PEFT, str(run.adapter), str(seed), json.dumps(texts)), dtype=np.float32)


def predictor_logits(run: Run, texts: list[str]) -> np.ndarray:
    predictor = Predictor(run.folder)
    return np.concatenate([predictor.logits([text]) for text in texts])


def test_train_without_room_for_checkpoints_raises_run_error(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: Trainer creates the checkpoint folder itself, and its error was a traceback."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoints")

    monkeypatch.setattr("peft_core.training.entry.build_trainer", fail)
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    with pytest.raises(RunError, match="The disk is full") as raised:
        train(run.folder)
    assert run.state().error == str(raised.value)


def test_train_finished_run_has_expected_state_and_files(finished_run: Run) -> None:
    state, metrics = finished_run.state(), finished_run.result()
    assert state.status == "FINISHED"
    assert state.step == state.max_steps == metrics["steps"] == 60
    assert state.created <= state.started <= state.ended
    assert metrics["accuracy"] >= 0.9 > metrics["baseline"]["accuracy"]
    assert metrics["tokens_per_second"] > 0
    assert names(finished_run.folder) - {"probe"} == {  # a cache that another test may have written
        "adapter",
        "config.json",
        "evaluation",
        "inputs.json",
        "lock",
        "manifest.json",
        "metrics.jsonl",
        "status.json",
    }
    assert names(finished_run.results) == {
        "evaluation.parquet",
        "manifest.json",
        "result.json",
        "validation.parquet",
    }
    assert names(finished_run.adapter) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "classifier.json",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_result_matches_saved_evaluation_rows(finished_run: Run) -> None:
    rows, metrics = pd.read_parquet(finished_run.evaluation), finished_run.result()
    assert len(rows) == metrics["eval_rows"] == 40
    assert (rows.label == rows.predicted).mean() == pytest.approx(metrics["accuracy"])
    matrix = pd.crosstab(rows.label, rows.predicted).reindex(index=[0, 1], columns=[0, 1], fill_value=0)
    assert matrix.to_numpy().tolist() == metrics["confusion_matrix"]
    low, high = metrics["accuracy_interval"]
    assert 0 <= low <= metrics["accuracy"] <= high <= 1
    predicted = predictor_logits(finished_run, rows.text.tolist()).argmax(-1)
    assert predicted.tolist() == rows.predicted.tolist()


def test_adapter_has_trained_weights_and_no_base_weights(finished_run: Run) -> None:
    with safe_open(finished_run.adapter / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
        sizes = {key: file.get_tensor(key).numel() for key in keys}
    head = {key for key in keys if "lora_" not in key}
    assert {key.split(".classifier.")[-1] for key in head} == {"weight", "bias"}
    assert all(".query.lora_" in key or ".value.lora_" in key for key in keys - head)
    assert sum(sizes.values()) == finished_run.result()["parameters"]["trainable"]


def test_adapter_folder_has_its_metadata(finished_run: Run, tiny_model: Path) -> None:
    classifier = json.loads((finished_run.adapter / "classifier.json").read_text(encoding="utf-8"))
    settings = json.loads((finished_run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert classifier["id2label"] == {"0": "bad", "1": "good"}
    assert classifier["max_length"] == 64
    assert classifier["base_model_name_or_path"] == settings["base_model_name_or_path"] == str(tiny_model)
    assert classifier["base_revision"].startswith("sha256:")
    assert settings["task_type"] == "SEQ_CLS"
    assert (settings["r"], set(settings["target_modules"])) == (8, {"query", "value"})


def test_adapter_in_stock_peft_gives_the_same_logits(finished_run: Run) -> None:
    assert np.array_equal(stock_logits(finished_run, TEXTS), predictor_logits(finished_run, TEXTS))


def test_train_saves_every_module_that_started_untrained(
    train_here: Callable[..., Run], tmp_path: Path
) -> None:
    bare = make_tiny_bert(tmp_path / "bare", with_head=False, with_pooler=False)
    run = train_here(model_name_or_path=str(bare))
    metrics = run.result()
    assert metrics["untrained"] == ["bert.pooler.dense", "classifier"]
    size = (run.adapter / "adapter_model.safetensors").stat().st_size
    assert metrics["parameters"]["file_bytes"] == size
    set_seed(42)
    start = load_base(str(bare), None, ["bad", "good"]).model.bert.pooler.dense.weight
    with safe_open(run.adapter / "adapter_model.safetensors", "pt") as file:
        trained = file.get_tensor("base_model.model.bert.pooler.dense.weight")
    assert 1e-3 < (trained - start).abs().max() < 10
    assert np.array_equal(stock_logits(run, TEXTS), predictor_logits(run, TEXTS))


def test_train_with_same_seed_writes_identical_adapter(
    finished_run: Run, train_here: Callable[..., Run]
) -> None:
    assert digest(train_here()) == digest(finished_run)
    assert digest(train_here(seed=43)) != digest(finished_run)


def test_train_with_prefetched_batches_writes_identical_adapter(
    finished_run: Run, train_here: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gpu_patch:
        gpu_patch.setattr(torch.cuda, "is_available", lambda: True)
        options = trainer.prefetch_options()
    assert options.pop("pin_memory")  # needs a GPU
    assert options == {"num_workers": 2, "persistent_workers": True}
    monkeypatch.setattr(trainer, "prefetch_options", lambda: options)
    assert digest(train_here()) == digest(finished_run)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"target_modules": ["q_proj"]}, ModelError, "q_proj"),
        ({"max_length": 129}, ModelError, "at most 128"),
        ({"max_train_samples": 1}, DataError, "two or more"),
        ({"model_name_or_path": "./nowhere"}, ModelError, "config.json"),
        ({"dataset_name": "./nowhere"}, DataError, "no folder"),
    ],
)
def test_train_with_unusable_settings_fails_with_error_message(
    changes: dict[str, Any], error: type[Exception], words: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict({**settings, **changes}))
    with pytest.raises(error, match=words) as raised:
        train(run.folder)
    state = run.state()
    assert (state.status, state.error) == ("FAILED", str(raised.value))
    assert names(run.folder) <= {
        "config.json",
        "inputs.json",
        "lock",
        "manifest.json",
        "metrics.jsonl",
        "status.json",
    }


def test_train_command_with_bad_input_prints_one_line_and_exits_with_2(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    write_csv(tmp_path / "data" / "train.csv", [(f"Fine {i}.", "yes") for i in range(20)])
    run = runs.create(tmp_path, TrainConfig.from_dict({**settings, "dataset_name": str(tmp_path / "data")}))
    process = python("-m", "peft_core.train", str(run.folder))
    assert process.returncode == 2
    assert "a classifier needs two or more" in process.stderr.strip().splitlines()[-1]
    assert "Traceback" not in process.stderr
    assert run.state().error in process.stderr
    missing_run = python("-m", "peft_core.train", str(tmp_path / "nothing"))
    assert missing_run.returncode == 2
    assert len(missing_run.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "nothing").exists()


def test_train_on_unusual_texts_for_part_of_an_epoch_finishes(
    train_here: Callable[..., Run], tmp_path: Path
) -> None:
    rows = [("😀😀😀", "a"), ("word " * 200_000, "b"), ("\u202eright to left", "a"), ("\x07", "b")] * 5
    write_csv(tmp_path / "data" / "train.csv", rows)
    write_csv(tmp_path / "data" / "test.csv", rows[:4])
    run = train_here(dataset_name=str(tmp_path / "data"), num_train_epochs=0.01)
    assert run.state().status == "FINISHED"
    assert run.result()["steps"] == 1


def test_stop_before_first_step_leaves_no_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    run.request_stop()
    train(run.folder)
    assert run.state().status == "KILLED"
    assert not run.has_adapter


def create_run(settings: dict[str, Any], folder: Path, epochs: int) -> Run:
    return runs.create(folder, TrainConfig.from_dict({**settings, "num_train_epochs": epochs}))


@pytest.fixture
def training(
    settings: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Run, subprocess.Popen]]:
    """Start a run in a process of its own; `request.param` is the number of epochs."""
    run = create_run(settings, tmp_path / "long", getattr(request, "param", 100))
    process = start_python("-m", "peft_core.train", str(run.folder))
    try:
        wait_for(lambda: (run.state().step or 0) > 20)
        yield run, process
    finally:
        process.kill()
        process.wait()


def test_stop_keeps_adapter_of_last_step(training: tuple[Run, subprocess.Popen]) -> None:
    run, process = training
    run.request_stop()
    assert process.wait(timeout=30) == 0
    state = run.state()
    assert state.status == "KILLED"
    step = step_of(list_checkpoints(run.checkpoints)[0])
    assert 20 < step < state.max_steps
    assert state.notes == [
        f"Stopped at step {step} of {state.max_steps:,}. The adapter of that step is kept; the test rows "
        f"were not evaluated. Continue resumes from step {step}; Evaluate evaluates the best step so far "
        "without further training."
    ]
    assert not names(run.folder) & {"evaluation"}
    assert Predictor(run.folder).predict(["Wonderful."])[0].label in ("bad", "good")


@pytest.mark.parametrize("training", [40], indirect=True)
def test_train_killed_leaves_no_partial_output_and_resumes_exactly(
    training: tuple[Run, subprocess.Popen], settings: dict[str, Any], tmp_path: Path
) -> None:
    run, process = training
    wait_for(lambda: can_continue(run))
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = run.state()
    assert state.status == "FAILED"
    assert "ended unexpectedly at step" in state.error
    assert not names(run.folder) & {"adapter", "evaluation"}
    train(run.folder)
    assert run.state().status == "FINISHED"
    assert run.result()["resumed_from"] > 0
    uninterrupted = create_run(settings, tmp_path / "whole", 40)
    train(uninterrupted.folder)
    assert digest(uninterrupted) == digest(run)


def train_until_adapter_is_synced(run: Run) -> None:
    """Train in a forked child that kills itself before the adapter's files are synced."""

    def kill_for_adapter(path: Path) -> None:
        if "adapter" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)

    atomic.fsync = kill_for_adapter
    train(run.folder)


def test_train_killed_while_saving_leaves_no_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    assert outcome(run_child(lambda _: train_until_adapter_is_synced(run))) == KILLED
    assert run.state().status == "FAILED"
    assert "while saving" in run.state().error or "at step 60 of 60" in run.state().error
    assert not run.adapter.exists()
    train(run.folder)
    assert run.state().status == "FINISHED"
    assert not names(run.folder) & {"checkpoints"}


def test_sigterm_stops_run(training: tuple[Run, subprocess.Popen]) -> None:
    run, process = training
    process.terminate()
    process.wait(timeout=30)
    assert run.state().status == "KILLED"
    assert not run.adapter.exists()


def train_with_small_files(run: Run) -> None:
    """Train in a forked child with a file size limit of 9,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    train(run.folder)


def test_train_over_file_size_limit_fails_run(settings: dict[str, Any], tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    child = run_child(lambda _: train_with_small_files(run))
    assert child.first(ERROR) or child.first(BUG)
    state = run.state()
    assert state.status == "FAILED"
    assert state.error.startswith("The disk is full")
    assert not names(run.folder) & {"adapter", "evaluation"}


@pytest.mark.parametrize("small_disk", [16, 24, 40, 64, 96], indirect=True)
def test_train_on_full_disk_fails_and_leaves_no_partial_output(
    small_disk: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(small_disk, TrainConfig.from_dict(settings))
    with pytest.raises((RunError, OSError), match="The disk is full|No space left"):
        train(run.folder)
    monkeypatch.setattr(
        "peft_core.runs.run.is_same_process", lambda *_: False
    )  # the process has ended by then
    state = run.state()
    assert state.status == "FAILED"
    assert "disk is full" in state.error or "the disk ran out" in state.error
    assert not names(run.folder) & {"adapter", "evaluation"}
    assert not list((run.folder / "checkpoints").glob("checkpoint-*/.*"))


def test_train_of_finished_run_is_refused_and_keeps_it(own_run: Run) -> None:
    before = digest(own_run)
    with pytest.raises(RunError, match="has finished; train its settings as a new run"):
        train(own_run.folder)
    assert digest(own_run) == before and own_run.state().status == "FINISHED"


def test_train_of_locked_run_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(settings))
    with run.lock():
        second = run_child(lambda _: train(run.folder))
    assert outcome(second) == f"The run {run.run_id!r} is being trained by another process."
    assert run.state().status == "SCHEDULED"

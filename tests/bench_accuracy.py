"""Measures what five seeds reach, and how soon, beside the best stock set-up: `make bench-accuracy`."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_default import cpu_name
from datasets import Dataset
from stock import GROUPED, stock_trainer
from transformers import TrainerCallback

from peft_core import runs, train
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labelled_text
from peft_core.inference.batching import batched_logits
from peft_core.presets import embedded_model_folder
from peft_core.rows import judged_rows

POINTS = 5  # of each training, at which LOOKED_AT of the test rows are measured
SEEDS = (42, 1, 2, 3, 4)
DATA = {
    "rotten_tomatoes": {"max_length": 128},
    "imdb": {"max_length": 256, "max_train_samples": 1000, "max_eval_samples": 2500, "num_train_epochs": 3.0},
}
LOOKED_AT = {"rotten_tomatoes": 1000, "imdb": 500}
STOCK, OURS = "Trainer with group_by_length, same rate, warm-up and batch", "PEFT Workbench"


class Along(TrainerCallback):
    """Accuracy on LOOKED_AT test rows at POINTS of a training, and when that was; its own time does not
    count."""

    def __init__(self, tokenizer: Any, rows: Dataset, config: TrainConfig) -> None:
        self.tokenizer, self.max_length = tokenizer, config.max_length
        self.rows = rows.select(range(LOOKED_AT[config.dataset_name]))
        self.points: list[dict[str, float]] = []
        self.spent = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in {i * state.max_steps // POINTS for i in range(1, POINTS)}:
            start = time.perf_counter()
            training = model.training
            found = right(model.eval(), self.tokenizer, self.rows, self.max_length)
            model.train(training)
            self.points.append({"at": start - self.spent, "accuracy": found.mean()})
            self.spent += time.perf_counter() - start

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end = time.perf_counter() - self.spent

    def found(self, seconds: float, right: np.ndarray) -> dict[str, Any]:
        """Accuracy of a training that took so many seconds and ended with these test rows right, and its
        curve of seconds and accuracy on LOOKED_AT of them."""
        points = [(seconds - (self.end - one["at"]), one["accuracy"]) for one in self.points]
        curve = [*points, (seconds, right[: len(self.rows)].mean())]
        return {"accuracy": right.mean(), "whole_seconds": seconds, "curve": curve}


def right(model: Any, tokenizer: Any, rows: Dataset, max_length: int) -> np.ndarray:
    """Which of these rows, of `text` and `label`, the model decides rightly."""
    logits = batched_logits(model, tokenizer, rows["text"][:], max_length)
    return logits.argmax(-1) == np.array(rows["label"][:])


def ours(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The training process that the page starts; `seconds` are of its steps alone."""
    run, rows = runs.create(folder, config), load_labelled_text(config).eval
    build, found = train.build_trainer, []

    def watched(model: Any, config: TrainConfig, arguments: Any, tokenizer: Any, *given: Any) -> Any:
        trainer = build(model, config, arguments, tokenizer, *given)
        found.append(Along(tokenizer, rows, config))
        trainer.add_callback(found[0])
        return trainer

    train.build_trainer = watched
    with contextlib.redirect_stdout(sys.stderr):
        if train.main([str(run.folder)]):
            raise RuntimeError("the run failed")
    result, judged = run.result(), judged_rows(run)
    measured = found[0].found(
        result["train_seconds"] - found[0].spent, judged.logits.argmax(-1) == judged.labels
    )
    return {**measured, "seconds": result["tokens"] / result["tokens_per_second"]}


def stock(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The same rows and settings in stock Trainer, with the dropout that the model comes with."""
    data = load_labelled_text(config)
    trainer = stock_trainer(
        GROUPED,
        folder,
        data.train,
        config.max_length,
        model_folder=embedded_model_folder(),
        seed=config.seed,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        num_train_epochs=config.num_train_epochs,
    )
    along = Along(trainer.processing_class, data.eval, config)
    trainer.add_callback(along)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start - along.spent
    final = right(trainer.model.eval(), trainer.processing_class, data.eval, config.max_length)
    return {**along.found(seconds, final), "seconds": seconds}


def reached(turns: list[dict[str, Any]], wanted: float) -> float | None:
    """Seconds, the median of the seeds, of the first point at which their mean accuracy is what is wanted."""
    for points in zip(*(one["curve"] for one in turns), strict=True):
        if statistics.mean(score for _, score in points) >= wanted:
            return statistics.median(seconds for seconds, _ in points)
    return None


def main(names: list[str]) -> None:
    """Each set-up in turn for each seed, in a process of its own; a table, and JSON."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in names or DATA:
        found[name] = {setup: [] for setup in (STOCK, OURS)}
        for seed in SEEDS:
            for setup in found[name]:
                found[name][setup].append(in_process(name, setup, seed))
                print(name, seed, setup, found[name][setup][-1], file=sys.stderr)
    print(f"{os.cpu_count()} cores, {cpu_name()}; seeds {SEEDS}\n")
    print_table(found)
    print(json.dumps(found))


def print_table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    print("| | accuracy, mean (each seed) | seconds of steps | of the whole | to stock's accuracy |")
    print("|---|---|---|---|---|")
    for name, setups in found.items():
        wanted = statistics.mean(one["curve"][-1][1] for one in setups[STOCK])
        before: dict[str, float | None] = {}
        for setup, turns in setups.items():
            times: dict[str, float | None] = {
                key: statistics.median(one[key] for one in turns) for key in ("seconds", "whole_seconds")
            }
            times["reached"] = reached(turns, wanted)
            before = before or times  # stock's own
            scores = [one["accuracy"] for one in turns]
            each = ", ".join(f"{score:.3f}" for score in scores)
            cells = " | ".join(in_words(times[key], before[key]) for key in times)
            print(f"| {name}: {setup} | {statistics.mean(scores):.4f} ({each}) | {cells} |")


def in_words(seconds: float | None, stock: float | None) -> str:
    """Seconds, and how many times as soon that is as the stock set-up."""
    if seconds is None:
        return "not reached"
    return f"{seconds:.1f}" + (f" ({stock / seconds:.2f}x as soon)" if stock and stock != seconds else "")


def in_process(name: str, setup: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, setup, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        name, setup, seed = sys.argv[2:]
        config = TrainConfig(dataset_name=name, seed=int(seed), **DATA[name])
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps((ours if setup == OURS else stock)(config, Path(place))))
    else:
        main(sys.argv[1:])

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

POINTS = 5  # of each training at which the test rows are measured
SEEDS = (42, 1, 2, 3, 4)
DATA = {
    "rotten_tomatoes": {"max_length": 128},
    "imdb": {"max_length": 256, "max_train_samples": 1000, "max_eval_samples": 500, "num_train_epochs": 3.0},
}
OURS, STOCK = "PEFT Workbench", "Trainer with group_by_length, same rate, warm-up and batch"


class Along(TrainerCallback):
    """Accuracy on the test rows at POINTS of a training, and when that was; its own time does not count."""

    def __init__(self, tokenizer: Any, rows: Dataset, max_length: int) -> None:
        self.tokenizer, self.rows, self.max_length = tokenizer, rows, max_length
        self.points: list[dict[str, float]] = []
        self.spent = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in {i * state.max_steps // POINTS for i in range(1, POINTS)}:
            start = time.perf_counter()
            training = model.training
            found = accuracy(model.eval(), self.tokenizer, self.rows, self.max_length)
            model.train(training)
            self.points.append({"at": start - self.spent, "accuracy": found})
            self.spent += time.perf_counter() - start

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end = time.perf_counter() - self.spent

    def curve(self, seconds: float, final: float) -> list[tuple[float, float]]:
        """Seconds and accuracy at each point of a training that took so many seconds and ended so."""
        points = [(seconds - (self.end - one["at"]), one["accuracy"]) for one in self.points]
        return [*points, (seconds, final)]


def accuracy(model: Any, tokenizer: Any, rows: Dataset, max_length: int) -> float:
    """The share of these rows, of `text` and `label`, that the model decides rightly."""
    logits = batched_logits(model, tokenizer, rows["text"][:], max_length)
    return float((logits.argmax(-1) == np.array(rows["label"][:])).mean())


def ours(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The training process that the page starts; `seconds` are of its steps alone."""
    run, rows = runs.create(folder, config), load_labelled_text(config).eval
    build, found = train.build_trainer, []

    def watched(model: Any, config: TrainConfig, arguments: Any, tokenizer: Any, *given: Any) -> Any:
        trainer = build(model, config, arguments, tokenizer, *given)
        found.append(Along(tokenizer, rows, config.max_length))
        trainer.add_callback(found[0])
        return trainer

    train.build_trainer = watched
    with contextlib.redirect_stdout(sys.stderr):
        if train.main([str(run.folder)]):
            raise RuntimeError("the run failed")
    result = run.result()
    whole = result["train_seconds"] - found[0].spent
    return {
        "accuracy": result["accuracy"],
        "seconds": result["tokens"] / result["tokens_per_second"],
        "whole_seconds": whole,
        "curve": found[0].curve(whole, result["accuracy"]),
    }


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
    along = Along(trainer.processing_class, data.eval, config.max_length)
    trainer.add_callback(along)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start - along.spent
    final = accuracy(trainer.model.eval(), trainer.processing_class, data.eval, config.max_length)
    return {
        "accuracy": final,
        "seconds": seconds,
        "whole_seconds": seconds,
        "curve": along.curve(seconds, final),
    }


def reached(turns: list[dict[str, Any]], wanted: float) -> float | None:
    """Seconds, the median of the seeds, of the first point at which their mean accuracy is what is wanted."""
    for points in zip(*(one["curve"] for one in turns), strict=True):
        if statistics.mean(score for _, score in points) >= wanted:
            return statistics.median(seconds for seconds, _ in points)
    return None


def main(names: list[str]) -> None:
    """Both in turn for each seed, each in a process of its own; a table, and JSON."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in names or DATA:
        found[name] = {OURS: [], STOCK: []}
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
        wanted = statistics.mean(one["accuracy"] for one in setups[STOCK])
        before: dict[str, float | None] = {}
        for setup in (STOCK, OURS):
            turns = setups[setup]
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


def in_process(name: str, setup: str, seed: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, setup, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        given = TrainConfig(dataset_name=sys.argv[2], seed=int(sys.argv[4]), **DATA[sys.argv[2]])
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps((ours if sys.argv[3] == OURS else stock)(given, Path(place))))
    else:
        main(sys.argv[1:])

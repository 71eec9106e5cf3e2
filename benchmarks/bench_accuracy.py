"""Measures the accuracy of five seeds over time, beside the best stock set-up: `make bench-accuracy`."""

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
from datasets import Dataset
from transformers import TrainerCallback

from benchmarks.bench_default import cpu_name
from benchmarks.stock import GROUPED, stock_trainer
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.inference.batching import batched_logits
from peft_core.models.presets import embedded_model_folder
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.training import entry

POINTS = 5  # of each training's curve, each on the first CURVE_ROWS test rows
SEEDS = (42, 1, 2, 3, 4)
DATA = {
    "rotten_tomatoes": {"max_length": 128},
    "imdb": {"max_length": 256, "max_train_samples": 1000, "max_eval_samples": 2500, "num_train_epochs": 3.0},
}
CURVE_ROWS = {"rotten_tomatoes": 1000, "imdb": 500}
STOCK, OURS = "Trainer with group_by_length, same rate, warm-up and batch", "PEFT Workbench"


class AccuracyCurve(TrainerCallback):
    """Records accuracy on the first CURVE_ROWS test rows at POINTS of a training, without its own time."""

    def __init__(self, tokenizer: Any, rows: Dataset, config: TrainConfig) -> None:
        self.tokenizer, self.max_length = tokenizer, config.max_length
        self.rows = rows.select(range(CURVE_ROWS[config.dataset_name]))
        self.points: list[dict[str, float]] = []
        self.spent = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in {i * state.max_steps // POINTS for i in range(1, POINTS)}:
            start = time.perf_counter()
            training = model.training
            correct = correct_predictions(model.eval(), self.tokenizer, self.rows, self.max_length)
            model.train(training)
            self.points.append({"at": start - self.spent, "accuracy": correct.mean()})
            self.spent += time.perf_counter() - start

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end = time.perf_counter() - self.spent

    def summarize(self, seconds: float, correct: np.ndarray) -> dict[str, Any]:
        """Return the final accuracy on all test rows, the seconds, and the curve of seconds and accuracy.

        Args:
            seconds: how long the training took.
            correct: which test rows the trained model predicts correctly.
        """
        points = [(seconds - (self.end - point["at"]), point["accuracy"]) for point in self.points]
        curve = [*points, (seconds, correct[: len(self.rows)].mean())]
        return {"accuracy": correct.mean(), "whole_seconds": seconds, "curve": curve}


def correct_predictions(model: Any, tokenizer: Any, rows: Dataset, max_length: int) -> np.ndarray:
    """Return which of these rows, of `text` and `label`, the model predicts correctly."""
    logits = batched_logits(model, tokenizer, rows["text"][:], max_length)
    return logits.argmax(-1) == np.array(rows["label"][:])


def train_workbench(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train as the page does; `seconds` are those of the training steps only."""
    run, rows = runs.create(folder, config), load_labeled_splits(config).eval
    build, curves = entry.build_trainer, []

    def build_with_curve(model: Any, config: TrainConfig, arguments: Any, tokenizer: Any, *rest: Any) -> Any:
        trainer = build(model, config, arguments, tokenizer, *rest)
        curves.append(AccuracyCurve(tokenizer, rows, config))
        trainer.add_callback(curves[0])
        return trainer

    entry.build_trainer = build_with_curve
    with contextlib.redirect_stdout(sys.stderr):
        if entry.main([str(run.folder)]):
            raise RuntimeError("the run failed")
    metrics, test_rows = run.result(), load_evaluation_rows(run)
    correct = test_rows.logits.argmax(-1) == test_rows.labels
    summary = curves[0].summarize(metrics["train_seconds"] - curves[0].spent, correct)
    return {**summary, "seconds": metrics["tokens"] / metrics["tokens_per_second"]}


def train_stock(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train the same rows and settings with stock Trainer and the model's own dropout."""
    data = load_labeled_splits(config)
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
    curve = AccuracyCurve(trainer.processing_class, data.eval, config)
    trainer.add_callback(curve)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start - curve.spent
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    correct = correct_predictions(model, tokenizer, data.eval, config.max_length)
    return {**curve.summarize(seconds, correct), "seconds": seconds}


def seconds_until(accuracy: float, runs_by_seed: list[dict[str, Any]]) -> float | None:
    """Return the median seconds of the first point at which the mean accuracy of the seeds is reached."""
    for points in zip(*(each["curve"] for each in runs_by_seed), strict=True):
        if statistics.mean(score for _, score in points) >= accuracy:
            return statistics.median(seconds for seconds, _ in points)
    return None


def main(names: list[str]) -> None:
    """Measure each set-up with each seed in turn, in a process of its own; print a table, and JSON."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in names or DATA:
        results[name] = {setup: [] for setup in (STOCK, OURS)}
        for seed in SEEDS:
            for setup in results[name]:
                results[name][setup].append(run_in_process(name, setup, seed))
                print(name, seed, setup, results[name][setup][-1], file=sys.stderr)
    print(f"{os.cpu_count()} cores, {cpu_name()}; seeds {SEEDS}\n")
    print_table(results)
    print(json.dumps(results))


def print_table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    print("| | accuracy, mean (each seed) | seconds of steps | of the whole | to stock's accuracy |")
    print("|---|---|---|---|---|")
    for name, setups in results.items():
        stock_accuracy = statistics.mean(each["curve"][-1][1] for each in setups[STOCK])
        stock_times: dict[str, float | None] = {}
        for setup, by_seed in setups.items():
            times: dict[str, float | None] = {
                key: statistics.median(each[key] for each in by_seed) for key in ("seconds", "whole_seconds")
            }
            times["reached"] = seconds_until(stock_accuracy, by_seed)
            stock_times = stock_times or times  # stock comes first
            scores = [each["accuracy"] for each in by_seed]
            listed = ", ".join(f"{score:.3f}" for score in scores)
            cells = " | ".join(format_seconds(times[key], stock_times[key]) for key in times)
            print(f"| {name}: {setup} | {statistics.mean(scores):.4f} ({listed}) | {cells} |")


def format_seconds(seconds: float | None, stock: float | None) -> str:
    """Return the seconds, and how many times as fast that is as the stock set-up."""
    if seconds is None:
        return "not reached"
    return f"{seconds:.1f}" + (f" ({stock / seconds:.2f}x as fast)" if stock and stock != seconds else "")


def run_in_process(name: str, setup: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, setup, str(seed)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        name, setup, seed = sys.argv[2:]
        config = TrainConfig(dataset_name=name, seed=int(seed), **DATA[name])
        with tempfile.TemporaryDirectory() as folder:
            measure = train_workbench if setup == OURS else train_stock
            print(json.dumps(measure(config, Path(folder))))
    else:
        main(sys.argv[1:])

"""Measures what five seeds reach, and how soon, beside the best stock set-up: `make bench-accuracy`."""

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
from stock import GROUPED, stock_trainer

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labelled_text
from peft_core.inference.batching import batched_logits
from peft_core.presets import embedded_model_folder

SEEDS = (42, 1, 2, 3, 4)
DATA = {
    "rotten_tomatoes": {"max_length": 128},
    "imdb": {"max_length": 512, "max_train_samples": 1000, "max_eval_samples": 500},
}
OURS, STOCK = "PEFT Workbench", "Trainer with group_by_length, same rate, warm-up and batch"


def ours(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The command that the page starts; seconds are of its steps alone, without the points of the curve."""
    run = runs.create(folder, config)
    subprocess.run(
        [sys.executable, "-m", "peft_core.train", str(run.folder)], check=True, capture_output=True
    )
    result = run.result()
    return {
        "accuracy": result["accuracy"],
        "seconds": result["tokens"] / result["tokens_per_second"],
        "whole_seconds": result["train_seconds"],
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
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model = trainer.model.eval()
    logits = batched_logits(model, trainer.processing_class, data.eval["text"][:], config.max_length)
    right = logits.argmax(-1) == np.array(data.eval["label"][:])
    return {"accuracy": float(right.mean()), "seconds": seconds, "whole_seconds": seconds}


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
    print("| | accuracy, mean (each seed) | seconds of training, median | times as soon |")
    print("|---|---|---|---|")
    for name, setups in found.items():
        middle = {setup: statistics.median(one["seconds"] for one in runs) for setup, runs in setups.items()}
        for setup, turns in setups.items():
            scores = [one["accuracy"] for one in turns]
            each = ", ".join(f"{score:.3f}" for score in scores)
            ratio = middle[STOCK] / middle[setup]
            print(
                f"| {name}: {setup} | {statistics.mean(scores):.4f} ({each}) "
                f"| {middle[setup]:.1f} | {ratio:.2f} |"
            )
    print(json.dumps(found))


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

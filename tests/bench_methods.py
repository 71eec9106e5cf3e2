"""Measures every method on the embedded model: accuracy over three seeds, parameters, time.

`make bench-methods` appends each run to a file as it ends, so that a long measurement can be stopped and go
on, and prints the table into README. Options: the file, then names of variants (all if none).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_default import cpu_name
from matrix import put_into_readme, variants

from peft_core import runs
from peft_core.config import TrainConfig

SEEDS = (42, 1, 2)
ROWS = 2000
PROMISE = 0.72
MARKS = ("<!-- methods -->", "<!-- end of methods -->")


def main(path: Path, chosen: list[str]) -> None:
    """Measure what the file lacks; seeds in turn, so that a drift of the machine meets every method."""
    done = {(row["variant"], row["seed"]) for row in read(path)}
    for seed in SEEDS:
        for variant, settings in variants().items():
            if (variant, seed) not in done and (not chosen or variant in chosen):
                row = {"variant": variant, "seed": seed, **measure(settings, seed)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{variant}, seed {seed}: {row['accuracy']:.3f}, {row['seconds']:.0f} s", flush=True)
    put_into_readme(MARKS, table(read(path)))


def measure(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run with the method's default settings, by the command that the page starts."""
    config = TrainConfig.from_dict({**settings, "seed": seed, "max_train_samples": ROWS})
    with tempfile.TemporaryDirectory() as folder:
        run = runs.create(Path(folder), config)
        command = [sys.executable, "-W", "ignore", "-m", "peft_core.train", str(run.folder)]
        subprocess.run(
            command, check=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True
        )
        result = run.result()
    return {
        "accuracy": result["accuracy"],
        "trainable": result["parameters"]["trainable"],
        "head": result["parameters"]["head"],
        "file_bytes": result["parameters"]["file_bytes"],
        "seconds": result["train_seconds"],
        "learning_rate": config.learning_rate,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The runs measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a method in the order of the table of methods."""
    seeds = ", ".join(str(seed) for seed in SEEDS if any(row["seed"] == seed for row in rows))
    lines = [
        "What each reaches with its default settings on the embedded model (`make bench-methods`; ↓ marks a",
        f"mean below {PROMISE}):",
        "",
        f"{ROWS:,} training sentences, 1,000 held-out ones, one epoch, seeds {seeds}; "
        f"{os.cpu_count()} cores of {cpu_name()}, torch {torch.__version__}.",
        "",
        "| Method | accuracy, mean (each seed) | learning rate | trainable | saved | training, median |",
        "|---|---|---|---|---|---|",
    ]
    for variant in variants():
        measured = [row for row in rows if row["variant"] == variant]
        if measured:
            lines.append(line(variant, measured))
    return "\n".join(lines)


def line(variant: str, measured: list[dict[str, Any]]) -> str:
    """One method's row of the table."""
    scores = [row["accuracy"] for row in measured]
    mean = statistics.mean(scores)
    below = "" if mean >= PROMISE else " ↓"
    each = ", ".join(f"{score:.3f}" for score in scores)
    size = measured[0]["file_bytes"] / 1e6
    return (
        f"| {variant} | {mean:.3f}{below} ({each}) | {measured[0]['learning_rate']:g} "
        f"| {measured[0]['trainable']:,} | {size:.2f} MB "
        f"| {statistics.median(row['seconds'] for row in measured):.0f} s |"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

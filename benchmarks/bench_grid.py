"""Measures learning rate, batch size and epochs by rows and method, on validation rows: `make bench-grid`.

Appends each run to a file as it ends, so that a long measurement can be stopped and continued. Test rows are
not used: `make bench-default` evaluates the defaults that come from this table on them.
"""

import contextlib
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.doc_tables import DEFAULTS, write_table
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.runs.evaluation_rows import VALIDATION, load_evaluation_rows
from peft_core.training.entry import train

RATES = {"lora": (1e-3, 2e-3, 4e-3), "full": (3e-5, 1e-4, 3e-4), "head_only": (3e-3, 1e-2, 3e-2)}
CELLS = {  # batch sizes and epochs by method and rows
    ("lora", 250): ((8, 16, 32), (4, 8, 16)),
    ("lora", 1000): ((8, 16, 32), (1, 3, 6)),
    ("lora", 3000): ((16,), (1, 2, 4)),
    ("lora", 8000): ((16, 32), (1,)),
    ("full", 250): ((16,), (4, 8, 16)),
    ("full", 1000): ((16,), (1, 3, 6)),
    ("full", 3000): ((16,), (1, 2)),
    ("head_only", 250): ((16,), (4, 8, 16)),
    ("head_only", 1000): ((16,), (1, 3, 6)),
    ("head_only", 3000): ((16,), (1, 2, 4)),
}
SEED = 7  # not used by benchmarks that report a test result
REPEATED_SEEDS = (8, 9, 10)  # for the comparison of two starting points
STARTING_POINTS = {"as many steps as by default": (16, 2e-3), "small batches, half the rate": (8, 1e-3)}
TEXTS = {250: (2500, 4000), 1000: (3000, 4000)}  # read in total by each starting point, by number of rows
TABLE = "grid"


def grid() -> Iterator[dict[str, Any]]:
    """Yield the settings of every run."""
    for (method, rows), (batches, epochs) in CELLS.items():
        for batch, number, rate in itertools.product(batches, epochs, RATES[method]):
            yield settings_of(method, rows, batch, number, rate, SEED)
    for seed, rows in itertools.product(REPEATED_SEEDS, TEXTS):
        for (batch, rate), texts in zip(STARTING_POINTS.values(), TEXTS[rows], strict=True):
            yield settings_of("lora", rows, batch, texts / rows, rate, seed)


def settings_of(method: str, rows: int, batch: int, epochs: float, rate: float, seed: int) -> dict[str, Any]:
    return {
        "method": method,
        "max_train_samples": rows,
        "per_device_train_batch_size": batch,
        "num_train_epochs": float(epochs),
        "learning_rate": rate,
        "seed": seed,
    }


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and return one run's settings and validation accuracy."""
    run = runs.create(folder, TrainConfig.from_dict(settings))
    with contextlib.redirect_stdout(io.StringIO()):
        train(run.folder)
    rows = load_evaluation_rows(run, VALIDATION)
    metrics = run.result()
    return {
        **settings,
        "validation_accuracy": float((rows.logits.argmax(-1) == rows.labels).mean()),
        "validation_rows": len(rows),
        "steps": metrics["steps"],
    }


def main(path: Path) -> None:
    """Measure what the file lacks and write the table into docs/defaults.md."""
    measured = read(path)
    with tempfile.TemporaryDirectory() as folder:
        for settings in grid():
            if any(settings.items() <= row.items() for row in measured):
                continue
            row = measure(settings, Path(folder))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    write_table(DEFAULTS, TABLE, table(read(path)))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: a row for each method, number of rows, batch and epochs; a column for each rate."""
    lines = [
        f"Accuracy on validation sentences, never the test's (`make bench-grid`, seed {SEED}), at a low, a "
        f"middle and a high rate: {'; '.join(f'{m} {_listed(rates)}' for m, rates in RATES.items())}.",
        "",
        "| Method | rows | batch | epochs | low | middle | high |",
        "|---|---|---|---|---|---|---|",
    ]
    for (method, count), (batches, epochs) in CELLS.items():
        for batch, number in itertools.product(batches, epochs):
            cell_settings = [settings_of(method, count, batch, number, rate, SEED) for rate in RATES[method]]
            scores = [_accuracy(rows, settings) for settings in cell_settings]
            if any(scores):
                lines.append(f"| {method} | {count:,} | {batch} | {number} | {' | '.join(scores)} |")
    return "\n".join([*lines, "", *_starting_points_table(rows)])


def _starting_points_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of two starting points on few rows."""
    lines = [f"| LoRA, seeds {_listed(REPEATED_SEEDS)} | rows | mean (each seed) |", "|---|---|---|"]
    for count, text_counts in TEXTS.items():
        for (starting_point, (batch, rate)), texts in zip(STARTING_POINTS.items(), text_counts, strict=True):
            seed_settings = [
                settings_of("lora", count, batch, texts / count, rate, seed) for seed in REPEATED_SEEDS
            ]
            each = [score for score in (_accuracy(rows, settings) for settings in seed_settings) if score]
            mean = statistics.mean(map(float, each)) if each else 0.0
            label = f"{starting_point}: batch {batch}, rate {rate:g}, {texts / count:g} epochs"
            lines.append(f"| {label} | {count:,} | {mean:.3f} ({', '.join(each)}) |")
    return lines


def _accuracy(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    scores = [row["validation_accuracy"] for row in rows if settings.items() <= row.items()]
    return f"{scores[0]:.3f}" if scores else ""


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(Path(sys.argv[1]))

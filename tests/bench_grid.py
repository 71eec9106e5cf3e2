"""Measures learning rate, batch size and epochs by rows and method, on validation rows: `make bench-grid`.

Appends each run to a file as it ends, so that a long measurement can be stopped and go on. The test rows are
not looked at: the defaults that come from this table are judged on those by `make bench-default`.
"""

import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.rows import VALIDATION, judged_rows
from peft_core.train import train

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
SEED = 7  # no bench that reports a test result uses it


def grid() -> Iterator[dict[str, Any]]:
    """The settings of every run."""
    for (method, rows), (batches, epochs) in CELLS.items():
        for batch, number, rate in itertools.product(batches, epochs, RATES[method]):
            yield {
                "method": method,
                "max_train_samples": rows,
                "per_device_train_batch_size": batch,
                "num_train_epochs": float(number),
                "learning_rate": rate,
                "seed": SEED,
            }


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One run by the function behind the command that the page starts."""
    run = runs.create(folder, TrainConfig.from_dict(settings))
    with contextlib.redirect_stdout(io.StringIO()):
        train(run.folder)
    rows = judged_rows(run, VALIDATION)
    result = run.result()
    return {
        **settings,
        "validation_accuracy": float((rows.logits.argmax(-1) == rows.labels).mean()),
        "validation_rows": len(rows),
        "steps": result["steps"],
    }


def main(path: Path) -> None:
    """Measure what the file lacks."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = [{name: row[name] for name in next(grid())} for row in done]
    with tempfile.TemporaryDirectory() as folder:
        for settings in grid():
            if settings in known:
                continue
            row = measure(settings, Path(folder))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(Path(sys.argv[1]))

"""Measures batch prediction beside transformers' own pipeline on the same texts: `make bench-inference`.

Trains the default run, merges and exports it, gives every model the same texts in turns, and predicts a file
of 100,000 rows in a process of its own to measure its memory. Writes the tables into docs/benchmarks.md.
Takes about ten minutes.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from datasets import disable_progress_bars
from transformers import pipeline

from benchmarks.bench_default import cpu_name, default_run
from benchmarks.doc_tables import BENCHMARKS, write_table
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.export.onnx.model import export_onnx
from peft_core.inference.onnx_session import INT8_FILE, load_onnx
from peft_core.inference.precision import SAMPLE, optimize_for_inference
from peft_core.inference.predictor import Predictor
from peft_core.inference.tables import Request, predict_file
from peft_core.merging.merge import merge
from peft_core.runs import Run

TABLE = "inference"
MAX_LENGTH = 512
SHORT, LONG = 1000, 100  # texts of a turn
TURNS = 3
FILE_ROWS = 100_000
DEFAULTS, BATCHED = "transformers.pipeline, its defaults", "transformers.pipeline, batch_size=32"
ADAPTER, MERGED = "Workbench, adapter", "Workbench, merged"
FILE, INT8 = "Workbench, as a file is answered", "Workbench, ONNX int8"
BARS = {  # speed relative to the pipeline that is promised, on short and on long texts
    (FILE, DEFAULTS): (4.0, 1.6),
    (FILE, BATCHED): (2.0, 3.0),
    (INT8, DEFAULTS): (6.0, None),
}
Classify = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    """Measure and write the table into docs/benchmarks.md."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        run, _, _ = default_run(Path(folder), 42)
        merge(run.folder)
        export_onnx(run.folder, max_drop=100.0)
        classifiers = all_classifiers(run)
        texts = {"short": short_texts(), "long": long_texts()}
        speeds = {kind: measure(classifiers, each) for kind, each in texts.items()}
        file = file_of_rows(Path(folder), run)
    write_table(BENCHMARKS, TABLE, table(texts, speeds, file))


def short_texts() -> list[str]:
    """Return sentences of film reviews."""
    return load_labeled_splits(TrainConfig(max_eval_samples=SHORT)).eval["text"][:SHORT]


def long_texts() -> list[str]:
    """Return whole film reviews, truncated at the model's 512 tokens."""
    config = TrainConfig(dataset_name="imdb", max_train_samples=100, max_eval_samples=LONG)
    return load_labeled_splits(config).eval["text"][:LONG]


def all_classifiers(run: Run) -> dict[str, Classify]:
    """Return functions from texts to label ids, by name, loaded and ready."""
    classify = pipeline("text-classification", str(run.merged), device="cpu")
    label_ids = classify.model.config.label2id
    onnx = load_onnx(run.onnx, INT8_FILE)
    onnx.tokenizer.model_max_length = MAX_LENGTH

    def pipeline_with(**options: int) -> Classify:
        def predict(texts: Sequence[str]) -> np.ndarray:
            predictions = classify(list(texts), truncation=True, max_length=MAX_LENGTH, **options)
            return np.array([label_ids[row["label"]] for row in predictions])

        return predict

    own = {name: reader(run, name) for name in ("adapter", "merged")}
    fast, form = optimize_for_inference(own["adapter"], short_texts()[:SAMPLE])
    sys.stderr.write(f"{form}\n")
    return {
        DEFAULTS: pipeline_with(),
        BATCHED: pipeline_with(batch_size=32),
        ADAPTER: lambda texts: own["adapter"].logits(texts).argmax(-1),
        MERGED: lambda texts: own["merged"].logits(texts).argmax(-1),
        FILE: lambda texts: fast.logits(texts).argmax(-1),
        INT8: lambda texts: onnx.logits(texts).argmax(-1),
    }


def reader(run: Run, variant: str) -> Predictor:
    """Return a run's model that reads as much of a text as the pipeline does."""
    predictor = Predictor(run.folder, variant)
    predictor.classifier = dataclasses.replace(predictor.classifier, max_length=MAX_LENGTH)
    return predictor


def measure(classifiers: dict[str, Classify], texts: list[str]) -> dict[str, tuple[float, int]]:
    """Return median texts per second over interleaved turns, and labels that differ from the pipeline's."""
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    labels = {name: classify(texts) for name, classify in classifiers.items()}  # and warms them
    for _ in range(TURNS):
        for name, classify in classifiers.items():
            start = time.perf_counter()
            classify(texts)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: (len(texts) / statistics.median(seconds[name]), int((labels[name] != labels[DEFAULTS]).sum()))
        for name in classifiers
    }


def file_of_rows(folder: Path, run: Run) -> dict[str, float]:
    """Return seconds and memory of a CSV of 100,000 different short rows, in a process of its own."""
    texts, path = short_texts(), folder / "rows.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("text\n")
        for number in range(FILE_ROWS):
            text = texts[number % len(texts)].replace('"', '""')
            file.write(f'"{text} {number}"\n')
    command = [sys.executable, "-W", "ignore", __file__, str(run.folder), str(path)]
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(process.stdout.splitlines()[-1])


def predict_rows(run_dir: str, path: str) -> None:
    """Predict the file; print the seconds and the most bytes used beyond the loaded, warm model."""
    predictor = Predictor(run_dir, "merged")
    predictor.predict(["One text to warm the model."])
    samples, ended, process = [], threading.Event(), psutil.Process()

    def sample_memory() -> None:
        while not ended.wait(0.05):
            samples.append(process.memory_info().rss)

    before, watcher = process.memory_info().rss, threading.Thread(target=sample_memory)
    watcher.start()
    report = predict_file(predictor, Request(Path(path), "text"))
    ended.set()
    watcher.join()
    numbers = {"rows": report["rows"], "seconds": report["seconds"], "bytes": max(samples) - before}
    sys.stdout.write(json.dumps(numbers) + "\n")


def table(texts: dict[str, list[str]], speeds: dict[str, dict], file: dict[str, float]) -> str:
    """Return the tables in Markdown."""
    lines = [
        f"{len(texts['short']):,} sentences and {len(texts['long']):,} whole reviews truncated at "
        f"{MAX_LENGTH} tokens, {TURNS} turns each, medians; {os.cpu_count()} cores of {cpu_name()}, torch "
        f"{torch.__version__} (`make bench-inference`):",
        "",
        "| Texts per second | short | other labels | long | other labels |",
        "|---|---|---|---|---|",
    ]
    for name in speeds["short"]:
        cells = [f"{speed:,.1f} | {unlike}" for speed, unlike in (speeds[kind][name] for kind in speeds)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| Times as fast | short | bar | long | bar |", "|---|---|---|---|---|"]
    for (own, other), bars in BARS.items():
        ratios = [speeds[kind][own][0] / speeds[kind][other][0] for kind in speeds]
        cells = [f"{ratio:.2f} | {bar or '–'}" for ratio, bar in zip(ratios, bars, strict=True)]
        lines.append(f"| {own}, against {other} | {' | '.join(cells)} |")
    lines += [
        "",
        f"A CSV of {file['rows']:,} short rows took {file['seconds']:.0f} s and "
        f"{file['bytes'] / 1e6:,.0f} MB beyond the loaded model.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    predict_rows(*sys.argv[1:]) if len(sys.argv) > 1 else main()

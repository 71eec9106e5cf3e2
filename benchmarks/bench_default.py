"""Measures the default run with three seeds beside simple baselines: `make bench-default`."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.merging.merge import merge
from peft_core.models.presets import embedded_model_folder

SEEDS = (42, 1, 2)


def main() -> None:
    """Train, merge, compare and print; takes about five minutes on two cores."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lora = [default_run(Path(folder), seed) for seed in SEEDS]
        repeated = default_run(Path(folder), SEEDS[0])
        certificate = merge(lora[0][0].folder)
    results = [result for _, result, _ in lora]
    rows.append(("LoRA r 8, query and value (the default)", results, [r["train_seconds"] for r in results]))
    for name, classify in (
        ("Frozen MiniLM, mean-pooled, logistic regression", probe),
        ("TF-IDF words and pairs, logistic regression", tfidf),
    ):
        measurements = [classify(load_labeled_splits(TrainConfig(seed=seed))) for seed in SEEDS]
        rows.append((name, [{"accuracy": a} for a, _ in measurements], [s for _, s in measurements]))
    print_table(rows, results[0], lora[0][2] == repeated[2], certificate.max_logit_diff_reloaded)


def default_run(folder: Path, seed: int) -> tuple[runs.Run, dict, str]:
    """Train as the page does; return the run, its result and the hash of its adapter."""
    run = runs.create(folder, TrainConfig(seed=seed))
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "peft_core.train", str(run.folder)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    digest = subprocess.run(
        ["sha256sum", str(run.adapter / "adapter_model.safetensors")],
        check=True,
        capture_output=True,
        text=True,
    )
    return run, run.result(), digest.stdout.split()[0]


def probe(data: object) -> tuple[float, float]:
    """Return accuracy and seconds of logistic regression on the frozen encoder's sentence vectors."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    model = AutoModel.from_pretrained(embedded_model_folder()).eval()

    def vectors(texts: list[str]) -> np.ndarray:
        parts, order = [], np.argsort([len(text) for text in texts])  # by length, as the app batches too
        for start in range(0, len(texts), 64):
            chosen = [texts[i] for i in order[start : start + 64]]
            batch = tokenizer(chosen, truncation=True, padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(parts)[np.argsort(order)]

    start = time.perf_counter()
    fitted = LogisticRegression(max_iter=2000).fit(vectors(data.train["text"][:]), data.train["label"][:])
    seconds = time.perf_counter() - start
    return float(fitted.score(vectors(data.eval["text"][:]), data.eval["label"][:])), seconds


def tfidf(data: object) -> tuple[float, float]:
    """Return accuracy and seconds of logistic regression on TF-IDF weights."""
    start = time.perf_counter()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    fitted = LogisticRegression(max_iter=2000, C=10).fit(
        words.fit_transform(data.train["text"][:]), data.train["label"][:]
    )
    seconds = time.perf_counter() - start
    return float(fitted.score(words.transform(data.eval["text"][:]), data.eval["label"][:])), seconds


def print_table(rows: list, first: dict, same_bytes: bool, worst: float) -> None:
    """Print Markdown for docs/benchmarks.md, and the raw numbers as JSON."""
    print(f"{os.cpu_count()} cores, {cpu_name()}, torch {torch.__version__}, seeds {SEEDS}\n")
    print("| 3,000 training sentences, 1,000 held-out ones | accuracy, mean (each seed) | training, median |")
    print("|---|---|---|")
    for name, results, seconds in rows:
        scores = [result["accuracy"] for result in results]
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(f"| {name} | {statistics.mean(scores):.3f} ({each}) | {statistics.median(seconds):.1f} s |")
    print(f"| Always the majority class | {first['baseline']['accuracy']:.3f} (seed {SEEDS[0]}) | |")
    print(f"\nSame seed, same adapter bytes: {same_bytes}. Merge: largest logit difference {worst:.1e}.")
    print(json.dumps([(name, [r["accuracy"] for r in results], seconds) for name, results, seconds in rows]))


def cpu_name() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

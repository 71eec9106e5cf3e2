"""Measures training beside the stock set-ups of `benchmarks/stock.py`: `make bench`.

`make bench ARGS="short --setups workbench compiled --turns 7"` measures these of one case, in more turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

from benchmarks.bench_default import cpu_name
from benchmarks.stock import ARTICLE, DYNAMIC, GROUPED, WORDS, stock_trainer
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.tokens import encode
from peft_core.hardware import expect_many_shapes, matmul_flops_per_second
from peft_core.methods.adapters import apply_method
from peft_core.models.encoder import load_base, set_dropout
from peft_core.models.presets import embedded_model_folder
from peft_core.training.arguments import training_arguments
from peft_core.training.lower_layers import TextsToCache
from peft_core.training.speedups import optimize_training
from peft_core.training.trainer import batch_loader, build_trainer

OURS = {
    "workbench": "PEFT Workbench",
    "top_half": "PEFT Workbench, adapters in the top half of the layers, after the first epoch",
    "compiled": "PEFT Workbench, torch_compile on",
    "plain": 'PEFT Workbench, arithmetic "plain"',
}
SKIPPED, SKIPPED_COMPILED = 3, 40  # steps before the clock starts
GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Case:
    """One model on one kind of texts, and how many steps of each set-up are timed."""

    words: str
    layers: int
    width: int
    dataset: str
    rows: int
    batch: int
    steps: dict[str, int]


CPU_CASES = {
    "short": Case(
        "MiniLM, short reviews", 6, 384, "rotten_tomatoes", 1600, 16,
        {"workbench": 90, "top_half": 90, GROUPED: 60, DYNAMIC: 60, ARTICLE: 5},
    ),
    "long": Case(
        "MiniLM, long reviews", 6, 384, "imdb", 400, 16,
        {"workbench": 14, "top_half": 14, GROUPED: 14},
    ),
    "base": Case(
        "BERT-base shapes, short reviews", 12, 768, "rotten_tomatoes", 400, 16,
        {"workbench": 14, "top_half": 14, GROUPED: 14},
    ),
}  # fmt: skip
_ON_GPU = {"workbench": 60, "compiled": 60, GROUPED: 60}
GPU_CASES = {
    "short": Case("MiniLM, short reviews", 6, 384, "rotten_tomatoes", 8000, 128, {**_ON_GPU, ARTICLE: 20}),
    "long": Case("MiniLM, long reviews", 6, 384, "imdb", 6000, 128, _ON_GPU),
    "base": Case("BERT-base shapes, short reviews", 12, 768, "rotten_tomatoes", 8000, 128, _ON_GPU),
    "base-long": Case("BERT-base shapes, long reviews", 12, 768, "imdb", 6000, 128, _ON_GPU),
}
CASES = GPU_CASES if GPU else CPU_CASES
MAX_LENGTH = 512


class Clock(TrainerCallback):
    """Seconds and real tokens from the end of an early step to the end of the last."""

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped
        self.marks: list[tuple[float, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (self.skipped, state.max_steps):
            if GPU:
                torch.cuda.synchronize()
            self.marks.append((time.perf_counter(), int(state.num_input_tokens_seen)))

    def rate(self) -> float:
        """Return the real tokens per second."""
        (start, before), (end, after) = self.marks
        return (after - before) / (end - start)


def measure(name: str, setup: str, folder: Path) -> dict[str, float]:
    """Return a set-up's tokens per second, peak memory above the loaded model and MFU, in this process."""
    case = CASES[name]
    config = TrainConfig(dataset_name=case.dataset, max_train_samples=case.rows, max_eval_samples=50)
    texts = load_labeled_splits(config).train
    model_folder = embedded_model_folder() if case.width == 384 else bert_base(folder)
    clock = Clock(SKIPPED_COMPILED if setup == "compiled" else SKIPPED)
    max_steps = case.steps.get(setup, case.steps["workbench"]) + clock.skipped
    if setup in WORDS:
        options = {"model_folder": model_folder, "max_steps": max_steps, "bf16": GPU}
        options |= {} if setup == ARTICLE else {"per_device_train_batch_size": case.batch}
        trainer = stock_trainer(setup, folder, texts, MAX_LENGTH, **options)
        trainer.add_callback(clock)
        warm_libraries()
        before = resident(trainer.model)
        trainer.train()
    else:
        expect_many_shapes()
        warm_libraries()
        before = train_ours(setup, case, model_folder, texts, max_steps, clock, folder)
    lengths = np.array([len(t) for t in AutoTokenizer.from_pretrained(model_folder)(
        texts["text"][:], truncation=True, max_length=MAX_LENGTH)["input_ids"]])  # fmt: skip
    wide = setup == "plain" or not (GPU or setup in OURS)
    share = clock.rate() * operations(case, lengths) / matrix_rate(torch.float32 if wide else torch.bfloat16)
    return {"tokens_per_second": clock.rate(), "peak_mb": (peak() - before) / 1e6, "mfu": share}


def train_ours(
    setup: str, case: Case, model_folder: Path, texts: Dataset, steps: int, clock: Clock, folder: Path
) -> int:
    """Train with this project's steps; return the bytes that the process held with the model loaded."""
    set_seed(42)
    config = TrainConfig(
        model_name_or_path=str(model_folder), max_length=MAX_LENGTH, learning_rate=5e-5,
        arithmetic="plain" if setup == "plain" else "fast", num_train_epochs=100,
        torch_compile="on" if setup == "compiled" else "off", per_device_train_batch_size=case.batch,
        top_layers=case.layers // 2 if setup == "top_half" else 0,
    )  # fmt: skip
    base = load_base(config.model_name_or_path, None, ("negative", "positive"))
    set_dropout(base.model, config.dropout)
    model = apply_method(base.model, config, base.untrained, base=base.source, steps=steps)
    rows = encode(texts, base.tokenizer, MAX_LENGTH)
    model.to("cuda" if GPU else "cpu")
    before = resident(model)
    loader = batch_loader(rows, base.tokenizer, config)
    batch = {k: v.to(model.device) for k, v in next(iter(loader)).items()}
    frozen_texts = TextsToCache(loader, sum(map(len, rows["input_ids"][:])), folder)
    with optimize_training(model, config, batch, steps, texts=frozen_texts) as speedups:
        print(speedups.record, file=sys.stderr)
        run = runs.create(folder / "runs", config)
        arguments = training_arguments(run, config, len(rows), curve=None, autocast=speedups.record.autocast)
        arguments.max_steps, arguments.save_strategy = steps, "no"
        trainer = build_trainer(model, config, arguments, base.tokenizer, rows, None)
        trainer.add_callback(clock)
        trainer.train()
    return before


def bert_base(folder: Path) -> Path:
    """Save random weights in BERT-base's shapes with the embedded model's tokenizer; return the folder."""
    torch.manual_seed(0)
    path = folder / "bert-base"
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(path)
    AutoTokenizer.from_pretrained(embedded_model_folder()).save_pretrained(path)
    return path


def operations(case: Case, lengths: np.ndarray) -> float:
    """Return the operations per real token of a plain training step with frozen weights.

    Two for each weight forward and two backward, and those of attention (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B).
    """
    weights = case.layers * 12 * case.width**2
    attended = float((lengths**2).sum() / lengths.sum())
    return 4 * weights + 12 * case.layers * case.width * attended


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of this machine's product of two large matrices."""
    size = 8192 if GPU else 2048
    matrix = torch.randn(size, size, dtype=dtype, device="cuda" if GPU else "cpu")
    return matmul_flops_per_second(matrix, matrix)


def warm_libraries() -> None:
    """Load what the first training step loads, so that it does not count as the step's memory."""
    Accelerator(cpu=not GPU)
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Linear(64, 64).to(dtype)
        layer(torch.ones(64, 64, dtype=dtype)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def resident(model: torch.nn.Module) -> int:
    """Return the bytes in use with the whole model read, and start the measurement of `peak`."""
    for parameter in model.parameters():  # a loaded file is mapped, and read on access
        parameter.sum()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak() -> int:
    """Return the most bytes in use since `resident` was called."""
    if GPU:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main(arguments: list[str]) -> None:
    """Measure every set-up of every case in turn, each in its own process; print a table, and JSON."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--setups", nargs="+", choices=[*OURS, *WORDS], help="those of the case if not given")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in options.cases or CASES:
        results[name] = {setup: [] for setup in options.setups or CASES[name].steps}
        for _ in range(options.turns):
            for setup in results[name]:
                results[name][setup].append(run_in_process(name, setup))
                print(name, setup, results[name][setup][-1], file=sys.stderr)
    print_table(results)
    print(json.dumps(results))


def run_in_process(name: str, setup: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, setup]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def print_table(results: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    where = torch.cuda.get_device_name() if GPU else f"{os.cpu_count()} cores, {cpu_name()}"
    print(f"{where}, torch {torch.__version__}, LoRA r 8 on query and value\n")
    print("| | real tokens per second | workbench is | MFU | peak memory above the loaded model |")
    print("|---|---|---|---|---|")
    for name, setups in results.items():
        medians = {
            setup: {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
            for setup, turns in setups.items()
        }
        workbench = next(iter(medians.values()))["tokens_per_second"]
        for setup, median in medians.items():
            rate, words = median["tokens_per_second"], {**WORDS, **OURS}[setup]
            share = "" if setup == "top_half" else f"{median['mfu']:.2f}"  # it skips operations
            print(
                f"| {CASES[name].words}: {words} | {rate:,.0f} | {workbench / rate:.2f}x as fast "
                f"| {share} | {median['peak_mb']:,.0f} MB |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(sys.argv[2], sys.argv[3], Path(folder))))
    else:
        main(sys.argv[1:])

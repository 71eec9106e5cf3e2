"""Measures training beside what one would use instead: `make bench`; see `tests/stock.py` for the others."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from bench_default import cpu_name
from datasets import Dataset
from stock import ARTICLE, DYNAMIC, GROUPED, WORDS, stock_trainer
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

from peft_core import runs
from peft_core.adapters import apply_method
from peft_core.config import TrainConfig
from peft_core.data.labelled import encode, load_labelled_text
from peft_core.encoder import load_base, set_dropout
from peft_core.machine import keep_few_compiled
from peft_core.presets import embedded_model_folder
from peft_core.training.speedups import faster
from peft_core.training.trainer import batch_loader, build_trainer, training_arguments

OURS, PLAIN = "workbench", "plain"
TURNS, SKIPPED = 3, 3  # turns of each set-up; steps before the clock starts
MINILM, BERT_BASE = "MiniLM (6 layers, 384 wide)", "BERT-base shapes (12 layers, 768 wide)"
# case: model, data set, rows, max_length, set-ups with the steps that are timed
CASES: dict[str, tuple[str, str, int, int, dict[str, int]]] = {
    "short": (MINILM, "rotten_tomatoes", 1600, 512, {OURS: 90, GROUPED: 60, DYNAMIC: 60, ARTICLE: 5}),
    "long": (MINILM, "imdb", 400, 512, {OURS: 12, GROUPED: 12}),
    "base": (BERT_BASE, "rotten_tomatoes", 400, 512, {OURS: 12, GROUPED: 12}),
}


class Clock(TrainerCallback):
    """Seconds and real tokens from the end of step SKIPPED to the end of the last."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (SKIPPED, state.max_steps):
            self.marks.append((time.perf_counter(), int(state.num_input_tokens_seen)))

    def rate(self) -> float:
        """Real tokens a second."""
        (start, before), (end, after) = self.marks
        return (after - before) / (end - start)


def measure(case: str, setup: str, folder: Path) -> dict[str, float]:
    """One set-up's tokens a second and peak memory over the loaded model, in this process."""
    model, dataset, rows, max_length, steps = CASES[case]
    texts = load_labelled_text(
        TrainConfig(dataset_name=dataset, max_train_samples=rows, max_eval_samples=50)
    ).train
    model_folder = embedded_model_folder() if model == MINILM else bert_base(folder)
    clock, max_steps = Clock(), steps[setup] + SKIPPED
    if setup in WORDS:
        trainer = stock_trainer(
            setup, folder, texts, max_length, model_folder=model_folder, max_steps=max_steps
        )
        trainer.add_callback(clock)
        warm_libraries()
        before = resident(trainer.model)
        trainer.train()
    else:
        keep_few_compiled()
        warm_libraries()
        before = train_ours(setup, model_folder, texts, max_length, max_steps, clock, folder)
    return {"tokens_per_second": clock.rate(), "peak_mb": (peak() - before) / 1e6}


def train_ours(
    setup: str, model_folder: Path, texts: Dataset, max_length: int, steps: int, clock: Clock, folder: Path
) -> int:
    """Train with this project's own steps; the bytes that the process held when the model was loaded."""
    set_seed(42)
    config = TrainConfig(
        model_name_or_path=str(model_folder), max_length=max_length, learning_rate=5e-5,
        arithmetic="plain" if setup == PLAIN else "fast", num_train_epochs=100,
    )  # fmt: skip
    base = load_base(config.model_name_or_path, None, ("negative", "positive"))
    set_dropout(base.model, config.dropout)
    model = apply_method(base.model, config, base.untrained, base=base.source, steps=steps)
    rows = encode(texts, base.tokenizer, max_length)
    before = resident(model)
    with faster(model, config, next(iter(batch_loader(rows, base.tokenizer, config)))):
        arguments = training_arguments(
            runs.create(folder / "runs", config), config, len(rows), curve=False, autocast=False
        )
        arguments.max_steps, arguments.save_strategy = steps, "no"
        trainer = build_trainer(model, config, arguments, base.tokenizer, rows, None, None, None)
        trainer.add_callback(clock)
        trainer.train()
    return before


def bert_base(folder: Path) -> Path:
    """Random weights in BERT-base's shapes, with the embedded model's tokenizer."""
    torch.manual_seed(0)
    path = folder / "bert-base"
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(path)
    AutoTokenizer.from_pretrained(embedded_model_folder()).save_pretrained(path)
    return path


def warm_libraries() -> None:
    """Load what the first training step loads, so that it does not count as the step's memory."""
    Accelerator(cpu=True)
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Linear(64, 64).to(dtype)
        layer(torch.ones(64, 64, dtype=dtype)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def resident(model: torch.nn.Module) -> int:
    """Bytes of memory that this process holds with the whole model read, from where on `peak` counts."""
    for parameter in model.parameters():  # loading maps a file, which is read where it is touched
        parameter.sum()
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes that this process held since `resident` was asked."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main(cases: list[str]) -> None:
    """Every set-up of every case in turn, TURNS times, each in a process of its own; a table, and JSON."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in cases or CASES:
        found[case] = {setup: [] for setup in CASES[case][4]}
        for _ in range(TURNS):
            for setup in found[case]:
                found[case][setup].append(in_process(case, setup))
                print(case, setup, found[case][setup][-1], file=sys.stderr)
    print_table(found)
    print(json.dumps(found))


def in_process(case: str, setup: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", case, setup]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    print(f"{os.cpu_count()} cores, {cpu_name()}, torch {torch.__version__}\n")
    print("| | real tokens a second | times as fast | peak MB over the loaded model |")
    print("|---|---|---|---|")
    for case, setups in found.items():
        middle = {
            setup: {key: statistics.median(one[key] for one in turns) for key in turns[0]}
            for setup, turns in setups.items()
        }
        ours = middle[OURS]["tokens_per_second"]
        for setup, numbers in middle.items():
            name = f"{case}, {CASES[case][0]}: {WORDS.get(setup, setup)}"
            rate = numbers["tokens_per_second"]
            print(f"| {name} | {rate:,.0f} | {ours / rate:.2f} | {numbers['peak_mb']:,.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(measure(sys.argv[2], sys.argv[3], Path(place))))
    else:
        main(sys.argv[1:])

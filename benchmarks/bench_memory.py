"""Measures the peak memory of real trainings: `make bench-memory`.

Each training is a process of its own; the kernel reports its peak resident size when it ends. Texts are
longer than any `max_length`, so that a batch has as many tokens as its settings say. Models of other sizes
get random weights from their configurations. What the file already has is not measured again.
"""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from peft_core import runs
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.hardware import is_bfloat16_faster
from peft_core.models.presets import MODELS
from peft_core.models.sources import model_source

WORDS, STEPS, TEST_ROWS = 600, 3, 32
VOCABULARY = (
    "good",
    "bad",
    "food",
    "room",
    "film",
    "plot",
    "slow",
    "day",
    "night",
    "story",
    "actor",
    "price",
)
BERT, XLM_R = "google-bert/bert-base-uncased", "FacebookAI/xlm-roberta-base"
SIZES = [(8, 64), (8, 256), (32, 128), (64, 64), (64, 128), (64, 256)]  # texts of a batch, tokens
METHODS = [
    "lora", "full", "ia3", "head_only", "bitfit", "ln_tuning", "prompt_tuning", "p_tuning", "prefix_tuning",
    "adalora", "vera", "loha", "lokr", "oft", "boft", "fourierft", "c3a", "hira", "randlora",
]  # fmt: skip


def every_setting() -> Iterator[dict[str, Any]]:
    """Yield the settings of every measurement, small models first."""
    for method in METHODS:
        yield setting(EMBEDDED_MODEL, method, 32, 128)
    for batch, length in SIZES:
        yield setting(EMBEDDED_MODEL, "lora", batch, length)
    yield setting(BERT, "lora", 32, 128)
    yield setting(BERT, "full", 16, 64)
    yield setting(XLM_R, "lora", 16, 128)
    yield setting(EMBEDDED_MODEL, "full", 64, 256)
    yield setting(EMBEDDED_MODEL, "lora", 32, 128, target_modules=["all-linear"], r=64)
    yield setting(EMBEDDED_MODEL, "lora", 64, 256, arithmetic="plain")
    yield setting(EMBEDDED_MODEL, "lora", 32, 128, dropout=0.1, lora_dropout=0.1)
    yield setting(EMBEDDED_MODEL, "lora", 32, 128, use_dora=True)
    yield setting(EMBEDDED_MODEL, "lora", 32, 256, top_layers=2, num_train_epochs=2.0)
    yield setting(XLM_R, "full", 8, 64)


def setting(model: str, method: str, batch: int, length: int, **others: Any) -> dict[str, Any]:
    """Return settings of TrainConfig for a preset's shape."""
    return {
        "model_name_or_path": model,
        "method": method,
        "per_device_train_batch_size": batch,
        "max_length": length,
        **({"num_train_epochs": 1.0} | others),
    }


# A process inherits the peak of its parent, so a small process starts the training.
_START_AND_MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(settings: dict[str, Any], folder: Path) -> int:
    """Return the peak resident size of a training with these settings, in bytes."""
    model = model_folder(settings["model_name_or_path"], folder)
    data = write_rows(folder / "data", STEPS * settings["per_device_train_batch_size"])
    local = {**settings, "model_name_or_path": str(model), "dataset_name": str(data)}
    run = runs.create(folder / "runs", TrainConfig.from_dict(local))
    command = [sys.executable, "-m", "peft_core.train", str(run.folder)]
    root = Path(__file__).resolve().parent.parent
    with (folder / "log").open("wb") as log:
        starter = [sys.executable, "-c", _START_AND_MEASURE, *command]
        process = subprocess.run(starter, cwd=root, stdout=subprocess.PIPE, stderr=log, check=False)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text(encoding="utf-8")[-2000:])
    return int(process.stdout) * 1024


def model_folder(name: str, folder: Path) -> Path:
    """Return the embedded model, or another preset with random weights and the embedded model's tokenizer."""
    embedded = model_source(EMBEDDED_MODEL, None).folder
    if name == EMBEDDED_MODEL:
        return embedded
    target = folder / name.replace("/", "--")
    if not target.exists():
        config = AutoConfig.for_model(**MODELS[name].config)
        AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(target)
        AutoTokenizer.from_pretrained(embedded).save_pretrained(target)
    return target


def write_rows(folder: Path, rows: int) -> Path:
    """Write a data set of two labels whose texts are longer than any `max_length`."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", rows), ("validation", TEST_ROWS), ("test", TEST_ROWS)):
        draw = random.Random(split)  # different texts: identical ones with two labels have no gradient
        texts = [" ".join(draw.choices(VOCABULARY, k=WORDS)) for _ in range(count)]
        lines = [f"{'bad' if i % 2 else 'good'},{text}" for i, text in enumerate(texts)]
        (folder / f"{split}.csv").write_text("\n".join(["label,text", *lines]), encoding="utf-8")
    return folder


def main(path: Path) -> None:
    """Measure what the file does not have yet."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    half = is_bfloat16_faster(torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for settings in every_setting():
            if any(row["settings"] == settings for row in rows):
                continue
            with contextlib.suppress(RuntimeError):
                rows.append({"settings": settings, "half": half, "peak": measure(settings, Path(folder))})
                print(rows[-1], flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Exports a run of every method in every format and loads it with stock libraries in a fresh process.

`make exports` writes the table into docs/benchmarks.md.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matrix import settings_of, variants
from processes import environment, python
from small_data import write_small_data
from tiny import make_tiny

from benchmarks.doc_tables import BENCHMARKS, write_table
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError
from peft_core.export.archives import zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import export_onnx
from peft_core.export.page.webpage import export_page
from peft_core.export.script.compose import SCRIPT_FILE
from peft_core.export.script.reproduction import reproduction_zip
from peft_core.inference.classifier import Classifier
from peft_core.inference.loading import load_adapter, load_adapter_base
from peft_core.inference.predictor import Predictor
from peft_core.inference.vectors import encoder_of, vectors
from peft_core.merging.merge import merge
from peft_core.methods.registry import METHODS
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.training.entry import train

TABLE = "exports"
FORMATS = {
    "adapter": "Adapter: PEFT", "merged": "Merged: transformers", "float32": "ONNX float32: ONNX Runtime",
    "int8": "ONNX int8: ONNX Runtime", "embeddings": "Embeddings: sentence-transformers",
    "page": "Page: its int8 file", "script": "Script: plain Python",
}  # fmt: skip
EXACT = 1e-3  # standard deviations; int8 may have three times the difference that its report states


@dataclass(frozen=True)
class Cell:
    """One method in one export format.

    Attributes:
        variant: the method, or the variant of LoRA.
        format: a key of FORMATS.
        difference: the largest difference from the trained adapter on the evaluation rows: of a logit or a
            vector component, in standard deviations of these numbers, so that small numbers hide nothing; for
            the script of a metric.
        allowed: the largest difference that is allowed.
        reason: why the export is not possible; empty if it is.
    """

    variant: str
    format: str
    difference: float = 0.0
    allowed: float = EXACT
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the export is the trained model, or there is a reason for its absence."""
        return bool(self.reason) or self.difference <= self.allowed


def main() -> None:
    """Measure all methods, two at a time, and write the table, unless a cell does not hold."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        folders = {name: Path(scratch) / str(i) for i, name in enumerate(variants())}
        rows = pool.map(_in_subprocess, folders, folders.values())
        cells = [cell for row in rows for cell in row]
    wrong = [cell for cell in cells if not cell.holds]
    assert not wrong, wrong
    write_table(BENCHMARKS, TABLE, table(cells))


def row_of(variant: str, folder: Path) -> list[Cell]:
    """Train a method on a tiny BERT, export it in every format, and compare each export with the adapter."""
    model, data = make_tiny(folder / "model", "bert"), write_small_data(folder / "data")
    settings = {**settings_of(variants()[variant], "bert"), "dataset_name": str(data), "num_train_epochs": 6}
    settings |= {"arithmetic": "plain"}  # as the script's is
    run = runs.create(folder / "runs", TrainConfig.from_dict({**settings, "model_name_or_path": str(model)}))
    train(run.folder)
    exports = folder / "exports"
    reasons = {name: _unpack(run, exports / name, export) for name, export in EXPORTERS.items()}
    folders = {name: exports / name for name, reason in reasons.items() if not reason}
    differences = {**_differences(run, folders), "script": _script_difference(run, folder / "script")}
    report = json.loads((run.onnx / "report.json").read_text(encoding="utf-8"))
    rounding = report["int8"]["max_logit_diff"] / float(load_evaluation_rows(run).logits.std())
    allowed = {"int8": 3 * rounding, "page": 3 * rounding, "script": 1e-12}
    return [
        Cell(variant, name, differences.get(name, 0.0), allowed.get(name, EXACT), reasons.get(name, ""))
        for name in FORMATS
    ]


def _merged_zip(run: Run) -> Path:
    merge(run.folder)
    return zip_of(run, "merged")


def _onnx_zip(run: Run) -> Path:
    if not run.onnx.is_dir():
        export_onnx(run.folder, max_drop=100.0)
    return zip_of(run, "onnx")


def _embeddings_zip(run: Run) -> Path:
    export_embeddings(run.folder)
    return zip_of(run, "embeddings")


def _page_zip(run: Run) -> Path:
    export_page(run.folder)
    return zip_of(run, "page")


EXPORTERS: Mapping[str, Callable[[Run], Path]] = {
    "adapter": lambda run: zip_of(run, "adapter"),
    "merged": _merged_zip,
    "float32": _onnx_zip,
    "int8": _onnx_zip,
    "embeddings": _embeddings_zip,
    "page": _page_zip,
}


def _unpack(run: Run, folder: Path, export: Callable[[Run], Path]) -> str:
    """Unpack the zip of an export, as a user would; return the reason if there is none."""
    try:
        with zipfile.ZipFile(export(run)) as archive:
            archive.extractall(folder)
    except PeftCoreError as error:
        return str(error).replace(f" of {run.run_id!r}", "")
    return ""


def _differences(run: Run, folders: Mapping[str, Path]) -> dict[str, float]:
    """Return how far the outputs of each export, in a fresh process, are from those of the adapter."""
    rows, classifier = load_evaluation_rows(run), Classifier.read(run)
    request = {
        "base": run.config().model_name_or_path,
        "is_peft": METHODS[run.config().method].peft_config is not None,
        "formats": {name: str(folder) for name, folder in folders.items()},
        "texts": rows.texts,
        "max_length": classifier.max_length,
    }
    script = Path(__file__).with_name("export_matrix_check.py")
    process = python("-W", "ignore", str(script), stdin=json.dumps(request))
    assert process.returncode == 0, process.stderr[-4000:]
    answers = json.loads(process.stdout.splitlines()[-1])
    outputs = {name: np.asarray(numbers) for name, numbers in answers.items()}
    logits = Predictor(run.folder, "adapter").logits(rows.texts)
    expected = dict.fromkeys(outputs, logits)
    if "embeddings" in outputs:
        base = load_adapter_base(run, classifier)
        encoder = encoder_of(load_adapter(run, base))
        expected["embeddings"] = vectors(encoder, base.tokenizer, rows.texts, classifier.max_length)
    return {
        name: float(np.abs(numbers - expected[name]).max() / expected[name].std())
        for name, numbers in outputs.items()
    }


def _script_difference(run: Run, folder: Path) -> float:
    """Return the largest difference of a metric between the run and its script, which trains again."""
    with zipfile.ZipFile(reproduction_zip(run)) as archive:
        archive.extractall(folder)
    variables = environment()
    del variables["PYTHONPATH"]
    command = [sys.executable, "-W", "ignore", "-I", SCRIPT_FILE]
    process = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    printed = json.loads(process.stdout[process.stdout.rindex("{") :])
    metrics = run.result()
    script_metrics = {name: metric for name, metric in printed.items() if isinstance(metric, float)}
    return max(abs(metric - metrics[name]) for name, metric in script_metrics.items())


def _in_subprocess(variant: str, folder: Path) -> list[Cell]:
    process = python("-W", "ignore", "-m", "benchmarks.export_matrix", variant, str(folder), timeout=900)
    assert process.returncode == 0, process.stderr[-4000:]
    return [Cell(**cell) for cell in json.loads(process.stdout.splitlines()[-1])]


def table(cells: list[Cell]) -> str:
    """Return the matrix in Markdown, and below it the reasons why a cell is empty."""
    lines = [
        "Largest difference from the trained adapter on the evaluation rows: for models of a logit, in "
        "standard deviations of the logits; for embeddings of a vector component, in standard deviations of "
        "the components; for the script of a metric. The JavaScript of the page is tested separately, in a "
        "real Chromium.",
        "",
        f"| Method | {' | '.join(FORMATS.values())} |",
        f"|---|{'---|' * len(FORMATS)}",
    ]
    for variant in variants():
        row = [cell for cell in cells if cell.variant == variant]
        marks = ["—" if cell.reason else f"{cell.difference:.0e}".replace("0e+00", "0") for cell in row]
        lines.append(f"| {variant} | {' | '.join(marks)} |")
    reasons = dict.fromkeys(f"- {cell.reason}" for cell in cells if cell.reason)
    return "\n".join([*lines, "", *reasons])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps([asdict(cell) for cell in row_of(sys.argv[1], Path(sys.argv[2]))]) + "\n")
    else:
        main()

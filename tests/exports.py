"""Every method's run taken away in every way, and loaded again by stock libraries in a fresh process.

`make exports` prints the table into README.
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
from matrix import put_into_readme, settings_of, variants
from processes import environment, python
from small_data import write_small_data
from tiny import make_tiny

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
from peft_core.merge import merge
from peft_core.methods import METHODS
from peft_core.rows import judged_rows
from peft_core.runs import Run
from peft_core.train import train

MARKS = ("<!-- exports -->", "<!-- end of exports -->")
WAYS = {
    "adapter": "Adapter: PEFT", "merged": "Merged: transformers", "float32": "ONNX float32: ONNX Runtime",
    "int8": "ONNX int8: ONNX Runtime", "embeddings": "Embeddings: sentence-transformers",
    "page": "Page: its int8 file", "script": "Script: plain Python",
}  # fmt: skip
EXACT = 1e-3  # of the spread; int8 has the largest difference that its report says, times three


@dataclass(frozen=True)
class Cell:
    """One method taken away in one way: the largest difference of a logit (of a vector's number) from the
    trained adapter on the evaluation rows, in standard deviations of these numbers, so that small numbers
    hide nothing; of a metric itself for the script; or the reason why it cannot be."""

    variant: str
    way: str
    difference: float = 0.0
    allowed: float = EXACT
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is the trained model; a reason is an answer too."""
        return bool(self.reason) or self.difference <= self.allowed


def main() -> None:
    """All methods, two at a time; fails if a cell does not hold, and leaves README as it is then."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        folders = {name: Path(scratch) / str(i) for i, name in enumerate(variants())}
        rows = pool.map(_in_its_own_process, folders, folders.values())
        cells = [cell for row in rows for cell in row]
    wrong = [cell for cell in cells if not cell.holds]
    assert not wrong, wrong
    put_into_readme(MARKS, table(cells))


def row_of(variant: str, folder: Path) -> list[Cell]:
    """A method trained on a tiny BERT and taken away in every way."""
    model, data = make_tiny(folder / "model", "bert"), write_small_data(folder / "data")
    settings = {**settings_of(variants()[variant], "bert"), "dataset_name": str(data), "num_train_epochs": 6}
    settings |= {"arithmetic": "plain"}  # as the script's is
    run = runs.create(folder / "runs", TrainConfig.from_dict({**settings, "model_name_or_path": str(model)}))
    train(run.folder)
    taken = folder / "taken"
    reasons = {way: _taken(run, way, make, taken) for way, make in MAKERS.items()}
    made = [way for way, reason in reasons.items() if not reason]
    differences = {**_loaded_again(run, taken, made), "script": _script_again(run, folder / "script")}
    report = json.loads((run.onnx / "report.json").read_text(encoding="utf-8"))
    rounding = report["int8"]["max_logit_diff"] / float(judged_rows(run).logits.std())
    allowed = {"int8": 3 * rounding, "page": 3 * rounding, "script": 1e-12}
    return [
        Cell(variant, way, differences.get(way, 0.0), allowed.get(way, EXACT), reasons.get(way, ""))
        for way in WAYS
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


MAKERS: Mapping[str, Callable[[Run], Path]] = {
    "adapter": lambda run: zip_of(run, "adapter"),
    "merged": _merged_zip,
    "float32": _onnx_zip,
    "int8": _onnx_zip,
    "embeddings": _embeddings_zip,
    "page": _page_zip,
}


def _taken(run: Run, way: str, make: Callable[[Run], Path], folder: Path) -> str:
    """Make it and unpack its zip, as who takes it away would; the reason where there is none."""
    try:
        with zipfile.ZipFile(make(run)) as archive:
            archive.extractall(folder / way)
    except PeftCoreError as error:
        return str(error).replace(f" of {run.run_id!r}", "")
    return ""


def _loaded_again(run: Run, taken: Path, made: list[str]) -> dict[str, float]:
    """What a fresh process with stock libraries makes of each, against the adapter on its base."""
    rows, classifier = judged_rows(run), Classifier.read(run)
    asked = {
        "base": run.config().model_name_or_path,
        "is_peft": METHODS[run.config().method].peft_config is not None,
        "ways": {way: str(taken / way) for way in made},
        "texts": rows.texts,
        "max_length": classifier.max_length,
    }
    done = python("-W", "ignore", str(Path(__file__).with_name("exports_check.py")), stdin=json.dumps(asked))
    assert done.returncode == 0, done.stderr[-4000:]
    found = {way: np.asarray(one) for way, one in json.loads(done.stdout.splitlines()[-1]).items()}
    logits = Predictor(run.folder, "adapter").logits(rows.texts)
    expected = dict.fromkeys(found, logits)
    if "embeddings" in found:
        base = load_adapter_base(run, classifier)
        encoder = encoder_of(load_adapter(run, base))
        expected["embeddings"] = vectors(encoder, base.tokenizer, rows.texts, classifier.max_length)
    return {way: float(np.abs(one - expected[way]).max() / expected[way].std()) for way, one in found.items()}


def _script_again(run: Run, folder: Path) -> float:
    """The largest difference of a metric when the script trains and measures everything once more."""
    with zipfile.ZipFile(reproduction_zip(run)) as archive:
        archive.extractall(folder)
    variables = environment()
    del variables["PYTHONPATH"]
    command = [sys.executable, "-W", "ignore", "-I", SCRIPT_FILE]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    said, result = json.loads(done.stdout[done.stdout.rindex("{") :]), run.result()
    numbers = {name: value for name, value in said.items() if isinstance(value, float)}
    return max(abs(value - result[name]) for name, value in numbers.items())


def _in_its_own_process(variant: str, folder: Path) -> list[Cell]:
    done = python("-W", "ignore", "-m", "exports", variant, str(folder), timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Cell(**cell) for cell in json.loads(done.stdout.splitlines()[-1])]


def table(cells: list[Cell]) -> str:
    """Markdown, and below it the reasons why a cell is empty."""
    lines = [
        "Largest difference on the evaluation rows from the trained adapter: of a logit, or of a number of a "
        "vector, in standard deviations of these; for the script of a metric. The page's own JavaScript is "
        "tested apart, in a real Chromium.",
        "",
        f"| Method | {' | '.join(WAYS.values())} |",
        f"|---|{'---|' * len(WAYS)}",
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

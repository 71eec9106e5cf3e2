"""Report and README of an ONNX export."""

import json
from collections.abc import Mapping
from typing import Any

from peft_core.errors import DamagedError
from peft_core.merging.certificate import sha256_of_adapter
from peft_core.problem_types import MULTI, REGRESSION, SINGLE, TITLES
from peft_core.runs import Run

REPORT_FILE = "report.json"
_LOAD = """\
import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

folder = Path(".")  # where this README lies
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder / "{file}")
labels = list(json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"].values())
choice = folder / "decision.json"  # temperature, thresholds, abstaining
choice = json.loads(choice.read_text(encoding="utf-8")) if choice.exists() else {{}}

{texts}
inputs = tokenizer({sides}, padding=True, truncation=True, return_tensors="np")
wanted = [each.name for each in session.get_inputs()]
logits = session.run(["logits"], {{name: inputs[name] for name in wanted}})[0]
"""
_DECIDE = {
    SINGLE: """\
raw = logits / choice.get("temperature", 1.0)
odds = np.exp(raw - raw.max(-1, keepdims=True))
probabilities = odds / odds.sum(-1, keepdims=True)
thresholds = list(choice.get("thresholds", {}).values()) or 1.0
best = (probabilities / thresholds).argmax(-1)
sure = probabilities[np.arange(len(best)), best] >= choice.get("abstain_below", 0.0)
answers = [labels[i] if said else None for i, said in zip(best, sure)]  # None: too unsure to say
""",
    MULTI: """\
probabilities = 1 / (1 + np.exp(-logits / choice.get("temperature", 1.0)))
thresholds = list(choice.get("thresholds", {}).values()) or 0.5
given = probabilities >= thresholds
sure = np.where(given, probabilities, 1 - probabilities).min(-1) >= choice.get("abstain_below", 0.0)
named = [[labels[i] for i in np.flatnonzero(row)] for row in given]
answers = [row if said else None for row, said in zip(named, sure)]  # None: too unsure to say
""",
    REGRESSION: "answers = logits[:, 0].tolist()\n",
}
_TITLES = {"original": "the model in torch", "fp32": "`{}`, float32", "int8": "`{}`, int8"}


def read_onnx_report(run: Run) -> dict[str, Any] | None:
    """Return what `export_onnx` returned; None if the export is missing, damaged or of an earlier adapter."""
    try:
        run.verify(run.onnx)
        report = json.loads((run.onnx / REPORT_FILE).read_text(encoding="utf-8"))
        return report if report["adapter_sha256"] == sha256_of_adapter(run) else None
    except (DamagedError, OSError, ValueError, KeyError, TypeError):
        return None


def readme(report: Mapping[str, Any], text_pair: bool) -> str:
    """Return the folder's README.md: the files, runnable Python, and the measured numbers."""
    problem_type, int8 = report["problem_type"], report["int8"]
    texts = 'texts = ["A text to read."]' + ('\nseconds = ["Its second text."]' if text_pair else "")
    best = int8 if int8["kept"] else report["fp32"]
    code = _LOAD.format(file=best["file"], texts=texts, sides="texts, seconds" if text_pair else "texts")
    return "\n".join(
        [
            f"# {report['run_id']} as ONNX",
            "",
            "A text classifier that runs without torch. It needs `pip install onnxruntime transformers`.",
            "",
            *_files(report),
            "",
            "```python",
            code + _DECIDE[problem_type] + "print(answers)",
            "```",
            "",
            _javascript_usage(problem_type, best is int8),
            "",
            f"Measured on {report['rows']:,} evaluation rows (CPU threads: {report['threads']}):",
            "",
            *_table(report),
            "",
        ]
    )


def _files(report: Mapping[str, Any]) -> list[str]:
    fp32, int8 = report["fp32"], report["int8"]
    size, speed = (int8[key] / fp32[key] for key in ("bytes", "rows_per_second"))
    comparison = f"{size:.0%} of the size, {speed:.1f} times as fast, a little less exact"
    reason = (
        f"left out: it lost {int8['drop']:.2f} points of {TITLES[report['headline']]}, and at most "
        f"{report['max_drop']:g} were allowed"
    )
    return [
        f"- `{fp32['file']}`: the weights in float32, as exact as the model in torch.",
        f"- `{int8['file']}`: the weights in int8, {comparison if int8['kept'] else reason}.",
        "- `tokenizer.json` and `config.json`: how texts are cut into tokens, and the labels.",
    ]


def _javascript_usage(problem_type: str, is_int8: bool) -> str:
    if problem_type == REGRESSION:
        return "transformers.js loads this folder too; read `logits`, for its pipeline knows labels only."
    dtype = "q8" if is_int8 else "fp32"
    return (
        "transformers.js loads this folder as it is: `pipeline('text-classification', folder, "
        f"{{dtype: '{dtype}'}})`. It does not read `decision.json`."
    )


def _table(report: Mapping[str, Any]) -> list[str]:
    headline = report["headline"]
    lines = [f"| | {TITLES[headline]} | labels changed | MB | texts a second |", "|---|---|---|---|---|"]
    for name, title in _TITLES.items():
        entry = report[name]
        cells = [
            title.format(entry.get("file", "")),
            f"{entry['metrics'][headline]:.4f}",
            f"{entry.get('labels_flipped', 0)}",
            f"{entry['bytes'] / 1e6:.1f}",
            f"{entry['rows_per_second']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines

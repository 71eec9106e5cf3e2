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

folder = Path(".")  # the folder of this README
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder / "{file}")
labels = list(json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"].values())
rule_path = folder / "decision.json"  # temperature, thresholds, minimum confidence
rule = json.loads(rule_path.read_text(encoding="utf-8")) if rule_path.exists() else {{}}

{texts}
inputs = tokenizer({sides}, padding=True, truncation=True, return_tensors="np")
input_names = [model_input.name for model_input in session.get_inputs()]
logits = session.run(["logits"], {{name: inputs[name] for name in input_names}})[0]
"""
_DECIDE = {
    SINGLE: """\
scaled = logits / rule.get("temperature", 1.0)
exponentials = np.exp(scaled - scaled.max(-1, keepdims=True))
probabilities = exponentials / exponentials.sum(-1, keepdims=True)
thresholds = list(rule.get("thresholds", {}).values()) or 1.0
best = (probabilities / thresholds).argmax(-1)
is_confident = probabilities[np.arange(len(best)), best] >= rule.get("abstain_below", 0.0)
# None: the confidence is too low
answers = [labels[i] if confident else None for i, confident in zip(best, is_confident)]
""",
    MULTI: """\
probabilities = 1 / (1 + np.exp(-logits / rule.get("temperature", 1.0)))
thresholds = list(rule.get("thresholds", {}).values()) or 0.5
is_chosen = probabilities >= thresholds
confidence = np.where(is_chosen, probabilities, 1 - probabilities).min(-1)
is_confident = confidence >= rule.get("abstain_below", 0.0)
chosen = [[labels[i] for i in np.flatnonzero(row)] for row in is_chosen]
# None: the confidence is too low
answers = [names if confident else None for names, confident in zip(chosen, is_confident)]
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
    comparison = f"{size:.0%} of the size, {speed:.1f} times as fast, slightly less accurate"
    reason = (
        f"left out: it lost {int8['drop']:.2f} points of {TITLES[report['headline']]}, and at most "
        f"{report['max_drop']:g} were allowed"
    )
    return [
        f"- `{fp32['file']}`: the weights in float32, as accurate as the model in torch.",
        f"- `{int8['file']}`: the weights in int8, {comparison if int8['kept'] else reason}.",
        "- `tokenizer.json` and `config.json`: how texts are cut into tokens, and the labels.",
    ]


def _javascript_usage(problem_type: str, is_int8: bool) -> str:
    if problem_type == REGRESSION:
        return (
            "transformers.js loads this folder too; read `logits`, because its pipeline supports labels only."
        )
    dtype = "q8" if is_int8 else "fp32"
    return (
        "transformers.js loads this folder as it is: `pipeline('text-classification', folder, "
        f"{{dtype: '{dtype}'}})`. It does not read `decision.json`."
    )


def _table(report: Mapping[str, Any]) -> list[str]:
    headline = report["headline"]
    lines = [f"| | {TITLES[headline]} | labels changed | MB | texts per second |", "|---|---|---|---|---|"]
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

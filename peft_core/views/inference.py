"""HTML and charts of the Inference tab: answers of several runs, file predictions and calibration."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from peft_core.problem_types import TITLES
from peft_core.views.cards import format_metric
from peft_core.views.charts import BLUE, GRAY, ORANGE, Spec, base_spec, color_encoding
from peft_core.views.components import duration

_CALIBRATION_METRICS = (
    ("coverage", "texts answered", "{:.0%}"),
    ("ece", "calibration error (ECE)", "{:.3f}"),
    ("log_loss", "log loss, nats", "{:.3f}"),
    ("brier", "Brier score", "{:.3f}"),
)


def runs_table(answers: Sequence[Mapping[str, Any]]) -> str:
    """Return the predictions of several runs for one text, with a row for each run; empty without runs."""
    if not answers:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(answer['run_id'])}</th>{_answer_cells(answer)}</tr>"
        for answer in answers
    )
    return (
        '<div class="scroll"><table class="by-label" data-testid="other-runs">'
        "<tr><th></th><th scope=col>prediction</th><th scope=col>confidence</th><th scope=col>ms</th></tr>"
        f"{rows}</table></div>"
    )


def file_result(summary: Mapping[str, Any], variant: str) -> str:
    """Return the summary of a predicted file: rows, time, unanswered rows, and metrics if it has labels."""
    speed = summary["rows"] / max(summary["seconds"], 1e-9)
    parts = [
        f"<b>{summary['rows']:,}</b> rows by the {html.escape(variant)} in {duration(summary['seconds'])} "
        f"({speed:,.0f} rows/s).",
        f"{summary['empty']:,} without text have no answer." if summary["empty"] else "",
        f"{summary['abstained']:,} have no answer because their confidence is too low."
        if summary["abstained"]
        else "",
        f"{summary['neutralised']:,} cells that a spreadsheet would run as formulas now begin with '."
        if summary["neutralised"]
        else "",
        _arithmetic(summary["form"]),
        *(html.escape(note) for note in summary["notes"]),
        _sheet(summary["read"]),
    ]
    return (
        f'<div class="result" data-testid="file-result"><p>{" ".join(filter(None, parts))}</p>'
        f"{_file_metrics(summary['metrics'])}</div>"
    )


def _sheet(read: Mapping[str, Any]) -> str:
    """Return the sheet of a workbook that was read, and its header row."""
    if "sheet" not in read:
        return ""
    header = f", header in row {read['header_row']}" if read["header_row"] else ", without a header"
    return f"Read from the sheet {html.escape(read['sheet'])}{header}."


def _arithmetic(form: Mapping[str, Any] | None) -> str:
    """Return the reduced precision of a file's predictions and its measured effect; empty for float32."""
    if form is None or form["dtype"] == "float32":
        return ""
    return (
        f"Predicted in {html.escape(form['dtype'])}, {form['speed_ratio']:.1f} times as fast here: on the "
        f"first {form['rows']} rows the largest logit difference from float32 was "
        f"{form['max_logit_diff']:.3f}; labels that changed: {form['labels_changed']}."
    )


def calibration_table(report: Mapping[str, Any]) -> str:
    """Return the metrics of the default and the chosen decision rule on the test rows."""
    rules = (report["plain"], report["chosen"])
    lines = [
        (TITLES[name], [format_metric(rule["metrics"][name]) if rule["metrics"] else "–" for rule in rules])
        for name in report["plain"]["metrics"]
    ]
    lines += [
        (title, [template.format(rule[name]) for rule in rules])
        for name, title, template in _CALIBRATION_METRICS
    ]
    body = "".join(
        f"<tr><th scope=row>{html.escape(title)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for title, cells in lines
    )
    return (
        '<div class="scroll"><table class="by-label" data-testid="trust">'
        f"<caption>On {report['rows']:,} test rows, which were not used to choose the rule.</caption>"
        f"<tr><th></th><th scope=col>default rule</th><th scope=col>chosen rule</th></tr>{body}</table></div>"
    )


def reliability_chart(report: Mapping[str, Any]) -> Spec:
    """Return the reliability diagram of both decision rules, with the line of perfect calibration."""
    names = {"plain": "default rule", "chosen": "chosen rule"}
    bins = [{**row, "rule": title} for name, title in names.items() for row in report[name]["bins"]]
    low = min(row["low"] for row in bins)
    rows = [{key: row[key] for key in ("confidence", "accuracy", "count", "rule")} for row in bins]
    ideal = [{"confidence": end, "accuracy": end, "count": 0, "rule": "ideal"} for end in (low, 1.0)]
    without_ideal = {"filter": "datum.rule != 'ideal'"}
    return {
        **base_spec(pd.DataFrame([*rows, *ideal]), 230),
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2, "tooltip": True}},
            {
                "transform": [without_ideal],
                "mark": {"type": "point", "filled": True, "size": 45, "tooltip": True},
            },
        ],
        "encoding": {
            "x": _axis("confidence", "confidence (probability)", {"domain": [low, 1]}),
            "y": _axis("accuracy", "accuracy", {"domain": [0, 1]}),
            "color": color_encoding("rule", {"default rule": GRAY, "chosen rule": BLUE, "ideal": ORANGE}),
        },
    }


def coverage_chart(report: Mapping[str, Any], abstain_below: float) -> Spec:
    """Return the accuracy over the share of texts answered; the chosen threshold is a point."""
    rows = [{**row, "what": "minimum confidence"} for row in report["curve"]]
    above = [row for row in rows if row["threshold"] >= abstain_below] or rows[:1]
    return {
        **base_spec(pd.DataFrame([*rows, {**above[-1], "what": "chosen rule"}]), 230),
        "layer": [
            {
                "transform": [{"filter": "datum.what != 'chosen rule'"}],
                "mark": {"type": "line", "strokeWidth": 2, "tooltip": {"content": "data"}},
            },
            {
                "transform": [{"filter": "datum.what == 'chosen rule'"}],
                "mark": {"type": "point", "filled": True, "size": 110, "shape": "diamond", "tooltip": True},
            },
        ],
        "encoding": {
            "x": {
                **_axis("coverage", "share of texts answered", {"domain": [0, 1]}),
                "axis": {"format": "%"},
            },
            "y": {**_axis("accuracy", "accuracy", {"zero": False}), "axis": {"format": "%"}},
            "color": color_encoding("what", {"minimum confidence": BLUE, "chosen rule": ORANGE}),
        },
    }


def _axis(field: str, title: str, scale: Spec) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def _answer_cells(answer: Mapping[str, Any]) -> str:
    if "error" in answer:
        return f'<td colspan=3 class="quiet">{html.escape(answer["error"])}</td>'
    confidence = answer.get("confidence")
    label = "no answer" if answer.get("abstained") else answer["label"]
    number = "" if confidence is None else f"{confidence:.3f}"
    return f"<td>{html.escape(label)}</td><td>{number}</td><td>{answer['ms']:.1f}</td>"


def _file_metrics(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    low, high = metrics["interval"]
    headline = metrics["headline"]
    rest = " · ".join(
        f"{TITLES[name]} {format_metric(value)}"
        for name, value in metrics.items()
        if name in TITLES and name != headline
    )
    return (
        f'<div class="figures"><div><b data-testid="file-{headline}">{format_metric(metrics[headline])}</b>'
        f"<span>{TITLES[headline]} on {metrics['judged']:,} labeled rows"
        f"<small>95 % {format_metric(low)} to {format_metric(high)}</small></span></div>"
        f'<div class="quiet"><span>{rest}</span></div></div>'
    )

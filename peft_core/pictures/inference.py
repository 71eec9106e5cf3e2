"""What the Inference tab draws: other runs' answers, a file's result, and how far answers can be trusted."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from peft_core.pictures.cards import measured
from peft_core.pictures.charts import BLUE, GREY, ORANGE, Spec, colors, framed
from peft_core.pictures.pieces import duration
from peft_core.problems import TITLES

_JUDGED = (
    ("coverage", "texts answered", "{:.0%}"),
    ("ece", "calibration error (ECE)", "{:.3f}"),
    ("log_loss", "log loss, nats", "{:.3f}"),
    ("brier", "Brier score", "{:.3f}"),
)


def runs_table(answers: Sequence[Mapping[str, Any]]) -> str:
    """What several runs say of one text: a row a run; nothing without any."""
    if not answers:
        return ""
    rows = "".join(f"<tr><th scope=row>{html.escape(one['run_id'])}</th>{_said(one)}</tr>" for one in answers)
    return (
        '<div class="scroll"><table class="by-label" data-testid="other-runs">'
        f"<tr><th></th><th scope=col>says</th><th scope=col>confidence</th><th scope=col>ms</th></tr>{rows}"
        "</table></div>"
    )


def file_result(done: Mapping[str, Any], variant: str) -> str:
    """A predicted file in one glance: rows, time, what was left out, and metrics where it had labels."""
    speed = done["rows"] / max(done["seconds"], 1e-9)
    parts = [
        f"<b>{done['rows']:,}</b> rows by the {html.escape(variant)} in {duration(done['seconds'])} "
        f"({speed:,.0f} rows/s).",
        f"{done['empty']:,} without text have no answer." if done["empty"] else "",
        f"{done['abstained']:,} were not sure enough for an answer." if done["abstained"] else "",
        f"{done['neutralised']:,} cells that a spreadsheet would run begin with ' now."
        if done["neutralised"]
        else "",
        _form(done["form"]),
        *(html.escape(note) for note in done["notes"]),
        _sheet(done["read"]),
    ]
    return (
        f'<div class="result" data-testid="file-result"><p>{" ".join(filter(None, parts))}</p>'
        f"{_file_metrics(done['metrics'])}</div>"
    )


def _sheet(read: Mapping[str, Any]) -> str:
    """Which sheet of a workbook was read, and where its header is."""
    if "sheet" not in read:
        return ""
    header = f", header in row {read['header_row']}" if read["header_row"] else ", without a header"
    return f"Read from the sheet {html.escape(read['sheet'])}{header}."


def _form(form: Mapping[str, Any] | None) -> str:
    """What is to be known of the numbers in which a file was answered; nothing of float32."""
    if form is None or form["dtype"] == "float32":
        return ""
    return (
        f"Answered in {html.escape(form['dtype'])}, {form['speed_ratio']:.1f} times as fast here: on the "
        f"first {form['rows']} rows the largest logit difference from float32 was "
        f"{form['max_logit_diff']:.3f}; labels that changed: {form['labels_changed']}."
    )


def trust_table(report: Mapping[str, Any]) -> str:
    """The plain rule beside the chosen one, on the test rows."""
    both = (report["plain"], report["chosen"])
    lines = [
        (TITLES[name], [measured(one["metrics"][name]) if one["metrics"] else "–" for one in both])
        for name in report["plain"]["metrics"]
    ]
    lines += [(title, [form.format(one[name]) for one in both]) for name, title, form in _JUDGED]
    body = "".join(
        f"<tr><th scope=row>{html.escape(title)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for title, cells in lines
    )
    return (
        '<div class="scroll"><table class="by-label" data-testid="trust">'
        f"<caption>On {report['rows']:,} test rows, which the choice has not seen.</caption>"
        f"<tr><th></th><th scope=col>plain rule</th><th scope=col>your choice</th></tr>{body}</table></div>"
    )


def reliability_chart(report: Mapping[str, Any]) -> Spec:
    """Accuracy against confidence by both rules, and the line on which probabilities mean what they say."""
    names = {"plain": "plain rule", "chosen": "your choice"}
    bins = [{**row, "rule": title} for name, title in names.items() for row in report[name]["bins"]]
    low = min(row["low"] for row in bins)
    rows = [{key: row[key] for key in ("confidence", "accuracy", "count", "rule")} for row in bins]
    ideal = [{"confidence": end, "accuracy": end, "count": 0, "rule": "ideal"} for end in (low, 1.0)]
    measured_bins = {"filter": "datum.rule != 'ideal'"}
    return {
        **framed(pd.DataFrame([*rows, *ideal]), 230),
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2, "tooltip": True}},
            {
                "transform": [measured_bins],
                "mark": {"type": "point", "filled": True, "size": 45, "tooltip": True},
            },
        ],
        "encoding": {
            "x": _axis("confidence", "confidence (probability)", {"domain": [low, 1]}),
            "y": _axis("accuracy", "share that is right", {"domain": [0, 1]}),
            "color": colors("rule", {"plain rule": GREY, "your choice": BLUE, "ideal": ORANGE}),
        },
    }


def coverage_chart(report: Mapping[str, Any], abstain_below: float) -> Spec:
    """The share of right answers as ever fewer, surer ones are given; the chosen bound is a point."""
    rows = [{**row, "what": "least confidence"} for row in report["curve"]]
    kept = [row for row in rows if row["threshold"] >= abstain_below] or rows[:1]
    return {
        **framed(pd.DataFrame([*rows, {**kept[-1], "what": "your choice"}]), 230),
        "layer": [
            {
                "transform": [{"filter": "datum.what != 'your choice'"}],
                "mark": {"type": "line", "strokeWidth": 2, "tooltip": {"content": "data"}},
            },
            {
                "transform": [{"filter": "datum.what == 'your choice'"}],
                "mark": {"type": "point", "filled": True, "size": 110, "shape": "diamond", "tooltip": True},
            },
        ],
        "encoding": {
            "x": {
                **_axis("coverage", "share of texts answered", {"domain": [0, 1]}),
                "axis": {"format": "%"},
            },
            "y": {**_axis("accuracy", "share that is right", {"zero": False}), "axis": {"format": "%"}},
            "color": colors("what", {"least confidence": BLUE, "your choice": ORANGE}),
        },
    }


def _axis(field: str, title: str, scale: Spec) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def _said(answer: Mapping[str, Any]) -> str:
    if "error" in answer:
        return f'<td colspan=3 class="quiet">{html.escape(answer["error"])}</td>'
    sure = answer.get("confidence")
    label = "not sure" if answer.get("abstained") else answer["label"]
    confidence = "" if sure is None else f"{sure:.3f}"
    return f"<td>{html.escape(label)}</td><td>{confidence}</td><td>{answer['ms']:.1f}</td>"


def _file_metrics(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    low, high = metrics["interval"]
    first = metrics["headline"]
    rest = " · ".join(
        f"{TITLES[name]} {measured(value)}"
        for name, value in metrics.items()
        if name in TITLES and name != first
    )
    return (
        f'<div class="figures"><div><b data-testid="file-{first}">{measured(metrics[first])}</b>'
        f"<span>{TITLES[first]} on {metrics['judged']:,} labelled rows"
        f"<small>95 % {measured(low)} to {measured(high)}</small></span></div>"
        f'<div class="quiet"><span>{rest}</span></div></div>'
    )

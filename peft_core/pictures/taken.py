"""What is shown of things to take away: how an export compares with the model, and neighbours by meaning."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.pictures.cards import measured
from peft_core.problems import TITLES

_FILES = {"original": "PyTorch", "fp32": "ONNX, float32", "int8": "ONNX, int8"}
_SIDES = {"base": "Base", "adapted": "Adapted"}


def onnx_report(report: Mapping[str, Any]) -> str:
    """The model and its two files: the headline metric, speed, size and difference of each."""
    first = report["headline"]
    rows = "".join(_file_row(title, report[name], first) for name, title in _FILES.items())
    refused = report["int8"]["kept"] is False
    note = (
        f'<p class="message note">int8 loses {report["int8"]["drop"]:.1f} points, more than the '
        f"{report['max_drop']:g} allowed, so only float32 is in the folder.</p>"
        if refused
        else ""
    )
    heads = ("", TITLES[first], "points lost", "labels flipped", "rows/s", "speed", "MB")
    return _table("onnx-report", heads, rows) + note


def embeddings_report(report: Mapping[str, Any]) -> str:
    """What the vectors are, and how often the nearest rows share the label, before and after."""
    found = report.get("precision") or {}
    lines = [
        f"{report['size']} numbers a text, mean-pooled, length 1. Loaded again, the vectors of "
        f"{report['rows']:,} test rows differ by {report['max_difference']:.1e} at most.",
        f"Of the ten nearest test rows {found['base']:.0%} share the label under the base, "
        f"{found['adapted']:.0%} under the adapted encoder."
        if found
        else "",
        report.get("note", ""),
    ]
    body = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
    return f'<div class="facts" data-testid="embeddings-report">{body}</div>'


def page_report(report: Mapping[str, Any]) -> str:
    """How large the page is, and what it runs."""
    note = f"<p>{html.escape(report['note'])}</p>" if report.get("note") else ""
    return (
        f'<div class="facts" data-testid="page-report"><p>{report["bytes"] / 1e6:,.1f} MB to load once, in '
        f"{html.escape(report['precision'])}, with {report['examples']} examples.</p>"
        f"{note}</div>"
    )


def pushed(done: Mapping[str, Any]) -> str:
    """Where it stands on the Hub now."""
    url = html.escape(done["url"], quote=True)
    return f'<p data-testid="pushed">Pushed: <a href="{url}" target="_blank" rel="noopener">{url}</a></p>'


def neighbours_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The nearest test rows under both encoders, side by side."""
    sides = "".join(
        f"<div><h4>{title}</h4><ol>{''.join(_neighbour(row) for row in found[name])}</ol></div>"
        for name, title in _SIDES.items()
        if name in found
    )
    return f'<div class="neighbours" data-testid="neighbours">{sides}</div>'


def _neighbour(row: Mapping[str, Any]) -> str:
    text = row["text"] if not row.get("text_pair") else f"{row['text']} · {row['text_pair']}"
    return (
        f"<li><b>{row['similarity']:.2f}</b> {html.escape(text[:300])} "
        f"<small>{html.escape(row['true'])}</small></li>"
    )


def _file_row(title: str, one: Mapping[str, Any], first: str) -> str:
    ratio = one.get("speed_ratio")
    cells = (
        measured(one["metrics"][first]),
        f"{one['drop']:.2f}" if "drop" in one else "",
        f"{one['labels_flipped']:,}" if one.get("labels_flipped") is not None else "",
        f"{one['rows_per_second']:,.0f}",
        f"{ratio:.1f}×" if ratio else "",
        f"{one['bytes'] / 1e6:,.1f}",
    )
    return f"<tr><th scope=row>{title}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _table(testid: str, heads: Sequence[str], rows: str) -> str:
    top = "".join(f"<th scope=col>{head}</th>" for head in heads)
    table = f'<table class="by-label" data-testid="{testid}"><tr>{top}</tr>{rows}</table>'
    return f'<div class="scroll">{table}</div>'

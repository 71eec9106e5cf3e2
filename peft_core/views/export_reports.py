"""Reports of exports and the table of nearest neighbors, as HTML."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.problem_types import TITLES
from peft_core.views.cards import format_metric

_FORMATS = {"original": "PyTorch", "fp32": "ONNX, float32", "int8": "ONNX, int8"}
_ENCODERS = {"base": "Base", "adapted": "Adapted"}


def onnx_report(report: Mapping[str, Any]) -> str:
    """Return a table of the model and its two ONNX files: headline metric, differences, speed and size."""
    metric = report["headline"]
    rows = "".join(_file_row(title, report[name], metric) for name, title in _FORMATS.items())
    is_int8_dropped = report["int8"]["kept"] is False
    note = (
        f'<p class="message note">int8 loses {report["int8"]["drop"]:.1f} points, more than the '
        f"{report['max_drop']:g} allowed, so only float32 is in the folder.</p>"
        if is_int8_dropped
        else ""
    )
    heads = ("", TITLES[metric], "points lost", "labels flipped", "rows/s", "speed", "MB")
    return _table("onnx-report", heads, rows) + note


def embeddings_report(report: Mapping[str, Any]) -> str:
    """Return a description of the vectors, and the label precision before and after training."""
    precision = report.get("precision") or {}
    lines = [
        f"{report['size']} numbers per text, mean-pooled, normalized to length 1. After reloading, "
        f"the vectors of {report['rows']:,} test rows differ by at most {report['max_difference']:.1e}.",
        f"Of the ten nearest test rows, {precision['base']:.0%} share the label with the base encoder and "
        f"{precision['adapted']:.0%} with the adapted encoder."
        if precision
        else "",
        report.get("note", ""),
    ]
    body = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
    return f'<div class="facts" data-testid="embeddings-report">{body}</div>'


def page_report(report: Mapping[str, Any]) -> str:
    """Return the size, precision and number of examples of an exported page."""
    note = f"<p>{html.escape(report['note'])}</p>" if report.get("note") else ""
    return (
        f'<div class="facts" data-testid="page-report"><p>{report["bytes"] / 1e6:,.1f} MB to load once, in '
        f"{html.escape(report['precision'])}, with {report['examples']} examples.</p>"
        f"{note}</div>"
    )


def push_report(push: Mapping[str, str]) -> str:
    """Return a link to the repository of a push."""
    url = html.escape(push["url"], quote=True)
    return f'<p data-testid="pushed">Pushed: <a href="{url}" target="_blank" rel="noopener">{url}</a></p>'


def neighbors_table(neighbors: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the nearest test rows by the base and the adapted encoder, side by side."""
    columns = "".join(
        f"<div><h4>{title}</h4><ol>{''.join(_neighbor(row) for row in neighbors[name])}</ol></div>"
        for name, title in _ENCODERS.items()
        if name in neighbors
    )
    return f'<div class="neighbours" data-testid="neighbours">{columns}</div>'


def _neighbor(row: Mapping[str, Any]) -> str:
    text = row["text"] if not row.get("text_pair") else f"{row['text']} · {row['text_pair']}"
    return (
        f"<li><b>{row['similarity']:.2f}</b> {html.escape(text[:300])} "
        f"<small>{html.escape(row['true'])}</small></li>"
    )


def _file_row(title: str, entry: Mapping[str, Any], metric: str) -> str:
    speed_ratio = entry.get("speed_ratio")
    cells = (
        format_metric(entry["metrics"][metric]),
        f"{entry['drop']:.2f}" if "drop" in entry else "",
        f"{entry['labels_flipped']:,}" if entry.get("labels_flipped") is not None else "",
        f"{entry['rows_per_second']:,.0f}",
        f"{speed_ratio:.1f}×" if speed_ratio else "",
        f"{entry['bytes'] / 1e6:,.1f}",
    )
    return f"<tr><th scope=row>{title}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _table(testid: str, heads: Sequence[str], rows: str) -> str:
    header = "".join(f"<th scope=col>{head}</th>" for head in heads)
    table = f'<table class="by-label" data-testid="{testid}"><tr>{header}</tr>{rows}</table>'
    return f'<div class="scroll">{table}</div>'

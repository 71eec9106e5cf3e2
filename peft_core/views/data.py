"""HTML and SVG of a dataset: facts, rows as tokens, token lengths, labels and audit findings."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.config import DECIMAL_MARKS, PROBLEM_TYPES, SETTINGS
from peft_core.views.components import message

_WIDTH, _HEIGHT = 440, 90
_ROLES = {"train": "for training", "validation": "for validation", "test": "for testing"}
_ENCODINGS = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with BOM",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "cp1252": "Windows-1252",
    "latin-1": "Latin-1",
}


def data_facts(inspection: Mapping[str, Any]) -> str:
    """Return what was read, what was inferred and how it is split; an error comes first."""
    lines = [message(inspection["error"])] if inspection["error"] else []
    lines += [_line(_file_summary(file)) for file in inspection.get("files", ())]
    if "in_force" in inspection:
        lines.append(_line(_columns_summary(inspection)))
    if "used" in inspection:
        lines.append(_line(_split_summary(inspection)))
    if "head" in inspection:
        lines.append(_line(_head_summary(inspection["head"])))
    inspected, total = inspection["looked_at"]["train"], max(inspection["splits"].values(), default=0)
    if inspection["peeked"]:
        lines.append(
            _line(f"These are the first {inspected:,} rows; the rest is fetched when training starts.")
        )
    elif inspected < total:
        lines.append(_line(f"The findings below cover {inspected:,} of the rows."))
    return f'<div class="data-facts" data-testid="data-facts">{"".join(lines)}</div>'


def data_preview(inspection: Mapping[str, Any]) -> str:
    """Return the labels, the token lengths, and the first rows as they will be tokenized."""
    if "rows" not in inspection:
        return ""
    tokens = inspection["tokens"]
    parts = [label_bars(inspection["labels"])]
    parts.append(token_histogram(tokens) if tokens else _line(inspection["no_tokens"]))
    parts.append(_rows(inspection["rows"]))
    return f'<div class="data-preview" data-testid="data-preview">{"".join(parts)}</div>'


def data_findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return each finding of the audit with its examples."""
    if not findings:
        return '<p class="quiet" data-testid="findings">The audit found no problems.</p>'
    items = "".join(f"<li>{_finding(finding)}</li>" for finding in findings)
    return f'<ul class="findings" data-testid="findings">{items}</ul>'


def token_histogram(tokens: Mapping[str, Any]) -> str:
    """Return a histogram of tokens per text; lengths beyond max_length have the second color."""
    counts, edges, highest = tokens["counts"], tokens["edges"], max([*tokens["counts"], 1])
    width, longest = _WIDTH / len(counts), edges[-1] - 1
    bars = []
    for i, count in enumerate(counts):
        height = _HEIGHT * count / highest
        css_class = "cut" if edges[i] > tokens["max_length"] else "kept"
        title = f"<title>{edges[i]:,} to {edges[i + 1] - 1:,} tokens: {count:,} texts</title>"
        bars.append(
            f'<rect class="{css_class}" x="{i * width:.1f}" y="{_HEIGHT - height:.1f}" '
            f'width="{max(1, width - 1):.1f}" height="{height:.1f}">{title}</rect>'
        )
    line, x = "", _WIDTH * tokens["max_length"] / longest
    if x <= _WIDTH:
        line = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>'
    caption = (
        f"Tokens of {tokens['texts']:,} texts: half have up to {tokens['median']:.0f}, the longest "
        f"{tokens['longest']:,}. Max length {tokens['max_length']} cuts "
        f"{_percent(tokens['truncated_share'])} of them."
    )
    return (
        '<figure class="lengths" data-testid="lengths">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" '
        f'aria-label="{html.escape(caption)}">{"".join(bars)}{line}'
        f'<text x="0" y="{_HEIGHT + 13}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 13}" class="end">{longest:,} tokens</text></svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def label_bars(labels: Mapping[str, Any]) -> str:
    """Return the number of training rows of each label, or the range of the numbers."""
    if "counts" not in labels:
        low, high = labels["range"] or (0.0, 0.0)
        return _line(f"Numbers from {low:g} to {high:g}.")
    highest = max((count for _, count in labels["counts"]), default=1)
    bars = "".join(
        f'<div class="label"><span title="{html.escape(name)}">{html.escape(name)}</span>'
        f'<i style="--share:{count / highest:.4f}"></i><b>{count:,}</b></div>'
        for name, count in labels["counts"][:10]
    )
    more = labels["different"] - len(labels["counts"][:10])
    return f"<div>{bars}</div>" + (_line(f"and {more:,} more labels") if more > 0 else "")


def _line(text: str) -> str:
    return f'<p class="quiet">{html.escape(text)}</p>'


def _file_summary(facts: Mapping[str, Any]) -> str:
    parts = [facts["name"], f"{facts['rows']:,} rows"]
    if "delimiter" in facts:
        parts.append(f"{facts['delimiter']} between cells")
    if "encoding" in facts:
        parts.append(_ENCODINGS.get(facts["encoding"], facts["encoding"]))
    if "export" in facts:
        parts.append(f"export of {facts['export']}")
    if "rows_under" in facts:
        parts.append(f"rows under {facts['rows_under']}")
    if "member" in facts:
        parts.append(f"{facts['member']} inside")
    if "sheet" in facts:
        parts.append(f"sheet {facts['sheet']}")
    if facts.get("header_row"):
        parts.append(f"header in row {facts['header_row']}")
    elif "header" in facts:
        parts.append("header" if facts["header"] else "no header")
    if facts.get("quoting") == "none":
        parts.append("quotation marks are text")
    return " · ".join(parts)


def _columns_summary(inspection: Mapping[str, Any]) -> str:
    parts = []
    for name, value in inspection["in_force"].items():
        if value:
            suffix = " (guessed)" if name in inspection["guessed"] else ""
            parts.append(f"{SETTINGS[name].label}: {_setting_text(name, value)}{suffix}")
    return " · ".join(parts)


def _setting_text(name: str, value: str | list[str]) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    labels = {"problem_type": PROBLEM_TYPES, "decimal_mark": DECIMAL_MARKS}.get(name, {})
    return labels.get(value, value)


def _head_summary(head: Mapping[str, Any]) -> str:
    """Return what becomes of the base model's head; `rows` follow the labels of the data."""
    if head["rows"] is None:
        return "The base model's head is replaced by a new one."
    names = ", ".join(head["labels"][row] for row in head["rows"][:10])
    more = ", …" if len(head["rows"]) > 10 else ""
    return f"The base model's head is kept; the labels are its outputs {names}{more}."


def _split_summary(inspection: Mapping[str, Any]) -> str:
    parts = []
    for role, count in inspection["used"].items():
        suffix = ", held out" if role in inspection["held_out"] else ""
        parts.append(f"{count:,} rows {_ROLES[role]}{suffix}")
    dropped = sum(drop["rows"] for drop in inspection["dropped"])
    return " · ".join(parts + [f"{dropped:,} rows left out"] * bool(dropped))


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li><b>{_label(row['label'])}</b> {_cell(row)}"
        f"<small>{html.escape(row['row'])}{_length(row)}</small></li>"
        for row in rows
    )
    return f'<p class="quiet">First rows, as the model reads them:</p><ul class="rows">{items}</ul>'


def _cell(row: Mapping[str, Any]) -> str:
    if "tokens" not in row:
        return html.escape(" / ".join(row["text"]))
    more = " …" if row["length"] > len(row["tokens"]) else ""
    return " ".join(f"<code>{html.escape(token)}</code>" for token in row["tokens"]) + more


def _length(row: Mapping[str, Any]) -> str:
    return f" · {row['length']} tokens" if "length" in row else ""


def _label(label: Any) -> str:
    if isinstance(label, list):
        return html.escape(", ".join(label) or "no label")
    return html.escape(f"{label:g}" if isinstance(label, float) else str(label if label is not None else "—"))


def _finding(finding: Mapping[str, Any]) -> str:
    if not finding["examples"]:
        return html.escape(finding["sentence"])
    examples = "".join(f"<li>{html.escape(example)}</li>" for example in finding["examples"])
    return f"<details><summary>{html.escape(finding['sentence'])}</summary><ul>{examples}</ul></details>"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"

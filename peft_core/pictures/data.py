"""Pieces of HTML and SVG that show a data set: what was read, its rows as tokens, lengths, and findings."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.config import DECIMAL_MARKS, PROBLEM_TYPES, SETTINGS
from peft_core.pictures.pieces import message

_WIDTH, _HEIGHT = 440, 90
_ROLES = {"train": "to learn from", "validation": "for the curve", "test": "to judge on"}
_ENCODINGS = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with a mark",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "cp1252": "Windows-1252",
    "latin-1": "Latin-1",
}


def data_facts(found: Mapping[str, Any]) -> str:
    """What was read, what was guessed and how it is split, a line each; an error stands first."""
    lines = [message(found["error"])] if found["error"] else []
    lines += [_line(_file_words(facts)) for facts in found.get("files", ())]
    if "in_force" in found:
        lines.append(_line(_columns_words(found)))
    if "used" in found:
        lines.append(_line(_split_words(found)))
    if "head" in found:
        lines.append(_line(_head_words(found["head"])))
    looked, whole = found["looked_at"]["train"], max(found["splits"].values(), default=0)
    if found["peeked"]:
        lines.append(_line(f"These are the first {looked:,} rows; the rest is fetched when training starts."))
    elif looked < whole:
        lines.append(_line(f"The findings below are of {looked:,} of the rows."))
    return f'<div class="data-facts" data-testid="data-facts">{"".join(lines)}</div>'


def data_preview(found: Mapping[str, Any]) -> str:
    """The labels, the token lengths, and the first rows as they will be encoded."""
    if "rows" not in found:
        return ""
    parts = [label_bars(found["labels"])]
    parts.append(token_histogram(found["tokens"]) if found["tokens"] else _line(found["no_tokens"]))
    parts.append(_rows(found["rows"]))
    return f'<div class="data-preview" data-testid="data-preview">{"".join(parts)}</div>'


def data_findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """Each finding as a sentence with examples to open."""
    if not findings:
        return '<p class="quiet" data-testid="findings">The audit found nothing to mend.</p>'
    items = "".join(f"<li>{_finding(finding)}</li>" for finding in findings)
    return f'<ul class="findings" data-testid="findings">{items}</ul>'


def token_histogram(tokens: Mapping[str, Any]) -> str:
    """Texts by their number of tokens; what lies beyond max_length is drawn in the second colour."""
    counts, edges, most = tokens["counts"], tokens["edges"], max([*tokens["counts"], 1])
    width, longest = _WIDTH / len(counts), edges[-1] - 1
    bars = []
    for i, count in enumerate(counts):
        height = _HEIGHT * count / most
        kind = "cut" if edges[i] > tokens["max_length"] else "kept"
        title = f"<title>{edges[i]:,} to {edges[i + 1] - 1:,} tokens: {count:,} texts</title>"
        bars.append(
            f'<rect class="{kind}" x="{i * width:.1f}" y="{_HEIGHT - height:.1f}" '
            f'width="{max(1, width - 1):.1f}" height="{height:.1f}">{title}</rect>'
        )
    line, x = "", _WIDTH * tokens["max_length"] / longest
    if x <= _WIDTH:
        line = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>'
    words = (
        f"Tokens of {tokens['texts']:,} texts: half have up to {tokens['median']:.0f}, the longest "
        f"{tokens['longest']:,}. Max length {tokens['max_length']} cuts "
        f"{_percent(tokens['truncated_share'])} of them."
    )
    return (
        '<figure class="lengths" data-testid="lengths">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" '
        f'aria-label="{html.escape(words)}">{"".join(bars)}{line}'
        f'<text x="0" y="{_HEIGHT + 13}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 13}" class="end">{longest:,} tokens</text></svg>'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )


def label_bars(labels: Mapping[str, Any]) -> str:
    """How many training rows carry each label, or the range of a number."""
    if "counts" not in labels:
        low, high = labels["range"] or (0.0, 0.0)
        return _line(f"Numbers from {low:g} to {high:g}.")
    most = max((count for _, count in labels["counts"]), default=1)
    bars = "".join(
        f'<div class="label"><span title="{html.escape(name)}">{html.escape(name)}</span>'
        f'<i style="--share:{count / most:.4f}"></i><b>{count:,}</b></div>'
        for name, count in labels["counts"][:10]
    )
    more = labels["different"] - len(labels["counts"][:10])
    return f"<div>{bars}</div>" + (_line(f"and {more:,} more labels") if more > 0 else "")


def _line(words: str) -> str:
    return f'<p class="quiet">{html.escape(words)}</p>'


def _file_words(facts: Mapping[str, Any]) -> str:
    read = [facts["name"], f"{facts['rows']:,} rows"]
    if "delimiter" in facts:
        read.append(f"{facts['delimiter']} between cells")
    if "encoding" in facts:
        read.append(_ENCODINGS.get(facts["encoding"], facts["encoding"]))
    if "export" in facts:
        read.append(f"export of {facts['export']}")
    if "rows_under" in facts:
        read.append(f"rows under {facts['rows_under']}")
    if "member" in facts:
        read.append(f"{facts['member']} inside")
    if "sheet" in facts:
        read.append(f"sheet {facts['sheet']}")
    if facts.get("header_row"):
        read.append(f"header in row {facts['header_row']}")
    elif "header" in facts:
        read.append("header" if facts["header"] else "no header")
    if facts.get("quoting") == "none":
        read.append("quotation marks are text")
    return " · ".join(read)


def _columns_words(found: Mapping[str, Any]) -> str:
    words = []
    for name, value in found["in_force"].items():
        if value:
            what = _setting_words(name, value)
            guessed = " (guessed)" if name in found["guessed"] else ""
            words.append(f"{SETTINGS[name].label}: {what}{guessed}")
    return " · ".join(words)


def _setting_words(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    labels = {"problem_type": PROBLEM_TYPES, "decimal_mark": DECIMAL_MARKS}.get(name, {})
    return labels.get(value, value)


def _head_words(head: Mapping[str, Any]) -> str:
    """What becomes of the head that the base model brings, for labels in the order of the data."""
    if head["rows"] is None:
        return "The base model's head is replaced by a fresh one."
    names = ", ".join(head["labels"][row] for row in head["rows"][:10])
    more = ", …" if len(head["rows"]) > 10 else ""
    return f"The base model's head is kept; the labels are its outputs {names}{more}."


def _split_words(found: Mapping[str, Any]) -> str:
    words = []
    for role, count in found["used"].items():
        held = ", held out" if role in found["held_out"] else ""
        words.append(f"{count:,} rows {_ROLES[role]}{held}")
    dropped = sum(one["rows"] for one in found["dropped"])
    return " · ".join(words + [f"{dropped:,} rows left out"] * bool(dropped))


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

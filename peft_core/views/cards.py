"""Result card of a run and prediction card of a text, as HTML."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.problem_types import METRICS, MULTI, REGRESSION, SINGLE, TITLES
from peft_core.runs import FINISHED, KILLED
from peft_core.runs.kept_step import KeptStep
from peft_core.views.components import duration, message, settings_line, speed, speedup_failure

MATRIX = 20  # most labels for which the confusion matrix is drawn
BARS = 12  # most labels of a prediction that are drawn
_CARD_METRICS = {  # beside the headline: the second metric, and the two metrics of the baseline
    SINGLE: ("macro_f1", ("accuracy", "macro_f1")),
    MULTI: ("macro_f1", ("micro_f1", "macro_f1")),
    REGRESSION: ("mae", ("mae", "rmse")),
}


def result_card(description: Mapping[str, Any]) -> str:
    """Return the results of a run that ended beside the baseline, or the reason why it failed."""
    result, status = description["result"], description["status"]
    title = f"<h3>{html.escape(description['run_id'])}</h3>{settings_line(description['settings'])}"
    remarks = damage_message(description) + notes_of(description) + speedup_failure(result or description)
    reason = _failure(description)
    if result is None:
        return f'<div class="result">{title}{reason}{remarks}</div>'
    stopped = "" if status == FINISHED else '<p class="quiet">Stopped early; the adapter so far is kept.</p>'
    kept_step = kept_step_line(result)
    return f"""<div class="result" data-testid="result">{title}{reason}{stopped}{remarks}
<div class="figures">{_figures(result)}</div>
<div class="errors">{errors(result)}</div>
<p class="quiet">{result["eval_rows"]:,} held-out texts; trained on {result["train_rows"]:,}.
{result["parameters"]["trainable"]:,} of {result["parameters"]["total"]:,} parameters
({result["parameters"]["percent"]:.4f} %).
Started untrained: {html.escape(", ".join(result["untrained"]) or "nothing")}.</p>{kept_step}</div>"""


def _failure(description: Mapping[str, Any]) -> str:
    """Return why a run failed or has no result; empty if its result, notes or damage explain it."""
    error = description.get("error")
    if not (error or description["result"] or description.get("notes") or description.get("damage")):
        error = "The run ended without a result."
    if not error or error in (description.get("damage") or ()):
        return ""
    return message(error, "note" if description["status"] == KILLED else "error")


def damage_message(description: Mapping[str, Any]) -> str:
    """Return a message about a run's damaged files and those still usable; empty if there is no damage."""
    damage = description.get("damage")
    if not damage:
        return ""
    usable = ", ".join(description.get("usable") or ()) or "nothing"
    return message(f"{' '.join(damage)} Still usable: {usable}. Train again with its settings, or delete it.")


def notes_of(description: Mapping[str, Any]) -> str:
    """Return the notes of a training, such as the checkpoint from which it was resumed."""
    return "".join(message(note, "note") for note in description.get("notes") or ())


def kept_step_line(result: Mapping[str, Any]) -> str:
    """Return `describe_kept_step` as HTML; empty for runs of versions that did not record it."""
    if "kept" not in result:
        return ""
    text = describe_kept_step(result)
    return f'<p class="quiet" data-testid="kept-step">{html.escape(text)}</p>'


def describe_kept_step(result: Mapping[str, Any]) -> str:
    """Return which step was kept and why, with its metrics on the validation rows if there are any."""
    text, validation = KeptStep.from_dict(result["kept"]).describe(), result.get("validation")
    if not validation:
        return text
    metric = METRICS[result["problem_type"]][0]
    return (
        f"{text} On all {validation['rows']:,} validation rows the kept weights reach {TITLES[metric]} "
        f"{format_metric(validation[metric])} and loss {format_metric(validation['eval_loss'])}."
    )


def format_metric(value: float) -> str:
    """Format a metric: 0.787, 12.5, 1,234."""
    magnitude = abs(value)
    if 0 < magnitude < 0.001:
        return f"{value:.2g}"
    return f"{value:.3f}" if magnitude < 10 else f"{value:,.1f}" if magnitude < 1000 else f"{value:,.0f}"


def errors(result: Mapping[str, Any]) -> str:
    """Return the error analysis: confusion matrix, metrics by label, or predicted against true numbers."""
    if result["problem_type"] == REGRESSION:
        return scatter(result["points"])
    by_label = label_table(result.get("per_label", ()))
    if result["problem_type"] == MULTI:
        return by_label
    matrix, names = result["confusion_matrix"], result["labels"]
    return (confusion(matrix, names) if len(names) <= MATRIX else mistakes(matrix, names)) + by_label


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Return the confusion matrix as a table, with cells shaded by their share of the row."""
    head = "".join(f"<th scope=col>{html.escape(label)}</th>" for label in labels)
    rows = []
    for label, counts in zip(labels, matrix, strict=True):
        total = max(1, sum(counts))
        cells = "".join(f'<td style="--share:{count / total:.2f}">{count:,}</td>' for count in counts)
        rows.append(f"<tr><th scope=row>{html.escape(label)}</th>{cells}</tr>")
    return (
        '<div class="scroll"><table class="confusion" data-testid="confusion"><caption>Rows: the true label. '
        f"Columns: the predicted one.</caption><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )


def mistakes(matrix: Sequence[Sequence[int]], labels: Sequence[str], count: int = 10) -> str:
    """Return a table of the most frequent confusions; empty if there is none."""
    confusions = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    if not confusions:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(labels[i])}</td><td>{html.escape(labels[j])}</td><td>{n:,}</td></tr>"
        for n, i, j in sorted(confusions, key=lambda confusion: (-confusion[0], confusion[1:]))[:count]
    )
    return (
        '<div class="scroll"><table class="by-label" data-testid="mistakes">'
        "<caption>The most frequent mistakes.</caption>"
        f"<tr><th>True</th><th>Predicted</th><th>Texts</th></tr>{rows}</table></div>"
    )


def label_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return precision, recall, F1 and support of each label; empty without rows."""
    if not rows:
        return ""
    body = "".join(
        f"<tr><th scope=row>{html.escape(row['label'])}</th><td>{row['precision']:.2f}</td>"
        f'<td>{row["recall"]:.2f}</td><td style="--share:{row["f1"]:.2f}">{row["f1"]:.2f}</td>'
        f"<td>{row['support']:,}</td></tr>"
        for row in rows
    )
    heads = "".join(f"<th scope=col>{name}</th>" for name in ("", "Precision", "Recall", "F1", "Texts"))
    return (
        '<div class="scroll tall"><table class="by-label" data-testid="by-label"><tr>'
        f"{heads}</tr>{body}</table></div>"
    )


def scatter(points: Sequence[Sequence[float]]) -> str:
    """Return a scatter plot of predicted against true numbers, with the diagonal, on equal scales."""
    low, high = min(map(min, points)), max(map(max, points))
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def position(value: float) -> float:
        return 240 * (value - low) / (high - low or 1)

    dots = "".join(
        f'<circle cx="{60 + position(x):.1f}" cy="{250 - position(y):.1f}" r="4"/>' for x, y in points
    )
    axes = "".join(
        f'<text x="{60 + position(tick):.1f}" y="270">{tick:,g}</text>'
        f'<text x="50" y="{250 - position(tick):.1f}" class="side">{tick:,g}</text>'
        f'<path class="grid" d="M{60 + position(tick):.1f} 10V250M60 {250 - position(tick):.1f}H300"/>'
        for tick in ticks
    )
    return f"""<figure class="scatter" data-testid="scatter" aria-label="Predicted against true numbers">
<svg viewBox="0 0 320 300" role="img"><title>Predicted against true numbers</title>{axes}
<path class="same" d="M60 250L300 10"/>{dots}
<text x="180" y="293">true</text>
<text transform="translate(12 130) rotate(-90)">predicted</text></svg></figure>"""


def prediction_card(
    title: str,
    subtitle: str,
    prediction: Mapping[str, Any] | None,
    empty: str = "",
    limits: Sequence[float] = (),
) -> str:
    """Return the prediction of one model variant.

    Args:
        title: title of the card.
        subtitle: small text beside the title.
        prediction: the prediction, or None if there is none.
        empty: text without a prediction.
        limits: for regression the smallest and largest number of the training rows, the ends of the bar.
    """
    head = f"<h4>{html.escape(title)} <small>{html.escape(subtitle)}</small></h4>"
    if prediction is None:
        return f'<div class="prediction">{head}<p class="quiet">{html.escape(empty)}</p></div>'
    if prediction.get("value") is None:
        bars = _label_bars(prediction["scores"])
    else:
        bars = _number_bar(prediction["value"], limits)
    abstained = "No answer: the confidence is below the minimum of the rule saved with the run." * bool(
        prediction.get("abstained")
    )
    notes = filter(None, (abstained, prediction.get("note")))
    note = "".join(f'<p class="quiet">{html.escape(line)}</p>' for line in notes)
    latency = f'<p class="quiet">{prediction["ms"]:.1f} ms</p>' if prediction["ms"] else ""
    label = "?" if abstained else html.escape(prediction["label"])
    return f'<div class="prediction">{head}<p class="answer">{label}</p>{bars}{note}{latency}</div>'


def _figures(result: Mapping[str, Any]) -> str:
    """Return the headline metric with its interval, a second metric, the baseline and the training time."""
    problem_type = result["problem_type"]
    headline, *secondary = METRICS[problem_type]
    low, high = result[f"{headline}_interval"]
    second, baseline_metrics = _CARD_METRICS[problem_type]
    rest = " · ".join(
        f"{TITLES[name]} {format_metric(result[name])}"
        for name in secondary
        if name != second and name in result
    )
    baseline = result["baseline"]
    return "".join(
        f'<div{quiet}><b data-testid="{testid}">{number}</b><span>{title}<small>{detail}</small></span></div>'
        for quiet, testid, number, title, detail in (
            (
                "",
                headline,
                format_metric(result[headline]),
                TITLES[headline],
                f"95 % {format_metric(low)} to {format_metric(high)}",
            ),
            ("", second, format_metric(result[second]), TITLES[second], rest),
            (
                ' class="quiet"',
                "baseline",
                format_metric(baseline[baseline_metrics[0]]),
                f"{TITLES[baseline_metrics[0]]} of always “{html.escape(baseline['label'])}”",
                f"{TITLES[baseline_metrics[1]]} {format_metric(baseline[baseline_metrics[1]])}",
            ),
            (
                ' class="quiet"',
                "seconds",
                duration(result["train_seconds"]),
                "training",
                speed(result),
            ),
        )
    )


def _label_bars(shares: Mapping[str, float]) -> str:
    """Return a bar for each label, or for the most likely ones if there are more than `BARS`."""
    rows = list(shares.items())
    rest = len(rows) - BARS
    if rest > 0:
        rows = sorted(rows, key=lambda row: -row[1])[:BARS]
    bars = "".join(_bar_row(label, share, f"{share:.3f}") for label, share in rows)
    return bars + (f'<p class="quiet">and {rest:,} less likely labels</p>' if rest > 0 else "")


def _number_bar(value: float, limits: Sequence[float]) -> str:
    """Return a number's bar from `limits[0]` to `limits[1]`; empty for a stopped run, which has no limits."""
    if not limits:
        return ""
    low, high = limits
    share = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5
    return _bar_row(f"{low:,g}", share, f"{high:,g}")


def _bar_row(label: str, share: float, number: str) -> str:
    return (
        f'<div class="label"><span>{html.escape(label)}</span><i style="--share:{share:.4f}"></i>'
        f"<b>{number}</b></div>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that cover the range from `low` to `high`."""
    span = (high - low) or abs(low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= span / 5)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]

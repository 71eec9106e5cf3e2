"""What a run measured and what a model answers, as HTML: the result card and the prediction card."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.kept_step import KeptStep
from peft_core.pictures.pieces import duration, message, settings_line, speed, speedup_failure
from peft_core.problems import METRICS, MULTI, REGRESSION, SINGLE, TITLES
from peft_core.runs import FINISHED, KILLED

MATRIX = 20  # labels of a confusion matrix that can still be read
BARS = 12  # labels of a prediction
_SHOWN = {  # beside the headline: the second metric, and what the baseline is judged by
    SINGLE: ("macro_f1", ("accuracy", "macro_f1")),
    MULTI: ("macro_f1", ("micro_f1", "macro_f1")),
    REGRESSION: ("mae", ("mae", "rmse")),
}


def result_card(description: Mapping[str, Any]) -> str:
    """What a run that ended measured, against the best constant answer; or why it failed."""
    result, status = description["result"], description["status"]
    title = f"<h3>{html.escape(description['run_id'])}</h3>{settings_line(description['settings'])}"
    remarks = damage_message(description) + notes_of(description) + speedup_failure(result or description)
    reason = _reason(description)
    if result is None:
        return f'<div class="result">{title}{reason}{remarks}</div>'
    stopped = "" if status == FINISHED else '<p class="quiet">Stopped early; the adapter so far is kept.</p>'
    kept = kept_step_line(result)
    return f"""<div class="result" data-testid="result">{title}{reason}{stopped}{remarks}
<div class="figures">{_figures(result)}</div>
<div class="errors">{errors(result)}</div>
<p class="quiet">{result["eval_rows"]:,} held-out texts; trained on {result["train_rows"]:,}.
{result["parameters"]["trainable"]:,} of {result["parameters"]["total"]:,} parameters
({result["parameters"]["percent"]:.4f} %).
Started untrained: {html.escape(", ".join(result["untrained"]) or "nothing")}.</p>{kept}</div>"""


def _reason(description: Mapping[str, Any]) -> str:
    """Why a run failed, or left nothing; empty where its result, its notes or its damage say enough."""
    why = description.get("error")
    if not (why or description["result"] or description.get("notes") or description.get("damage")):
        why = "It left nothing to keep."
    if not why or why in (description.get("damage") or ()):
        return ""
    return message(why, "note" if description["status"] == KILLED else "error")


def damage_message(description: Mapping[str, Any]) -> str:
    """What of a run is damaged, what can still be used, and what to do; empty for a whole run."""
    damage = description.get("damage")
    if not damage:
        return ""
    usable = ", ".join(description.get("usable") or ()) or "nothing of it"
    return message(f"{' '.join(damage)} Still usable: {usable}. Train again with its settings, or delete it.")


def notes_of(description: Mapping[str, Any]) -> str:
    """What a training wants the person to know, such as which checkpoint it went on from."""
    return "".join(message(note, "note") for note in description.get("notes") or ())


def kept_step_line(result: Mapping[str, Any]) -> str:
    """Which step was kept and why, with its numbers on all validation rows; nothing for earlier versions."""
    if "kept" not in result:
        return ""
    words = kept_step_words(result)
    return f'<p class="quiet" data-testid="kept-step">{html.escape(words)}</p>'


def kept_step_words(result: Mapping[str, Any]) -> str:
    """Which step was kept and why, and what its weights reach on all validation rows, if there are any."""
    words, validation = KeptStep.from_dict(result["kept"]).describe(), result.get("validation")
    if not validation:
        return words
    first = METRICS[result["problem_type"]][0]
    return (
        f"{words} On all {validation['rows']:,} validation rows the kept weights reach {TITLES[first]} "
        f"{measured(validation[first])} and loss {measured(validation['eval_loss'])}."
    )


def measured(value: float) -> str:
    """A metric as people read it: 0.787, 12.5, 1,234."""
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:.2g}"
    return f"{value:.3f}" if size < 10 else f"{value:,.1f}" if size < 1000 else f"{value:,.0f}"


def errors(result: Mapping[str, Any]) -> str:
    """Where a run's errors lie: a confusion matrix, a table by label, or predicted against true numbers."""
    if result["problem_type"] == REGRESSION:
        return scatter(result["points"])
    labels = label_table(result.get("per_label", ()))
    if result["problem_type"] == MULTI:
        return labels
    matrix, names = result["confusion_matrix"], result["labels"]
    return (confusion(matrix, names) if len(names) <= MATRIX else mistakes(matrix, names)) + labels


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Counts as a table, each row shaded by its share."""
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


def mistakes(matrix: Sequence[Sequence[int]], labels: Sequence[str], most: int = 10) -> str:
    """The most frequent confusions, where a matrix would be too large to read; nothing if there is none."""
    found = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(labels[i])}</td><td>{html.escape(labels[j])}</td><td>{n:,}</td></tr>"
        for n, i, j in sorted(found, key=lambda one: (-one[0], one[1:]))[:most]
    )
    return (
        '<div class="scroll"><table class="by-label" data-testid="mistakes">'
        "<caption>The most frequent mistakes.</caption>"
        f"<tr><th>True</th><th>Predicted</th><th>Texts</th></tr>{rows}</table></div>"
    )


def label_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Precision, recall, F1 and number of texts of each label; nothing for runs that did not measure it."""
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
    """Predicted against true numbers on one scale; the line is where both are the same."""
    low, high = min(map(min, points)), max(map(max, points))
    marks = _ticks(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])

    def place(value: float) -> float:
        return 240 * (value - low) / (high - low or 1)

    dots = "".join(f'<circle cx="{60 + place(x):.1f}" cy="{250 - place(y):.1f}" r="4"/>' for x, y in points)
    axes = "".join(
        f'<text x="{60 + place(mark):.1f}" y="270">{mark:,g}</text>'
        f'<text x="50" y="{250 - place(mark):.1f}" class="side">{mark:,g}</text>'
        f'<path class="grid" d="M{60 + place(mark):.1f} 10V250M60 {250 - place(mark):.1f}H300"/>'
        for mark in marks
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
    """One variant's answer: a bar for each label on one scale from 0 to 1, or for a number one from the least
    to the greatest number trained on (`limits`)."""
    head = f"<h4>{html.escape(title)} <small>{html.escape(subtitle)}</small></h4>"
    if prediction is None:
        return f'<div class="prediction">{head}<p class="quiet">{html.escape(empty)}</p></div>'
    if prediction.get("value") is None:
        bars = _label_bars(prediction["scores"])
    else:
        bars = _number_bar(prediction["value"], limits)
    silent = "Not sure enough for an answer, by the rule saved with the run." * bool(
        prediction.get("abstained")
    )
    notes = filter(None, (silent, prediction.get("note")))
    note = "".join(f'<p class="quiet">{html.escape(one)}</p>' for one in notes)
    took = f'<p class="quiet">{prediction["ms"]:.1f} ms</p>' if prediction["ms"] else ""
    label = "?" if silent else html.escape(prediction["label"])
    return f'<div class="prediction">{head}<p class="answer">{label}</p>{bars}{note}{took}</div>'


def _figures(result: Mapping[str, Any]) -> str:
    """The headline with its interval, the next metric, the baseline and the time."""
    task = result["problem_type"]
    first, *others = METRICS[task]
    low, high = result[f"{first}_interval"]
    second, judged = _SHOWN[task]
    small = " · ".join(
        f"{TITLES[name]} {measured(result[name])}" for name in others if name != second and name in result
    )
    base = result["baseline"]
    return "".join(
        f'<div{quiet}><b data-testid="{testid}">{value}</b><span>{what}<small>{detail}</small></span></div>'
        for quiet, testid, value, what, detail in (
            ("", first, measured(result[first]), TITLES[first], f"95 % {measured(low)} to {measured(high)}"),
            ("", second, measured(result[second]), TITLES[second], small),
            (
                ' class="quiet"',
                "baseline",
                measured(base[judged[0]]),
                f"{TITLES[judged[0]]} of always “{html.escape(base['label'])}”",
                f"{TITLES[judged[1]]} {measured(base[judged[1]])}",
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
    """A bar a label; of many labels the likeliest ones."""
    rows = list(shares.items())
    left = len(rows) - BARS
    if left > 0:
        rows = sorted(rows, key=lambda row: -row[1])[:BARS]
    bars = "".join(_bar_row(label, share, f"{share:.3f}") for label, share in rows)
    return bars + (f'<p class="quiet">and {left:,} less likely labels</p>' if left > 0 else "")


def _number_bar(value: float, limits: Sequence[float]) -> str:
    """Nothing for a run that was stopped before it kept the limits: the number is the answer already."""
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
    """About five round numbers that reach from `low` to `high`."""
    span = (high - low) or abs(low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 5))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= span / 5)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]

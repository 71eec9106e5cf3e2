"""Sections of a model card as Markdown: results, data, settings, parameters, decision rule, limits."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from peft_core.config import REMEDIES, SETTINGS
from peft_core.errors import RunError
from peft_core.export.hub.card_facts import LANGUAGES, Facts
from peft_core.export.hub.markdown import code_name, collapsed, escaped, name_list, table
from peft_core.methods.registry import bits_of
from peft_core.problem_types import METRICS, MULTI, REGRESSION, SINGLE, THRESHOLD, TITLES
from peft_core.runs import KILLED
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.views.cards import MATRIX, describe_kept_step, format_metric
from peft_core.views.components import duration, size

FEW_ROWS = 20  # test rows of a label, below which its metrics are unreliable
MISTAKES = 10  # most frequent confusions that are listed
_SOURCES = {
    "Hub": " on the Hub",
    "embedded": ", embedded in the app",
    "files": ", files",
    "folder with a card": ", a folder",
}
_TRAINING = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "class_weight", "label_smoothing_factor", "load_best_model_at_end", "metric_for_best_model",
    "early_stopping_patience", "eval_steps", "seed", "split_seed",
)  # fmt: skip


def results(facts: Facts) -> str:
    """Return every metric beside the baseline, and the error analysis."""
    result, base = facts.result, facts.result["baseline"]
    rows = []
    for metric in METRICS[facts.problem_type]:
        if metric in result:
            interval = f" ({_interval(facts)})" if metric == facts.headline else ""
            rows.append(
                (TITLES[metric], format_metric(result[metric]) + interval, format_metric(base[metric]))
            )
    if "eval_loss" in result:
        rows.append(("loss", format_metric(result["eval_loss"]), ""))
    head = ("Metric", "This model", f"Always “{escaped(base['label'])}”")
    introduction = (
        f"Measured on {result['eval_rows']:,} test rows, none of which it was trained on. The 95 % "
        "interval is in brackets. The last column is the best constant answer."
    )
    return "\n\n".join(filter(None, (introduction, table(head, rows), *_errors(facts))))


def data(facts: Facts) -> str:
    """Return the source of the rows, their splits, and the rows left out."""
    record = facts.data
    if not record.get("used"):
        return (
            f"{facts.dataset_markdown}: {facts.result['train_rows']:,} training rows and "
            f"{facts.result['eval_rows']:,} test rows."
        )
    source = _SOURCES.get(record.get("source") or "", "")
    revision = f", revision {code_name(record['revision'])}" if record.get("revision") else ""
    config_name = record.get("dataset_config_name")
    config = f", configuration {code_name(config_name)}" if config_name else ""
    introduction = f"{facts.dataset_markdown}{source}{config}{revision}. {_columns(record['columns'])}"
    rows = [
        (
            role,
            f"{used:,}",
            f"{record['rows'][role]:,}" if role in record["rows"] else "",
            _origin(facts, role),
        )
        for role, used in record["used"].items()
    ]
    seed = f" Rows were held out with seed {record['split_seed']}." if record.get("held_out") else ""
    split = table(("Rows", "Used", "Available", "From"), rows)
    return f"{introduction}{seed}\n\n{split}\n\n{_dropped_rows(record.get('dropped', ()))}"


def settings(facts: Facts) -> str:
    """Return the method, and the settings that it and the training use."""
    rows = [("Method", f"{facts.method.label} ({facts.method.source})")]
    for key in (*facts.method.settings, *_TRAINING):
        if facts.settings[key] is not None:
            rows.append((f"{SETTINGS[key].label} (`{key}`)", _format_value(facts.settings[key])))
    if "steps" in facts.result:
        rows.append(("Steps", f"{facts.result['steps']:,}"))
    rows.append(("Time", duration(facts.result["train_seconds"])))
    result = facts.result.to_dict()
    kept_step = f"\n\n{describe_kept_step(result)}" if "kept" in result else ""
    return table(("Setting", "Value"), rows, numbers=False) + kept_step


def parameters(facts: Facts) -> str:
    """Return the numbers of trained and all parameters."""
    count = facts.result["parameters"]
    copy = f" The total counts the frozen copy ({count['head_copy']:,}) that PEFT keeps of the head."
    return (
        f"{count['trainable']:,} of {count['total']:,} parameters are trained ({count['percent']:.4f} %): "
        f"{count['adapter']:,} in the adapter and {count['head']:,} in the head, "
        f"{size(count['file_bytes'])} together.{copy if count['head_copy'] else ''}"
    )


def certificate(facts: Facts) -> str:
    """Return what the merge certificate compared; empty if there is no valid certificate."""
    merge = facts.certificate
    if merge is None:
        return ""
    largest = max(merge.max_logit_diff_merged, merge.max_logit_diff_reloaded)
    day = time.strftime("%Y-%m-%d", time.gmtime(merge.created))
    flips = "" if facts.problem_type == REGRESSION else f", {merge.label_flips:,} answers differ"
    quantized = ""
    if merge.max_logit_diff_quantised is not None:
        quantized = (
            f" The adapter was trained on a base model in {merge.trained_in_bits} bits and is merged into "
            f"the original weights: that changes a logit by up to {merge.max_logit_diff_quantised:.2g} and "
            f"{merge.label_flips_quantised:,} answers."
        )
    return (
        f"Merged on {day}, saved, reloaded and compared with the adapter on {merge.rows:,} test rows: "
        f"logits differ by at most {largest:.1e} ({merge.tolerance:.2g} is allowed){flips}, and the "
        f"head is the same (SHA-256 `{merge.head_sha256[:12]}`).{quantized}"
    )


def answers(facts: Facts) -> str:
    """Return how logits become an answer: temperature, thresholds, abstention and their effect."""
    if facts.problem_type == REGRESSION:
        return "The logit is the predicted number."
    decision_rule = facts.decision_rule
    activation = "softmax" if facts.problem_type == SINGLE else "sigmoid"
    if decision_rule.is_plain:
        rule = (
            "the most probable label is"
            if facts.problem_type == SINGLE
            else f"labels from {THRESHOLD} on are"
        )
        return (
            f"The probabilities are not calibrated: they are the {activation} of the logits, and {rule} the "
            "answer. They rank the labels, but do not say how often an answer is right."
        )
    sentences = [
        f"Probabilities are the {activation} of the logits divided by a temperature of "
        f"{decision_rule.temperature:g}, as chosen on validation rows (`decision.json`)."
    ]
    if decision_rule.thresholds and facts.problem_type == SINGLE:
        sentences.append("The answer is the label with the largest ratio of probability to threshold.")
    if decision_rule.abstain_below:
        sentences.append(f"Below a confidence of {decision_rule.abstain_below:g} there is no answer.")
    paragraph = " ".join([*sentences, *_decision_effect(facts)])
    if not decision_rule.thresholds:
        return paragraph
    rows = [
        (escaped(label), f"{threshold:g}")
        for label, threshold in zip(facts.labels, decision_rule.thresholds, strict=True)
    ]
    thresholds = _collapse_if_long(table(("Label", "Threshold"), rows), len(rows), "Thresholds by label")
    return f"{paragraph}\n\n{thresholds}"


def limits(facts: Facts) -> str:
    """Return the limits of the measured numbers that follow from the run."""
    return "\n".join(f"- {limit}" for limit in _limits(facts))


def base_license(facts: Facts) -> str:
    """Return the license of the base model, or that it is unknown."""
    if facts.base_license:
        base = f"The base model's card names {facts.base_license} as its license."
    else:
        base = "The base model's license is not known to the app: read its card before you share or use this."
    return f"{base} The license of the data is not known to the app."


def versions(facts: Facts) -> str:
    """Return the versions of the libraries that trained the model."""
    recorded = facts.result.get("versions") or {}
    libraries = ", ".join(f"{library} {escaped(version)}" for library, version in recorded.items())
    return (
        f"Trained by PEFT Workbench as run {code_name(facts.run.run_id)}{libraries and ', with '}{libraries}."
    )


def _interval(facts: Facts) -> str:
    low, high = facts.result[f"{facts.headline}_interval"]
    return f"{format_metric(low)} to {format_metric(high)}"


def _errors(facts: Facts) -> Iterator[str]:
    if facts.problem_type == REGRESSION:
        low, high = facts.result["train_label_range"]
        yield f"It was trained on numbers from {low:,g} to {high:,g}."
        return
    if facts.problem_type == SINGLE:
        yield _confusion(facts)
    if facts.result.get("per_label"):
        yield _by_label(facts)


def _confusion(facts: Facts) -> str:
    """Return the confusion matrix, or the most frequent mistakes if there are more than `MATRIX` labels."""
    matrix, labels = facts.result["confusion_matrix"], facts.labels
    if len(labels) <= MATRIX:
        rows = [
            (escaped(label), *(f"{count:,}" for count in counts))
            for label, counts in zip(labels, matrix, strict=True)
        ]
        matrix_table = table(("", *map(escaped, labels)), rows)
        return f"Rows of the next table are true labels, columns are predicted labels.\n\n{matrix_table}"
    mistakes = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    mistakes.sort(key=lambda mistake: (-mistake[0], mistake[1:]))
    rows = [(escaped(labels[i]), escaped(labels[j]), f"{n:,}") for n, i, j in mistakes[:MISTAKES]]
    return (
        "The most frequent mistakes:\n\n" + table(("True label", "Predicted label", "Rows"), rows)
        if rows
        else ""
    )


def _by_label(facts: Facts) -> str:
    shares = facts.result.get("train_label_shares", {})
    rows = [
        (
            escaped(row["label"]),
            f"{100 * shares[row['label']]:.1f} %" if row["label"] in shares else "",
            *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")),
            f"{row['support']:,}",
        )
        for row in facts.result["per_label"]
    ]
    head = ("Label", "Share of training rows", "Precision", "Recall", "F1", "Test rows")
    return _collapse_if_long(table(head, rows), len(rows), "Every label")


def _collapse_if_long(text: str, rows: int, summary: str) -> str:
    return text if rows <= MATRIX else collapsed(f"{summary} ({rows:,})", text)


def _columns(columns: dict[str, Any]) -> str:
    pair = columns.get("text_pair_column")
    second = f" and {code_name(pair)} the second text" if pair else ""
    text, label_columns = code_name(columns["text_column"]), columns.get("label_columns")
    if label_columns:
        labels = name_list(label_columns)
        return f"Column {text} is the text{second}; {labels} contain 1 for each label that applies."
    return f"Column {text} is the text{second}, {code_name(columns['label_column'])} the label."


def _origin(facts: Facts, role: str) -> str:
    prefix = "held out of " if role in facts.data.get("held_out", ()) else ""
    return f"{prefix}split {code_name(facts.split_of(role))}"


def _dropped_rows(dropped: list[dict[str, Any]]) -> str:
    lines = []
    for drop in dropped:
        labels = f", and with them the labels {name_list(drop['labels'])}" if drop.get("labels") else ""
        lines.append(f"- {drop['rows']:,} {drop['split']} rows: {REMEDIES[drop['remedy']].lower()}{labels}")
    return "Left out by choice:\n\n" + "\n".join(lines) if lines else "No row was left out by choice."


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and value >= 10_000 else f"{value:g}"
    return ", ".join(map(code_name, value)) if isinstance(value, list) else escaped(value)


def _decision_effect(facts: Facts) -> list[str]:
    """Return the effect of the decision rule on the test rows; empty for a run without their logits."""
    try:
        rows = load_evaluation_rows(facts.run)
    except RunError:
        return []
    is_correct = facts.decision_rule.decide(rows.logits, facts.problem_type) == rows.labels
    is_correct = is_correct.reshape(len(rows), -1).all(-1)
    answered = ~facts.decision_rule.abstains(rows.logits, facts.problem_type)
    accuracy = np.mean(is_correct[answered]) if answered.any() else 0.0
    scope = " in all their labels" if facts.problem_type == MULTI else ""
    return [
        f"By this rule {np.mean(answered):.1%} of the test rows get an answer, and {accuracy:.1%} of these "
        f"answers are right{scope}; the results above use the default rule."
    ]


def _may_leak(facts: Facts) -> bool:
    """Whether training texts may occur among the test rows; held-out rows are split by text."""
    is_disjoint = facts.data.get("source") == "embedded" or "test" in facts.data.get("held_out", ())
    return not is_disjoint and "leakage" not in facts.settings["remedies"]


def _shares_texts(facts: Facts) -> bool:
    """Whether test rows may share one text of their pair with training rows."""
    if not facts.classifier.text_pair or "shared_texts" in facts.settings["remedies"]:
        return False
    return facts.data.get("grouped_by") != "both" or "test" not in facts.data.get("held_out", ())


def _limits(facts: Facts) -> Iterator[str]:
    result = facts.result
    if not facts.beats_baseline:
        yield (
            f"**Its {TITLES[facts.headline]} is not shown to be better than that of the best constant "
            "answer.**"
        )
    yield (
        f"It was measured once, on {result['eval_rows']:,} rows of one data set, so its "
        f"{TITLES[facts.headline]} is only known to lie from {_interval(facts)} (95 %). Results on texts of "
        "other kinds or times may be worse."
    )
    rare = [row["label"] for row in result.get("per_label", ()) if row["support"] < FEW_ROWS]
    if rare:
        yield f"Labels with fewer than {FEW_ROWS} test rows: {name_list(rare)}. Their metrics are unreliable."
    if facts.language:
        yield f"It was trained and measured on {LANGUAGES[facts.language]} texts only."
    else:
        yield "The language of its texts was not recorded, and it was tested on no other language."
    if _may_leak(facts):
        yield "The data was not checked for texts that are in both the training split and the test split."
    if _shares_texts(facts):
        yield "Test rows may have one of their two texts in common with training rows."
    pair = " (both texts together)" if facts.classifier.text_pair else ""
    yield f"It reads the first {facts.classifier.max_length:,} tokens{pair} and nothing after them."
    yield (
        "Only the names of the labels are recorded, not what they mean or who assigned them."
        if facts.problem_type != REGRESSION
        else "It is not recorded what the numbers mean or who assigned them."
    )
    yield f"One seed ({facts.settings['seed']}) was trained; another gives somewhat different numbers."
    bits = bits_of(facts.settings)
    if bits < 32:
        yield (
            f"It was trained and measured on a base model in {bits} bits; on full-precision weights its "
            "outputs differ a little."
        )
    if facts.run.state().status == KILLED:
        yield "Training was stopped before its end."
    yield "It was not examined for bias against groups of people, or for robustness to adversarial texts."

"""The sections of a model card, each as Markdown: results, data, settings, size, answers, limits."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from peft_core.config import REMEDIES, SETTINGS
from peft_core.errors import RunError
from peft_core.export.hub.card_facts import LANGUAGES, Facts
from peft_core.export.hub.markdown import escaped, folded, listed, name, table
from peft_core.methods import bits_of
from peft_core.pictures.cards import MATRIX, kept_step_words, measured
from peft_core.pictures.pieces import duration, size
from peft_core.problems import METRICS, MULTI, REGRESSION, SINGLE, THRESHOLD, TITLES
from peft_core.rows import judged_rows
from peft_core.runs import KILLED

FEW = 20  # test rows of a label, below which its numbers say little
MISTAKES = 10
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
    """Every metric beside the baseline's, then where the errors lie."""
    result, base = facts.result, facts.result["baseline"]
    rows = []
    for metric in METRICS[facts.task]:
        if metric in result:
            interval = f" ({_interval(facts)})" if metric == facts.headline else ""
            rows.append((TITLES[metric], measured(result[metric]) + interval, measured(base[metric])))
    if "eval_loss" in result:
        rows.append(("loss", measured(result["eval_loss"]), ""))
    head = ("Metric", "This model", f"Always “{escaped(base['label'])}”")
    told = (
        f"Measured on {result['eval_rows']:,} test rows, which are none of its training rows. In brackets "
        "the 95 % interval. The last column is the best answer that never reads the text."
    )
    return "\n\n".join(filter(None, (told, table(head, rows), *_errors(facts))))


def data(facts: Facts) -> str:
    """Where the rows came from, how they were split, and what was left out."""
    record = facts.data
    if not record.get("used"):
        return (
            f"{facts.dataset_words}: {facts.result['train_rows']:,} training rows and "
            f"{facts.result['eval_rows']:,} test rows."
        )
    where = _SOURCES.get(record.get("source"), "")
    revision = f", revision {name(record['revision'])}" if record.get("revision") else ""
    config = record.get("dataset_config_name")
    config = f", configuration {name(config)}" if config else ""
    told = f"{facts.dataset_words}{where}{config}{revision}. {_columns(record['columns'])}"
    held = record.get("held_out", ())
    rows = [
        (
            role,
            f"{used:,}",
            f"{record['rows'][role]:,}" if role in record["rows"] else "",
            _origin(facts, role),
        )
        for role, used in record["used"].items()
    ]
    seed = f" Rows were held out with seed {record['split_seed']}." if held else ""
    split = table(("Rows", "Used", "There were", "From"), rows)
    return f"{told}{seed}\n\n{split}\n\n{_left_out(record.get('dropped', ()))}"


def settings(facts: Facts) -> str:
    """The method, and the settings that it and its training read."""
    rows = [("Method", f"{facts.method.label} ({facts.method.source})")]
    for key in (*facts.method.settings, *_TRAINING):
        if facts.settings[key] is not None:
            rows.append((f"{SETTINGS[key].label} (`{key}`)", _value(facts.settings[key])))
    if "steps" in facts.result:
        rows.append(("Steps", f"{facts.result['steps']:,}"))
    rows.append(("Time", duration(facts.result["train_seconds"])))
    kept = f"\n\n{kept_step_words(facts.result)}" if "kept" in facts.result else ""
    return table(("Setting", "Value"), rows, numbers=False) + kept


def parameters(facts: Facts) -> str:
    """What is trained of what there is."""
    count = facts.result["parameters"]
    copy = f" The total counts the frozen copy ({count['head_copy']:,}) that PEFT keeps of the head."
    return (
        f"{count['trainable']:,} of {count['total']:,} parameters are trained ({count['percent']:.4f} %): "
        f"{count['adapter']:,} in the adapter and {count['head']:,} in the head, "
        f"{size(count['file_bytes'])} together.{copy if count['head_copy'] else ''}"
    )


def certificate(facts: Facts) -> str:
    """What the merge was checked by; nothing where there is no certificate that holds."""
    held = facts.certificate
    if held is None:
        return ""
    worst = max(held.max_logit_diff_merged, held.max_logit_diff_reloaded)
    day = time.strftime("%Y-%m-%d", time.gmtime(held.created))
    flips = "" if facts.task == REGRESSION else f", {held.label_flips:,} answers differ"
    quantised = ""
    if held.max_logit_diff_quantised is not None:
        quantised = (
            f" The adapter was trained over a base in {held.trained_in_bits} bits and is merged into the "
            f"original weights: that changes a raw output by up to {held.max_logit_diff_quantised:.2g} and "
            f"{held.label_flips_quantised:,} answers."
        )
    return (
        f"Merged on {day}, saved, loaded again and compared with the adapter on {held.rows:,} test rows: raw "
        f"outputs differ by at most {worst:.1e} ({held.tolerance:.2g} is allowed){flips}, and the head is "
        f"the same (SHA-256 `{held.head_sha256[:12]}`).{quantised}"
    )


def answers(facts: Facts) -> str:
    """How raw outputs become an answer: temperature, thresholds, abstaining; and what that does."""
    if facts.task == REGRESSION:
        return "The raw output is the number."
    decision = facts.decision
    kind = "softmax" if facts.task == SINGLE else "sigmoid"
    if decision.is_plain:
        rule = "the most probable label is" if facts.task == SINGLE else f"labels from {THRESHOLD} on are"
        return (
            f"Nothing was calibrated: probabilities are the {kind} of the raw outputs, and {rule} the "
            "answer. They say which label is likelier, not how often it is right."
        )
    told = [
        f"Probabilities are the {kind} of the raw outputs divided by a temperature of "
        f"{decision.temperature:g}, as chosen on validation rows (`decision.json`)."
    ]
    if decision.thresholds and facts.task == SINGLE:
        told.append("The answer is the label whose probability is the largest share of its threshold.")
    if decision.abstain_below:
        told.append(f"Below a confidence of {decision.abstain_below:g} there is no answer.")
    words = " ".join([*told, *_effect(facts)])
    if not decision.thresholds:
        return words
    rows = [(escaped(a), f"{b:g}") for a, b in zip(facts.labels, decision.thresholds, strict=True)]
    return f"{words}\n\n{_long(table(('Label', 'Threshold'), rows), len(rows), 'Thresholds by label')}"


def limits(facts: Facts) -> str:
    """What the numbers do not say, as far as the run itself tells."""
    return "\n".join(f"- {limit}" for limit in _limits(facts))


def licence(facts: Facts) -> str:
    """The base model's licence, or that it is not known."""
    if facts.base_licence:
        known = f"The base model's card names {facts.base_licence} as its licence."
    else:
        known = (
            "The base model's licence is not known to the app: read its card before you share or use this."
        )
    return f"{known} The licence of the data is not known to the app either way."


def versions(facts: Facts) -> str:
    """The libraries that trained it."""
    held = facts.result.get("versions") or {}
    libraries = ", ".join(f"{library} {escaped(version)}" for library, version in held.items())
    return f"Trained by PEFT Workbench as run {name(facts.run.run_id)}{libraries and ', with '}{libraries}."


def _interval(facts: Facts) -> str:
    low, high = facts.result[f"{facts.headline}_interval"]
    return f"{measured(low)} to {measured(high)}"


def _errors(facts: Facts) -> Iterator[str]:
    if facts.task == REGRESSION:
        low, high = facts.result["train_label_range"]
        yield f"It was trained on numbers from {low:,g} to {high:,g}."
        return
    if facts.task == SINGLE:
        yield _confusion(facts)
    if facts.result.get("per_label"):
        yield _by_label(facts)


def _confusion(facts: Facts) -> str:
    """Counts by true and given label; of many labels the most frequent mistakes."""
    matrix, labels = facts.result["confusion_matrix"], facts.labels
    if len(labels) <= MATRIX:
        rows = [(escaped(a), *(f"{n:,}" for n in row)) for a, row in zip(labels, matrix, strict=True)]
        counts = table(("", *map(escaped, labels)), rows)
        return f"Rows of the next table are true labels, its columns those given.\n\n{counts}"
    found = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    most = sorted(found, key=lambda one: (-one[0], one[1:]))[:MISTAKES]
    rows = [(escaped(labels[i]), escaped(labels[j]), f"{n:,}") for n, i, j in most]
    return "The most frequent mistakes:\n\n" + table(("True label", "Given", "Rows"), rows) if rows else ""


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
    head = ("Label", "Of training rows", "Precision", "Recall", "F1", "Test rows")
    return _long(table(head, rows), len(rows), "Every label")


def _long(text: str, rows: int, summary: str) -> str:
    return text if rows <= MATRIX else folded(f"{summary} ({rows:,})", text)


def _columns(columns: dict[str, Any]) -> str:
    pair = columns.get("text_pair_column")
    second = f" and {name(pair)} the second text" if pair else ""
    text, several = name(columns["text_column"]), columns.get("label_columns")
    if several:
        return f"Column {text} is the text{second}; {listed(several)} hold 1 for each label that applies."
    return f"Column {text} is the text{second}, {name(columns['label_column'])} the label."


def _origin(facts: Facts, role: str) -> str:
    held = "held out of " if role in facts.data.get("held_out", ()) else ""
    return f"{held}split {name(facts.split_of(role))}"


def _left_out(dropped: list[dict[str, Any]]) -> str:
    lines = []
    for one in dropped:
        labels = f", and with them the labels {listed(one['labels'])}" if one.get("labels") else ""
        lines.append(f"- {one['rows']:,} {one['split']} rows: {REMEDIES[one['remedy']].lower()}{labels}")
    return "Left out by choice:\n\n" + "\n".join(lines) if lines else "No row was left out by choice."


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and value >= 10_000 else f"{value:g}"
    return ", ".join(map(name, value)) if isinstance(value, list) else escaped(value)


def _effect(facts: Facts) -> list[str]:
    """What the decision does on the test rows; nothing for a run that kept no raw outputs of them."""
    try:
        rows = judged_rows(facts.run)
    except RunError:
        return []
    right = facts.decision.decide(rows.logits, facts.task) == rows.labels
    right = right.reshape(len(rows), -1).all(-1)
    answered = ~facts.decision.abstains(rows.logits, facts.task)
    share = np.mean(right[answered]) if answered.any() else 0.0
    whole = " in all their labels" if facts.task == MULTI else ""
    return [
        f"By this rule {np.mean(answered):.1%} of the test rows get an answer, and {share:.1%} of these "
        f"answers are right{whole}; the results above are by the plain rule."
    ]


def _may_leak(facts: Facts) -> bool:
    """Whether training texts may stand among the test rows: held-out rows are parted by their texts."""
    parted = facts.data.get("source") == "embedded" or "test" in facts.data.get("held_out", ())
    return not parted and "leakage" not in facts.settings["remedies"]


def _shares_texts(facts: Facts) -> bool:
    """Whether test rows may have one text of their pair in common with training rows."""
    if not facts.classifier.text_pair or "shared_texts" in facts.settings["remedies"]:
        return False
    return facts.data.get("grouped_by") != "both" or "test" not in facts.data.get("held_out", ())


def _limits(facts: Facts) -> Iterator[str]:
    result = facts.result
    if not facts.beats_baseline:
        yield (
            f"**Its {TITLES[facts.headline]} is not shown to be better than that of an answer that never "
            "reads the text.**"
        )
    yield (
        f"It was measured once, on {result['eval_rows']:,} rows of one data set, so its "
        f"{TITLES[facts.headline]} is only known to lie from {_interval(facts)} (95 %). Texts of other kinds "
        "or times may fare worse."
    )
    rare = [row["label"] for row in result.get("per_label", ()) if row["support"] < FEW]
    if rare:
        yield f"Fewer than {FEW} test rows carry each of: {listed(rare)}. Their numbers say little."
    if facts.language:
        yield f"It was trained and measured on {LANGUAGES[facts.language]} texts only."
    else:
        yield "The language of its texts was not recorded, and no other was tried."
    if _may_leak(facts):
        yield "Texts that stand in the training split and in the test split were not looked for."
    if _shares_texts(facts):
        yield "Test rows may have one of their two texts in common with training rows."
    pair = " (both texts together)" if facts.classifier.text_pair else ""
    yield f"It reads the first {facts.classifier.max_length:,} tokens{pair} and nothing after them."
    yield (
        "The app knows the labels by their names alone: what they mean, and who gave them, is not recorded."
        if facts.task != REGRESSION
        else "What the number means, and who gave it, is not recorded."
    )
    yield f"One seed ({facts.settings['seed']}) was trained; another gives somewhat different numbers."
    bits = bits_of(facts.settings)
    if bits < 32:
        yield (
            f"It was trained and measured over a base in {bits} bits; over full-precision weights its "
            "outputs differ a little."
        )
    if facts.run.state().status == KILLED:
        yield "Training was stopped before its end."
    yield "Nobody examined it for bias against groups of people, nor against texts made to mislead it."

"""Model card of an adapter or a merged model for the Hub: metadata and text, generated from the run."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from peft_core.errors import RunError
from peft_core.export.hub import card_sections as sections
from peft_core.export.hub.card_facts import Facts
from peft_core.export.hub.loading_code import loading_code
from peft_core.export.hub.markdown import escaped, fenced, name_list
from peft_core.problem_types import METRICS, MULTI, REGRESSION, SINGLE, TITLES
from peft_core.runs import Run
from peft_core.views.cards import format_metric

CARDS = ("adapter", "merged")
PIPELINE = "text-classification"
_TASKS = {
    SINGLE: "Text classification",
    MULTI: "Multi-label text classification",
    REGRESSION: "Text regression",
}
_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {  # name and arguments on the Hub
    "accuracy": ("accuracy", None),
    "macro_f1": ("f1", {"average": "macro"}),
    "weighted_f1": ("f1", {"average": "weighted"}),
    "mcc": ("matthews_correlation", None),
    "micro_f1": ("f1", {"average": "micro"}),
    "subset_accuracy": ("exact_match", None),
    "spearman": ("spearmanr", None),
    "pearson": ("pearsonr", None),
    "mae": ("mae", None),
    "rmse": ("rmse", None),
}


def model_card(run: Run, kind: str, repo_id: str | None = None) -> str:
    """Return the README.md of a run's adapter or merged model.

    Its code loads the model from `repo_id`, or from its own folder if that is None.

    Raises:
        RunError: the run has no adapter or has lost files of it.
    """
    if kind not in CARDS:
        raise RunError(f"There is no model card of {kind!r}; it is one of {', '.join(CARDS)}.")
    facts = Facts.read(run)
    title = repo_id.rpartition("/")[2] if repo_id else run.run_id
    header = metadata(facts, kind, title).to_yaml(original_order=["base_model", "base_model_relation"])
    usage = fenced(loading_code(run, kind, repo_id or "."))
    login_note = (
        "" if repo_id is None else "If the repository is private, log in first with `hf auth login`.\n\n"
    )
    return (
        f"---\n{header}\n---\n\n# {escaped(title)}\n\n{introduction(facts, kind)}\n\n"
        f"## Use\n\n{login_note}{usage}\n\n{run_sections(facts)}\n"
    )


def run_sections(facts: Facts) -> str:
    """Return the sections that describe the run itself, whatever is exported from it."""
    texts = {
        "Results": sections.results(facts),
        "Decision rule": sections.answers(facts),
        "Limits": sections.limits(facts),
        "Data": sections.data(facts),
        "Settings": sections.settings(facts),
        "Parameters": sections.parameters(facts),
        "Merge certificate": sections.certificate(facts),
        "License": sections.base_license(facts),
        "Versions": sections.versions(facts),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in texts.items() if text)


def introduction(facts: Facts, kind: str) -> str:
    """Return the introduction: what the model is, and its headline metric beside the baseline."""
    method, base = facts.method.label, facts.base_markdown
    if kind == "merged":
        subject = f"Plain transformers weights: {method} trained on {base}, and merged into it."
    elif facts.method.peft_config:
        subject = f"A {method} adapter for {base}."
    else:
        subject = f"The weights that {method} trained of {base}."
    texts = "a pair of texts" if facts.classifier.text_pair else "a text"
    outputs = {
        SINGLE: f"one of {len(facts.labels):,} labels: {name_list(facts.labels)}",
        MULTI: f"none, some or all of {len(facts.labels):,} labels: {name_list(facts.labels)}",
        REGRESSION: "a number",
    }
    result, metric = facts.result, facts.headline
    low, high = result[f"{metric}_interval"]
    base_line = f"always “{escaped(result['baseline']['label'])}” reaches"
    return (
        f"{subject} It gives {texts} {outputs[facts.problem_type]}.\n\nOn {result['eval_rows']:,} test rows "
        f"it reaches {TITLES[metric]} **{format_metric(result[metric])}** (95 % interval "
        f"{format_metric(low)} to {format_metric(high)}); {base_line} "
        f"{format_metric(result['baseline'][metric])}."
    )


def metadata(facts: Facts, kind: str, title: str) -> ModelCardData:
    """Return the card's metadata in the fields of the Hub."""
    is_adapter = kind == "adapter" and facts.method.peft_config is not None
    relation = ("adapter" if is_adapter else "finetune") if facts.base_id else None
    evaluations = _evaluations(facts)
    return ModelCardData(
        base_model=facts.base_id,
        base_model_relation=relation,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=PIPELINE,
        language=facts.language,
        license=facts.base_license.lower() or None,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        tags=_tags(facts),
        metrics=list(dict.fromkeys(evaluation.metric_type for evaluation in evaluations)),
        model_name=title,
        eval_results=evaluations,
    )


def _tags(facts: Facts) -> list[str]:
    problem_type = {MULTI: ["multi-label"], REGRESSION: ["regression"]}.get(facts.problem_type, [])
    pair = ["text-pair"] if facts.classifier.text_pair else []
    return ["peft-workbench", facts.settings["method"].replace("_", "-"), *problem_type, *pair]


def _evaluations(facts: Facts) -> list[EvalResult]:
    data: dict[str, Any] = {
        "dataset_type": facts.dataset_id or facts.dataset_slug,
        "dataset_name": facts.dataset_name,
        "dataset_config": facts.data.get("dataset_config_name"),
        "dataset_split": facts.split_of("test"),
        "dataset_revision": facts.data.get("revision"),
    }
    return [
        EvalResult(
            task_type=PIPELINE,
            task_name=_TASKS[facts.problem_type],
            metric_type=_METRICS[metric][0],
            metric_name=TITLES[metric],
            metric_args=_METRICS[metric][1],
            metric_value=round(facts.result[metric], 6),
            **data,
        )
        for metric in METRICS[facts.problem_type]
        if metric in facts.result
    ]

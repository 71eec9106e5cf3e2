"""The model card that goes with an adapter or a merged model to the Hub: metadata and text, from the run."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from peft_core.errors import RunError
from peft_core.export.hub import card_sections as sections
from peft_core.export.hub.card_facts import Facts
from peft_core.export.hub.loading_code import loading_code
from peft_core.export.hub.markdown import escaped, fenced, listed
from peft_core.pictures.cards import measured
from peft_core.problems import METRICS, MULTI, REGRESSION, SINGLE, TITLES
from peft_core.runs import Run

CARDS = ("adapter", "merged")
PIPELINE = "text-classification"
_TASKS = {
    SINGLE: "Text classification",
    MULTI: "Multi-label text classification",
    REGRESSION: "Text regression",
}
_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {  # as the Hub calls them
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
    """The README.md of a run's adapter or merged model; its code loads it from `repo_id`, or from its folder.

    Raises RunError for a run that has no adapter, or has lost files of it.
    """
    if kind not in CARDS:
        raise RunError(f"There is no model card of {kind!r}; it is one of {', '.join(CARDS)}.")
    facts = Facts.read(run)
    title = repo_id.rpartition("/")[2] if repo_id else run.run_id
    header = metadata(facts, kind, title).to_yaml(original_order=["base_model", "base_model_relation"])
    use = fenced(loading_code(run, kind, repo_id or "."))
    private = (
        "" if repo_id is None else "If the repository is private, log in first with `hf auth login`.\n\n"
    )
    return (
        f"---\n{header}\n---\n\n# {escaped(title)}\n\n{introduction(facts, kind)}\n\n"
        f"## Use\n\n{private}{use}\n\n{about(facts)}\n"
    )


def about(facts: Facts) -> str:
    """What is true of a run whichever way it is taken away: results, limits, data, settings and the rest."""
    parts = {
        "Results": sections.results(facts),
        "From raw outputs to answers": sections.answers(facts),
        "Limits": sections.limits(facts),
        "Data": sections.data(facts),
        "Settings": sections.settings(facts),
        "Parameters": sections.parameters(facts),
        "Merge certificate": sections.certificate(facts),
        "Licence": sections.licence(facts),
        "Versions": sections.versions(facts),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)


def introduction(facts: Facts, kind: str) -> str:
    """What it is, and how good it is, in a few sentences."""
    method, base = facts.method.label, facts.base_words
    if kind == "merged":
        what = f"Plain transformers weights: {method} trained on {base}, and merged into it."
    elif facts.method.peft_config:
        what = f"A {method} adapter for {base}."
    else:
        what = f"The weights that {method} trained of {base}."
    texts = "a pair of texts" if facts.classifier.text_pair else "a text"
    given = {
        SINGLE: f"one of {len(facts.labels):,} labels: {listed(facts.labels)}",
        MULTI: f"none, some or all of {len(facts.labels):,} labels: {listed(facts.labels)}",
        REGRESSION: "a number",
    }
    result, first = facts.result, facts.headline
    low, high = result[f"{first}_interval"]
    base_line = f"always “{escaped(result['baseline']['label'])}” reaches"
    return (
        f"{what} It gives {texts} {given[facts.task]}.\n\nOn {result['eval_rows']:,} test rows it reaches "
        f"{TITLES[first]} **{measured(result[first])}** (95 % interval {measured(low)} to {measured(high)}); "
        f"{base_line} {measured(result['baseline'][first])}."
    )


def metadata(facts: Facts, kind: str, title: str) -> ModelCardData:
    """The header of the card, in the Hub's own fields."""
    is_adapter = kind == "adapter" and facts.method.peft_config is not None
    relation = ("adapter" if is_adapter else "finetune") if facts.base_id else None
    found = _evaluations(facts)
    return ModelCardData(
        base_model=facts.base_id,
        base_model_relation=relation,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=PIPELINE,
        language=facts.language,
        license=facts.base_licence.lower() or None,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        tags=_tags(facts),
        metrics=list(dict.fromkeys(one.metric_type for one in found)),
        model_name=title,
        eval_results=found,
    )


def _tags(facts: Facts) -> list[str]:
    task = {MULTI: ["multi-label"], REGRESSION: ["regression"]}.get(facts.task, [])
    pair = ["text-pair"] if facts.classifier.text_pair else []
    return ["peft-workbench", facts.settings["method"].replace("_", "-"), *task, *pair]


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
            task_name=_TASKS[facts.task],
            metric_type=_METRICS[metric][0],
            metric_name=TITLES[metric],
            metric_args=_METRICS[metric][1],
            metric_value=round(facts.result[metric], 6),
            **data,
        )
        for metric in METRICS[facts.task]
        if metric in facts.result
    ]

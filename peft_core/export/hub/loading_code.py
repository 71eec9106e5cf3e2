"""Python code that loads an export with stock transformers and PEFT and classifies a text."""

from collections.abc import Sequence
from pathlib import Path

from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.methods.registry import METHODS
from peft_core.models.sources import hub_commit, is_hub_model, is_local
from peft_core.problem_types import MULTI, REGRESSION, THRESHOLD
from peft_core.runs import Run

TEXTS = ("A text to classify.", "The second text of the pair.")


def loading_code(run: Run, kind: str, source: str) -> str:
    """Return a script that loads an adapter or a merged model from `source`, a Hub id or a folder.

    The script defines `model`, `tokenizer`, `logits` of one text (or pair) and `answer`: a label, a list of
    labels, a number, or None where the decision rule abstains.

    Raises:
        RunError: the run has no adapter.
    """
    classifier = Classifier.read(run)
    if kind == "merged":
        loading = _load_merged(source)
    elif METHODS[run.config().method].peft_config:
        loading = _load_adapter(classifier, source)
    else:
        loading = _load_weights(classifier, source)
    return "\n".join([*loading, "", *_predict(classifier), *_decide(classifier, DecisionRule.read(run))])


def quoted(text: str) -> str:
    """Return a text as a Python literal, in double quotes if possible."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and not {'"', "\\"} & set(literal) else literal


def _load_merged(source: str) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"source = {quoted(source)}",
        "model = AutoModelForSequenceClassification.from_pretrained(source).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
    ]


def _load_adapter(classifier: Classifier, source: str) -> list[str]:
    return [
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"source = {quoted(source)}",
        *_load_base(classifier, "base", "The adapter"),
        "model = PeftModel.from_pretrained(base, source).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
    ]


def _load_weights(classifier: Classifier, source: str) -> list[str]:
    """Return lines that load weights of the model itself, for methods without a PEFT adapter."""
    is_folder = is_local(source)
    file = (
        'f"{source}/adapter_model.safetensors"'
        if is_folder
        else ('hf_hub_download(source, "adapter_model.safetensors")')
    )
    return [
        "import torch",
        *([] if is_folder else ["from huggingface_hub import hf_hub_download"]),
        "from safetensors.torch import load_file",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"source = {quoted(source)}",
        *_load_base(classifier, "model", "The file below"),
        f"model.load_state_dict(load_file({file}), strict=False)",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
    ]


def _load_base(classifier: Classifier, variable: str, provider: str) -> list[str]:
    """Return lines that load the base model at its revision, with a head for these labels.

    `provider` names what supplies the weights that the checkpoint lacks, for a comment.
    """
    base, revision = classifier.base_model_name_or_path, classifier.base_revision
    commit = hub_commit(revision)
    path = base if is_hub_model(base, revision) else f"path/to/{Path(base).name}"
    lines = [
        f"labels = [{', '.join(map(quoted, classifier.labels))}]",
        f"{variable} = AutoModelForSequenceClassification.from_pretrained(",
        f"    {quoted(path)},",
    ]
    if commit:
        lines.append(f"    revision={quoted(commit)},")
    lines += [
        "    id2label=dict(enumerate(labels)),",
        "    label2id={label: i for i, label in enumerate(labels)},",
        f"    problem_type={quoted(classifier.problem_type)},",
    ]
    if classifier.head_is_fresh:
        lines.append("    ignore_mismatched_sizes=True,  # in case it has a head for other labels")
    lines += ["    dtype=torch.float32,", ")"]
    if classifier.untrained:
        parts = ", ".join(classifier.untrained)
        lines.append(f"# transformers reports as untrained: {parts}. {provider} has their trained weights.")
    return lines


def _predict(classifier: Classifier) -> list[str]:
    texts = ", ".join(map(quoted, TEXTS[: 1 + classifier.text_pair]))
    length = classifier.max_length
    return [
        f'inputs = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")',
        "with torch.inference_mode():",
        "    logits = model(**inputs).logits",
    ]


def _decide(classifier: Classifier, decision_rule: DecisionRule) -> list[str]:
    """Return lines that apply the run's decision rule to the logits."""
    if classifier.problem_type == REGRESSION:
        return ["answer = logits[0, 0].item()", "print(answer)"]
    raw = "logits[0]" if decision_rule.temperature == 1.0 else f"(logits[0] / {decision_rule.temperature!r})"
    decide = _decide_labels if classifier.problem_type == MULTI else _decide_label
    lines = decide(raw, decision_rule.thresholds)
    if decision_rule.abstain_below:
        lines += [
            f"if confidence < {decision_rule.abstain_below!r}:",
            "    answer = None  # the confidence is too low",
        ]
    return [*lines, "print(answer)"]


def _decide_label(raw: str, thresholds: Sequence[float]) -> list[str]:
    scores = f"(probabilities / torch.tensor({list(thresholds)!r}))" if thresholds else "probabilities"
    return [
        f"probabilities = {raw}.softmax(-1)",
        f"best = int({scores}.argmax())",
        "answer, confidence = model.config.id2label[best], float(probabilities[best])",
    ]


def _decide_labels(raw: str, thresholds: Sequence[float]) -> list[str]:
    threshold = f"torch.tensor({list(thresholds)!r})" if thresholds else f"{THRESHOLD!r}"
    return [
        f"probabilities = {raw}.sigmoid()",
        f"is_chosen = probabilities >= {threshold}",
        "answer = [model.config.id2label[int(i)] for i in is_chosen.nonzero()]",
        "confidence = float(torch.where(is_chosen, probabilities, 1 - probabilities).min())",
    ]

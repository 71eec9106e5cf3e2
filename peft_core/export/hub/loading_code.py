"""The lines of Python with which stock transformers and PEFT load what a person took away, and use it."""

from collections.abc import Sequence
from pathlib import Path

from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import Decision
from peft_core.methods import METHODS
from peft_core.problems import MULTI, REGRESSION, THRESHOLD
from peft_core.runs import Run
from peft_core.sources import from_hub, hub_commit, is_local

TEXTS = ("A text to classify.", "The second text of the pair.")


def loading_code(run: Run, kind: str, source: str) -> str:
    """A script that loads an adapter or a merged model from `source`, a Hub id or a folder.

    It leaves `model`, `tokenizer`, `logits` of one text (or pair) and `answer`: a label, a list of labels, a
    number, or None where the run's decision gives no answer. Raises RunError for a run without adapter.
    """
    classifier = Classifier.read(run)
    if kind == "merged":
        loaded = _merged(source)
    elif METHODS[run.config().method].peft_config:
        loaded = _adapter(classifier, source)
    else:
        loaded = _weights(classifier, source)
    return "\n".join([*loaded, "", *_reading(classifier), *_answer(classifier, Decision.read(run))])


def quoted(text: str) -> str:
    """A text as a Python literal, whatever is in it."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and not {'"', "\\"} & set(literal) else literal


def _merged(source: str) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"source = {quoted(source)}",
        "model = AutoModelForSequenceClassification.from_pretrained(source).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
    ]


def _adapter(classifier: Classifier, source: str) -> list[str]:
    return [
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"source = {quoted(source)}",
        *_base(classifier, "base", "The adapter"),
        "model = PeftModel.from_pretrained(base, source).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
    ]


def _weights(classifier: Classifier, source: str) -> list[str]:
    """Weights of the model itself, which are no PEFT adapter."""
    here = is_local(source)
    file = (
        'f"{source}/adapter_model.safetensors"'
        if here
        else ('hf_hub_download(source, "adapter_model.safetensors")')
    )
    return [
        "import torch",
        *([] if here else ["from huggingface_hub import hf_hub_download"]),
        "from safetensors.torch import load_file",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"source = {quoted(source)}",
        *_base(classifier, "model", "The file below"),
        f"model.load_state_dict(load_file({file}), strict=False)",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
    ]


def _base(classifier: Classifier, name: str, bringer: str) -> list[str]:
    """Lines that load the very base model, with a head for these labels."""
    base, revision = classifier.base_model_name_or_path, classifier.base_revision
    commit = hub_commit(revision)
    where = base if from_hub(base, revision) else f"path/to/{Path(base).name}"
    lines = [
        f"labels = [{', '.join(map(quoted, classifier.labels))}]",
        f"{name} = AutoModelForSequenceClassification.from_pretrained(",
        f"    {quoted(where)},",
    ]
    if commit:
        lines.append(f"    revision={quoted(commit)},")
    lines += [
        "    id2label=dict(enumerate(labels)),",
        "    label2id={label: i for i, label in enumerate(labels)},",
        f"    problem_type={quoted(classifier.problem_type)},",
    ]
    if classifier.head_is_fresh:
        lines.append("    ignore_mismatched_sizes=True,  # should it bring a head for other labels")
    lines += ["    dtype=torch.float32,", ")"]
    if classifier.untrained:
        parts = ", ".join(classifier.untrained)
        lines.append(f"# transformers reports as untrained: {parts}. {bringer} brings these, trained.")
    return lines


def _reading(classifier: Classifier) -> list[str]:
    texts = ", ".join(map(quoted, TEXTS[: 1 + classifier.text_pair]))
    length = classifier.max_length
    return [
        f'inputs = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")',
        "with torch.inference_mode():",
        "    logits = model(**inputs).logits",
    ]


def _answer(classifier: Classifier, decision: Decision) -> list[str]:
    """From raw outputs to the answer, by the decision that was saved with the run."""
    if classifier.problem_type == REGRESSION:
        return ["answer = logits[0, 0].item()", "print(answer)"]
    raw = "logits[0]" if decision.temperature == 1.0 else f"(logits[0] / {decision.temperature!r})"
    parts = _several if classifier.problem_type == MULTI else _one
    lines = parts(raw, decision.thresholds)
    if decision.abstain_below:
        lines += [f"if confidence < {decision.abstain_below!r}:", "    answer = None  # too unsure to say"]
    return [*lines, "print(answer)"]


def _one(raw: str, thresholds: Sequence[float]) -> list[str]:
    shares = f"(probabilities / torch.tensor({list(thresholds)!r}))" if thresholds else "probabilities"
    return [
        f"probabilities = {raw}.softmax(-1)",
        f"best = int({shares}.argmax())",
        "answer, confidence = model.config.id2label[best], float(probabilities[best])",
    ]


def _several(raw: str, thresholds: Sequence[float]) -> list[str]:
    least = f"torch.tensor({list(thresholds)!r})" if thresholds else f"{THRESHOLD!r}"
    return [
        f"probabilities = {raw}.sigmoid()",
        f"given = probabilities >= {least}",
        "answer = [model.config.id2label[int(i)] for i in given.nonzero()]",
        "confidence = float(torch.where(given, probabilities, 1 - probabilities).min())",
    ]

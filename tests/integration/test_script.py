"""The script export: it trains to the weights and metrics of the run, and texts in it never become code."""

import ast
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrix import LORA_VARIANTS, SMALL, TARGETS
from safetensors.torch import load_file
from scripts import assert_ruff_clean, assert_same, run_script
from task_runs import TOPICS, number_rows, pair_rows, topic_rows
from tiny import make_tiny, make_tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_core.config import TrainConfig
from peft_core.export.script.compose import partial_script, training_script
from peft_core.export.script.data import rows_come_from
from peft_core.export.script.facts import ModelFacts, RunFacts
from peft_core.export.script.model import base_lines, load_block, method_block
from peft_core.export.script.source import imports_of
from peft_core.inference.batching import batched_logits
from peft_core.inference.classifier import Classifier
from peft_core.methods.adapters import apply_method
from peft_core.methods.registry import METHODS, find_model_conflict
from peft_core.models.encoder import load_base
from peft_core.models.heads import HeadChange
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.training.schedule import total_steps

CASES = {name: {"method": name} for name in METHODS} | dict(LORA_VARIANTS)
CASES |= {
    "LoRA, top layers": {"top_layers": 1},
    "LoRA, top layers, all linear": {"top_layers": 1, "target_modules": ["all-linear"]},
    "IA3, top layers": {"method": "ia3", "top_layers": 1, "target_modules": ["output.dense"]},
    "IA3, top layers, all linear": {"method": "ia3", "top_layers": 1, "target_modules": ["all-linear"]},
}
OWN_LINES = (  # cases whose scripts have unique lines; the others differ only in their PEFT config
    "lora", "adalora", "ia3", "ln_tuning", "prefix_tuning", "prompt_tuning", "p_tuning", "bitfit",
    "head_only", "full", "LoRA, all linear", "LoRA, LoRA+", "LoRA, EVA start",
    "LoRA, top layers", "IA3, top layers",
)  # fmt: skip
SHORT_RUN = {**SMALL, "max_train_samples": 64, "arithmetic": "plain"}  # four steps an epoch
MODULE_FIELDS = ("target_modules", "feedforward_modules")  # of a PEFT config
SIZES = {"train": 100, "validation": 20, "test": 40}
HOSTILE = (
    "\"); open('pwned', 'w') #",
    "'''\"\"\"\nimport os; open('pwned', 'w')\n\"\"\"'''",
    "{open('pwned', 'w')} {0} %s \\",
    "a  # b\r\n\x00\x0c\u2028\u202e\ud83d\U0001f600",
)


def make_facts(config: TrainConfig, labels: Sequence[str] = ("bad", "good"), **changes: Any) -> RunFacts:
    """Return the facts of a run of these settings on data files."""
    model = {
        "labels": tuple(labels),
        "untrained": ("classifier", "pooler.dense"),
        "steps": total_steps(config, SIZES["train"]),
        "target_modules": ("key", "query"),
    }
    record = {"source": "files", "used": SIZES, **changes.pop("record", {})}
    versions = {"torch": "2.13.0", "peft": "0.21.2"}
    pair = changes.pop("text_pair", False)
    return RunFacts(ModelFacts(**{**model, **changes}), record, pair, versions, threads=2)


@pytest.mark.parametrize("case", OWN_LINES)
def test_script_trains_to_same_weights_as_run(
    case: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    run = train_here(**SHORT_RUN, **CASES[case])
    folder = tmp_path / "script"
    assert_same(run, folder, run_script(run, folder))
    method = METHODS[run.config().method]
    merges = method.peft_config is not None and not method.cannot_merge
    assert (folder / "output" / "merged" / "model.safetensors").is_file() == merges


@pytest.mark.parametrize(
    ("family", "from_run"), [("bert", True), ("deberta-v2", False)], ids=["of a run", "before any"]
)
def test_method_block_of_every_method_builds_same_model_as_run(
    family: str, from_run: bool, tmp_path: Path
) -> None:
    """Same PEFT config and same trainable parameters, also where the script looks them up itself."""
    folder = make_tiny(tmp_path / "model", family)
    for case, changes in CASES.items():
        settings = {"target_modules": TARGETS.get(family, ["query", "value"]), **SMALL, **changes}
        config = TrainConfig.from_dict({"model_name_or_path": str(folder), **settings})
        if find_model_conflict(config.to_dict(), family):
            continue
        base = load_base(str(folder), None, ("bad", "good"))
        expected_model = apply_method(base.model, config, base.untrained, base=base.source, steps=20)
        facts = ModelFacts(("bad", "good"))
        if from_run:
            peft_config = getattr(expected_model, "peft_config", {}).get("default")
            module_names = {
                name: tuple(sorted(getattr(peft_config, name, None) or ())) for name in MODULE_FIELDS
            }
            facts = ModelFacts(
                ("bad", "good"),
                untrained=base.untrained,
                steps=20,
                target_modules=module_names[MODULE_FIELDS[0]],
                feedforward=module_names[MODULE_FIELDS[1]],
            )
        text = "\n".join([base_lines(config), load_block(config, facts), method_block(config, facts)])
        namespace: dict[str, Any] = {
            "SEED": 1,
            "LABELS": ["bad", "good"],
            "train": range(20 * config.per_device_train_batch_size // 2),
        }
        exec(f"{imports_of(text)}\n{text}", namespace)
        assert trainable_parameters(namespace["model"]) == trainable_parameters(expected_model), case
        if METHODS[config.method].peft_config:
            assert comparable_settings(namespace["peft_config"]) == comparable_settings(
                expected_model.peft_config["default"]
            ), case


def trainable_parameters(model: Any) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad}


def comparable_settings(config: Any) -> dict[str, Any]:
    """Return a PEFT config without module names, which may be spelled in several ways."""
    settings = {
        name: value for name, value in config.to_dict().items() if name not in (*MODULE_FIELDS, "revision")
    }
    return {**settings, "modules_to_save": sorted(settings["modules_to_save"] or [])}


def write_rows(folder: Path, make: Callable[..., Any], names: tuple[str, ...] = ()) -> str:
    """Write JSON lines of rows from `make`, with label names in place of IDs and multi-hot vectors."""
    for part, count, seed in (("train", 64, 0), ("validation", 16, 1), ("test", 32, 2)):
        lines = []
        for row in make(count, seed):
            label = row["label"]
            if isinstance(label, list):
                label = [name for name, is_true in zip(names, label, strict=True) if is_true]
            elif names:
                label = names[label]
            lines.append(json.dumps({**row, "label": label}) + "\n")
        folder.mkdir(exist_ok=True)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder)


PROBLEM_CASES = {
    "several labels": (topic_rows, tuple(TOPICS), {"problem_type": MULTI}),
    "several labels, weighted": (
        topic_rows,
        tuple(TOPICS),
        {"problem_type": MULTI, "class_weight": "balanced"},
    ),
    "numbers": (number_rows, (), {"problem_type": REGRESSION}),
    "pairs": (pair_rows, ("bad", "good"), {}),
    "pairs, weighted": (pair_rows, ("bad", "good"), {"class_weight": "balanced"}),
}


@pytest.mark.parametrize("case", PROBLEM_CASES)
def test_script_of_every_problem_type_gives_same_metrics(
    case: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    make, names, settings = PROBLEM_CASES[case]
    run = train_here(
        **{**SHORT_RUN, "num_train_epochs": 4},
        dataset_name=write_rows(tmp_path / "rows", make, names),
        **settings,
    )
    assert_same(run, tmp_path / "script", run_script(run, tmp_path / "script"))


@pytest.mark.parametrize(
    ("head", "base_head", "change"),
    [
        (["a", "b", "c", "d", "e"], "by_name", None),
        (["bad", "good"], "by_name", None),
        (["GOOD", "Bad"], "by_name", HeadChange("classifier", (1, 0))),
        (["LABEL_0", "LABEL_1"], "by_order", None),
        (["LABEL_0", "LABEL_1"], "fresh", HeadChange("classifier", None)),
        (["value"], "by_name", None),
    ],
    ids=["other size", "same order", "other order", "by order", "fresh", "number"],
)
def test_script_with_base_head_trains_to_same_weights(
    head: list[str],
    base_head: str,
    change: HeadChange | None,
    train_here: Callable[..., Run],
    tmp_path: Path,
) -> None:
    names = dict(enumerate(head))
    base = str(make_tiny_bert(tmp_path / "base", num_labels=len(head), id2label=names))
    numbers = {"dataset_name": write_rows(tmp_path / "rows", number_rows), "problem_type": REGRESSION}
    extra = numbers if len(head) == 1 else {}
    run = train_here(**SHORT_RUN, model_name_or_path=base, base_head=base_head, **extra)
    assert run.result()["head_is_fresh"] == (len(head) == 5 or base_head == "fresh")
    assert Classifier.read(run).head_change == change
    assert_same(run, tmp_path / "script", run_script(run, tmp_path / "script"))


@pytest.mark.parametrize("method", ["loha", "ln_tuning"])
def test_script_merged_model_gives_logits_of_run(
    method: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    """RoBERTa's head has several layers, which PEFT alone would not merge."""
    base = str(make_tiny(tmp_path / "base", "roberta"))
    run = train_here(**SHORT_RUN, model_name_or_path=base, method=method)
    run_script(run, tmp_path / "script")
    folder = tmp_path / "script" / "output" / "merged"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = load_evaluation_rows(run)
    logits = batched_logits(model, AutoTokenizer.from_pretrained(folder), rows.texts, 64)
    assert np.abs(logits - rows.logits).max() < 1e-5
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_script_with_4_bit_base_merges_into_original_weights(
    train_here: Callable[..., Run], tmp_path: Path
) -> None:
    run = train_here(**SHORT_RUN, load_in_bits=4)
    folder = tmp_path / "script"
    script_globals = run_script(run, folder)
    assert_same(run, folder, script_globals)
    merged = load_file(folder / "output" / "merged" / "model.safetensors")
    original = load_file(Path(run.config().model_name_or_path) / "model.safetensors")
    untouched = "encoder.layer.0.intermediate.dense.weight"
    assert merged[f"bert.{untouched}"].equal(original[untouched])


def test_script_with_hostile_names_runs_no_injected_code(
    settings: dict[str, Any], train_here: Callable[..., Run], tmp_path: Path
) -> None:
    base = tmp_path / HOSTILE[0]
    base.symlink_to(settings["model_name_or_path"])
    run = train_here(
        **SHORT_RUN,
        model_name_or_path=str(base),
        dataset_name=write_rows(tmp_path / HOSTILE[2].replace("/", "-"), topic_rows, HOSTILE[:3]),
        problem_type=MULTI,
    )
    folder = tmp_path / "script"
    script_globals = run_script(run, folder)
    assert script_globals["LABELS"] == sorted(HOSTILE[:3])
    assert_same(run, folder, script_globals)
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


def syntax_tree(text: str) -> str:
    """Return the syntax tree of a script with every constant but booleans set to 0."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
            node.value = 0
    return ast.dump(tree)


def scripts_with_text(name: str) -> list[str]:
    """Return scripts in which `name` is every text that a user or a file can choose."""
    texts = []
    for dataset, source in itertools.product((name, "Yelp/yelp_review_full"), ("files", "Hub")):
        config = TrainConfig(
            model_name_or_path=name, revision=name, dataset_name=dataset, dataset_config_name=name,
            train_split=name, validation_split=name, eval_split=name, target_modules=(name, "all-linear"),
            text_column=name, text_pair_column=name, label_column=name, method="ia3",
        )  # fmt: skip
        columns = {"text_column": name, "text_pair_column": name, "label_column": name}
        record = {
            "source": source, "revision": name, "dataset_config_name": name, "columns": columns,
            "rows": dict.fromkeys(SIZES, 100), "splits": {name: 100},
            "held_out": ["validation"] if dataset != name else [],
        }  # fmt: skip
        model = {"untrained": (name, "classifier"), "revision": name, "target_modules": (name,)}
        facts = make_facts(config, (name, name + "x"), record=record, feedforward=(name,), **model)
        texts += [
            training_script(config, facts),
            partial_script(config, labels=(name,), feedforward_modules=(name,)),
        ]
    return texts


@pytest.mark.parametrize("name", HOSTILE)
def test_script_with_any_text_keeps_syntax_tree(name: str) -> None:
    plain = scripts_with_text("plain")
    assert sum("data = load_dataset(" in text for text in plain) == 2
    for text, other in zip(scripts_with_text(name), plain, strict=True):
        assert syntax_tree(text) == syntax_tree(other)
        values = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
        assert name.strip() in values or name in values
        assert all(char.isprintable() or char == "\n" for char in text)
        text.encode("utf-8")


@pytest.mark.parametrize(
    ("changes", "record", "expected"),
    [
        ({}, {"source": "embedded", "rows": {"train": 6824}}, "embedded"),
        ({"max_train_samples": 8000}, {"source": "embedded", "rows": {"train": 6824}}, "files"),
        ({"remedies": ["duplicates"]}, {"source": "embedded", "rows": {"train": 6824}}, "files"),
        ({"dataset_name": "a/b"}, {"source": "Hub", "rows": {"train": 9}, "splits": {"train": 9}}, "Hub"),
        ({"dataset_name": "a/b"}, {"source": "Hub", "rows": {"train": 9}, "splits": {"train": 99}}, "files"),
        ({"dataset_name": "a/b"}, {"source": "Hub", "held_out": ["test"]}, "files"),
        ({"dataset_name": "a.csv"}, {"source": "files", "rows": {"train": 9}}, "files"),
    ],
)
def test_rows_come_from_returns_expected_source(
    changes: dict[str, Any], record: dict[str, Any], expected: str
) -> None:
    config = TrainConfig.from_dict(changes)
    used = {"train": min(6000, config.max_train_samples), "validation": 20, "test": 40}
    assert rows_come_from(config, make_facts(config, record={"used": used, **record})) == expected


def test_every_script_passes_ruff(tmp_path: Path) -> None:
    for index, (case, changes) in enumerate(CASES.items()):
        config = TrainConfig.from_dict({**SMALL, **changes, "learning_rate": 1e-05})
        for problem_type in (SINGLE, MULTI, REGRESSION):
            labels = ("value",) if problem_type == REGRESSION else ("bad", "good")
            facts = make_facts(config, labels, problem_type=problem_type, text_pair=problem_type == MULTI)
            texts = [
                training_script(config, facts),
                partial_script(config, labels=labels, problem_type=problem_type),
            ]
            for kind, text in zip(("script", "part"), texts, strict=True):
                (tmp_path / f"{index}-{problem_type[:6]}-{kind}.py").write_text(text, encoding="utf-8")
                assert "peft_core" not in text, case
    many = make_facts(TrainConfig(), [f"label {i}" for i in range(100)], head_is_fresh=False)
    quantized = TrainConfig(load_in_bits=4, class_weight="balanced")
    (tmp_path / "many.py").write_text(training_script(TrainConfig(), many), encoding="utf-8")
    (tmp_path / "bits.py").write_text(training_script(quantized, make_facts(quantized)), encoding="utf-8")
    assert_ruff_clean(tmp_path)

"""A run as a script: it trains to the very weights and metrics of the run, and names in it stay names."""

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
from scripts import assert_same, checked_by_the_linter, run_script
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
OWN_LINES = (  # their scripts have lines that no other's has; the rest differ in their PEFT config
    "lora", "adalora", "ia3", "ln_tuning", "prefix_tuning", "prompt_tuning", "p_tuning", "bitfit",
    "head_only", "full", "LoRA, all linear", "LoRA, LoRA+", "LoRA, EVA start",
    "LoRA, top layers", "IA3, top layers",
)  # fmt: skip
FEW = {**SMALL, "max_train_samples": 64, "arithmetic": "plain"}  # four steps an epoch
NAMED = ("target_modules", "feedforward_modules")  # of a PEFT config
SIZES = {"train": 100, "validation": 20, "test": 40}
HOSTILE = (
    "\"); open('pwned', 'w') #",
    "'''\"\"\"\nimport os; open('pwned', 'w')\n\"\"\"'''",
    "{open('pwned', 'w')} {0} %s \\",
    "a  # b\r\n\x00\x0c\u2028\u202e\ud83d\U0001f600",
)


def hand_made(config: TrainConfig, labels: Sequence[str] = ("bad", "good"), **changes: Any) -> RunFacts:
    """What a run of these settings on files would tell."""
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
def test_a_script_trains_to_the_same_weights(
    case: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    run = train_here(**FEW, **CASES[case])
    folder = tmp_path / "script"
    assert_same(run, folder, run_script(run, folder))
    method = METHODS[run.config().method]
    merges = method.peft_config is not None and not method.cannot_merge
    assert (folder / "output" / "merged" / "model.safetensors").is_file() == merges


@pytest.mark.parametrize(
    ("family", "known"), [("bert", True), ("deberta-v2", False)], ids=["of a run", "before any"]
)
def test_every_method_is_put_on_the_model_as_the_run_does(family: str, known: bool, tmp_path: Path) -> None:
    """The same PEFT config, or the same parameters that learn; also where the lines find things out."""
    folder = make_tiny(tmp_path / "model", family)
    for case, changes in CASES.items():
        own = {"target_modules": TARGETS.get(family, ["query", "value"]), **SMALL, **changes}
        config = TrainConfig.from_dict({"model_name_or_path": str(folder), **own})
        if find_model_conflict(config.to_dict(), family):
            continue
        base = load_base(str(folder), None, ("bad", "good"))
        wanted = apply_method(base.model, config, base.untrained, base=base.source, steps=20)
        facts = ModelFacts(("bad", "good"))
        if known:
            held = getattr(wanted, "peft_config", {}).get("default")
            told_of = {name: tuple(sorted(getattr(held, name, None) or ())) for name in NAMED}
            facts = ModelFacts(
                ("bad", "good"), untrained=base.untrained, steps=20, target_modules=told_of[NAMED[0]],
                feedforward=told_of[NAMED[1]],
            )  # fmt: skip
        text = "\n".join([base_lines(config), load_block(config, facts), method_block(config, facts)])
        found: dict[str, Any] = {
            "SEED": 1,
            "LABELS": ["bad", "good"],
            "train": range(20 * config.per_device_train_batch_size // 2),
        }
        exec(f"{imports_of(text)}\n{text}", found)
        assert learning(found["model"]) == learning(wanted), case
        if METHODS[config.method].peft_config:
            assert told(found["peft_config"]) == told(wanted.peft_config["default"]), case


def learning(model: Any) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad}


def told(config: Any) -> dict[str, Any]:
    """A PEFT config without the names that two spellings may differ in, and which learn or not above."""
    held = {name: value for name, value in config.to_dict().items() if name not in (*NAMED, "revision")}
    return {**held, "modules_to_save": sorted(held["modules_to_save"] or [])}


def rows_in(folder: Path, make: Callable[..., Any], names: tuple[str, ...] = ()) -> str:
    """A folder of JSON lines made by `make`; labels by their names, sets of 0 and 1 as lists of names."""
    for part, count, seed in (("train", 64, 0), ("validation", 16, 1), ("test", 32, 2)):
        lines = []
        for row in make(count, seed):
            label = row["label"]
            if isinstance(label, list):
                label = [name for name, held in zip(names, label, strict=True) if held]
            elif names:
                label = names[label]
            lines.append(json.dumps({**row, "label": label}) + "\n")
        folder.mkdir(exist_ok=True)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder)


TASKS = {
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


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_measured_the_same(task: str, train_here: Callable[..., Run], tmp_path: Path) -> None:
    make, names, settings = TASKS[task]
    run = train_here(
        **{**FEW, "num_train_epochs": 4}, dataset_name=rows_in(tmp_path / "rows", make, names), **settings
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
def test_script_with_a_head_of_the_base_trains_to_the_same_weights(
    head: list[str],
    base_head: str,
    change: HeadChange | None,
    train_here: Callable[..., Run],
    tmp_path: Path,
) -> None:
    names = dict(enumerate(head))
    base = str(make_tiny_bert(tmp_path / "base", num_labels=len(head), id2label=names))
    numbers = {"dataset_name": rows_in(tmp_path / "rows", number_rows), "problem_type": REGRESSION}
    extra = numbers if len(head) == 1 else {}
    run = train_here(**FEW, model_name_or_path=base, base_head=base_head, **extra)
    assert run.result()["head_is_fresh"] == (len(head) == 5 or base_head == "fresh")
    assert Classifier.read(run).head_change == change
    assert_same(run, tmp_path / "script", run_script(run, tmp_path / "script"))


@pytest.mark.parametrize("method", ["loha", "ln_tuning"])
def test_what_a_script_merges_is_what_it_trained(
    method: str, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    """RoBERTa's head is several layers, which PEFT alone would not merge."""
    base = str(make_tiny(tmp_path / "base", "roberta"))
    run = train_here(**FEW, model_name_or_path=base, method=method)
    run_script(run, tmp_path / "script")
    folder = tmp_path / "script" / "output" / "merged"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = load_evaluation_rows(run)
    logits = batched_logits(model, AutoTokenizer.from_pretrained(folder), rows.texts, 64)
    assert np.abs(logits - rows.logits).max() < 1e-5
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_a_base_in_four_bits_is_trained_and_merged_into_the_whole_one(
    train_here: Callable[..., Run], tmp_path: Path
) -> None:
    run = train_here(**FEW, load_in_bits=4)
    folder = tmp_path / "script"
    found = run_script(run, folder)
    assert_same(run, folder, found)
    merged = load_file(folder / "output" / "merged" / "model.safetensors")
    whole = load_file(Path(run.config().model_name_or_path) / "model.safetensors")
    untouched = "encoder.layer.0.intermediate.dense.weight"
    assert merged[f"bert.{untouched}"].equal(whole[untouched])


def test_names_that_would_be_code_stay_names(
    settings: dict[str, Any], train_here: Callable[..., Run], tmp_path: Path
) -> None:
    base = tmp_path / HOSTILE[0]
    base.symlink_to(settings["model_name_or_path"])
    run = train_here(
        **FEW,
        model_name_or_path=str(base),
        dataset_name=rows_in(tmp_path / HOSTILE[2].replace("/", "-"), topic_rows, HOSTILE[:3]),
        problem_type=MULTI,
    )
    folder = tmp_path / "script"
    found = run_script(run, folder)
    assert found["LABELS"] == sorted(HOSTILE[:3])
    assert_same(run, folder, found)
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


def shape(text: str) -> str:
    """What a script does, without the texts and numbers that it does it with."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
            node.value = 0
    return ast.dump(tree)


def everywhere(name: str) -> list[str]:
    """Scripts in which every text that a person or a file can choose is this one."""
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
        facts = hand_made(config, (name, name + "x"), record=record, feedforward=(name,), **model)
        texts += [
            training_script(config, facts),
            partial_script(config, labels=(name,), feedforward_modules=(name,)),
        ]
    return texts


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_changes_what_a_script_does(name: str) -> None:
    plain = everywhere("plain")
    assert sum("data = load_dataset(" in text for text in plain) == 2
    for text, other in zip(everywhere(name), plain, strict=True):
        assert shape(text) == shape(other)
        values = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
        assert name.strip() in values or name in values
        assert all(char.isprintable() or char == "\n" for char in text)
        text.encode("utf-8")


@pytest.mark.parametrize(
    ("changes", "record", "found"),
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
def test_rows_that_few_lines_would_not_read_the_same_come_from_files(
    changes: dict[str, Any], record: dict[str, Any], found: str
) -> None:
    config = TrainConfig.from_dict(changes)
    used = {"train": min(6000, config.max_train_samples), "validation": 20, "test": 40}
    assert rows_come_from(config, hand_made(config, record={"used": used, **record})) == found


def test_every_script_passes_the_linter(tmp_path: Path) -> None:
    for place, (case, changes) in enumerate(CASES.items()):
        config = TrainConfig.from_dict({**SMALL, **changes, "learning_rate": 1e-05})
        for task in (SINGLE, MULTI, REGRESSION):
            labels = ("value",) if task == REGRESSION else ("bad", "good")
            facts = hand_made(config, labels, problem_type=task, text_pair=task == MULTI)
            texts = [training_script(config, facts), partial_script(config, labels=labels, problem_type=task)]
            for kind, text in zip(("script", "part"), texts, strict=True):
                (tmp_path / f"{place}-{task[:6]}-{kind}.py").write_text(text, encoding="utf-8")
                assert "peft_core" not in text, case
    many = hand_made(TrainConfig(), [f"label {i}" for i in range(100)], head_is_fresh=False)
    quantised = TrainConfig(load_in_bits=4, class_weight="balanced")
    (tmp_path / "many.py").write_text(training_script(TrainConfig(), many), encoding="utf-8")
    (tmp_path / "bits.py").write_text(training_script(quantised, hand_made(quantised)), encoding="utf-8")
    checked_by_the_linter(tmp_path)

"""The model card of a run: its metadata as the Hub reads it, and its text as rendered."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from run_files import change_json

from peft_core.config import EMBEDDED_MODEL
from peft_core.errors import RunError
from peft_core.export.hub.markdown import escaped, fenced, plain
from peft_core.export.hub.model_card import model_card
from peft_core.inference.decision import DecisionRule
from peft_core.models.presets import EMBEDDED_SHA256
from peft_core.runs import Run

HOSTILE = [
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "| pipe | more |",
    "two\nlines\r\n# and a heading",
    "---",
    "```\nfence",
    "[link](https://evil.example) www.evil.example @someone :tada: $$x$$ \\(y\\)",
    "*bold* _slanted_ ~~gone~~ `code` &amp; <!-- hidden",
    "right\u202eto left",
    "نص 中文 snake_case",
]
SECTIONS = [
    "Use", "Results", "Decision rule", "Limits", "Data", "Settings", "Parameters", "License",
    "Versions",
]  # fmt: skip


def tokens(card: ModelCard) -> list[Token]:
    """Parse a card as GitHub and the Hub do: with tables, HTML and links from bare addresses."""
    return MarkdownIt("gfm-like", {"linkify": False}).parse(card.text)


def headings(parsed: list[Token], tag: str) -> list[str]:
    return [
        parsed[i + 1].content
        for i, token in enumerate(parsed)
        if token.type == "heading_open" and token.tag == tag
    ]


def tables(card: ModelCard) -> list[list[list[str]]]:
    """Return every table as rows of rendered cell texts."""
    parsed: list[list[list[str]]] = []
    for token in tokens(card):
        if token.type == "table_open":
            parsed.append([])
        elif token.type == "tr_open":
            parsed[-1].append([])
        elif token.type == "inline" and parsed and token.level >= 4:
            parsed[-1][-1].append("".join(child.content for child in token.children))
    return parsed


def table_of(card: ModelCard, *head: str) -> list[list[str]]:
    return next(rows for rows in tables(card) if tuple(rows[0][: len(head)]) == head)


def code_of(card: ModelCard) -> ast.Module:
    fences = [token for token in tokens(card) if token.type == "fence"]
    assert [fence.info for fence in fences] == ["python"]
    return ast.parse(fences[0].content)


def set_labels(run: Run, labels: list[str]) -> None:
    """Give a run these labels, with invented counts that all differ."""
    n = len(labels)
    score = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}
    change_json(run, "adapter/classifier.json", id2label={str(i): label for i, label in enumerate(labels)})
    change_json(
        run,
        "result.json",
        labels=labels,
        train_label_shares=dict.fromkeys(labels, 1 / n),
        per_label=[{"label": label, **score, "support": 100 + i} for i, label in enumerate(labels)],
        confusion_matrix=[[n * i + j for j in range(n)] for i in range(n)],
        baseline={**run.result()["baseline"], "label": labels[0], "indices": [0]},
    )


def set_base(run: Run, *, base: str, revision: str, **settings: Any) -> None:
    change_json(run, "adapter/classifier.json", base_model_name_or_path=base, base_revision=revision)
    change_json(run, "config.json", model_name_or_path=base, **settings)


def test_card_metadata_of_adapter_and_merged_model(own_run: Run) -> None:
    commit, data = "a" * 40, {"source": "Hub", "revision": "b" * 40, "dataset_config_name": "plain"}
    set_base(own_run, base="google-bert/bert-base-uncased", revision=commit, dataset_name="someone/reviews")
    change_json(own_run, "result.json", data={**own_run.result()["data"], **data})
    card = ModelCard(model_card(own_run, "adapter", "alice/Good-or-bad"))
    metadata = card.data.to_dict()
    index = metadata.pop("model-index")[0]
    assert metadata == {
        "base_model": "google-bert/bert-base-uncased",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "license": "apache-2.0",
        "datasets": ["someone/reviews"],
        "tags": ["peft-workbench", "lora"],
        "metrics": ["accuracy", "f1", "matthews_correlation"],
    }
    assert index["name"] == "Good-or-bad"
    assert index["results"][0]["dataset"] == {
        "type": "someone/reviews",
        "name": "someone/reviews",
        "config": "plain",
        "split": "test",
        "revision": "b" * 40,
    }
    values = {metric["name"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert values["accuracy"] == own_run.result()["accuracy"]
    assert values["macro-F1"] == pytest.approx(own_run.result()["macro_f1"], abs=1e-6)
    assert f"(https://huggingface.co/google-bert/bert-base-uncased), revision `{commit}`" in card.text
    where = "(https://huggingface.co/datasets/someone/reviews) on the Hub, configuration `plain`, revision"
    assert f"{where} `{'b' * 40}`" in card.text
    merged = ModelCard(model_card(own_run, "merged", "alice/x")).data.to_dict()
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")


def test_card_of_local_model_and_data_states_what_is_unknown(
    own_run: Run, tiny_model: Path, tiny_data: Path
) -> None:
    text = model_card(own_run, "adapter")
    card = ModelCard(text)
    metadata = card.data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language", "datasets"} & set(metadata)
    assert "license is not known" in card.text and "language of its texts was not recorded" in card.text
    assert f"a local model (`{tiny_model.name}`)" in card.text
    assert str(tiny_model.parent) not in text and str(tiny_data.parent) not in text
    assert "test.csv, train.csv, validation.csv, files." in card.text


def test_card_of_embedded_model_and_data_names_their_sources(own_run: Run) -> None:
    set_base(
        own_run, base=EMBEDDED_MODEL, revision=f"sha256:{EMBEDDED_SHA256}", dataset_name="rotten_tomatoes"
    )
    change_json(own_run, "result.json", data={**own_run.result()["data"], "source": "embedded", "files": []})
    card = ModelCard(model_card(own_run, "adapter"))
    metadata = card.data.to_dict()
    assert (metadata["base_model"], metadata["license"], metadata["language"]) == (
        EMBEDDED_MODEL,
        "apache-2.0",
        "en",
    )
    assert "datasets" not in metadata, "its rows are not those on the Hub"
    assert f"SHA-256 of its weights `{EMBEDDED_SHA256}`" in card.text
    assert "English texts only" in card.text and "Rotten Tomatoes sentences, embedded in the app" in card.text


def test_card_has_every_section(merged_run: Run) -> None:
    card, run_result = ModelCard(model_card(merged_run, "adapter")), merged_run.result()
    parsed = tokens(card)
    assert headings(parsed, "h1") == [merged_run.run_id]
    assert headings(parsed, "h2") == [*SECTIONS[:-2], "Merge certificate", *SECTIONS[-2:]]
    low, high = run_result["accuracy_interval"]
    rows = {row[0]: row[1:] for row in table_of(card, "Metric", "This model", "Always “bad”")}
    assert rows["accuracy"] == [f"1.000 ({low:.3f} to {high:.3f})", "0.500"]
    assert table_of(card, "", "bad", "good")[1:] == [["bad", "20", "0"], ["good", "0", "20"]]
    assert table_of(card, "Label")[1] == ["bad", "50.0 %", "1.000", "1.000", "1.000", "20"]
    assert table_of(card, "Rows", "Used")[1:] == [
        ["train", "160", "160", "split train"],
        ["validation", "20", "20", "split validation"],
        ["test", "40", "40", "split test"],
    ]
    settings = dict(table_of(card, "Setting")[1:])
    assert settings["Rank (r) (r)"] == "8" and settings["Learning rate (learning_rate)"] == "0.03"
    assert settings["Which matrices (target_modules)"] == "query, value"
    assert "2,114 of 34,596 parameters are trained (6.1105 %)" in card.text
    worst = json.loads(merged_run.certificate.read_text(encoding="utf-8"))["max_logit_diff_reloaded"]
    assert f"at most {worst:.1e}" in card.text and "0 answers differ" in card.text
    assert "The probabilities are not calibrated" in card.text
    assert f"transformers {run_result['versions']['transformers']}" in card.text


def test_card_lists_dropped_and_held_out_rows(own_run: Run) -> None:
    dropped = [
        {"remedy": "duplicates", "split": "train", "rows": 12, "labels": []},
        {"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["a|b"]},
    ]
    data = {**own_run.result()["data"], "dropped": dropped, "held_out": ["test"]}
    change_json(own_run, "result.json", data=data)
    card = ModelCard(model_card(own_run, "adapter"))
    assert "- 12 train rows: keep one of each repeated row" in card.text
    assert "and with them the labels a&#124;b" in card.text
    assert ["test", "40", "40", "held out of split train"] in table_of(card, "Rows", "Used")
    assert card.data.to_dict()["model-index"][0]["results"][0]["dataset"]["split"] == "train"


def test_card_omits_the_certificate_of_another_adapter(merged_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(merged_run.folder, tmp_path / merged_run.run_id))
    change_json(run, "merged/certificate.json", adapter_sha256="0" * 64)
    assert "Merge certificate" not in model_card(run, "merged")


def test_card_describes_the_decision_rule(own_run: Run) -> None:
    DecisionRule(2.0, (0.3, 0.7), 0.999).save(own_run, ("bad", "good"))
    card = ModelCard(model_card(own_run, "adapter"))
    assert (
        "a temperature of 2," in card.text and "Below a confidence of 0.999 there is no answer" in card.text
    )
    assert "0.0% of the test rows get an answer" in card.text
    assert table_of(card, "Label", "Threshold")[1:] == [["bad", "0.3"], ["good", "0.7"]]


def test_card_of_model_no_better_than_its_baseline_says_so(own_run: Run) -> None:
    assert "not shown to be better" not in model_card(own_run, "adapter")
    change_json(own_run, "result.json", accuracy=0.55, accuracy_interval=[0.4, 0.7])
    assert "**Its accuracy is not shown to be better" in model_card(own_run, "adapter")


def test_card_of_multi_label_run_lists_its_metrics(topics: Run) -> None:
    card, run_result = ModelCard(model_card(topics, "adapter")), topics.result()
    assert "none, some or all of 3 labels: food, drink, room" in card.text
    assert card.data.tags == ["peft-workbench", "lora", "multi-label"]
    metrics = {score.metric_name: (score.metric_type, score.metric_value) for score in card.data.eval_results}
    assert metrics["micro-F1"] == ("f1", round(run_result["micro_f1"], 6))
    assert metrics["all labels right"] == ("exact_match", round(run_result["subset_accuracy"], 6))
    assert [row[0] for row in table_of(card, "Label")[1:]] == ["food", "drink", "room"]
    assert "The run kept" not in card.text and "240 training rows and 60 test rows" in card.text


def test_card_of_regression_run_lists_its_metrics(stars: Run) -> None:
    card, run_result = ModelCard(model_card(stars, "adapter")), stars.result()
    assert "gives a text a number" in card.text and "numbers from 1 to 5" in card.text
    assert card.data.tags[-1] == "regression"
    metrics = {score.metric_type: score.metric_value for score in card.data.eval_results}
    assert metrics["mae"] == round(run_result["mae"], 6)
    assert set(metrics) == {"spearmanr", "pearsonr", "mae", "rmse"}
    assert [row[0] for row in table_of(card, "Metric")[1:]] == [
        "Spearman",
        "Pearson",
        "mean error",
        "RMSE",
        "loss",
    ]


def test_card_of_pairs_and_card_of_head_only_method(pairs: Run, train_here: Callable[..., Run]) -> None:
    card = ModelCard(model_card(pairs, "adapter"))
    assert "gives a pair of texts one of 2 labels" in card.text and "both texts together" in card.text
    head_only = ModelCard(model_card(train_here(method="head_only", num_train_epochs=1), "adapter"))
    assert head_only.data.library_name == "transformers"
    assert "The weights that Head only trained of" in head_only.text
    code_of(head_only)


def test_card_escapes_hostile_labels_in_tables_and_code(own_run: Run) -> None:
    set_labels(own_run, HOSTILE)
    card = ModelCard(model_card(own_run, "adapter", "alice/x"))
    displayed = [plain(label) for label in HOSTILE]
    matrix, by_label = table_of(card, "", displayed[0]), table_of(card, "Label")
    assert matrix[0][1:] == displayed and [row[0] for row in matrix[1:]] == displayed
    assert matrix[3][1:] == [str(20 + i) for i in range(10)]
    assert [row[0] for row in by_label[1:]] == displayed
    assert {len(row) for row in by_label} == {6}
    parsed = tokens(card)
    assert headings(parsed, "h2") == SECTIONS
    inline = [child for token in parsed for child in token.children or ()]
    assert not [token for token in (*parsed, *inline) if token.type.startswith("html")]
    assert not [token for token in inline if token.type in ("em_open", "s_open", "image")]
    links = [token.attrs["href"] for token in inline if token.type == "link_open"]
    assert all(link.startswith("https://huggingface.co/") for link in links)
    prose = card.text.replace(_fenced(card), "")
    assert "www.evil" not in prose and "https://evil" not in prose, "no address that becomes a link"
    assigned = next(
        node
        for node in ast.walk(code_of(card))
        if isinstance(node, ast.Assign) and node.targets[0].id == "labels"
    )
    assert ast.literal_eval(assigned.value) == HOSTILE, "the code loads the very labels"


def test_card_of_many_labels_folds_them_and_lists_mistakes(own_run: Run) -> None:
    labels = [f"label {i}" for i in range(30)]
    set_labels(own_run, labels)
    card = ModelCard(model_card(own_run, "adapter"))
    assert "label 0, label 1" in card.text and "and 20 more" in card.text
    mistakes = table_of(card, "True label", "Predicted label", "Rows")
    assert mistakes[1] == ["label 29", "label 28", "898"] and len(mistakes) == 11
    assert "<details><summary>Every label (30)</summary>" in card.text
    assert len(table_of(card, "Label")) == 31


def test_card_metadata_escapes_a_hostile_file_name(own_run: Run) -> None:
    name = "a: b #\n---\nlicense: mit\n---\n| <b>x</b>.csv"
    data = {**own_run.result()["data"], "files": [{"name": name}]}
    change_json(own_run, "result.json", data=data)
    card = ModelCard(model_card(own_run, "adapter"))
    metadata = card.data.to_dict()
    assert "license" not in metadata
    dataset = metadata["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == plain(name) and re.fullmatch(r"[a-z0-9-]+", dataset["type"])
    assert headings(tokens(card), "h2") == SECTIONS


@pytest.mark.parametrize("label", HOSTILE)
def test_escaped_label_renders_as_plain_text(label: str) -> None:
    for text in (escaped(label), f"x {escaped(label)} y"):
        rendered = MarkdownIt("gfm-like", {"linkify": False}).parseInline(text)[0].children
        assert "".join(child.content for child in rendered).removeprefix("x ").removesuffix(" y") == plain(
            label
        )


def test_fenced_code_with_backticks_has_a_longer_fence() -> None:
    assert fenced("a = '````'\n") == "`````python\na = '````'\n`````"


def test_card_of_unknown_kind_or_without_adapter_raises_run_error(own_run: Run) -> None:
    with pytest.raises(RunError, match="no model card of 'zip'"):
        model_card(own_run, "zip")
    shutil.rmtree(own_run.adapter)
    with pytest.raises(RunError, match="its adapter is missing"):
        model_card(own_run, "adapter")


def _fenced(card: ModelCard) -> str:
    return next(token.content for token in tokens(card) if token.type == "fence")

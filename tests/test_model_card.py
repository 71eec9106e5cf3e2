"""The model card of a run: its metadata as the Hub reads them, its text as a browser would show it."""

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
    "Use", "Results", "From raw outputs to answers", "Limits", "Data", "Settings", "Parameters", "Licence",
    "Versions",
]  # fmt: skip


def tokens(card: ModelCard) -> list[Token]:
    """As GitHub and the Hub read Markdown: with tables, HTML and links made of bare addresses."""
    return MarkdownIt("gfm-like", {"linkify": False}).parse(card.text)


def headings(found: list[Token], tag: str) -> list[str]:
    return [
        found[i + 1].content
        for i, token in enumerate(found)
        if token.type == "heading_open" and token.tag == tag
    ]


def tables(card: ModelCard) -> list[list[list[str]]]:
    """Every table as rows of the words that a reader sees."""
    found: list[list[list[str]]] = []
    for token in tokens(card):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 4:
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


def table_of(card: ModelCard, *head: str) -> list[list[str]]:
    return next(rows for rows in tables(card) if tuple(rows[0][: len(head)]) == head)


def code_of(card: ModelCard) -> ast.Module:
    fences = [token for token in tokens(card) if token.type == "fence"]
    assert [fence.info for fence in fences] == ["python"]
    return ast.parse(fences[0].content)


def with_labels(run: Run, labels: list[str]) -> None:
    """Make the run one of these labels; the numbers are made up and all different."""
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


def pretend(run: Run, *, base: str, revision: str, **settings: Any) -> None:
    change_json(run, "adapter/classifier.json", base_model_name_or_path=base, base_revision=revision)
    change_json(run, "config.json", model_name_or_path=base, **settings)


def test_the_metadata_of_an_adapter_and_of_a_merged_model(own_run: Run) -> None:
    commit, data = "a" * 40, {"source": "Hub", "revision": "b" * 40, "dataset_config_name": "plain"}
    pretend(own_run, base="google-bert/bert-base-uncased", revision=commit, dataset_name="someone/reviews")
    change_json(own_run, "result.json", data={**own_run.result()["data"], **data})
    card = ModelCard(model_card(own_run, "adapter", "alice/Good-or-bad"))
    held = card.data.to_dict()
    index = held.pop("model-index")[0]
    assert held == {
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


def test_what_is_not_known_is_left_out_and_said(own_run: Run, tiny_model: Path, tiny_data: Path) -> None:
    text = model_card(own_run, "adapter")
    card = ModelCard(text)
    held = card.data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language", "datasets"} & set(held)
    assert "licence is not known" in card.text and "language of its texts was not recorded" in card.text
    assert f"a local model (`{tiny_model.name}`)" in card.text
    assert str(tiny_model.parent) not in text and str(tiny_data.parent) not in text
    assert "test.csv, train.csv, validation.csv, files." in card.text


def test_what_is_known_of_the_embedded_ones_is_told(own_run: Run) -> None:
    pretend(
        own_run, base=EMBEDDED_MODEL, revision=f"sha256:{EMBEDDED_SHA256}", dataset_name="rotten_tomatoes"
    )
    change_json(own_run, "result.json", data={**own_run.result()["data"], "source": "embedded", "files": []})
    card = ModelCard(model_card(own_run, "adapter"))
    held = card.data.to_dict()
    assert (held["base_model"], held["license"], held["language"]) == (EMBEDDED_MODEL, "apache-2.0", "en")
    assert "datasets" not in held, "its rows are not those on the Hub"
    assert f"SHA-256 of its weights `{EMBEDDED_SHA256}`" in card.text
    assert "English texts only" in card.text and "Rotten Tomatoes sentences, embedded in the app" in card.text


def test_every_section_is_there_and_tells_the_run(merged_run: Run) -> None:
    card, result = ModelCard(model_card(merged_run, "adapter")), merged_run.result()
    found = tokens(card)
    assert headings(found, "h1") == [merged_run.run_id]
    assert headings(found, "h2") == [*SECTIONS[:-2], "Merge certificate", *SECTIONS[-2:]]
    low, high = result["accuracy_interval"]
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
    assert "Nothing was calibrated" in card.text
    assert f"transformers {result['versions']['transformers']}" in card.text


def test_rows_left_out_and_held_out_are_told(own_run: Run) -> None:
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


def test_a_certificate_of_another_adapter_is_not_shown(merged_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(merged_run.folder, tmp_path / merged_run.run_id))
    change_json(run, "merged/certificate.json", adapter_sha256="0" * 64)
    assert "Merge certificate" not in model_card(run, "merged")


def test_a_decision_is_told_with_what_it_does(own_run: Run) -> None:
    DecisionRule(2.0, (0.3, 0.7), 0.999).save(own_run, ("bad", "good"))
    card = ModelCard(model_card(own_run, "adapter"))
    assert (
        "a temperature of 2," in card.text and "Below a confidence of 0.999 there is no answer" in card.text
    )
    assert "0.0% of the test rows get an answer" in card.text
    assert table_of(card, "Label", "Threshold")[1:] == [["bad", "0.3"], ["good", "0.7"]]


def test_a_model_no_better_than_its_baseline_says_so(own_run: Run) -> None:
    assert "not shown to be better" not in model_card(own_run, "adapter")
    change_json(own_run, "result.json", accuracy=0.55, accuracy_interval=[0.4, 0.7])
    assert "**Its accuracy is not shown to be better" in model_card(own_run, "adapter")


def test_several_labels(topics: Run) -> None:
    card, result = ModelCard(model_card(topics, "adapter")), topics.result()
    assert "none, some or all of 3 labels: food, drink, room" in card.text
    assert card.data.tags == ["peft-workbench", "lora", "multi-label"]
    metrics = {one.metric_name: (one.metric_type, one.metric_value) for one in card.data.eval_results}
    assert metrics["micro-F1"] == ("f1", round(result["micro_f1"], 6))
    assert metrics["all labels right"] == ("exact_match", round(result["subset_accuracy"], 6))
    assert [row[0] for row in table_of(card, "Label")[1:]] == ["food", "drink", "room"]
    assert "The run kept" not in card.text and "240 training rows and 60 test rows" in card.text


def test_a_number(stars: Run) -> None:
    card, result = ModelCard(model_card(stars, "adapter")), stars.result()
    assert "gives a text a number" in card.text and "numbers from 1 to 5" in card.text
    assert card.data.tags[-1] == "regression"
    metrics = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert metrics["mae"] == round(result["mae"], 6)
    assert set(metrics) == {"spearmanr", "pearsonr", "mae", "rmse"}
    assert [row[0] for row in table_of(card, "Metric")[1:]] == [
        "Spearman",
        "Pearson",
        "mean error",
        "RMSE",
        "loss",
    ]


def test_pairs_and_a_method_that_is_no_adapter(pairs: Run, train_here: Callable[..., Run]) -> None:
    card = ModelCard(model_card(pairs, "adapter"))
    assert "gives a pair of texts one of 2 labels" in card.text and "both texts together" in card.text
    head_only = ModelCard(model_card(train_here(method="head_only", num_train_epochs=1), "adapter"))
    assert head_only.data.library_name == "transformers"
    assert "The weights that Head only trained of" in head_only.text
    code_of(head_only)


def test_hostile_labels_break_neither_tables_nor_code(own_run: Run) -> None:
    with_labels(own_run, HOSTILE)
    card = ModelCard(model_card(own_run, "adapter", "alice/x"))
    shown = [plain(label) for label in HOSTILE]
    matrix, by_label = table_of(card, "", shown[0]), table_of(card, "Label")
    assert matrix[0][1:] == shown and [row[0] for row in matrix[1:]] == shown
    assert matrix[3][1:] == [str(20 + i) for i in range(10)]
    assert [row[0] for row in by_label[1:]] == shown
    assert {len(row) for row in by_label} == {6}
    found = tokens(card)
    assert headings(found, "h2") == SECTIONS
    inline = [child for token in found for child in token.children or ()]
    assert not [token for token in (*found, *inline) if token.type.startswith("html")]
    assert not [one for one in inline if one.type in ("em_open", "s_open", "image")]
    links = [one.attrs["href"] for one in inline if one.type == "link_open"]
    assert all(link.startswith("https://huggingface.co/") for link in links)
    prose = card.text.replace(_fenced(card), "")
    assert "www.evil" not in prose and "https://evil" not in prose, "no address that becomes a link"
    assigned = next(
        node
        for node in ast.walk(code_of(card))
        if isinstance(node, ast.Assign) and node.targets[0].id == "labels"
    )
    assert ast.literal_eval(assigned.value) == HOSTILE, "the code loads the very labels"


def test_many_labels_are_folded_and_their_mistakes_listed(own_run: Run) -> None:
    labels = [f"label {i}" for i in range(30)]
    with_labels(own_run, labels)
    card = ModelCard(model_card(own_run, "adapter"))
    assert "label 0, label 1" in card.text and "and 20 more" in card.text
    mistakes = table_of(card, "True label", "Given", "Rows")
    assert mistakes[1] == ["label 29", "label 28", "898"] and len(mistakes) == 11
    assert "<details><summary>Every label (30)</summary>" in card.text
    assert len(table_of(card, "Label")) == 31


def test_a_hostile_file_name_breaks_no_metadata(own_run: Run) -> None:
    name = "a: b #\n---\nlicense: mit\n---\n| <b>x</b>.csv"
    data = {**own_run.result()["data"], "files": [{"name": name}]}
    change_json(own_run, "result.json", data=data)
    card = ModelCard(model_card(own_run, "adapter"))
    held = card.data.to_dict()
    assert "license" not in held
    dataset = held["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == plain(name) and re.fullmatch(r"[a-z0-9-]+", dataset["type"])
    assert headings(tokens(card), "h2") == SECTIONS


@pytest.mark.parametrize("label", HOSTILE)
def test_an_escaped_name_reads_as_it_is(label: str) -> None:
    for text in (escaped(label), f"x {escaped(label)} y"):
        rendered = MarkdownIt("gfm-like", {"linkify": False}).parseInline(text)[0].children
        assert "".join(child.content for child in rendered).removeprefix("x ").removesuffix(" y") == plain(
            label
        )


def test_a_fence_is_longer_than_what_is_in_it() -> None:
    assert fenced("a = '````'\n") == "`````python\na = '````'\n`````"


def test_a_run_without_adapter_gets_one_sentence(own_run: Run) -> None:
    with pytest.raises(RunError, match="no model card of 'zip'"):
        model_card(own_run, "zip")
    shutil.rmtree(own_run.adapter)
    with pytest.raises(RunError, match="has lost its adapter"):
        model_card(own_run, "adapter")


def _fenced(card: ModelCard) -> str:
    return next(token.content for token in tokens(card) if token.type == "fence")

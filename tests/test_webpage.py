"""A page of its own, as a folder: what it holds, and what cannot be exported."""

import errno
import html
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from exported_runs import refuse_int8
from page_library import fetch_library
from processes import answer

from peft_core.errors import ConfigError, RunError
from peft_core.export.archives import zip_of
from peft_core.export.page import webpage
from peft_core.export.page.weblibrary import LIBRARY_URL, file_integrity, library_files, read_record
from peft_core.export.page.webpage import default_title, export_page
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.service import tasks

SCRIPT = read_record()["files"][0]["name"]


def texts_of(folder: Path) -> dict[str, str]:
    """The page's own files, without the model and the library."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".html", ".md")
    )
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


def test_the_folder_is_whole_and_its_zip_holds_it(own_export: Run) -> None:
    steps: list[float] = []
    done = export_page(own_export.folder, lambda share, words: steps.append(share))
    folder = Path(done["folder"])
    held = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del held["manifest.json"]
    assert set(held) == {
        "index.html", "page.css", "page.js", "classifier.js", "decision.js", "tokens.js", "page.json",
        "README.md", "model/config.json", "model/tokenizer.json", "model/tokenizer_config.json",
        "model/onnx/model_quantized.onnx",
    }  # fmt: skip
    with zipfile.ZipFile(done["zip"]) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == held
    settings = json.loads(held["page.json"])
    for file in settings["files"]:
        assert file_integrity(folder / file["name"]) == {key: file[key] for key in ("bytes", "integrity")}
    assert settings["labels"] == ["bad", "good"]
    assert done == json.loads(json.dumps(done))
    assert (done["precision"], done["note"], done["examples"]) == ("int8", "", 4)
    assert steps == sorted(steps) and steps[-1] == 1.0
    assert not list(own_export.folder.glob(".*"))


def test_the_readme_makes_it_a_static_space(own_export: Run) -> None:
    named = 'Reviews:\n*good* or "bad"? \N{GRINNING FACE}\x7f'
    folder = Path(export_page(own_export.folder, title=named)["folder"])
    readme = (folder / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(readme.split("---")[1])
    title = 'Reviews: *good* or "bad"? \N{GRINNING FACE}'
    assert (head["sdk"], head["title"]) == ("static", title)
    assert "# " + title.replace("*", "\\*") in readme
    for words in (read_record()["version"], LIBRARY_URL, "4 short texts", "npm install", "int8"):
        assert words in readme
    for file in read_record()["files"]:
        assert f"node_modules/{file['package'].rsplit('@', 1)[0]}/{file['path']}" in readme
    assert f"<title>{html.escape(title)}</title>" in (folder / "index.html").read_text(encoding="utf-8")


def test_nothing_of_this_machine_and_no_placeholder_is_in_it(own_export: Run) -> None:
    for name, text in texts_of(Path(export_page(own_export.folder)["folder"])).items():
        assert str(own_export.folder.parent) not in text and "/tmp/" not in text, name
        assert not re.search(r"\{\w+\}", text), name


def test_examples_are_short_rows_of_each_label(own_export: Run) -> None:
    folder = Path(export_page(own_export.folder, examples=3)["folder"])
    shown = [one["text"] for one in json.loads((folder / "page.json").read_text("utf-8"))["examples"]]
    rows = load_evaluation_rows(own_export)
    labels = [int(rows.labels[rows.texts.index(text)]) for text in shown]
    assert sorted(labels[:2]) == [0, 1] and len(labels) == 3
    assert all(len(text) <= 280 for text in shown)


def test_without_examples_no_text_of_the_data_is_published(own_export: Run) -> None:
    done = export_page(own_export.folder, examples=0)
    everything = "".join(texts_of(Path(done["folder"])).values())
    assert done["examples"] == 0
    assert not [text for text in load_evaluation_rows(own_export).texts if text in everything]
    assert "No text of the data" in everything


def test_a_refused_int8_model_leaves_fp32_and_says_so(own_export: Run) -> None:
    refuse_int8(own_export)
    done = export_page(own_export.folder)
    assert done["precision"] == "fp32"
    assert "loses 1.25 points of accuracy and at most 0.5 were allowed" in done["note"]
    assert "fp32" in (Path(done["folder"]) / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in Path(done["folder"], "model/onnx").iterdir()] == ["model.onnx"]


def test_the_rule_that_was_chosen_travels(own_export: Run) -> None:
    DecisionRule(1.5, (0.3, 0.7), 0.6).save(own_export, ("bad", "good"))
    settings = json.loads((Path(export_page(own_export.folder)["folder"]) / "page.json").read_text("utf-8"))
    assert settings["decision"] == {"temperature": 1.5, "thresholds": [0.3, 0.7], "abstain_below": 0.6}


def test_a_rule_saved_later_reaches_the_page_and_its_zip(own_export: Run) -> None:
    export_page(own_export.folder)
    rule = {"temperature": 2.0, "thresholds": {"bad": 0.4, "good": 0.6}, "abstain_below": 0.7}
    tasks.save_decision_rule(str(own_export.folder), rule)
    with zipfile.ZipFile(zip_of(own_export, "page")) as archive:
        settings = json.loads(archive.read("page.json"))
    assert settings["decision"] == {"temperature": 2.0, "thresholds": [0.4, 0.6], "abstain_below": 0.7}


def test_export_page_carries_the_rule_saved_meanwhile(own_export: Run) -> None:
    rule = {"temperature": 2.0, "thresholds": {}, "abstain_below": 0.7}

    def save_rule(share: float, what: str) -> None:
        if what.startswith("Copying"):  # which follows the reading of the rule
            tasks.save_decision_rule(str(own_export.folder), rule)

    with zipfile.ZipFile(export_page(own_export.folder, save_rule)["zip"]) as archive:
        settings = json.loads(archive.read("page.json"))
    assert settings["decision"] == {**rule, "thresholds": []}
    own_export.verify(own_export.folder / "page")


@pytest.mark.parametrize(
    "task, labels, title",
    [
        (SINGLE, ("bad", "good"), "Text classifier: bad or good"),
        (MULTI, ("food", "drink", "room"), "Text classifier: food, drink or room"),
        (SINGLE, tuple("abcdefg"), "Text classifier: 7 labels"),
        (REGRESSION, (), "A number for a text"),
    ],
)
def test_a_title_from_the_labels(task: str, labels: tuple[str, ...], title: str) -> None:
    assert default_title(Classifier(labels, 64, "base", None, (), True, task)) == title


def test_it_needs_no_torch() -> None:
    heavy = '{"torch", "transformers", "peft", "onnxruntime"}'
    told = f"print(json.dumps(sorted({heavy} & set(sys.modules))))"
    code = f"import json, sys, peft_core.export.page.webpage; {told}"
    assert answer(code) == []


# --- what cannot be exported ---


@pytest.mark.parametrize(
    "lost, words",
    [
        ("onnx", "no ONNX model of its present adapter"),
        ("onnx/onnx/model_quantized.onnx", "no ONNX model of its present adapter"),
        ("onnx/tokenizer.json", "no ONNX model of its present adapter"),
        ("onnx/config.json", "no ONNX model of its present adapter"),
        ("evaluation/evaluation.parquet", "'evaluation.parquet' of evaluation/ is missing"),
    ],
)
def test_what_is_lost_gets_one_sentence_and_leaves_nothing(lost: str, words: str, own_export: Run) -> None:
    path = own_export.folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(own_export.folder.rglob("*"))
    with pytest.raises(RunError, match=words):
        export_page(own_export.folder)
    assert sorted(own_export.folder.rglob("*")) == before


def test_a_model_too_large_for_a_browser_is_refused(own_export: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webpage, "MAX_MODEL_BYTES", 50_000)
    with pytest.raises(RunError, match="a browser takes at most"):
        export_page(own_export.folder)
    assert not (own_export.folder / "page").exists()


def test_a_full_disk_leaves_the_old_page(own_export: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    export_page(own_export.folder, title="Old")
    before = {path: path.stat().st_mtime_ns for path in own_export.folder.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="The disk is full"):
            export_page(own_export.folder, title="New")
    after = {path: path.stat().st_mtime_ns for path in own_export.folder.rglob("*")}
    before.pop(own_export.folder, None)
    assert after == before


def test_a_library_of_another_version_is_refused(own_export: Run, library: Path, tmp_path: Path) -> None:
    other = shutil.copytree(library, tmp_path / "other")
    with (other / SCRIPT).open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(RunError, match=f"{SCRIPT} is missing or is of another version"):
        export_page(own_export.folder, library=other)
    assert not (own_export.folder / "page").exists()


@pytest.mark.parametrize("url", ["", "https://example.org", "javascript:alert(1)/", "https://a/; img-src */"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must be a URL"):
        library_files(url)


def test_without_npm_the_library_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="No npm"):
        fetch_library(tmp_path / "empty")

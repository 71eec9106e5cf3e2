"""Export of a run as a web page: its folder, and the runs that cannot be exported."""

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
    """Return the text files of the page by relative path, without the model and the library."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".html", ".md")
    )
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


def test_export_page_writes_complete_folder_and_zip(own_export: Run) -> None:
    steps: list[float] = []
    report = export_page(own_export.folder, lambda share, words: steps.append(share))
    folder = Path(report["folder"])
    contents = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    del contents["manifest.json"]
    assert set(contents) == {
        "index.html", "page.css", "page.js", "classifier.js", "decision.js", "tokens.js", "page.json",
        "README.md", "model/config.json", "model/tokenizer.json", "model/tokenizer_config.json",
        "model/onnx/model_quantized.onnx",
    }  # fmt: skip
    with zipfile.ZipFile(report["zip"]) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents
    settings = json.loads(contents["page.json"])
    for file in settings["files"]:
        assert file_integrity(folder / file["name"]) == {key: file[key] for key in ("bytes", "integrity")}
    assert settings["labels"] == ["bad", "good"]
    assert report == json.loads(json.dumps(report))
    assert (report["precision"], report["note"], report["examples"]) == ("int8", "", 4)
    assert steps == sorted(steps) and steps[-1] == 1.0
    assert not list(own_export.folder.glob(".*"))


def test_export_page_readme_declares_a_static_space(own_export: Run) -> None:
    raw_title = 'Reviews:\n*good* or "bad"? \N{GRINNING FACE}\x7f'
    folder = Path(export_page(own_export.folder, title=raw_title)["folder"])
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


def test_export_page_contains_no_local_path_or_placeholder(own_export: Run) -> None:
    for name, text in texts_of(Path(export_page(own_export.folder)["folder"])).items():
        assert str(own_export.folder.parent) not in text and "/tmp/" not in text, name
        assert not re.search(r"\{\w+\}", text), name


def test_export_page_examples_are_short_rows_of_each_label(own_export: Run) -> None:
    folder = Path(export_page(own_export.folder, examples=3)["folder"])
    texts = [example["text"] for example in json.loads((folder / "page.json").read_text("utf-8"))["examples"]]
    rows = load_evaluation_rows(own_export)
    labels = [int(rows.labels[rows.texts.index(text)]) for text in texts]
    assert sorted(labels[:2]) == [0, 1] and len(labels) == 3
    assert all(len(text) <= 280 for text in texts)


def test_export_page_without_examples_publishes_no_text(own_export: Run) -> None:
    report = export_page(own_export.folder, examples=0)
    published = "".join(texts_of(Path(report["folder"])).values())
    assert report["examples"] == 0
    assert not [text for text in load_evaluation_rows(own_export).texts if text in published]
    assert "No text of the data" in published


def test_export_page_with_rejected_int8_uses_fp32_with_note(own_export: Run) -> None:
    refuse_int8(own_export)
    report = export_page(own_export.folder)
    assert report["precision"] == "fp32"
    assert "loses 1.25 points of accuracy and at most 0.5 were allowed" in report["note"]
    assert "fp32" in (Path(report["folder"]) / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in Path(report["folder"], "model/onnx").iterdir()] == ["model.onnx"]


def test_export_page_includes_saved_decision_rule(own_export: Run) -> None:
    DecisionRule(1.5, (0.3, 0.7), 0.6).save(own_export, ("bad", "good"))
    settings = json.loads((Path(export_page(own_export.folder)["folder"]) / "page.json").read_text("utf-8"))
    assert settings["decision"] == {"temperature": 1.5, "thresholds": [0.3, 0.7], "abstain_below": 0.6}


def test_zip_of_page_includes_decision_rule_saved_later(own_export: Run) -> None:
    export_page(own_export.folder)
    rule = {"temperature": 2.0, "thresholds": {"bad": 0.4, "good": 0.6}, "abstain_below": 0.7}
    tasks.save_decision_rule(str(own_export.folder), rule)
    with zipfile.ZipFile(zip_of(own_export, "page")) as archive:
        settings = json.loads(archive.read("page.json"))
    assert settings["decision"] == {"temperature": 2.0, "thresholds": [0.4, 0.6], "abstain_below": 0.7}


def test_export_page_includes_decision_rule_saved_during_export(own_export: Run) -> None:
    rule = {"temperature": 2.0, "thresholds": {}, "abstain_below": 0.7}

    def save_rule(share: float, what: str) -> None:
        if what.startswith("Copying"):  # after the rule was read
            tasks.save_decision_rule(str(own_export.folder), rule)

    with zipfile.ZipFile(export_page(own_export.folder, save_rule)["zip"]) as archive:
        settings = json.loads(archive.read("page.json"))
    assert settings["decision"] == {**rule, "thresholds": []}
    own_export.verify(own_export.folder / "page")


@pytest.mark.parametrize(
    "problem_type, labels, title",
    [
        (SINGLE, ("bad", "good"), "Text classifier: bad or good"),
        (MULTI, ("food", "drink", "room"), "Text classifier: food, drink or room"),
        (SINGLE, tuple("abcdefg"), "Text classifier: 7 labels"),
        (REGRESSION, (), "Text regression"),
    ],
)
def test_default_title_names_the_labels(problem_type: str, labels: tuple[str, ...], title: str) -> None:
    assert default_title(Classifier(labels, 64, "base", None, (), True, problem_type)) == title


def test_webpage_import_loads_no_torch() -> None:
    heavy = '{"torch", "transformers", "peft", "onnxruntime"}'
    print_loaded = f"print(json.dumps(sorted({heavy} & set(sys.modules))))"
    code = f"import json, sys, peft_core.export.page.webpage; {print_loaded}"
    assert answer(code) == []


# --- exports that fail ---


@pytest.mark.parametrize(
    "missing, words",
    [
        ("onnx", "no ONNX model of its current adapter"),
        ("onnx/onnx/model_quantized.onnx", "no ONNX model of its current adapter"),
        ("onnx/tokenizer.json", "no ONNX model of its current adapter"),
        ("onnx/config.json", "no ONNX model of its current adapter"),
        ("evaluation/evaluation.parquet", "'evaluation.parquet' of evaluation/ is missing"),
    ],
)
def test_export_page_with_missing_part_raises_and_writes_nothing(
    missing: str, words: str, own_export: Run
) -> None:
    path = own_export.folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(own_export.folder.rglob("*"))
    with pytest.raises(RunError, match=words):
        export_page(own_export.folder)
    assert sorted(own_export.folder.rglob("*")) == before


def test_export_page_of_too_large_model_raises_run_error(
    own_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webpage, "MAX_MODEL_BYTES", 50_000)
    with pytest.raises(RunError, match="a browser takes at most"):
        export_page(own_export.folder)
    assert not (own_export.folder / "page").exists()


def test_export_page_on_full_disk_keeps_old_page(own_export: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_export_page_with_other_library_version_raises_run_error(
    own_export: Run, library: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(library, tmp_path / "other")
    with (other / SCRIPT).open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(RunError, match=f"{SCRIPT} is missing or is of another version"):
        export_page(own_export.folder, library=other)
    assert not (own_export.folder / "page").exists()


@pytest.mark.parametrize("url", ["", "https://example.org", "javascript:alert(1)/", "https://a/; img-src */"])
def test_library_files_with_invalid_url_raises_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="must be a URL"):
        library_files(url)


def test_fetch_library_without_npm_raises_assertion_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="No npm"):
        fetch_library(tmp_path / "empty")

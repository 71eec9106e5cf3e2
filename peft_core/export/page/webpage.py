"""Export of a static folder that runs a classifier in the visitor's browser, without a server."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.errors import RunError
from peft_core.export.archives import zip_of
from peft_core.export.onnx.report import read_onnx_report
from peft_core.export.page.weblibrary import (
    LIBRARY_URL,
    STATIC_FOLDER,
    file_integrity,
    library_files,
    read_record,
)
from peft_core.files.atomic import write_json
from peft_core.files.manifests import replace_file
from peft_core.files.records import read_json
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.problem_types import MULTI, REGRESSION, TITLES, headline
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import EvaluationRows, load_evaluation_rows

STATIC = ("page.css", "page.js", "classifier.js", "decision.js", "tokens.js")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
MAX_MODEL_BYTES = 1_900_000_000  # the limit of one buffer in a browser, and of one ONNX file
EXAMPLE_CHARACTERS = 280  # longest example text, with its pair
SETTINGS_FILE = "page.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def export_page(
    run_dir: str | Path,
    progress: Progress = no_progress,
    *,
    title: str = "",
    examples: int = 4,
    library: Path | None = None,
    library_url: str = LIBRARY_URL,
) -> dict[str, Any]:
    """Write `runs/<id>/page/` and its zip from `runs/<id>/onnx/`, as a whole or not at all.

    Args:
        run_dir: folder of the run.
        progress: callback for the share done and the current stage.
        title: title of the page; by default composed of the labels.
        examples: at most so many short test rows become part of the page, readable by anyone who opens it.
        library: folder with the files of transformers.js, to be copied into `vendor/`.
        library_url: where browsers load the library without `vendor/`.

    Returns:
        `folder`, `zip`, `precision` (int8 or fp32), `bytes` (what a visitor downloads), `examples` (their
        number) and `note` (empty, or why the model is not int8).

    Raises:
        RunError: the run has no ONNX model, the model is too large for a browser, the library files are of
            another version, or the disk is full.
        ConfigError: `library_url` is not a URL.
    """
    run = Run(Path(run_dir))
    classifier = Classifier.read(run)
    precision, model, note = _select_model(run)
    settings = {
        "title": _one_line(title) or _one_line(default_title(classifier)),
        "precision": precision,
        **_classifier_settings(run, classifier),
        "examples": _examples(load_evaluation_rows(run), classifier, examples) if examples else [],
        "library": _library(library_url),
    }
    with run.new_folder(run.folder / "page") as folder:
        progress(0.1, "Copying the model")
        settings["files"] = _copy_model(run, model["file"], folder)
        if library:
            _copy_library(library, folder / "vendor")
        settings["about"] = _about(run, classifier, precision, model)
        write_json(folder / SETTINGS_FILE, settings)
        _write_static(folder, settings)
    refresh_decision_rule(run)
    progress(0.6, "Packing")
    archive = zip_of(run, "page")
    progress(1.0, "Done")
    return {
        "folder": str(run.folder / "page"),
        "zip": str(archive),
        "precision": precision,
        "bytes": sum(file["bytes"] for file in [*settings["files"], *settings["library"]["files"]]),
        "examples": len(settings["examples"]),
        "note": note,
    }


def _library(url: str) -> dict[str, Any]:
    """Return what the page must know of transformers.js at an address: version, address and files."""
    return {"version": read_record()["version"], "url": url, "files": library_files(url)}


def refresh_decision_rule(run: Run) -> None:
    """Write the run's current decision rule into a page that was exported earlier.

    See `update_decision`, which explains why no export keeps an outdated rule.
    """
    path = run.folder / "page" / SETTINGS_FILE
    while path.is_file():
        run.verify(path.parent)
        decision = _decision(run, Classifier.read(run))
        if read_json(path).get("decision") == decision:
            return
        replace_file(
            path.parent,
            SETTINGS_FILE,
            lambda new, decision=decision: write_json(new, {**read_json(path), "decision": decision}),
        )


def default_title(classifier: Classifier) -> str:
    """Return the title of a page whose title was not set."""
    labels = [label if len(label) <= 40 else f"{label[:39]}…" for label in classifier.labels]
    if classifier.problem_type == REGRESSION:
        return "Text regression"
    if not 2 <= len(labels) <= 4:
        return f"Text classifier: {len(labels)} labels"
    return f"Text classifier: {', '.join(labels[:-1])} or {labels[-1]}"


def _select_model(run: Run) -> tuple[str, dict[str, Any], str]:
    """Return the ONNX file for the page: int8 or fp32, its entry in the report, and why it is not int8."""
    report = read_onnx_report(run)
    if report is None:
        raise RunError(
            f"The run {run.run_id!r} has no ONNX model of its current adapter; export it as ONNX first."
        )
    if report["int8"]["kept"]:
        return "int8", report["int8"], ""
    note = (
        f"In int8 the model loses {report['int8']['drop']:.2f} points of {TITLES[report['headline']]} and at "
        f"most {report['max_drop']:g} were allowed, so the page runs it in float32."
    )
    return "fp32", report["fp32"], note


def _classifier_settings(run: Run, classifier: Classifier) -> dict[str, Any]:
    """Return what the page needs to tokenize a text and to turn logits into an answer."""
    try:
        model_type = json.loads((run.onnx / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged_export(run, "config.json") from error
    return {
        "model_type": model_type,
        "labels": list(classifier.labels),
        "problem_type": classifier.problem_type,
        "text_pair": classifier.text_pair,
        "max_length": classifier.max_length,
        "decision": _decision(run, classifier),
    }


def _decision(run: Run, classifier: Classifier) -> dict[str, Any]:
    decision = DecisionRule.read(run)
    return {**decision.to_dict(classifier.labels), "thresholds": list(decision.thresholds)}


def _damaged_export(run: Run, name: str) -> RunError:
    return RunError(
        f"The {name} of the ONNX model of {run.run_id!r} is lost or damaged; export it as ONNX again."
    )


def _copy_model(run: Run, model: str, folder: Path) -> list[dict[str, Any]]:
    """Copy the model files from the ONNX folder; return name, bytes and integrity of each."""
    files = []
    for name in (*MODEL_FILES, model):
        source, copy = run.onnx / name, folder / "model" / name
        if not source.is_file():
            raise _damaged_export(run, name)
        _refuse_large(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        files.append({"name": f"model/{name}", **file_integrity(copy)})
    return files


def _refuse_large(path: Path) -> None:
    external_data = path.with_name(f"{path.name}_data")  # weights beyond the limit of one ONNX file
    size = sum(file.stat().st_size for file in (path, external_data) if file.is_file())
    if size > MAX_MODEL_BYTES:
        raise RunError(
            f"The model is {size / 1e9:.1f} GB; a browser takes at most {MAX_MODEL_BYTES / 1e9:g} GB. Allow "
            "int8 a larger drop, or choose a smaller base model."
        )


def _copy_library(source: Path, vendor: Path) -> None:
    """Copy the library files into the page's folder; RunError if a checksum does not match the record."""
    vendor.mkdir()
    for file in library_files():
        path = source / file["name"]
        if not path.is_file() or file_integrity(path)["integrity"] != file["integrity"]:
            raise RunError(
                f"{path} is missing or is of another version; put the file of transformers.js "
                f"{read_record()['version']} there."
            )
        shutil.copyfile(path, vendor / path.name)


def _write_static(folder: Path, settings: dict[str, Any]) -> None:
    title, record, library = settings["title"], read_record(), settings["library"]["files"]
    packages = sorted({file["package"] for file in record["files"]})
    paths = [f"node_modules/{file['package'].rsplit('@', 1)[0]}/{file['path']}" for file in record["files"]]
    for name in STATIC:
        shutil.copyfile(STATIC_FOLDER / name, folder / name)
    html_fields = {"title": html.escape(title), "library": " ".join(file["url"] for file in library)}
    readme_fields = {
        "yaml_title": json.dumps(title, ensure_ascii=False),
        "title": _markdown(title),
        "about": "\n".join(f"- {_markdown(name)}: {_markdown(value)}" for name, value in settings["about"]),
        "examples": _examples_sentence(len(settings["examples"])),
        "version": record["version"],
        "size": f"{sum(file['bytes'] for file in record['files']) / 1e6:.0f} MB",
        "base": settings["library"]["url"],
        "packages": " ".join(packages),
        "paths": " ".join(paths),
    }
    for name, fields in (("index.html", html_fields), ("README.md", readme_fields)):
        template = (STATIC_FOLDER / name).read_text(encoding="utf-8")
        text = re.sub(r"\{(\w+)\}", lambda match, fields=fields: fields[match[1]], template)
        (folder / name).write_text(text, encoding="utf-8")


def _about(run: Run, classifier: Classifier, precision: str, model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts that the page shows about the model, as pairs of title and text."""
    result, metric = run.result(), headline(classifier.problem_type)
    score = f"{model['metrics'][metric]:.3f} on {result['eval_rows']:,} rows"
    return [
        ("Base model", _public_name(classifier.base_model_name_or_path)),
        ("Trained on", f"{result['train_rows']:,} rows of {_public_name(run.config().dataset_name)}"),
        (TITLES[metric][0].upper() + TITLES[metric][1:], score),
        ("Model", f"{precision}, {model['bytes'] / 1e6:.1f} MB"),
        ("Library", f"transformers.js {read_record()['version']}"),
    ]


def _public_name(name: str) -> str:
    """Return a Hub id as it is, and of a local path only the last part."""
    return name if _HUB_NAME.fullmatch(name) else Path(name).name


def _examples(rows: EvaluationRows, classifier: Classifier, count: int) -> list[dict[str, str | None]]:
    """Return short test rows: a row per label in turn, or for regression spread over the range."""
    pairs = rows.pairs or [None] * len(rows)
    short = [
        i
        for i, (text, pair) in enumerate(zip(rows.texts, pairs, strict=True))
        if len(text) + len(pair or "") <= EXAMPLE_CHARACTERS
    ]
    if classifier.problem_type == REGRESSION:
        short.sort(key=lambda i: rows.labels[i])
        steps = np.linspace(0, len(short) - 1, min(count, len(short))).round().astype(int)
        chosen = [short[step] for step in steps]
    else:
        chosen = _round_robin(short, [_label_key(label, classifier) for label in rows.labels])[:count]
    return [{"text": rows.texts[i], "pair": pairs[i]} for i in chosen]


def _round_robin(rows: list[int], keys: list[Any]) -> list[int]:
    """Return rows sorted so that the first row of each key comes before the second row of any key."""
    last_turn: dict[Any, int] = {}
    turns = {}
    for row in rows:
        turns[row] = last_turn[keys[row]] = last_turn.get(keys[row], -1) + 1
    return sorted(rows, key=lambda row: turns[row])


def _label_key(label: Any, classifier: Classifier) -> Any:
    return tuple(label.tolist()) if classifier.problem_type == MULTI else int(label)


def _examples_sentence(count: int) -> str:
    if not count:
        return "No text of the data is part of this page."
    return f"{count} short texts of the test rows are part of this page (`page.json`), as examples to try."


def _markdown(text: str) -> str:
    """Escape a text for one line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join("".join(char for char in text if char.isprintable() or char.isspace()).split())

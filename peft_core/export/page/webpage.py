"""A static folder that runs a classifier inside the visitor's browser: no server, no text that leaves."""

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
from peft_core.export.page.weblibrary import LIBRARY_URL, PAGE, described, library_files, read_record
from peft_core.files import write_json
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import Decision
from peft_core.manifests import replace_file
from peft_core.problems import MULTI, REGRESSION, TITLES, headline
from peft_core.progress import Progress, unheard
from peft_core.records import read_json
from peft_core.rows import JudgedRows, judged_rows
from peft_core.runs import Run

STATIC = ("page.css", "page.js", "classifier.js", "decision.js", "tokens.js")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
MOST_BYTES = 1_900_000_000  # of a model: browsers hold no more in one piece, nor does one ONNX file
EXAMPLE_CHARACTERS = 280
SETTINGS_FILE = "page.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def export_page(
    run_dir: str | Path,
    progress: Progress = unheard,
    *,
    title: str = "",
    examples: int = 4,
    library: Path | None = None,
    library_url: str = LIBRARY_URL,
) -> dict[str, Any]:
    """Write `runs/<id>/page/` and its zip from `runs/<id>/onnx/`, whole or not at all.

    Up to `examples` short texts of the evaluation rows become part of the page, so whoever opens it reads
    them. `library` is a folder with the library's files, to travel along in `vendor/`; without it browsers
    load them from `library_url`. Returns `folder`, `zip`, `precision` (int8 or fp32), `bytes` (what a visitor
    loads), `examples` (how many) and `note` (empty, or why it is not int8). Raises RunError for a run without
    its ONNX model, a model too large for a browser, library files of another version, or a full disk, and
    ConfigError for an address that is none.
    """
    run = Run(Path(run_dir))
    classifier = Classifier.read(run)
    precision, model, note = _smallest(run)
    settings = {
        "title": _one_line(title) or _one_line(default_title(classifier)),
        "precision": precision,
        **_rule(run, classifier),
        "examples": _examples(judged_rows(run), classifier, examples) if examples else [],
        "library": {
            "version": read_record()["version"],
            "url": library_url,
            "files": library_files(library_url),
        },
    }
    with run.new_folder(run.folder / "page") as folder:
        progress(0.1, "Copying the model")
        settings["files"] = _copy_model(run, model["file"], folder)
        if library:
            _copy_library(library, folder / "vendor")
        settings["about"] = _about(run, classifier, precision, model)
        write_json(folder / SETTINGS_FILE, settings)
        _write_static(folder, settings)
    refresh_rule(run)
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


def refresh_rule(run: Run) -> None:
    """Let a page that was made before answer by the decision that is saved with the run now.

    As `update_decision`, which says why no page is left with an earlier one.
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
    """What the page is called unless a person names it."""
    labels = [label if len(label) <= 40 else f"{label[:39]}…" for label in classifier.labels]
    if classifier.problem_type == REGRESSION:
        return "A number for a text"
    if not 2 <= len(labels) <= 4:
        return f"Text classifier: {len(labels)} labels"
    return f"Text classifier: {', '.join(labels[:-1])} or {labels[-1]}"


def _smallest(run: Run) -> tuple[str, dict[str, Any], str]:
    """The ONNX file that a page runs: int8 or fp32, what the report says of it, and why it is not int8."""
    report = read_onnx_report(run)
    if report is None:
        raise RunError(
            f"The run {run.run_id!r} has no ONNX model of its present adapter; export it as ONNX first."
        )
    if report["int8"]["kept"]:
        return "int8", report["int8"], ""
    note = (
        f"In int8 the model loses {report['int8']['drop']:.2f} points of {TITLES[report['headline']]} and at "
        f"most {report['max_drop']:g} were allowed, so the page runs it in float32."
    )
    return "fp32", report["fp32"], note


def _rule(run: Run, classifier: Classifier) -> dict[str, Any]:
    """What turns texts into an answer: how they are read, and what the outputs decide."""
    try:
        model_type = json.loads((run.onnx / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _lost(run, "config.json") from error
    return {
        "model_type": model_type,
        "labels": list(classifier.labels),
        "problem_type": classifier.problem_type,
        "text_pair": classifier.text_pair,
        "max_length": classifier.max_length,
        "decision": _decision(run, classifier),
    }


def _decision(run: Run, classifier: Classifier) -> dict[str, Any]:
    decision = Decision.read(run)
    return {**decision.to_dict(classifier.labels), "thresholds": list(decision.thresholds)}


def _lost(run: Run, name: str) -> RunError:
    return RunError(
        f"The ONNX model of {run.run_id!r} has lost or damaged its {name}; export it as ONNX again."
    )


def _copy_model(run: Run, model: str, folder: Path) -> list[dict[str, Any]]:
    """Copy what a browser needs of the ONNX folder; returns name, bytes and integrity of each file."""
    found = []
    for name in (*MODEL_FILES, model):
        source, copy = run.onnx / name, folder / "model" / name
        if not source.is_file():
            raise _lost(run, name)
        _refuse_large(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        found.append({"name": f"model/{name}", **described(copy)})
    return found


def _refuse_large(path: Path) -> None:
    apart = path.with_name(f"{path.name}_data")  # weights that one ONNX file does not hold
    size = sum(file.stat().st_size for file in (path, apart) if file.is_file())
    if size > MOST_BYTES:
        raise RunError(
            f"The model is {size / 1e9:.1f} GB; a browser takes at most {MOST_BYTES / 1e9:g} GB. Allow "
            "int8 a larger drop, or choose a smaller base model."
        )


def _copy_library(source: Path, vendor: Path) -> None:
    """The library's files beside the page, if they are the very ones that it was made with."""
    vendor.mkdir()
    for file in library_files():
        path = source / file["name"]
        if not path.is_file() or described(path)["integrity"] != file["integrity"]:
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
        shutil.copyfile(PAGE / name, folder / name)
    markup = {"title": html.escape(title), "library": " ".join(file["url"] for file in library)}
    words = {
        "yaml_title": json.dumps(title, ensure_ascii=False),
        "title": _markdown(title),
        "about": "\n".join(f"- {_markdown(name)}: {_markdown(value)}" for name, value in settings["about"]),
        "examples": _examples_words(len(settings["examples"])),
        "version": record["version"],
        "size": f"{sum(file['bytes'] for file in record['files']) / 1e6:.0f} MB",
        "base": settings["library"]["url"],
        "packages": " ".join(packages),
        "paths": " ".join(paths),
    }
    for name, values in (("index.html", markup), ("README.md", words)):
        text = (PAGE / name).read_text(encoding="utf-8")
        filled = re.sub(r"\{(\w+)\}", lambda found, values=values: values[found[1]], text)
        (folder / name).write_text(filled, encoding="utf-8")


def _about(run: Run, classifier: Classifier, precision: str, model: dict[str, Any]) -> list[tuple[str, str]]:
    """What a visitor may want to know, as pairs of words."""
    result, metric = run.result(), headline(classifier.problem_type)
    judged = f"{model['metrics'][metric]:.3f} on {result['eval_rows']:,} rows"
    return [
        ("Base model", _public_name(classifier.base_model_name_or_path)),
        ("Trained on", f"{result['train_rows']:,} rows of {_public_name(run.config().dataset_name)}"),
        (TITLES[metric][0].upper() + TITLES[metric][1:], judged),
        ("Model", f"{precision}, {model['bytes'] / 1e6:.1f} MB"),
        ("Library", f"transformers.js {read_record()['version']}"),
    ]


def _public_name(name: str) -> str:
    """A name as it stands, of a path on this machine its last part alone."""
    return name if _HUB_NAME.fullmatch(name) else Path(name).name


def _examples(rows: JudgedRows, classifier: Classifier, most: int) -> list[dict[str, str | None]]:
    """The first short texts of each label in turn; of numbers from the least to the largest."""
    pairs = rows.pairs or [None] * len(rows)
    short = [
        i
        for i, (text, pair) in enumerate(zip(rows.texts, pairs, strict=True))
        if len(text) + len(pair or "") <= EXAMPLE_CHARACTERS
    ]
    if classifier.problem_type == REGRESSION:
        short.sort(key=lambda i: rows.labels[i])
        steps = np.linspace(0, len(short) - 1, min(most, len(short))).round().astype(int)
        chosen = [short[step] for step in steps]
    else:
        chosen = _in_turn(short, [_key(label, classifier) for label in rows.labels])[:most]
    return [{"text": rows.texts[i], "pair": pairs[i]} for i in chosen]


def _in_turn(rows: list[int], keys: list[Any]) -> list[int]:
    """Rows sorted so that each key's first comes before any key's second."""
    seen: dict[Any, int] = {}
    turns = {}
    for row in rows:
        turns[row] = seen[keys[row]] = seen.get(keys[row], -1) + 1
    return sorted(rows, key=lambda row: turns[row])


def _key(label: Any, classifier: Classifier) -> Any:
    return tuple(label.tolist()) if classifier.problem_type == MULTI else int(label)


def _examples_words(count: int) -> str:
    if not count:
        return "No text of the data is part of this page."
    return f"{count} short texts of the test rows are part of this page (`page.json`), as examples to try."


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join("".join(char for char in text if char.isprintable() or char.isspace()).split())

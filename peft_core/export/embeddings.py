"""The adapted encoder as sentence vectors for retrieval, in the folder that sentence-transformers loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModel, AutoTokenizer

from peft_core.certificate import TOLERANCE
from peft_core.errors import DamagedError, MergeError
from peft_core.files import write_json, write_text
from peft_core.inference.classifier import Classifier
from peft_core.inference.loading import load_adapter, load_adapter_base
from peft_core.inference.vectors import (
    ADAPTED,
    BASE,
    NEAREST,
    RowVectors,
    encoder_of,
    label_precision,
    merged_encoder,
    refuse_vectors,
    vectors,
)
from peft_core.manifests import verify_folder
from peft_core.methods import METHODS
from peft_core.progress import Progress, unheard
from peft_core.records import read_json
from peft_core.runs import Run
from peft_core.sources import hub_commit

FOLDER, REPORT_FILE = "embeddings", "report.json"
_MODULES = (  # in the names that every version of sentence-transformers from 2 on reads
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)


@dataclass(frozen=True)
class _Made:
    """Vectors (rows, size) of the base, of the adapter beside it, and of what was written, loaded again."""

    base: np.ndarray
    adapter: np.ndarray
    written: np.ndarray
    lacks_pooler: bool


def export_embeddings(run_dir: str | Path, progress: Progress = unheard) -> dict[str, Any]:
    """Write the run's `embeddings/` or nothing: the encoder with the adapter in its weights, its tokenizer,
    and what tells sentence-transformers to take the mean of the tokens and bring it to length 1.

    What is written is loaded again and compared on the run's test rows with the adapter beside its base. The
    answer, in JSON types, also in `embeddings/report.json`: `folder`, `size` (of a vector), `max_length`,
    `rows`, `max_difference` (of a vector's entries), `precision` (`label_precision` of `base` and `adapted`,
    None where there is none), `changed` (whether the rows' vectors are others than the base's), `note`, and
    `fingerprint` (of what all this was made from: an export that stands is not made again).

    Raises MergeError (the method leaves no encoder of its own, or what was written is not the adapter),
    RunError (no adapter, lost rows, a full disk), ModelError or HubError (the base is gone or changed).
    """
    run = Run(Path(run_dir))
    classifier = Classifier.read(run)
    refuse_vectors(run)
    kept = RowVectors(run)
    earlier = _earlier(run.folder / FOLDER, kept.fingerprint)
    if earlier is not None:
        return earlier
    with run.new_folder(run.folder / FOLDER) as staging:
        made = _fill(staging, run, classifier, kept.judged.rows.texts, progress)
        report = _report(made, classifier, kept)
        write_json(staging / REPORT_FILE, report)
        write_text(staging / "README.md", _readme(report, classifier, run))
        kept.save({BASE: made.base, ADAPTED: made.written})
    progress(1.0, "Written")
    return report


def _earlier(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The report of an export that was made from these very files."""
    try:
        verify_folder(folder)
        report = read_json(folder / REPORT_FILE)
        return report if report.get("fingerprint") == fingerprint else None
    except DamagedError:
        return None


def _fill(folder: Path, run: Run, classifier: Classifier, texts: list[str], progress: Progress) -> _Made:
    """Write the encoder, and take the rows' vectors on the way and from what was written."""

    def of_rows(model: nn.Module, tokenizer: Any, start: float, what: str) -> np.ndarray:
        words, most = f"{what}: vectors of {len(texts):,} rows", classifier.max_length
        return vectors(model, tokenizer, texts, most, lambda share: progress(start + 0.3 * share, words))

    progress(0.0, "Loading the base model")
    base = load_adapter_base(run, classifier)
    before = of_rows(encoder_of(base.model), base.tokenizer, 0.05, "Base")
    model = load_adapter(run, base)
    adapter = of_rows(encoder_of(model), base.tokenizer, 0.35, "Adapter")
    _write(folder, merged_encoder(run, model), base.tokenizer, classifier.max_length)
    reloaded, loading = AutoModel.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    written = of_rows(reloaded.eval(), tokenizer, 0.65, "Written, loaded again")
    return _Made(before, adapter, written, bool(loading["missing_keys"]))


def _report(made: _Made, classifier: Classifier, kept: RowVectors) -> dict[str, Any]:
    base, adapted = (label_precision(rows, kept.judged) for rows in (made.base, made.written))
    changed = bool(np.abs(made.written - made.base).max() > TOLERANCE)
    return {
        "folder": FOLDER,
        "size": made.written.shape[1],
        "max_length": classifier.max_length,
        "rows": len(made.written),
        "max_difference": _checked_difference(made.adapter, made.written),
        "precision": None if base is None else {BASE: base, ADAPTED: adapted},
        "changed": changed,
        "note": _note(changed, classifier.text_pair, made.lacks_pooler),
        "fingerprint": kept.fingerprint,
    }


def _checked_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of an entry; MergeError if rounding does not explain it."""
    worst = float(np.abs(expected - found).max())
    if not worst <= TOLERANCE:  # true of NaN too
        raise MergeError(
            f"What was written is not the adapter: an entry of a vector differs by {worst:.2g} (at most "
            f"{TOLERANCE:g} is allowed); nothing is kept."
        )
    return worst


def _write(folder: Path, encoder: nn.Module, tokenizer: Any, max_length: int) -> None:
    """The files of sentence-transformers' format."""
    encoder.save_pretrained(folder)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(_MODULES)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    cosine = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer", **cosine})
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": encoder.config.hidden_size, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_cls_token": False})


def _note(changed: bool, of_pairs: bool, lacks_pooler: bool) -> str:
    """What a person should know of these vectors; empty if there is nothing to say."""
    notes = {
        "This method left the encoder as it was, so the vectors are the base model's.": not changed,
        "The run reads pairs of texts; these are vectors of single texts.": of_pairs,
        "Loading says that a pooler starts untrained; the vectors do not use it.": lacks_pooler,
    }
    return " ".join(note for note, applies in notes.items() if applies)


def _readme(report: dict[str, Any], classifier: Classifier, run: Run) -> str:
    """A model card: what the vectors are, how to load them, and what they were measured at."""
    name = classifier.base_model_name_or_path
    on_hub = hub_commit(classifier.base_revision) is not None
    shown = name if on_hub else Path(name).name
    front = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    front += [f"base_model: {name}"] * on_hub
    front += ["tags:", "- sentence-transformers", "- sentence-similarity", "- feature-extraction"]
    lines = [
        "---", *front, "---", "", f"# Sentence vectors of {run.run_id}", "",
        f"The encoder of `{shown}`, adapted by {METHODS[run.config().method].label} while a classifier was "
        f"trained on it, with the adapter in its weights and without the head. A text's vector has "
        f"{report['size']} entries and the length 1: the mean of its tokens' last hidden states, of at most "
        f"{report['max_length']} tokens.",
        "", "```python", "from sentence_transformers import SentenceTransformer", "",
        'model = SentenceTransformer("path/to/this/folder")',
        'vectors = model.encode(["a text", "another text"])  # their dot product is their cosine',
        "```", "",
        f"Loaded again and compared with the adapter beside its base on {report['rows']:,} held-out texts: "
        f"entries differ by at most {report['max_difference']:.1e}.",
    ]  # fmt: skip
    if report["precision"]:
        before, after = report["precision"][BASE], report["precision"][ADAPTED]
        lines += [
            "", f"Of a held-out text's {NEAREST} nearest others {after:.1%} share its label; with the base "
            f"model's vectors it was {before:.1%}. Texts lie near each other by what the classifier was "
            "trained to tell apart, which may not be what another search wants.",
        ]  # fmt: skip
    return "\n".join([*lines, *(["", report["note"]] if report["note"] else []), ""])

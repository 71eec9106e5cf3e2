"""Export of the adapted encoder as a sentence-transformers model, for retrieval."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from peft_core.errors import DamagedError, MergeError
from peft_core.files.atomic import write_json, write_text
from peft_core.files.manifests import verify_folder
from peft_core.files.records import read_json
from peft_core.inference.classifier import Classifier
from peft_core.inference.loading import load_adapter, load_adapter_base
from peft_core.inference.vectors import (
    ADAPTED,
    BASE,
    NEAREST,
    RowVectors,
    check_has_encoder,
    encoder_of,
    label_precision,
    merged_encoder,
    vectors,
)
from peft_core.merging.certificate import TOLERANCE
from peft_core.methods.registry import METHODS
from peft_core.models.sources import hub_commit
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run

FOLDER, REPORT_FILE = "embeddings", "report.json"
_MODULES = (  # class names that every version of sentence-transformers from 2 on reads
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)


@dataclass(frozen=True)
class _ComparedVectors:
    """Vectors of the test rows, each of shape (rows, size).

    Attributes:
        base: of the base encoder.
        adapter: of the base encoder with the adapter beside its weights.
        written: of the exported encoder, loaded from disk.
        lacks_pooler: whether the exported folder holds no weights for the pooler.
    """

    base: np.ndarray
    adapter: np.ndarray
    written: np.ndarray
    lacks_pooler: bool


def export_embeddings(run_dir: str | Path, progress: Progress = no_progress) -> dict[str, Any]:
    """Write the run's `embeddings/` as a whole or not at all.

    The folder holds the encoder with the adapter merged into its weights, the tokenizer, and the
    configuration of sentence-transformers for mean pooling and normalization to length 1. The export is
    loaded from disk and compared on the run's test rows with the unmerged adapter. An existing export with
    the same fingerprint is kept.

    Returns:
        The report, as JSON types, which is also in `embeddings/report.json`: `folder`, `size` (of a vector),
        `max_length`, `rows`, `max_difference` (largest absolute difference of a vector entry), `precision`
        (`label_precision` of `base` and `adapted`, or None if it is undefined), `changed` (whether the
        vectors differ from those of the base), `note`, and `fingerprint` (of the inputs of the export).

    Raises:
        MergeError: the method leaves no encoder of its own, or the export differs from the adapter.
        RunError: there is no adapter, the test rows are lost, or the disk is full.
        ModelError, HubError: the base model is missing or has changed.
    """
    run = Run(Path(run_dir))
    classifier = Classifier.read(run)
    check_has_encoder(run)
    row_vectors = RowVectors(run)
    existing_report = _existing_report(run.folder / FOLDER, row_vectors.fingerprint)
    if existing_report is not None:
        return existing_report
    with run.new_folder(run.folder / FOLDER) as staging:
        compared = _write_and_reload(staging, run, classifier, row_vectors.evaluation.rows.texts, progress)
        report = _report(compared, classifier, row_vectors)
        write_json(staging / REPORT_FILE, report)
        write_text(staging / "README.md", _readme(report, classifier, run))
        row_vectors.save({BASE: compared.base, ADAPTED: compared.written})
    progress(1.0, "Written")
    return report


def _existing_report(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the report of an undamaged export with this fingerprint, or None."""
    try:
        verify_folder(folder)
        report = read_json(folder / REPORT_FILE)
        return report if report.get("fingerprint") == fingerprint else None
    except DamagedError:
        return None


def _write_and_reload(
    folder: Path, run: Run, classifier: Classifier, texts: list[str], progress: Progress
) -> _ComparedVectors:
    """Write the encoder and return the rows' vectors before, with the adapter, and after reloading."""

    def encode_rows(model: nn.Module, tokenizer: Any, start: float, stage: str) -> np.ndarray:
        message, max_length = f"{stage}: vectors of {len(texts):,} rows", classifier.max_length
        return vectors(
            model, tokenizer, texts, max_length, lambda share: progress(start + 0.3 * share, message)
        )

    progress(0.0, "Loading the base model")
    base = load_adapter_base(run, classifier)
    base_vectors = encode_rows(encoder_of(base.model), base.tokenizer, 0.05, "Base")
    model = load_adapter(run, base)
    adapter_vectors = encode_rows(encoder_of(model), base.tokenizer, 0.35, "Adapter")
    encoder = merged_encoder(run, model)
    assert isinstance(encoder, PreTrainedModel)  # the base class of every encoder in transformers
    _write(folder, encoder, base.tokenizer, classifier.max_length)
    reloaded, loading = AutoModel.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    written = encode_rows(reloaded.eval(), tokenizer, 0.65, "Reloaded export")
    return _ComparedVectors(base_vectors, adapter_vectors, written, bool(loading["missing_keys"]))


def _report(compared: _ComparedVectors, classifier: Classifier, row_vectors: RowVectors) -> dict[str, Any]:
    base, adapted = (
        label_precision(rows, row_vectors.evaluation) for rows in (compared.base, compared.written)
    )
    changed = bool(np.abs(compared.written - compared.base).max() > TOLERANCE)
    return {
        "folder": FOLDER,
        "size": compared.written.shape[1],
        "max_length": classifier.max_length,
        "rows": len(compared.written),
        "max_difference": _checked_difference(compared.adapter, compared.written),
        "precision": None if base is None else {BASE: base, ADAPTED: adapted},
        "changed": changed,
        "note": _note(changed, classifier.text_pair, compared.lacks_pooler),
        "fingerprint": row_vectors.fingerprint,
    }


def _checked_difference(expected: np.ndarray, written: np.ndarray) -> float:
    """Return the largest absolute difference of an entry; MergeError if it exceeds `TOLERANCE` or is NaN."""
    largest = float(np.abs(expected - written).max())
    if not largest <= TOLERANCE:  # also if NaN
        raise MergeError(
            f"The exported encoder does not match the adapter: an entry of a vector differs by {largest:.2g} "
            f"(at most {TOLERANCE:g} is allowed); nothing was saved."
        )
    return largest


def _write(folder: Path, encoder: PreTrainedModel, tokenizer: Any, max_length: int) -> None:
    """Write the encoder, the tokenizer and the configuration files of sentence-transformers."""
    encoder.save_pretrained(folder)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": class_name}
        for i, (path, class_name) in enumerate(_MODULES)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    cosine = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer", **cosine})
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": encoder.config.hidden_size, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_cls_token": False})


def _note(changed: bool, of_pairs: bool, lacks_pooler: bool) -> str:
    """Return the caveats of these vectors; empty if there is none."""
    notes = {
        "This method does not change the encoder, so the vectors are the base model's.": not changed,
        "The run classifies pairs of texts; these are vectors of single texts.": of_pairs,
        "Loading warns that the pooler is newly initialized; the vectors do not use it.": lacks_pooler,
    }
    return " ".join(note for note, applies in notes.items() if applies)


def _readme(report: dict[str, Any], classifier: Classifier, run: Run) -> str:
    """Return the model card: what the vectors are, how to load them, and the measured numbers."""
    name = classifier.base_model_name_or_path
    on_hub = hub_commit(classifier.base_revision) is not None
    base_name = name if on_hub else Path(name).name
    metadata = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    metadata += [f"base_model: {name}"] * on_hub
    metadata += ["tags:", "- sentence-transformers", "- sentence-similarity", "- feature-extraction"]
    lines = [
        "---", *metadata, "---", "", f"# Sentence vectors of {run.run_id}", "",
        f"The encoder of `{base_name}`, adapted by {METHODS[run.config().method].label} while a classifier "
        f"was trained on it, with the adapter in its weights and without the head. A text's vector has "
        f"{report['size']} entries and length 1: the mean of the last hidden states of its tokens, at most "
        f"{report['max_length']} tokens.",
        "", "```python", "from sentence_transformers import SentenceTransformer", "",
        'model = SentenceTransformer("path/to/this/folder")',
        'vectors = model.encode(["a text", "another text"])  # their dot product is their cosine',
        "```", "",
        f"Reloaded and compared with the unmerged adapter on {report['rows']:,} held-out texts: "
        f"entries differ by at most {report['max_difference']:.1e}.",
    ]  # fmt: skip
    if report["precision"]:
        before, after = report["precision"][BASE], report["precision"][ADAPTED]
        lines += [
            "", f"Of the {NEAREST} nearest neighbors of a held-out text, {after:.1%} share its label; with "
            f"the base model's vectors it was {before:.1%}. Distances reflect what the classifier was "
            "trained to distinguish, which may not suit other searches.",
        ]  # fmt: skip
    return "\n".join([*lines, *(["", report["note"]] if report["note"] else []), ""])

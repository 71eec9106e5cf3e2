"""Operations that read the files of a run; each returns an answer that can be compared as text."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from batteries.run_checks import TEXTS
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.tokens import encode
from peft_core.errors import DamagedError
from peft_core.export.archives import KINDS, zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.export.hub.model_card import model_card
from peft_core.export.onnx.report import read_onnx_report
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.inference.loading import ADAPTER, BASE, MERGED
from peft_core.inference.predictor import Predictor
from peft_core.inference.vectors import NeighborSearch
from peft_core.merging.certificate import verified_certificate
from peft_core.merging.merge import merge
from peft_core.runs import FINISHED, Run, list_runs
from peft_core.runs.checkpoints import choose_checkpoint, list_checkpoints, step_of
from peft_core.runs.evaluation_rows import TEST, VALIDATION, load_evaluation_rows
from peft_core.training.entry import train
from peft_core.training.schedule import evaluation_rows

CONTINUE = "continue"
CONTINUE_EVERY = 4  # after the damage of one checkpoint file in so many, the run is trained to its end


class Operation(NamedTuple):
    """An operation on a run; `ask` returns the answer or raises a PeftCoreError."""

    name: str
    ask: Callable[[], str]


def operations_on(run: Run, path: Path | None) -> list[Operation]:
    """Return the operations that read one file of a run, or with None all operations.

    They are ordered so that each file is read before it is written anew.
    """
    part = None if path is None else _part(run, path)
    is_finished = (run.folder / "adapter").is_dir() or (run.folder / "evaluation").is_dir()
    operations = _finished_operations(run) if is_finished else _stopped_operations(run, path)
    return [operation for parts, operation in operations if part is None or part in parts]


def _part(run: Run, path: Path) -> str:
    """Return the folder of a file in the run, `.tokens`, or `run` for a file of the run itself."""
    if run.folder not in path.parents:
        return ".tokens"
    parts = path.relative_to(run.folder).parts
    return parts[0] if len(parts) > 1 else "run"


def _finished_operations(run: Run) -> list[tuple[tuple[str, ...], Operation]]:
    operations = [
        *_record_operations(run),
        (("adapter",), Operation("predict", lambda: _logits(run, ADAPTER))),
        (("adapter",), Operation("labels", lambda: repr(Classifier.read(run)))),
        (("adapter",), Operation("decision rule", lambda: repr(DecisionRule.read(run)))),
        (("evaluation",), Operation("result", lambda: json.dumps(run.result().to_dict()))),
        (("evaluation",), Operation("test rows", lambda: _rows(run, TEST))),
        (("evaluation",), Operation("validation rows", lambda: _rows(run, VALIDATION))),
        (("adapter", "evaluation"), Operation("model card", lambda: model_card(run, "adapter"))),
        (("adapter", "merged"), Operation("certificate", lambda: _certificate(run))),
        (("adapter", "merged"), Operation("predict with merged", lambda: _logits(run, MERGED))),
        (("probe",), Operation("predict with base", lambda: _logits(run, BASE))),
        (("vectors", "adapter"), Operation("neighbors", lambda: _neighbors(run))),
        (("onnx",), Operation("ONNX report", lambda: _onnx_report(run))),
    ]
    for kind in KINDS:
        if (run.folder / kind).is_dir():
            operations.append(
                ((kind, "downloads"), Operation(f"zip of {kind}", lambda kind=kind: _zip(run, kind)))
            )
    return [
        operation
        for operation in [
            *operations,
            (("merged", "adapter", "evaluation"), Operation("merge", lambda: _merge(run))),
            (("embeddings", "vectors", "adapter"), Operation("embeddings", lambda: _embeddings(run))),
        ]
        if any(part in ("run", ".tokens") or (run.folder / part).exists() for part in operation[0])
    ]


def _stopped_operations(run: Run, path: Path | None) -> list[tuple[tuple[str, ...], Operation]]:
    operations = [
        *_record_operations(run),
        (("checkpoints",), Operation("choose a checkpoint", lambda: _checkpoint(run))),
    ]
    if path is not None and run.checkpoints in path.parent.parents:
        operations.append(
            (
                ("checkpoints",),
                Operation("choose an older checkpoint", lambda: _choose_older_checkpoint(run, path)),
            )
        )
    number = int(hashlib.sha256(str(path).encode()).hexdigest(), 16)
    is_best = path is not None and path.parent == run.checkpoints  # best.safetensors, which Continue rewrites
    if path is None or is_best or number % CONTINUE_EVERY == 0:
        operations.append((("checkpoints", "run"), Operation(CONTINUE, lambda: _continue(run))))
    return operations


def _record_operations(run: Run) -> list[tuple[tuple[str, ...], Operation]]:
    """Return operations that read the run's own files and the token cache."""
    return [
        (("run",), Operation("settings", lambda: run.config().to_json())),
        (("run",), Operation("state", lambda: _state(run))),
        (("run",), Operation("curve", lambda: _curve(run))),
        ((".tokens",), Operation("tokens", lambda: _tokens(run))),
    ]


def _logits(run: Run, variant: str) -> str:
    return Predictor(run.folder, variant).logits(TEXTS).tobytes().hex()


def _rows(run: Run, split: str) -> str:
    rows = load_evaluation_rows(run, split)
    return json.dumps([rows.texts, rows.labels.tolist(), rows.logits.tolist()])


def _certificate(run: Run) -> str:
    return json.dumps({name: entry.sha256 for name, entry in verified_certificate(run).files.items()})


def _merge(run: Run) -> str:
    merge(run.folder)
    return _certificate(run)


def _neighbors(run: Run) -> str:
    return json.dumps(NeighborSearch(run.folder).nearest(TEXTS[0]))


def _embeddings(run: Run) -> str:
    return json.dumps(export_embeddings(run.folder))


def _onnx_report(run: Run) -> str:
    report = read_onnx_report(run)
    if report is None:
        raise DamagedError("There is no ONNX model to use.")
    return json.dumps(report)


def _zip(run: Run, kind: str) -> str:
    """Return the names and hashes of the files in a zip, without its timestamps."""
    with zipfile.ZipFile(zip_of(run, kind)) as archive:
        return json.dumps(
            {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
        )


def _state(run: Run) -> str:
    state = run.state()
    if state.damage:
        raise DamagedError(state.damage)
    return json.dumps(state.to_dict())


def _curve(run: Run) -> str:
    damage = run.metrics_damage()
    if damage:
        raise DamagedError(damage)
    return json.dumps(run.metrics())


def _tokens(run: Run) -> str:
    """Return the tokens of every run in the folder, which share the cache."""
    return json.dumps([_tokens_of(other) for other in sorted(list_runs(run.folder.parent), key=str)])


def _tokens_of(run: Run) -> list[dict[str, list]]:
    """Return the tokens of the training and curve rows, read as in a training."""
    config, columns = run.config(), ("input_ids", "attention_mask", "labels")
    data = load_labeled_splits(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    evaluated = evaluation_rows(config, len(data.train), len(data.validation))
    curve = data.validation.select(range(evaluated))
    cache = run.folder.parent / ".tokens"
    encoded = [encode(rows, tokenizer, config.max_length, cache) for rows in (data.train, curve)]
    return [{name: rows[name][:] for name in columns} for rows in encoded]


def _checkpoint(run: Run) -> str:
    choice = choose_checkpoint(run)
    if choice is None or choice.skipped:
        raise DamagedError(choice.skipped[0] if choice else "There is no checkpoint.")
    return str(choice.step)


def _choose_older_checkpoint(run: Run, path: Path) -> str:
    """Return the step from which the run would resume without the newer checkpoints."""
    own = run.checkpoints / path.relative_to(run.checkpoints).parts[0]
    newer = [
        checkpoint for checkpoint in list_checkpoints(run.checkpoints) if step_of(checkpoint) > step_of(own)
    ]
    hidden = [checkpoint.rename(run.folder / f".hidden-{checkpoint.name}") for checkpoint in newer]
    try:
        return _checkpoint(run)
    finally:
        for checkpoint in hidden:
            checkpoint.rename(run.checkpoints / checkpoint.name.removeprefix(".hidden-"))


def _continue(run: Run) -> str:
    """Train to the end from the latest valid checkpoint; return the hash of the adapter."""
    train(run.folder)
    if run.state().status != FINISHED:
        raise DamagedError("It was not finished.")
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()

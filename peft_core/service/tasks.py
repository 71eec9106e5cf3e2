"""Tasks that the worker process runs for the page; each takes and returns JSON types."""

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import psutil
import torch

from peft_core import counts
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.data import inspection
from peft_core.data.files import read_table
from peft_core.data.formats import ReadOptions
from peft_core.data.labelled import check_dataset_name, is_hub_dataset, load_labeled_splits
from peft_core.errors import DataError, ModelError, PeftCoreError, RunError
from peft_core.export import registry
from peft_core.export.page.webpage import refresh_decision_rule
from peft_core.export.snippets import ApiAccess
from peft_core.hardware import free_bytes
from peft_core.inference import calibration, tables
from peft_core.inference.attribution import attribute
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.inference.loading import ADAPTER, BASE, MERGED
from peft_core.inference.predictor import Predictor
from peft_core.inference.review import search_rows
from peft_core.inference.sharing import ModelCache, SharedTokenizers, SharedWeights
from peft_core.inference.suspects import suspected_labels
from peft_core.inference.vectors import NeighborSearch
from peft_core.merging import merge as merging
from peft_core.merging.certificate import certificate_of_merged
from peft_core.models.encoder import plan_head
from peft_core.models.presets import DATASETS, EMBEDDED_DATASETS, MODELS
from peft_core.models.sources import model_source
from peft_core.problem_types import REGRESSION
from peft_core.runs import Run
from peft_core.service.worker import report
from peft_core.training.losses import check_objective
from peft_core.training.memory_forecast import forecast_memory

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def _raises_if_deleted(
    task: Callable[Concatenate[str, Arguments], Answer],
) -> Callable[Concatenate[str, Arguments], Answer]:
    """Return a task, whose first argument is a run's folder, that raises RunError if the run is deleted."""

    @wraps(task)
    def checked(run_dir: str, *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        with Run(Path(run_dir)).detect_deletion():
            return task(run_dir, *arguments, **options)

    return checked


def count(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the `ParameterCount` of these settings as JSON types."""
    config = TrainConfig.from_dict(settings)
    is_preset = config.model_name_or_path in MODELS and config.dataset_name in DATASETS
    count_parameters = _count_preset if is_preset and config.revision is None else counts.count_parameters
    return count_parameters(config).to_dict()


_count_preset = lru_cache(maxsize=1000)(counts.count_parameters)  # presets never change


def cost(settings: dict[str, Any], training_pid: int | None = None) -> dict[str, Any]:
    """Return the counts of `count` and the values of `forecast`."""
    return {**count(settings), **forecast(settings, training_pid)}


def forecast(settings: dict[str, Any], training_pid: int | None = None) -> dict[str, Any]:
    """Return the forecast `seconds` and `memory` (bytes) of a training, and the `free` bytes.

    Unknown values are None. Memory is that of the CPU, so it is unknown for a training on a GPU.

    Args:
        settings: of the training.
        training_pid: process id of the current training. Its memory counts as free, since a new run waits
            until that training has ended.
    """
    config = TrainConfig.from_dict(settings)
    memory, free = None, None
    if not torch.cuda.is_available():
        free = free_bytes(torch.device("cpu")) + _resident_bytes(training_pid)
        memory = forecast_memory(config, free)
    return {"seconds": counts.forecast_seconds(config), "memory": memory, "free": free}


def forecast_seconds(settings: dict[str, Any]) -> float | None:
    """Return the forecast duration of a training with these settings; None if it is unknown."""
    return counts.forecast_seconds(TrainConfig.from_dict(settings))


def _resident_bytes(pid: int | None) -> int:
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:  # it has ended
        return 0


def count_all(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the counts of each configuration, or `error` where it is not possible."""
    rows = []
    for i, configuration in enumerate(settings):
        try:
            rows.append(count(configuration))
        except PeftCoreError as error:
            rows.append({"error": str(error)})
        report((i + 1) / len(settings), f"Counting {i + 1} of {len(settings)}")
    return rows


def describe_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return the facts of `counts.describe_model`."""
    return counts.describe_model(name, revision)


def check_trainable(settings: dict[str, Any]) -> None:
    """Raise the PeftCoreError of settings that cannot be trained, if it is known without a download."""
    config = TrainConfig.from_dict(settings)
    # counting a preset reads no files, but training needs its weights: is their source known?
    model_source(config.model_name_or_path, config.revision, weights=False)
    check_dataset_name(config)
    if not is_hub_dataset(config.dataset_name):
        data = load_labeled_splits(config)
        check_objective(config, data.problem_type)
        plan_head(config, data.label_names, data.problem_type)
    try:
        counts.count_parameters(config)
    except DataError:
        if config.num_labels is not None:  # else the number of labels becomes known with the rows
            raise


def inspect(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what `inspection.inspect` finds in the data of these settings."""
    config = TrainConfig.from_dict(settings)
    is_embedded = config.model_name_or_path == EMBEDDED_MODEL and config.dataset_name in EMBEDDED_DATASETS
    return (_inspect_embedded if is_embedded else inspection.inspect)(config)


_inspect_embedded = lru_cache(maxsize=64)(inspection.inspect)  # embedded data never change


def count_rows(paths: list[str], max_unpacked_bytes: int | None = None) -> int:
    """Return the total number of rows of files.

    Raises DataError for a file that cannot be read, or unpacks to more than `max_unpacked_bytes`.
    """
    options = ReadOptions(max_unpacked_bytes=max_unpacked_bytes)
    return sum(len(read_table(Path(path), options).frame) for path in paths)


@_raises_if_deleted
def merge(run_dir: str) -> dict[str, Any]:
    """Merge a run and return its certificate."""
    return merging.merge(run_dir, report).to_dict()


@_raises_if_deleted
def predict(run_dir: str, variant: str, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """Return the label, scores and milliseconds of one text."""
    predictor = _predictor(run_dir, variant)
    prediction = predictor.predict([text], [text_pair])[0].to_dict()
    return {**prediction, "note": prediction["note"] or predictor.note(text, text_pair)}


@_raises_if_deleted
def compare(run_dir: str, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """Return the prediction of every variant, and the largest logit difference of adapter and merged."""
    variants = [BASE, ADAPTER] + [MERGED] * _is_merged(run_dir)
    predictions = {
        variant: _predictor(run_dir, variant).predict([text], [text_pair])[0] for variant in variants
    }
    answer: dict[str, Any] = {variant: prediction.to_dict() for variant, prediction in predictions.items()}
    for variant in variants[1:]:
        answer[variant]["note"] = _predictor(run_dir, variant).note(text, text_pair)
    if MERGED in predictions:
        pair = [np.asarray(predictions[variant].logits) for variant in (ADAPTER, MERGED)]
        answer["max_logit_diff"] = float(np.abs(pair[0] - pair[1]).max())
    return answer


def compare_runs(run_dirs: list[str], text: str, text_pair: str | None = None) -> list[dict[str, Any]]:
    """Return each adapter's prediction, `{run_id, …}` as `predict` returns it, or `{run_id, error}`."""
    predictions = []
    for run_dir in run_dirs:
        try:
            prediction = predict(run_dir, ADAPTER, text, text_pair)
        except PeftCoreError as error:
            prediction = {"error": str(error)}
        predictions.append({"run_id": Path(run_dir).name, **prediction})
    return predictions


@_raises_if_deleted
def decision_rule(run_dir: str) -> dict[str, Any]:
    """Return the saved decision rule of a run, or the default rule, and the run's `labels`."""
    run = Run(Path(run_dir))
    return _rule_with_labels(DecisionRule.read(run), run)


@_raises_if_deleted
def evaluate_decision_rule(run_dir: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the `calibration.report` of a decision rule that is not saved yet."""
    run = Run(Path(run_dir))
    return calibration.report(run, DecisionRule.from_dict(values, Classifier.read(run).labels))


@_raises_if_deleted
def suggest_decision_rule(run_dir: str, thresholds: bool, at_least: float | None) -> dict[str, Any]:
    """Return the decision rule of `calibration.suggest`, and the run's `labels`."""
    run = Run(Path(run_dir))
    return _rule_with_labels(calibration.suggest(run, thresholds=thresholds, at_least=at_least), run)


@_raises_if_deleted
def save_decision_rule(run_dir: str, values: dict[str, Any]) -> None:
    """Save a decision rule in the run and its exports."""
    run = Run(Path(run_dir))
    labels = Classifier.read(run).labels
    DecisionRule.from_dict(values, labels).save(run, labels)
    refresh_decision_rule(run)


@_raises_if_deleted
def explain(
    run_dir: str, text: str, label: str | None, text_pair: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return each variant's attribution as `attribution.attribute` returns it, or `error`.

    If `label` is None, all variants explain the label that the adapter predicts.
    """
    merged = [MERGED] * _is_merged(run_dir)
    variants, attributions = (ADAPTER, BASE, *merged), {}
    for number, variant in enumerate(variants):

        def on_progress(share: float, number: int = number, variant: str = variant) -> None:
            report((number + share) / len(variants), f"Scoring each word with the {variant}")

        on_progress(0.0)
        try:
            predictor = _predictor(run_dir, variant)
            attributions[variant] = attribute(predictor, text, text_pair, label, progress=on_progress)
            label = attributions[variant]["label"]
        except (RunError, ModelError) as error:
            attributions[variant] = {"error": str(error)}
    return {variant: attributions[variant] for variant in (BASE, ADAPTER, *merged)}


@_raises_if_deleted
def review(
    run_dir: str, kind: str, query: str, true: str | None, predicted: str | None, max_rows: int
) -> dict[str, Any]:
    """Return `total` and `rows` of test rows: `all`, the `hardest` mistakes, or `suspected` labels."""
    run = Run(Path(run_dir))
    if kind == "suspected":
        rows = suspected_labels(run, max_rows=max_rows)
        return {"total": len(rows), "rows": rows}
    hard = kind == "hardest"
    wrong = hard and run.result()["problem_type"] != REGRESSION
    return search_rows(
        run, query, true=true, predicted=predicted, only_wrong=wrong, hardest_first=hard, max_rows=max_rows
    )


@_raises_if_deleted
def row(run_dir: str, number: int) -> dict[str, Any]:
    """Return one test row by its number, from 1."""
    (test_row,) = search_rows(Run(Path(run_dir)), start=number - 1, max_rows=1)["rows"]
    return test_row


@_raises_if_deleted
def export_run(run_dir: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Write an export and return its report; see `registry.export_run`."""
    return registry.export_run(kind, run_dir, options, report)


@_raises_if_deleted
def code(run_dir: str, kind: str, access: ApiAccess) -> str:
    """Return the code of a run; see `registry.run_code`."""
    return registry.run_code(run_dir, kind, access)


def training_code(settings: dict[str, Any], kind: str, access: ApiAccess) -> str:
    """Return the code of settings; see `registry.training_code`."""
    return registry.training_code(TrainConfig.from_dict(settings), kind, access)


@_raises_if_deleted
def find_neighbors(run_dir: str, query: str) -> dict[str, list[dict[str, Any]]]:
    """Return the test rows nearest to a query under the base and the adapted encoder."""
    return _neighbor_search(run_dir, _weights_version(Run(Path(run_dir)).adapter)).nearest(query)


@lru_cache(maxsize=1)
def _neighbor_search(run_dir: str, version: tuple[int, ...]) -> NeighborSearch:
    """Return a run's two encoders and its rows' vectors, cached for one version of the adapter."""
    return NeighborSearch(run_dir, report)


@_raises_if_deleted
def preview_file(
    run_dir: str, path: str, sheet_name: str | None = None, header_row: int | None = None
) -> dict[str, Any]:
    """Return a file's columns and first rows, and the columns that the run would read."""
    return tables.preview_file(Path(path), Run(Path(run_dir)), ReadOptions(sheet_name, header_row))


@_raises_if_deleted
def predict_file(run_dir: str, variant: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Predict a file and return a summary; see `tables.predict_file`. `request` names the columns."""
    report(0.0, "Loading the model")
    return tables.predict_file(_predictor(run_dir, variant), tables.Request(Path(path), **request), report)


def _is_merged(run_dir: str) -> bool:
    return certificate_of_merged(Run(Path(run_dir))) is not None


def _rule_with_labels(decision_rule: DecisionRule, run: Run) -> dict[str, Any]:
    labels = Classifier.read(run).labels
    return {**decision_rule.to_dict(labels), "labels": list(labels)}


def _predictor(run_dir: str, variant: str) -> Predictor:
    """Return a cached predictor, loaded again if its weights have changed.

    Models of one base share its weights and its tokenizer.
    """
    run = Run(Path(run_dir))
    folder = run.merged if variant == MERGED else run.adapter
    return _models.get((run_dir, variant), _weights_version(folder), lambda: _load(run_dir, variant))


def _weights_version(folder: Path) -> tuple[int, ...]:
    """Return the modification time of each file of weights, in nanoseconds."""
    return tuple(file.stat().st_mtime_ns for file in sorted(folder.glob("*.safetensors")))


def _load(run_dir: str, variant: str) -> Predictor:
    _models.drop(_is_deleted)
    predictor = Predictor(run_dir, variant)
    if not predictor.shows_baseline:
        _shared.share(predictor.classifier.base_model_name_or_path, predictor.model)
        predictor.tokenizer = _tokenizers.share(predictor.tokenizer)
        # so that the first latency does not include one-time initialization
        predictor.logits(["warm up"], ["warm up"] if predictor.classifier.text_pair else None)
    return predictor


def _is_deleted(key: Hashable) -> bool:
    """Return whether a cached model's run was deleted; the key is the run's folder and the variant."""
    assert isinstance(key, tuple)
    return not Path(key[0]).is_dir()


_shared = SharedWeights()
_tokenizers = SharedTokenizers()
_models = ModelCache(psutil.virtual_memory().total // 4)

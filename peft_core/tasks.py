"""What the worker process does for the page; each function takes and returns plain values."""

from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import psutil
import torch

from peft_core import counts
from peft_core import merge as merging
from peft_core.certificate import certificate_of_merged
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.data import inspection
from peft_core.data.files import read_table
from peft_core.data.formats import ReadOptions
from peft_core.data.labelled import check_dataset_name, load_labelled_text, on_hub
from peft_core.encoder import plan_head
from peft_core.errors import DataError, ModelError, PeftCoreError, RunError
from peft_core.export import making
from peft_core.export.page.webpage import refresh_rule
from peft_core.export.snippets import ApiAccess
from peft_core.inference import calibration, tables
from peft_core.inference.attribution import attribute
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import Decision
from peft_core.inference.loading import ADAPTER, BASE, MERGED
from peft_core.inference.predictor import Predictor
from peft_core.inference.review import search_rows
from peft_core.inference.sharing import ModelCache, SharedTokenizers, SharedWeights
from peft_core.inference.suspects import suspected_labels
from peft_core.inference.vectors import Neighbours
from peft_core.losses import check_objective
from peft_core.machine import free_bytes
from peft_core.memory_forecast import forecast_memory
from peft_core.presets import DATASETS, EMBEDDED_DATASETS, MODELS
from peft_core.problems import REGRESSION
from peft_core.runs import Run
from peft_core.sources import model_source
from peft_core.worker import report

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def _in_run(
    task: Callable[Concatenate[str, Arguments], Answer],
) -> Callable[Concatenate[str, Arguments], Answer]:
    """Let a task, whose first argument is a run's folder, end in one sentence if the run is deleted."""

    @wraps(task)
    def checked(run_dir: str, *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        with Run(Path(run_dir)).detect_deletion():
            return task(run_dir, *arguments, **options)

    return checked


def warm() -> None:
    """Nothing: the imports above are the work."""


def count(settings: dict[str, Any]) -> dict[str, Any]:
    """ParameterCount of these settings as JSON types."""
    config = TrainConfig.from_dict(settings)
    is_preset = config.model_name_or_path in MODELS and config.dataset_name in DATASETS
    count = _count_preset if is_preset and config.revision is None else counts.count_parameters
    return count(config).to_dict()


_count_preset = lru_cache(maxsize=1000)(counts.count_parameters)  # of what never changes


def cost(settings: dict[str, Any], training: int | None = None) -> dict[str, Any]:
    """As `count`, with what `forecast` says."""
    return {**count(settings), **forecast(settings, training)}


def forecast(settings: dict[str, Any], training: int | None = None) -> dict[str, Any]:
    """The `seconds` and bytes of `memory` that a training is forecast to take, and the bytes that are `free`.

    None where it is unknown; memory is the processor's, so it is unknown where a GPU trains. The memory of
    the process `training`, which trains now, counts as free: a new run waits until it has ended.
    """
    config = TrainConfig.from_dict(settings)
    memory, free = None, None
    if not torch.cuda.is_available():
        free = free_bytes(torch.device("cpu")) + _resident_bytes(training)
        memory = forecast_memory(config, free)
    return {"seconds": counts.forecast_seconds(config), "memory": memory, "free": free}


def forecast_seconds(settings: dict[str, Any]) -> float | None:
    """About how long these settings train; None if that is unknown."""
    return counts.forecast_seconds(TrainConfig.from_dict(settings))


def _resident_bytes(pid: int | None) -> int:
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:  # it has ended
        return 0


def count_all(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A count for each settings, or `error` where a combination cannot be."""
    rows = []
    for i, one in enumerate(settings):
        try:
            rows.append(count(one))
        except PeftCoreError as error:
            rows.append({"error": str(error)})
        report((i + 1) / len(settings), f"Counting {i + 1} of {len(settings)}")
    return rows


def describe_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """The facts of `counts.describe_model`."""
    return counts.describe_model(name, revision)


def check(settings: dict[str, Any]) -> None:
    """Raise the PeftCoreError that these settings would meet, as far as is known without a download."""
    config = TrainConfig.from_dict(settings)
    # a preset is counted without the Hub, but not trained
    model_source(config.model_name_or_path, config.revision, weights=False)
    check_dataset_name(config)
    if not on_hub(config.dataset_name):
        data = load_labelled_text(config)
        check_objective(config, data.problem_type)
        plan_head(config, data.label_names, data.problem_type)
    try:
        counts.count_parameters(config)
    except DataError:
        if config.num_labels is not None:  # a label count that only the rows can tell is no fault
            raise


def inspect(settings: dict[str, Any]) -> dict[str, Any]:
    """What the data card shows of these settings' data."""
    config = TrainConfig.from_dict(settings)
    is_embedded = config.model_name_or_path == EMBEDDED_MODEL and config.dataset_name in EMBEDDED_DATASETS
    return (_inspect_embedded if is_embedded else inspection.inspect)(config)


_inspect_embedded = lru_cache(maxsize=64)(inspection.inspect)  # of what never changes


def count_rows(paths: list[str], most_unpacked: int | None = None) -> int:
    """The rows of some files together; DataError for one that cannot be read, or unpacks to more."""
    options = ReadOptions(most_unpacked=most_unpacked)
    return sum(len(read_table(Path(path), options).frame) for path in paths)


@_in_run
def merge(run_dir: str) -> dict[str, Any]:
    """The certificate of the merged run."""
    return merging.merge(run_dir, report).to_dict()


@_in_run
def predict(run_dir: str, variant: str, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """One text's label, scores and milliseconds."""
    predictor = _predictor(run_dir, variant)
    answer = predictor.predict([text], [text_pair])[0].to_dict()
    return {**answer, "note": answer["note"] or predictor.note(text, text_pair)}


@_in_run
def compare(run_dir: str, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """The text in every variant that the run has, and the largest logit difference of adapter and merged."""
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
    """What each run's adapter says of the text, `{run_id, …}` as `predict` gives it, or `{run_id, error}`."""
    found = []
    for run_dir in run_dirs:
        try:
            answer = predict(run_dir, ADAPTER, text, text_pair)
        except PeftCoreError as error:
            answer = {"error": str(error)}
        found.append({"run_id": Path(run_dir).name, **answer})
    return found


@_in_run
def rule(run_dir: str) -> dict[str, Any]:
    """The run's decision as it is saved, or the plain rule, and the run's `labels`."""
    run = Run(Path(run_dir))
    return _told(Decision.read(run), run)


@_in_run
def judge_rule(run_dir: str, values: dict[str, Any]) -> dict[str, Any]:
    """As `calibration.report`, of a decision that is not saved yet."""
    run = Run(Path(run_dir))
    return calibration.report(run, Decision.of(values, Classifier.read(run).labels))


@_in_run
def suggest_rule(run_dir: str, thresholds: bool, at_least: float | None) -> dict[str, Any]:
    """As `calibration.suggest`."""
    run = Run(Path(run_dir))
    return _told(calibration.suggest(run, thresholds=thresholds, at_least=at_least), run)


@_in_run
def save_rule(run_dir: str, values: dict[str, Any]) -> None:
    """Keep a decision with the run, and with what was made of it to take away."""
    run = Run(Path(run_dir))
    labels = Classifier.read(run).labels
    Decision.of(values, labels).save(run, labels)
    refresh_rule(run)


@_in_run
def explain(
    run_dir: str, text: str, label: str | None, text_pair: str | None = None
) -> dict[str, dict[str, Any]]:
    """Each variant's attribution as `attribution.attribute` gives it, or `error` where it has none.

    Where no label is asked for, all explain the one that the adapter predicts.
    """
    merged = [MERGED] * _is_merged(run_dir)
    asked, found = (ADAPTER, BASE, *merged), {}
    for number, variant in enumerate(asked):

        def heard(share: float, number: int = number, variant: str = variant) -> None:
            report((number + share) / len(asked), f"Weighing each word in the {variant}")

        heard(0.0)
        try:
            found[variant] = attribute(_predictor(run_dir, variant), text, text_pair, label, progress=heard)
            label = found[variant]["label"]
        except (RunError, ModelError) as error:
            found[variant] = {"error": str(error)}
    return {variant: found[variant] for variant in (BASE, ADAPTER, *merged)}


@_in_run
def review(
    run_dir: str, kind: str, query: str, true: str | None, predicted: str | None, most: int
) -> dict[str, Any]:
    """`total` and `rows` of the run's test rows: `all`, the `hardest` mistakes, or `suspected` labels."""
    run = Run(Path(run_dir))
    if kind == "suspected":
        rows = suspected_labels(run, most=most)
        return {"total": len(rows), "rows": rows}
    hard = kind == "hardest"
    wrong = hard and run.result()["problem_type"] != REGRESSION
    return search_rows(
        run, query, true=true, predicted=predicted, only_wrong=wrong, hardest_first=hard, most=most
    )


@_in_run
def row(run_dir: str, number: int) -> dict[str, Any]:
    """One test row by its number, from 1."""
    (found,) = search_rows(Run(Path(run_dir)), start=number - 1, most=1)["rows"]
    return found


@_in_run
def make(run_dir: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """As `making.make`."""
    return making.make(kind, run_dir, options, report)


@_in_run
def code(run_dir: str, kind: str, access: ApiAccess) -> str:
    """As `making.code`."""
    return making.code(run_dir, kind, access)


def training_code(settings: dict[str, Any], kind: str, access: ApiAccess) -> str:
    """As `making.training_code`."""
    return making.training_code(TrainConfig.from_dict(settings), kind, access)


@_in_run
def neighbours(run_dir: str, query: str) -> dict[str, list[dict[str, Any]]]:
    """The test rows nearest to a query under the base and the adapted encoder."""
    return _neighbours(run_dir, _written(Run(Path(run_dir)).adapter)).nearest(query)


@lru_cache(maxsize=1)
def _neighbours(run_dir: str, written: tuple[int, ...]) -> Neighbours:
    """A run's two encoders and its rows' vectors, loaded again if the adapter was written anew."""
    return Neighbours(run_dir, report)


@_in_run
def look_at_file(
    run_dir: str, path: str, sheet_name: str | None = None, header_row: int | None = None
) -> dict[str, Any]:
    """A file's columns and first rows, and which of them the run would read."""
    return tables.look(Path(path), Run(Path(run_dir)), ReadOptions(sheet_name, header_row))


@_in_run
def predict_file(run_dir: str, variant: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """As `tables.predict_file`; `request` names the columns."""
    report(0.0, "Loading the model")
    return tables.predict_file(_predictor(run_dir, variant), tables.Request(Path(path), **request), report)


def _is_merged(run_dir: str) -> bool:
    return certificate_of_merged(Run(Path(run_dir))) is not None


def _told(decision: Decision, run: Run) -> dict[str, Any]:
    labels = Classifier.read(run).labels
    return {**decision.to_dict(labels), "labels": list(labels)}


def _predictor(run_dir: str, variant: str) -> Predictor:
    """Return a loaded predictor, loaded again if the files behind it were written anew.

    Models of one base hold its weights and its tokenizer once.
    """
    run = Run(Path(run_dir))
    folder = run.merged if variant == MERGED else run.adapter
    return _models.get((run_dir, variant), _written(folder), lambda: _loaded(run_dir, variant))


def _written(folder: Path) -> tuple[int, ...]:
    """When each file of weights was written, in nanoseconds."""
    return tuple(file.stat().st_mtime_ns for file in sorted(folder.glob("*.safetensors")))


def _loaded(run_dir: str, variant: str) -> Predictor:
    _models.drop(_is_deleted)
    predictor = Predictor(run_dir, variant)
    if not predictor.shows_baseline:
        _shared.share(predictor.classifier.base_model_name_or_path, predictor.model)
        predictor.tokenizer = _tokenizers.share(predictor.tokenizer)
        # so that the first latency shown is not that of first-time set-up
        predictor.logits(["warm up"], ["warm up"] if predictor.classifier.text_pair else None)
    return predictor


def _is_deleted(key: tuple[str, str]) -> bool:
    """Whether a cached model's run, the first of its key, was deleted."""
    return not Path(key[0]).is_dir()


_shared = SharedWeights()
_tokenizers = SharedTokenizers()
_models = ModelCache(psutil.virtual_memory().total // 4)

"""The workbench behind page and endpoints: invalid inputs, and the limits of a public demo."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_of
from processes import wait_for
from small_data import write_csv
from transformers import GPT2Config

from peft_core import runs
from peft_core.access.visitors import LOCAL_USER, Visitor
from peft_core.config import TrainConfig
from peft_core.errors import ConfigError, DataError, PeftCoreError, RunError
from peft_core.runs import ENDED, Run
from peft_core.service.launcher import Launcher
from peft_core.service.limits import Limits
from peft_core.service.references import FunctionReference
from peft_core.service.visitor_uploads import VisitorUploads
from peft_core.service.workbench import Workbench
from peft_core.service.worker import Worker

FOUR = [("Good food.", "yes"), ("Bad food.", "no"), ("Good room.", "yes"), ("Bad room.", "no")]


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A local workbench over an empty folder."""
    workbench = Workbench.open(tmp_path_factory.mktemp("workbench") / "runs")
    yield workbench
    workbench.worker.close()
    wait_for(lambda: not multiprocessing.active_children())


@pytest.fixture(scope="module")
def public(workbench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A public demo; its processes end before `workbench` waits for the end of all."""
    public = Workbench.open(tmp_path_factory.mktemp("public") / "runs", public=True)
    yield public
    for worker in (public.worker, public.jobs, public.files):
        worker.close()


def over_other_runs(workbench: Workbench, runs_dir: Path) -> Workbench:
    """Return a workbench over another folder that shares the running worker."""
    return replace(Workbench.open(runs_dir), worker=workbench.worker, files=workbench.worker)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt")
    GPT2Config().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_name_or_path": "someone/no-such-model"}, "Hub cannot be reached.*'someone/no-such-model'"),
        ({"model_name_or_path": "no such model"}, "neither a local folder nor a Hub id"),
        ({"model_name_or_path": "./nowhere"}, "config.json"),
        ({"model_name_or_path": "GPT"}, "gpt2 model.*not an encoder"),
        ({"dataset_name": "someone/no-such-data"}, "Hub cannot be reached.*'someone/no-such-data'"),
        ({"dataset_name": "./nowhere"}, "no folder"),
        ({"target_modules": ["q_proj"]}, "'q_proj'.*it has query, key, value"),
        ({"r": 0}, "r is 0"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"max_length": 129}, "at most 128 tokens"),
        ({"leaning_rate": 1}, "did you mean 'learning_rate'"),
        ({"num_labels": 5, "dataset_name": "nothing"}, "cannot be reached"),
    ],
)
def test_train_with_invalid_settings_raises_and_creates_no_run(
    changes: dict[str, Any], words: str, workbench: Workbench, settings: dict[str, Any], gpt: Path
) -> None:
    if changes.get("model_name_or_path") == "GPT":
        changes = {"model_name_or_path": str(gpt)}
    with pytest.raises(PeftCoreError, match=words) as error:
        workbench.train({**settings, **changes})
    assert "\n" not in str(error.value)
    assert not workbench.runs_dir.exists()


@pytest.mark.parametrize(
    "train, test, words",
    [
        ([], FOUR, "no rows"),
        ([(text, "yes") for text, _ in FOUR], FOUR[:1], "two or more"),
        (FOUR, FOUR[:1], "None of the 1 evaluation rows has the label 'no'"),
    ],
)
def test_train_on_unusable_data_reports_error(
    train: list, test: list, words: str, settings: dict[str, Any], tmp_path: Path, workbench: Workbench
) -> None:
    write_csv(tmp_path / "data" / "train.csv", train)
    write_csv(tmp_path / "data" / "test.csv", test)
    own_workbench = over_other_runs(workbench, tmp_path / "runs")
    try:
        run = own_workbench.find(
            own_workbench.train({**settings, "dataset_name": str(tmp_path / "data")})["run_id"]
        )
    except DataError as error:
        error_message = str(error)
        assert own_workbench.list_runs() == []
    else:
        wait_for(lambda: run.state().status in ENDED)
        error_message = run.state().error
        assert run.state().status == "FAILED"
        assert not run.adapter.exists()
    assert words in error_message
    assert "\n" not in error_message


def test_workbench_trains_queues_merges_and_compares(
    settings: dict[str, Any], tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own_workbench = over_other_runs(workbench, tmp_path / "runs")
    first = own_workbench.train({**settings, "num_train_epochs": 30})
    assert first["waiting_for"] is None
    second = own_workbench.train({**settings, "seed": 1})
    assert second["waiting_for"] == first["run_id"]
    unfinished_runs = [own_workbench.find(submitted["run_id"]) for submitted in (first, second)]
    wait_for(lambda: all(run.state().status in ENDED for run in unfinished_runs))
    status = own_workbench.status(first["run_id"])
    assert (status["status"], status["has_adapter"], status["merged"]) == ("FINISHED", True, False)
    assert status["settings"]["num_train_epochs"] == 30
    assert status["result"]["parameters"]["trainable"] == own_workbench.count(settings)["trainable"]
    certificate = list(own_workbench.merge(first["run_id"]))[-1].result
    assert certificate["holds"]
    assert own_workbench.status(first["run_id"])["merged"]
    comparison = own_workbench.compare("The food was awful, terrible.", first["run_id"])
    assert comparison["adapter"]["label"] == comparison["merged"]["label"] == "bad"
    assert comparison["max_logit_diff"] <= 1e-5
    assert "no trained head" in comparison["base"]["note"]
    assert [run.run_id for run in own_workbench.list_runs()] == [second["run_id"], first["run_id"]]
    json.dumps([status, certificate, comparison])


@pytest.fixture
def merged_workbench(merged_run: Run, tmp_path: Path, workbench: Workbench) -> tuple[Workbench, Run]:
    """A workbench over a copy of a merged run."""
    run = copy_of(merged_run, tmp_path / "runs")
    return over_other_runs(workbench, tmp_path / "runs"), run


@pytest.mark.parametrize("text", ["😀" * 100, "word " * 2_000_000], ids=["emoji", "10 MB"])
def test_predict_accepts_emoji_and_ten_megabytes(text: str, merged_workbench: tuple[Workbench, Run]) -> None:
    own_workbench, run = merged_workbench
    assert own_workbench.predict(text, run.run_id, "adapter")["label"] in ("bad", "good")


@pytest.mark.parametrize("text", ["", "  ", None, 7])
def test_predict_and_compare_empty_text_raise_data_error(
    text: Any, merged_workbench: tuple[Workbench, Run]
) -> None:
    own_workbench, run = merged_workbench
    for request in (
        lambda: own_workbench.predict(text, run.run_id, "adapter"),
        lambda: own_workbench.compare(text, run.run_id),
    ):
        with pytest.raises(DataError, match="The text is empty"):
            request()


@pytest.mark.parametrize(
    "file_name",
    [
        "config.json",
        "status.json",
        "evaluation/result.json",
        "metrics.jsonl",
        "adapter/adapter_config.json",
        "adapter/classifier.json",
        "adapter/adapter_model.safetensors",
        "merged/config.json",
        "merged/model.safetensors",
        "merged/certificate.json",
    ],
)
@pytest.mark.parametrize("content", [None, "{"])
def test_predict_with_missing_or_damaged_file_raises_at_most_run_error(
    file_name: str, content: str | None, merged_workbench: tuple[Workbench, Run]
) -> None:
    own_workbench, run = merged_workbench
    path = run.folder / file_name
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    assert own_workbench.list_runs() == [run]
    assert own_workbench.status(run.run_id)["run_id"] == run.run_id
    for variant in ("base", "adapter", "merged"):
        try:
            assert own_workbench.predict("The food was awful.", run.run_id, variant)["label"]
        except RunError as error:
            assert "\n" not in str(error)
    try:
        own_workbench.compare("The food was awful.", run.run_id)
    except RunError as error:
        assert "\n" not in str(error)


def test_train_resolves_relative_paths_from_working_directory(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the training process runs in the code's folder, and took the paths from there."""
    for name in ("model_name_or_path", "dataset_name"):
        (tmp_path / name).symlink_to(settings[name])
    monkeypatch.chdir(tmp_path)
    workbench = Workbench.open(tmp_path / "runs")
    monkeypatch.setattr(Worker, "run", lambda *_: None)
    monkeypatch.setattr(Launcher, "advance", lambda _: False)
    (tmp_path / "rotten_tomatoes").mkdir()  # the embedded data set keeps its name
    names = {"model_name_or_path": "model_name_or_path", "dataset_name": "./dataset_name"}
    run = workbench.find(workbench.train({**settings, **names})["run_id"])
    assert run.config().model_name_or_path == str(tmp_path / "model_name_or_path")
    assert run.config().dataset_name == str(tmp_path / "dataset_name")
    assert workbench.find(workbench.train({})["run_id"]).config() == TrainConfig()


def test_unknown_run_id_raises_run_error(workbench: Workbench) -> None:
    for request in (workbench.status, workbench.stop, lambda run_id: list(workbench.merge(run_id))):
        for run_id in ("nothing", "../../etc", ""):
            with pytest.raises(RunError, match="There is no run"):
                request(run_id)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"model_name_or_path": "/etc"}, "'/etc' is not on this public demo's list of base models"),
        ({"model_name_or_path": "someone/else"}, "'someone/else' is not on"),
        ({"dataset_name": "."}, "'.' is not on this public demo's list of data sets"),
        ({"dataset_name": "someone/else"}, "'someone/else' is not on"),
        ({"revision": "main"}, "no revision"),
        ({"dataset_config_name": "x"}, "no data configuration"),
        ({"max_train_samples": 4001}, "at most 4,000"),
        ({"max_eval_samples": 1001}, "at most 1,000"),
        ({"max_length": 257}, "at most 256"),
        ({"num_train_epochs": 50}, "9,400 steps.*at most 1,000"),
    ],
)
def test_public_demo_rejects_settings_beyond_its_limits(
    settings: dict[str, Any], words: str, public: Workbench
) -> None:
    for request in (public.train, public.count, public.config):
        with pytest.raises(PeftCoreError, match=words):
            request(settings)
    assert not public.runs_dir.exists()


def test_public_demo_accepts_default_settings_and_short_texts(public: Workbench) -> None:
    assert public.config({}) == TrainConfig()
    public.check_text("x" * 2000)
    with pytest.raises(DataError, match="2,001 characters.*at most 2,000"):
        public.check_text("x" * 2001)


def test_public_demo_queue_is_limited(tmp_path: Path) -> None:
    public = Workbench.open(tmp_path / "runs", public=True)
    for _ in range(5):
        runs.create(public.runs_dir, TrainConfig())
    with pytest.raises(RunError, match="5 runs are waiting"):
        public.launcher.submit(TrainConfig(), owner="a" * 64)
    assert len(public.list_runs()) == 5


def test_text_with_lone_surrogate_raises_data_error(public: Workbench) -> None:
    requests = [
        lambda: public.predict("good \ud800", "any", "adapter"),
        lambda: public.predict("good", "any", "adapter", "\udfff"),
        lambda: public.compare("\ud800", "any"),
        lambda: public.compare_runs("\ud800", ["any"]),
        lambda: public.explain("\ud800", "any"),
        lambda: public.neighbors("\ud800", "any"),
    ]
    for request in requests:
        with pytest.raises(DataError, match=r"The text '.*\\ud.*' contains a lone surrogate"):
            request()


def test_local_paths_are_accepted_only_from_local_user(
    tmp_path: Path, tiny_data: Path, tiny_model: Path
) -> None:
    visitor = Visitor(owns_all=True)
    shared_workbench = Workbench.open(tmp_path / "runs", visitor=lambda: visitor)
    settings = {"dataset_name": str(tiny_data)}
    write_csv(tmp_path / "own.csv", FOUR)
    for request in (
        shared_workbench.config,
        shared_workbench.train,
        shared_workbench.count,
        shared_workbench.cost,
        shared_workbench.inspect,
    ):
        for name, path in (("dataset_name", tiny_data), ("model_name_or_path", tiny_model)):
            missing = (str(tmp_path / "missing"), "~/missing", "./missing", "../../etc/missing", "a/b/c")
            for local_path in (str(path), os.path.relpath(path), "peft_core/data", *missing):
                with pytest.raises(ConfigError, match=f"{name} is .* neither a preset, an upload nor a Hub"):
                    request({name: local_path})
    assert shared_workbench.config({"dataset_name": "someone/some-data"}).dataset_name == "someone/some-data"
    with pytest.raises(ConfigError, match="model_name_or_path is .* neither a preset"):
        shared_workbench.describe_model(str(tiny_model))
    uploaded = shared_workbench.upload([tmp_path / "own.csv"])
    assert shared_workbench.config({"dataset_name": uploaded}).dataset_name == uploaded
    visitor = LOCAL_USER
    assert shared_workbench.config(settings).dataset_name == str(tiny_data)


def test_public_demo_rejects_training_forecast_over_time_limit(public: Workbench) -> None:
    short_limit_demo = replace(public, limits=Limits(max_seconds=0.001))
    with pytest.raises(ConfigError, match="forecast to take .* minutes; this public demo limits a run"):
        short_limit_demo.train({})
    assert not short_limit_demo.list_runs()


class RecordingWorker:
    """Record each requested task and fail it."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def run(self, task: FunctionReference, *arguments: Any) -> Any:
        self.tasks.append(task.name)
        raise DataError("not read here")


def test_public_demo_reads_files_in_limited_worker(public: Workbench, tmp_path: Path) -> None:
    files, other = RecordingWorker(), RecordingWorker()
    uploads = VisitorUploads(public.runs_dir, lambda: LOCAL_USER, public.limits, files)
    demo = replace(public, files=files, worker=other, uploads=uploads)
    write_csv(tmp_path / "own.csv", FOUR)
    upload = partial(demo.upload, [tmp_path / "own.csv"])
    for request in (partial(demo.inspect, {}), partial(demo.train, {}), upload):
        with pytest.raises(DataError, match="not read here"):
            request()
    assert (files.tasks, other.tasks) == (["inspect", "check_trainable", "count_rows"], [])

"""What the page and the endpoints can ask for: every bad input, and the limits where strangers come."""

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
    """A person's own, over an empty folder."""
    workbench = Workbench.open(tmp_path_factory.mktemp("workbench") / "runs")
    yield workbench
    workbench.worker.close()
    wait_for(lambda: not multiprocessing.active_children())


@pytest.fixture(scope="module")
def public(workbench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """Where strangers come; its processes end before `workbench` looks whether any is left."""
    public = Workbench.open(tmp_path_factory.mktemp("public") / "runs", public=True)
    yield public
    for worker in (public.worker, public.jobs, public.files):
        worker.close()


def over_other_runs(workbench: Workbench, runs_dir: Path) -> Workbench:
    """A workbench over another folder, with the worker that is running already."""
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
        ({"model_name_or_path": "GPT"}, "gpt2 model.*no encoder"),
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
def test_train_refuses_bad_settings_and_leaves_nothing(
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
def test_bad_data_is_said_at_once_or_by_the_run(
    train: list, test: list, words: str, settings: dict[str, Any], tmp_path: Path, workbench: Workbench
) -> None:
    write_csv(tmp_path / "data" / "train.csv", train)
    write_csv(tmp_path / "data" / "test.csv", test)
    own = over_other_runs(workbench, tmp_path / "runs")
    try:
        run = own.find(own.train({**settings, "dataset_name": str(tmp_path / "data")})["run_id"])
    except DataError as error:
        said = str(error)
        assert own.list_runs() == []
    else:
        wait_for(lambda: run.state().status in ENDED)
        said = run.state().error
        assert run.state().status == "FAILED"
        assert not run.adapter.exists()
    assert words in said
    assert "\n" not in said


def test_the_way_from_settings_to_files(
    settings: dict[str, Any], tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = over_other_runs(workbench, tmp_path / "runs")
    first = own.train({**settings, "num_train_epochs": 30})
    assert first["waiting_for"] is None
    second = own.train({**settings, "seed": 1})
    assert second["waiting_for"] == first["run_id"]
    runs_left = [own.find(answer["run_id"]) for answer in (first, second)]
    wait_for(lambda: all(run.state().status in ENDED for run in runs_left))
    found = own.status(first["run_id"])
    assert (found["status"], found["has_adapter"], found["merged"]) == ("FINISHED", True, False)
    assert found["settings"]["num_train_epochs"] == 30
    assert found["result"]["parameters"]["trainable"] == own.count(settings)["trainable"]
    certificate = list(own.merge(first["run_id"]))[-1].result
    assert certificate["holds"]
    assert own.status(first["run_id"])["merged"]
    compared = own.compare("The food was awful, terrible.", first["run_id"])
    assert compared["adapter"]["label"] == compared["merged"]["label"] == "bad"
    assert compared["max_logit_diff"] <= 1e-5
    assert "no trained head" in compared["base"]["note"]
    assert [run.run_id for run in own.list_runs()] == [second["run_id"], first["run_id"]]
    json.dumps([found, certificate, compared])


@pytest.fixture
def holding(merged_run: Run, tmp_path: Path, workbench: Workbench) -> tuple[Workbench, Run]:
    """A workbench over a copy of a merged run."""
    run = copy_of(merged_run, tmp_path / "runs")
    return over_other_runs(workbench, tmp_path / "runs"), run


@pytest.mark.parametrize("text", ["😀" * 100, "word " * 2_000_000], ids=["emoji", "10 MB"])
def test_emoji_and_ten_megabytes_are_answered(text: str, holding: tuple[Workbench, Run]) -> None:
    own, run = holding
    assert own.predict(text, run.run_id, "adapter")["label"] in ("bad", "good")


@pytest.mark.parametrize("text", ["", "  ", None, 7])
def test_an_empty_text_gets_one_sentence(text: Any, holding: tuple[Workbench, Run]) -> None:
    own, run = holding
    for ask in (lambda: own.predict(text, run.run_id, "adapter"), lambda: own.compare(text, run.run_id)):
        with pytest.raises(DataError, match="The text is empty"):
            ask()


@pytest.mark.parametrize(
    "lost",
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
def test_lost_or_damaged_files_are_one_sentence_at_most(
    lost: str, content: str | None, holding: tuple[Workbench, Run]
) -> None:
    own, run = holding
    path = run.folder / lost
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    assert own.list_runs() == [run]
    assert own.status(run.run_id)["run_id"] == run.run_id
    for variant in ("base", "adapter", "merged"):
        try:
            assert own.predict("The food was awful.", run.run_id, variant)["label"]
        except RunError as error:
            assert "\n" not in str(error)
    try:
        own.compare("The food was awful.", run.run_id)
    except RunError as error:
        assert "\n" not in str(error)


def test_train_takes_relative_paths_from_the_folder_of_the_app(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training process runs in the folder of the code: it failed, or trained on a namesake there."""
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


def test_an_unknown_run_gets_one_sentence(workbench: Workbench) -> None:
    for ask in (workbench.status, workbench.stop, lambda name: list(workbench.merge(name))):
        for name in ("nothing", "../../etc", ""):
            with pytest.raises(RunError, match="There is no run"):
                ask(name)


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
def test_strangers_are_refused_what_costs_or_tells_too_much(
    settings: dict[str, Any], words: str, public: Workbench
) -> None:
    for ask in (public.train, public.count, public.config):
        with pytest.raises(PeftCoreError, match=words):
            ask(settings)
    assert not public.runs_dir.exists()


def test_strangers_may_train_the_default_and_type_short_texts(public: Workbench) -> None:
    assert public.config({}) == TrainConfig()
    public.check_text("x" * 2000)
    with pytest.raises(DataError, match="2,001 characters.*at most 2,000"):
        public.check_text("x" * 2001)


def test_strangers_wait_in_a_short_queue(tmp_path: Path) -> None:
    public = Workbench.open(tmp_path / "runs", public=True)
    for _ in range(5):
        runs.create(public.runs_dir, TrainConfig())
    with pytest.raises(RunError, match="5 runs are waiting"):
        public.launcher.submit(TrainConfig(), owner="a" * 64)
    assert len(public.list_runs()) == 5


def test_texts_with_half_a_character_are_refused_before_a_model_is_asked(public: Workbench) -> None:
    asks = [
        lambda: public.predict("good \ud800", "any", "adapter"),
        lambda: public.predict("good", "any", "adapter", "\udfff"),
        lambda: public.compare("\ud800", "any"),
        lambda: public.compare_runs("\ud800", ["any"]),
        lambda: public.explain("\ud800", "any"),
        lambda: public.neighbors("\ud800", "any"),
    ]
    for ask in asks:
        with pytest.raises(DataError, match=r"The text '.*\\ud.*' holds half a character"):
            ask()


def test_files_of_this_machine_are_named_only_by_whoever_may(
    tmp_path: Path, tiny_data: Path, tiny_model: Path
) -> None:
    visitor = Visitor(owns_all=True)
    opened = Workbench.open(tmp_path / "runs", visitor=lambda: visitor)
    settings = {"dataset_name": str(tiny_data)}
    write_csv(tmp_path / "own.csv", FOUR)
    for ask in (opened.config, opened.train, opened.count, opened.cost, opened.inspect):
        for name, path in (("dataset_name", tiny_data), ("model_name_or_path", tiny_model)):
            missing = (str(tmp_path / "missing"), "~/missing", "./missing", "../../etc/missing", "a/b/c")
            for value in (str(path), os.path.relpath(path), "peft_core/data", *missing):
                with pytest.raises(ConfigError, match=f"{name} is .* neither a preset, an upload nor a Hub"):
                    ask({name: value})
    assert opened.config({"dataset_name": "someone/some-data"}).dataset_name == "someone/some-data"
    with pytest.raises(ConfigError, match="model_name_or_path is .* neither a preset"):
        opened.describe_model(str(tiny_model))
    uploaded = opened.upload([tmp_path / "own.csv"])
    assert opened.config({"dataset_name": uploaded}).dataset_name == uploaded
    visitor = LOCAL_USER
    assert opened.config(settings).dataset_name == str(tiny_data)


def test_public_demo_starts_nothing_that_is_forecast_to_take_too_long(public: Workbench) -> None:
    hurried = replace(public, limits=Limits(max_seconds=0.001))
    with pytest.raises(ConfigError, match="forecast to take .* minutes; this public demo gives a run"):
        hurried.train({})
    assert not hurried.list_runs()


class RecordingWorker:
    """Notes the tasks that it is asked for, and fails each."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def run(self, task: FunctionReference, *arguments: Any) -> Any:
        self.tasks.append(task.name)
        raise DataError("not read here")


def test_files_of_strangers_are_read_by_the_worker_with_limits(public: Workbench, tmp_path: Path) -> None:
    files, other = RecordingWorker(), RecordingWorker()
    uploads = VisitorUploads(public.runs_dir, lambda: LOCAL_USER, public.limits, files)
    opened = replace(public, files=files, worker=other, uploads=uploads)
    write_csv(tmp_path / "own.csv", FOUR)
    upload = partial(opened.upload, [tmp_path / "own.csv"])
    for ask in (partial(opened.inspect, {}), partial(opened.train, {}), upload):
        with pytest.raises(DataError, match="not read here"):
            ask()
    assert (files.tasks, other.tasks) == (["inspect", "check", "count_rows"], [])

"""Tests of charts: tidy data frames of runs and counts, and their Vega-Lite specifications."""

import json

import pandas as pd
import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.problem_types import REGRESSION
from peft_core.runs import Run
from peft_core.views.charts import curve, curve_frame, parts_chart, parts_frame, runs_chart, runs_frame

LORA = {"name": "LoRA", "trainable": 30, "adapter": 20, "head": 10, "head_copy": 10}
HEAD = {"name": "Head", "trainable": 10, "adapter": 0, "head": 10, "head_copy": 0}
FULL = {"name": "Full", "trainable": 900, "adapter": 0, "head": 10, "head_copy": 0}


def test_curves_of_finished_run_have_training_validation_and_test(finished_run: Run) -> None:
    frame = curve_frame(finished_run.metrics())
    last = finished_run.result()
    training = frame[(frame.kind == "loss") & (frame.series == "training")]
    validation, test = (
        frame[(frame.kind == "accuracy") & (frame.series == name)] for name in ("validation", "test")
    )
    assert training.step.is_monotonic_increasing
    assert training.value.iloc[-5:].mean() < training.value.iloc[:5].mean()
    assert len(validation) >= 4 and validation.step.iloc[-1] == last["steps"]
    assert test.value.tolist() == [last["accuracy"]]
    for kind in ("loss", "accuracy"):
        spec = curve(frame, kind, last["steps"])
        assert spec["encoding"]["x"]["scale"]["domain"] == [0, last["steps"]]
        assert len(json.loads(json.dumps(spec))["data"]["values"]) == (frame.kind == kind).sum()


def test_curves_before_the_first_step_are_empty() -> None:
    frame = curve_frame([])
    assert list(frame.columns) == ["step", "kind", "series", "value"]
    assert curve(frame, "loss", 10)["data"]["values"] == []


def test_parts_frame_splits_each_count_into_parts() -> None:
    frame = parts_frame([LORA, HEAD, FULL])
    parameters = {(row.name, row.part): row.parameters for row in frame.itertuples(index=False)}
    assert parameters == {
        ("LoRA", "Adapter"): 20,
        ("LoRA", "Head"): 10,
        ("LoRA", "Head copy (frozen)"): 10,
        ("Head", "Head"): 10,
        ("Full", "Head"): 10,
        ("Full", "Whole encoder"): 890,
    }


@pytest.mark.parametrize("log", [True, False])
def test_parts_chart_bars_start_at_scale_minimum(log: bool) -> None:
    encoding = parts_chart(parts_frame([LORA, FULL]), log=log)["encoding"]
    assert encoding["x"]["scale"]["type"] == ("log" if log else "linear")
    assert encoding["x2"]["datum"] == (encoding["x"]["scale"]["domainMin"] if log else 0)


def test_runs_frame_has_finished_runs_only(finished_run: Run) -> None:
    waiting = runs.create(finished_run.folder.parent, TrainConfig())
    frame = runs_frame([finished_run, waiting])
    report = finished_run.result()
    assert frame.run.tolist() == [finished_run.run_id]
    assert frame.metric.tolist() == ["accuracy"]
    assert frame.score.tolist() == [report["accuracy"]]
    assert frame.trainable.tolist() == [report["parameters"]["trainable"]]
    assert len(runs_chart(frame, "accuracy")["data"]["values"]) == 1


def test_runs_chart_shows_one_metric() -> None:
    rows = [
        {"run": "a", "metric": "accuracy", "score": 0.9},
        {"run": "b", "metric": "Spearman", "score": 0.4},
    ]
    for metric, run in (("accuracy", "a"), ("Spearman", "b")):
        spec = runs_chart(pd.DataFrame(rows), metric)
        assert [row["run"] for row in spec["data"]["values"]] == [run]
        assert spec["encoding"]["y"]["title"] == metric


def test_curve_of_regression_has_own_scale_and_titles() -> None:
    rows = [{"step": 1, "eval_spearman": -0.2, "eval_loss": 1.1}, {"step": 2, "test_spearman": 0.5}]
    frame = curve_frame([{"step": 1, "loss": 1.2, "learning_rate": 0.1, "eval_runtime": 3.0}, *rows])
    assert set(frame.kind) == {"loss", "spearman"}
    spearman, loss = (curve(frame, kind, 2, REGRESSION)["encoding"]["y"] for kind in ("spearman", "loss"))
    assert spearman["scale"]["domain"] == [-1, 1]
    assert "squared error" in loss["title"]
    assert "nats" in curve(frame, "loss", 2)["encoding"]["y"]["title"]


@pytest.mark.parametrize("name", ["config.json", "evaluation/result.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, "{", "{\n"])
def test_runs_frame_with_damaged_run_keeps_other_runs(
    name: str, content: str | None, finished_run: Run, own_run: Run
) -> None:
    path = own_run.folder / name
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    frame = runs_frame([own_run, finished_run])
    assert finished_run.run_id in frame.run.tolist()
    curve_frame(own_run.metrics())

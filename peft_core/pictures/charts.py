"""Runs and counts as tidy DataFrames, and the DataFrames as Vega-Lite specifications."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from peft_core.errors import RunError
from peft_core.problems import REGRESSION, SINGLE, TITLES, headline
from peft_core.runs import Run

# Okabe and Ito's palette: told apart by readers with any common colour blindness.
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#E69F00", "#8A8F98", "#009E73"
TONES = {"training": GREY, "validation": BLUE, "test": ORANGE}
_SERIES = {"eval": "validation", "test": "test"}
PARTS = {
    "adapter": "Adapter",
    "head": "Head",
    "head_copy": "Head copy (frozen)",
    "encoder": "Encoder, all of it",
}
Spec = dict[str, Any]


def curve_frame(metrics: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Columns step, kind (loss or a metric), series (training, validation, test), value; a row each.

    Values that are not finite, as runs of earlier versions logged, are left out.
    """
    rows = []
    for row in metrics:
        for key, value in row.items():
            series, kind = _series_of(key)
            if series and value is not None and math.isfinite(value):
                rows.append({"step": row["step"], "kind": kind, "series": series, "value": value})
    return pd.DataFrame(rows, columns=["step", "kind", "series", "value"])


def curve(frame: pd.DataFrame, kind: str, max_steps: int, problem_type: str = SINGLE) -> Spec:
    """Lines of one kind over the steps, the test as a point; the x axis spans the whole run from the start.

    `problem_type` tells what the loss is of.
    """
    rows = frame[frame["kind"] == kind]
    tones = TONES if kind == "loss" else {name: TONES[name] for name in ("validation", "test")}
    point = {"type": "point", "filled": True, "strokeWidth": 0, "tooltip": True}
    return {
        **framed(rows, 190),
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2, "tooltip": True}},
            {
                "transform": [{"filter": "datum.series == 'validation'"}],
                "mark": {**point, "size": 45},
            },
            {
                "transform": [{"filter": "datum.series == 'test'"}],
                "mark": {**point, "size": 110, "shape": "diamond"},
            },
        ],
        "encoding": {
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "step",
                "scale": {"domain": [0, max_steps]},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": _unit(kind, problem_type),
                "scale": _y_scale(kind, rows),
            },
            "color": colors("series", tones),
        },
    }


def _series_of(key: str) -> tuple[str | None, str]:
    """Series and kind of a key such as loss, eval_loss or test_accuracy; no series for what is not drawn."""
    if key == "loss":
        return "training", "loss"
    before, _, kind = key.partition("_")
    return (_SERIES.get(before) if kind in ("loss", *TITLES) else None), kind


def _unit(kind: str, problem_type: str) -> str:
    if kind == "loss":
        return "squared error (mean alone: 1)" if problem_type == REGRESSION else "loss (nats)"
    return {"accuracy": "accuracy (share of texts)", "spearman": "Spearman's correlation"}.get(
        kind, TITLES[kind]
    )


def _y_scale(kind: str, rows: pd.DataFrame) -> Spec:
    if kind == "loss" and not rows.empty:
        return {"zero": False}
    return {"domain": [-1 if (rows["value"] < 0).any() else 0, 1]}


def parts_frame(counts: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Columns name, part, parameters: each count split into its parts, those of no size left out."""
    rows = []
    for count in counts:
        encoder = count["trainable"] - count["adapter"] - count["head"]
        for part, title in PARTS.items():
            parameters = encoder if part == "encoder" else count[part]
            if parameters:
                rows.append({"name": count["name"], "part": title, "parameters": parameters})
    return pd.DataFrame(rows, columns=["name", "part", "parameters"])


def parts_chart(frame: pd.DataFrame, *, log: bool) -> Spec:
    """Bars of parameters, a row for each configuration, a tone for each part."""
    names = list(dict.fromkeys(frame["name"]))
    axis: Spec = (
        {"format": "~s", "values": [10**power for power in range(2, 10)]} if log else {"format": "~s"}
    )
    scale: Spec = {"type": "log", "domainMin": 100, "nice": True} if log else {"type": "linear", "zero": True}
    return {
        **framed(frame, 20 + 30 * len(names)),
        "mark": {"type": "bar", "tooltip": True, "strokeWidth": 0},
        "encoding": {
            "y": {
                "field": "name",
                "type": "nominal",
                "title": None,
                "sort": names,
                "axis": {"labelLimit": 260},
                "scale": {"paddingInner": 0.3},
            },
            "yOffset": {"field": "part", "type": "nominal", "sort": list(PARTS.values())},
            "x": {
                "field": "parameters",
                "type": "quantitative",
                "scale": scale,
                "axis": axis,
                "title": "parameters (log scale)" if log else "parameters",
            },
            "x2": {"datum": 100 if log else 0},
            "color": colors("part", dict(zip(PARTS.values(), (BLUE, ORANGE, GREY, GREEN), strict=True))),
        },
    }


def runs_frame(found: Iterable[Run]) -> pd.DataFrame:
    """Columns run, model, metric (the task's headline), score, trainable (parameters), seconds; one row a run
    with a result."""
    rows = []
    for run in found:
        try:
            result, config = run.result(), run.config()
        except RunError:  # not ended yet, or files are lost
            continue
        metric = headline(result["problem_type"])
        rows.append(
            {
                "run": run.run_id,
                "model": config.model_name_or_path,
                "metric": TITLES[metric],
                "score": result[metric],
                "trainable": result["parameters"]["trainable"],
                "seconds": round(result["train_seconds"], 1),
            }
        )
    return pd.DataFrame(rows, columns=["run", "model", "metric", "score", "trainable", "seconds"])


def runs_chart(frame: pd.DataFrame, metric: str) -> Spec:
    """A point for each run that is judged by this metric: its score over trainable parameters, log scale."""
    return {
        **framed(frame[frame["metric"] == metric], 220),
        "mark": {"type": "point", "size": 90, "filled": True, "tooltip": {"content": "data"}},
        "encoding": {
            "x": {
                "field": "trainable",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {"format": "~s"},
                "title": "trainable parameters (log scale)",
            },
            "y": {
                "field": "score",
                "type": "quantitative",
                "scale": {"zero": False},
                "axis": {"format": ".3~f"},
                "title": metric,
            },
            "color": {"value": BLUE},
        },
    }


def framed(rows: pd.DataFrame, height: int) -> Spec:
    """The data, the height in pixels, and the page's own background behind it."""
    return {"data": {"values": rows.to_dict("records")}, "height": height, "background": "transparent"}


def colors(field: str, tones: dict[str, str]) -> Spec:
    # "ordinal", because the page's chart component repaints nominal colours with its own
    return {
        "field": field,
        "type": "ordinal",
        "title": None,
        "legend": {"orient": "top"},
        "scale": {"domain": list(tones), "range": list(tones.values())},
    }

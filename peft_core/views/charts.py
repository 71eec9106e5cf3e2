"""Tidy DataFrames of runs and parameter counts, and their Vega-Lite specifications."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from peft_core.errors import RunError
from peft_core.problem_types import REGRESSION, SINGLE, TITLES, headline
from peft_core.runs import Run

# Okabe and Ito's palette, distinguishable with all common forms of color blindness
BLUE, ORANGE, GRAY, GREEN = "#0072B2", "#E69F00", "#8A8F98", "#009E73"
SERIES_COLORS = {"training": GRAY, "validation": BLUE, "test": ORANGE}
_SERIES_BY_PREFIX = {"eval": "validation", "test": "test"}
PARTS = {
    "adapter": "Adapter",
    "head": "Head",
    "head_copy": "Head copy (frozen)",
    "encoder": "Whole encoder",
}
Spec = dict[str, Any]


def curve_frame(metrics: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return the logged values with columns step, kind (loss or a metric), series and value.

    `series` is training, validation or test. Values that are not finite, as logged by early versions, are
    left out.
    """
    rows = []
    for row in metrics:
        for key, value in row.items():
            series, kind = _series_of(key)
            if series and value is not None and math.isfinite(value):
                rows.append({"step": row["step"], "kind": kind, "series": series, "value": value})
    return pd.DataFrame(rows, columns=["step", "kind", "series", "value"])


def curve(frame: pd.DataFrame, kind: str, max_steps: int, problem_type: str = SINGLE) -> Spec:
    """Return a chart of one kind over the steps, with the test value as a point.

    The x axis spans the whole run up to `max_steps`. `problem_type` decides the unit of the loss.
    """
    rows = _select(frame, "kind", kind)
    series = ("training", "validation", "test") if kind == "loss" else ("validation", "test")
    point = {"type": "point", "filled": True, "strokeWidth": 0, "tooltip": True}
    return {
        **base_spec(rows, 190),
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
            "color": color_encoding("series", {name: SERIES_COLORS[name] for name in series}),
        },
    }


def _series_of(key: str) -> tuple[str | None, str]:
    """Return series and kind of a key such as `eval_loss`; the series is None if the key is not drawn."""
    if key == "loss":
        return "training", "loss"
    prefix, _, kind = key.partition("_")
    return (_SERIES_BY_PREFIX.get(prefix) if kind in ("loss", *TITLES) else None), kind


def _unit(kind: str, problem_type: str) -> str:
    if kind == "loss":
        return "squared error (predicting the mean: 1)" if problem_type == REGRESSION else "loss (nats)"
    return {"accuracy": "accuracy (share of texts)", "spearman": "Spearman's correlation"}.get(
        kind, TITLES[kind]
    )


def _y_scale(kind: str, rows: pd.DataFrame) -> Spec:
    if kind == "loss" and not rows.empty:
        return {"zero": False}
    return {"domain": [-1 if (rows["value"].to_numpy() < 0).any() else 0, 1]}


def parts_frame(counts: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return the parts of each count with columns name, part and parameters; empty parts are left out."""
    rows = []
    for count in counts:
        encoder = count["trainable"] - count["adapter"] - count["head"]
        for part, title in PARTS.items():
            parameters = encoder if part == "encoder" else count[part]
            if parameters:
                rows.append({"name": count["name"], "part": title, "parameters": parameters})
    return pd.DataFrame(rows, columns=["name", "part", "parameters"])


def parts_chart(frame: pd.DataFrame, *, log: bool) -> Spec:
    """Return a bar chart of parameters, with a row for each configuration and a color for each part."""
    names = list(dict.fromkeys(frame["name"]))
    axis: Spec = (
        {"format": "~s", "values": [10**power for power in range(2, 10)]} if log else {"format": "~s"}
    )
    scale: Spec = {"type": "log", "domainMin": 100, "nice": True} if log else {"type": "linear", "zero": True}
    return {
        **base_spec(frame, 20 + 30 * len(names)),
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
            "color": color_encoding(
                "part", dict(zip(PARTS.values(), (BLUE, ORANGE, GRAY, GREEN), strict=True))
            ),
        },
    }


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row for each run with a result.

    Columns: run, model, metric (title of the headline), score, trainable (parameters) and seconds.
    """
    rows = []
    for run in runs:
        try:
            result, config = run.result(), run.config()
        except RunError:  # it has not ended, or its files are lost
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
    """Return a chart of the runs with this headline metric: score over trainable parameters, log scale."""
    return {
        **base_spec(_select(frame, "metric", metric), 220),
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


def base_spec(rows: pd.DataFrame, height: int) -> Spec:
    """Return the data, the height in pixels and a transparent background."""
    return {"data": {"values": rows.to_dict("records")}, "height": height, "background": "transparent"}


def _select(frame: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """Return the rows whose column has this value."""
    rows = frame[frame[column] == value]
    assert isinstance(rows, pd.DataFrame)  # a boolean mask selects rows
    return rows


def color_encoding(field: str, colors: dict[str, str]) -> Spec:
    """Return a color encoding with a fixed color for each value of a field."""
    # "ordinal", because Gradio's chart component replaces nominal colors with its own
    return {
        "field": field,
        "type": "ordinal",
        "title": None,
        "legend": {"orient": "top"},
        "scale": {"domain": list(colors), "range": list(colors.values())},
    }

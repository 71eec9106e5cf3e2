"""Runs and counts as tidy DataFrames, and the DataFrames as Vega-Lite specifications."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from peft_core.errors import RunError
from peft_core.runs import Run

# Okabe and Ito's palette: told apart by readers with any common colour blindness.
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#E69F00", "#8A8F98", "#009E73"
PARTS = {
    "adapter": "Adapter",
    "head": "Head",
    "head_copy": "Head copy (frozen)",
    "encoder": "Encoder, all of it",
}
Spec = dict[str, Any]


def curve_frame(metrics: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Columns step, kind (loss or accuracy), series (training or evaluation), value; one row a point."""
    rows = []
    for row in metrics:
        for key, kind, series in (
            ("loss", "loss", "training"),
            ("eval_loss", "loss", "evaluation"),
            ("eval_accuracy", "accuracy", "evaluation"),
        ):
            if row.get(key) is not None:
                rows.append({"step": row["step"], "kind": kind, "series": series, "value": row[key]})
    return pd.DataFrame(rows, columns=["step", "kind", "series", "value"])


def curve(frame: pd.DataFrame, kind: str, max_steps: int) -> Spec:
    """A line for each series of one kind over the steps; the x axis spans the whole run from the start."""
    rows = frame[frame["kind"] == kind]
    y_scale = {"domain": [0, 1]} if kind == "accuracy" or rows.empty else {"zero": False}
    title = "accuracy (share of texts)" if kind == "accuracy" else "loss (nats)"
    return {
        **_frame(rows, 190),
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2, "tooltip": True}},
            {
                "transform": [{"filter": "datum.series == 'evaluation'"}],
                "mark": {"type": "point", "filled": True, "size": 45, "strokeWidth": 0, "tooltip": True},
            },
        ],
        "encoding": {
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "step",
                "scale": {"domain": [0, max_steps]},
            },
            "y": {"field": "value", "type": "quantitative", "title": title, "scale": y_scale},
            "color": _color("series", {"training": GREY, "evaluation": BLUE}),
        },
    }


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
        **_frame(frame, 20 + 30 * len(names)),
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
            "color": _color("part", dict(zip(PARTS.values(), (BLUE, ORANGE, GREY, GREEN), strict=True))),
        },
    }


def runs_frame(found: Iterable[Run]) -> pd.DataFrame:
    """Columns run, model, accuracy (0 to 1), trainable (parameters), seconds; one row a run with a result."""
    rows = []
    for run in found:
        try:
            result, config = run.result(), run.config()
        except RunError:  # not ended yet, or files are lost
            continue
        rows.append(
            {
                "run": run.run_id,
                "model": config.model_name_or_path,
                "accuracy": result["accuracy"],
                "trainable": result["parameters"]["trainable"],
                "seconds": round(result["train_seconds"], 1),
            }
        )
    return pd.DataFrame(rows, columns=["run", "model", "accuracy", "trainable", "seconds"])


def runs_chart(frame: pd.DataFrame) -> Spec:
    """A point for each finished run: accuracy over trainable parameters on a log scale."""
    return {
        **_frame(frame, 220),
        "mark": {"type": "point", "size": 90, "filled": True, "tooltip": {"content": "data"}},
        "encoding": {
            "x": {
                "field": "trainable",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {"format": "~s"},
                "title": "trainable parameters (log scale)",
            },
            "y": {"field": "accuracy", "type": "quantitative", "scale": {"zero": False}, "title": "accuracy"},
            "color": {"value": BLUE},
        },
    }


def _frame(rows: pd.DataFrame, height: int) -> Spec:
    """The data, the height in pixels, and the page's own background behind it."""
    return {"data": {"values": rows.to_dict("records")}, "height": height, "background": "transparent"}


def _color(field: str, tones: dict[str, str]) -> Spec:
    # "ordinal", because the page's chart component repaints nominal colours with its own
    return {
        "field": field,
        "type": "ordinal",
        "title": None,
        "legend": {"orient": "top"},
        "scale": {"domain": list(tones), "range": list(tones.values())},
    }

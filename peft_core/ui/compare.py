"""The Compare parameters tab: exact parameter counts of configurations, and the scores of finished runs."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from pandas.io.formats.style import Styler

from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError
from peft_core.methods.registry import METHODS
from peft_core.models.presets import MODELS
from peft_core.problem_types import TITLES
from peft_core.service.workbench import Workbench
from peft_core.ui.downloads import download_cache
from peft_core.ui.events import FOLLOWING, PRIVATE, download_by_click, plot, show_stream_errors
from peft_core.ui.fields import Form
from peft_core.ui.form import fill
from peft_core.views.charts import parts_chart, parts_frame, runs_chart, runs_frame
from peft_core.views.components import message, size, task_progress

PRESET_TARGETS = "each model's own query and value"
TARGETS = (
    PRESET_TARGETS,
    "query",
    "query,value",
    "query,key,value",
    "query,key,value,attention.output.dense",
    "all-linear",
)
RANKS = (1, 2, 4, 8, 16, 32, 64)
MAX_CONFIGURATIONS = 200  # in one table
COLUMNS = {
    "model": "Model",
    "method": "Method",
    "r": "r",
    "targets": "Target modules",
    "trainable": "Trainable",
    "percent": "%",
    "adapter": "Adapter",
    "head": "Head",
    "head_copy": "Head copy",
    "total": "Total",
    "file": "On disk",
}
WIDTHS = (186, 118, 38, 134, 95, 80, 90, 58, 102, 104, 82)  # of the columns, in pixels
INITIAL_METHODS = ("lora", "head_only", "full")
INITIAL_MODELS = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "nlptown/bert-base-multilingual-uncased-sentiment",
)


def build_compare(workbench: Workbench, form: Form, tabs: gr.Tabs) -> None:
    """Build the choices with a table and a chart of counts, and below them the finished runs."""
    _build_counts(workbench, form, tabs)
    _build_own_runs(workbench, tabs)


def _build_counts(workbench: Workbench, form: Form, tabs: gr.Tabs) -> None:
    """Build the counts of the chosen configurations; a click on a row loads it into Train."""
    inputs = _build_choices(allow_custom=workbench.limits is None)
    with gr.Row():
        go = gr.Button("Count", variant="primary", elem_id="count", scale=0)
        log = gr.Checkbox(
            True, label="Log scale", container=False, elem_id="log-scale", scale=0, min_width=140
        )
        csv = gr.Button("Download CSV", elem_id="get-csv", scale=0)
    status = gr.HTML(elem_id="compare-told", visible=False)
    rows = gr.State([])
    headers = list(COLUMNS.values())
    table = gr.Dataframe(
        headers=headers,
        interactive=False,
        elem_id="counts",
        show_search="none",
        max_height=330,
        column_widths=list(WIDTHS),
    )
    chart = gr.Plot(show_label=False, elem_id="parts", container=False)

    @show_stream_errors
    def count(
        models: list, methods: list, ranks: list, targets: list, num_labels: float
    ) -> Iterator[dict[Any, Any]]:
        configurations = combinations(models, methods, ranks, targets, num_labels)
        settings = [workbench.config(configuration).to_dict() for configuration in configurations]
        counts: list[dict[str, Any]] = []
        for report in workbench.count_all(settings):
            yield {status: gr.update(visible=True, value=task_progress(report.share, report.description))}
            counts = report.result or counts
        counted_rows, refusals = join(settings, counts)
        yield {
            rows: counted_rows,
            table: frame_of(counted_rows),
            status: gr.update(visible=bool(refusals), value=message(" ".join(refusals), "note")),
        }

    def redraw(counted_rows: list, use_log: bool) -> Any:
        return plot(parts_chart(parts_frame(counted_rows), log=use_log)) if counted_rows else gr.skip()

    def load_row(counted_rows: list, event: gr.SelectData) -> dict[Any, Any]:
        config = config_of(counted_rows[event.index[0]])
        facts = workbench.describe_model(config.model_name_or_path)
        return {**fill(form, config, facts["modules"]), tabs: gr.update(selected="train")}

    counted = go.click(count, inputs, [rows, table, status], **PRIVATE)
    for event in (counted.success, log.change):  # the scale is read when the chart is drawn
        event(redraw, [rows, log], chart, **FOLLOWING)
    table.select(load_row, rows, [*form.values(), tabs], **PRIVATE)
    download_by_click(csv, write_csv, [rows], "file-csv")


def _build_choices(*, allow_custom: bool) -> list[Any]:
    """Build models, methods, ranks, target modules and number of labels, in the order of `combinations`.

    `allow_custom` is whether models other than the presets can be entered.
    """
    with gr.Row():
        models = gr.Dropdown(
            [(preset.label, name) for name, preset in MODELS.items()], value=list(INITIAL_MODELS),
            multiselect=True, label="Base models", allow_custom_value=allow_custom, scale=3,
            elem_id="compare-models",
        )  # fmt: skip
        methods = gr.Dropdown(
            [(method.label, name) for name, method in METHODS.items()], value=list(INITIAL_METHODS),
            multiselect=True, label="Methods", elem_id="compare-methods", scale=2,
        )  # fmt: skip
    with gr.Row():
        ranks = gr.CheckboxGroup(
            list(RANKS), value=[1, 8, 64], label="Ranks (r)", info="For methods with a rank.",
            elem_id="compare-ranks", scale=3,
        )  # fmt: skip
        targets = gr.Dropdown(
            list(TARGETS), value=[PRESET_TARGETS], multiselect=True, allow_custom_value=True,
            label="Target modules", info="Or type names, separated by commas.",
            elem_id="compare-targets", scale=2,
        )  # fmt: skip
        labels = gr.Number(2, label="Number of labels", precision=0, scale=1, elem_id="compare-labels")
    return [models, methods, ranks, targets, labels]


def _build_own_runs(workbench: Workbench, tabs: gr.Tabs) -> None:
    """Build a chart of the runs with one metric, and a table of all finished runs."""
    gr.HTML("<h3>Your runs: score against trainable parameters</h3>")
    metric = gr.Radio(
        [TITLES["accuracy"]], value=TITLES["accuracy"], label="Metric", visible=False, elem_id="own-metric"
    )
    empty = gr.HTML(message("No run has a result yet. Train one to see it here.", "note"))
    with gr.Row(visible=False) as results:
        chart = gr.Plot(show_label=False, elem_id="own-chart", container=False)
        table = gr.Dataframe(interactive=False, elem_id="own-runs", max_height=260)

    def own_runs(chosen: str) -> list[Any]:
        frame = runs_frame(workbench.list_runs())
        metrics = list(dict.fromkeys(frame["metric"]))
        selected = chosen if chosen in metrics or not metrics else metrics[0]
        return [
            gr.update(visible=not metrics),
            gr.update(visible=bool(metrics)),
            gr.update(choices=metrics or [selected], value=selected, visible=len(metrics) > 1),
            plot(runs_chart(frame, selected)) if len(frame) else gr.skip(),
            frame.round({"score": 4}),
        ]

    def redraw(chosen: str) -> Any:
        return plot(runs_chart(runs_frame(workbench.list_runs()), chosen))

    tabs.change(own_runs, metric, [empty, results, metric, chart, table], **PRIVATE)
    metric.input(redraw, metric, chart, **FOLLOWING)


def config_of(row: dict[str, Any]) -> TrainConfig:
    """Return the settings of a table row, without `num_labels`, which depends on the data."""
    return TrainConfig.from_dict(
        {name: setting for name, setting in row["settings"].items() if name != "num_labels"}
    )


def combinations(
    models: list, methods: list, ranks: list, targets: list, num_labels: float
) -> list[dict[str, Any]]:
    """Return settings for each model and method, and for each rank and target modules that the method takes.

    Raises PeftCoreError if there are none, or over `MAX_CONFIGURATIONS`.
    """
    settings: list[dict[str, Any]] = []
    for name, method in itertools.product(models, methods):
        base = {"model_name_or_path": name, "method": method, "num_labels": num_labels}
        rank_settings = [{"r": rank} for rank in sorted(ranks)] if has_rank(method) else [{}]
        target_choices = targets if METHODS[method].takes_target_modules else [PRESET_TARGETS]
        for choice, rank_setting in itertools.product(target_choices, rank_settings):
            settings.append({**base, **rank_setting, "target_modules": targets_for(name, choice)})
    if not settings:
        raise PeftCoreError(
            "Nothing is chosen; pick at least one base model and one method (and a rank for LoRA)."
        )
    if len(settings) > MAX_CONFIGURATIONS:
        raise PeftCoreError(
            f"These choices make {len(settings)} configurations; choose fewer than {MAX_CONFIGURATIONS + 1}."
        )
    return settings


def has_rank(method: str) -> bool:
    """Return whether a method reads `r`."""
    return "r" in METHODS[method].settings


def targets_for(name: str, targets: str) -> list[str]:
    """Return the module names of a choice of target modules for a model."""
    if targets != PRESET_TARGETS:
        return [part.strip() for part in targets.split(",")]
    return list(MODELS[name].target_modules) if name in MODELS else ["query", "value"]


def join(settings: list[dict], counts: list[dict]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the table's rows, and an error message for each combination that is not possible."""
    rows, refusals = [], []
    for config, count in zip(settings, counts, strict=True):
        model, method = config["model_name_or_path"], config["method"]
        title = MODELS[model].label if model in MODELS else model
        if "error" in count:
            refusals.append(f"{title}: {count['error']}")
            continue
        takes_targets = METHODS[method].takes_target_modules
        targets = ", ".join(config["target_modules"]) if takes_targets else ""
        rank = config["r"] if has_rank(method) else None
        name = f"{title} · {METHODS[method].label}" + (f" r {rank}" if rank else "")
        if takes_targets and config["target_modules"] != targets_for(model, PRESET_TARGETS):
            name += f" · {targets}"
        row = {"name": name, "model": model, "method": method, "r": rank, "targets": targets}
        rows.append({**row, "settings": config, **count})
    return rows, list(dict.fromkeys(refusals))


def frame_of(rows: list[dict[str, Any]]) -> Styler:
    """Return the table with labels, sizes and formatted numbers."""
    labeled_rows = [
        {
            **row,
            "model": MODELS[row["model"]].label if row["model"] in MODELS else row["model"],
            "method": METHODS[row["method"]].label,
            "r": row["r"] or "",
            "file": size(row["file_bytes"]),
        }
        for row in rows
    ]
    frame = pd.DataFrame(labeled_rows, columns=list(COLUMNS)).rename(columns=COLUMNS)
    counts = [COLUMNS[part] for part in ("adapter", "head", "head_copy", "trainable", "total")]
    style = frame.style
    style.format(thousands=",", subset=counts)
    style.format(precision=4, subset=[COLUMNS["percent"]])
    return style


def write_csv(rows: list[dict[str, Any]]) -> Path:
    """Write the table as a CSV file of plain numbers and return its path."""
    if not rows:
        raise PeftCoreError("Press Count first; then there is a table to download.")
    columns = [column for column in COLUMNS if column != "file"] + ["file_bytes"]
    path = download_cache().new_file("parameter-counts.csv")
    pd.DataFrame(rows)[columns].to_csv(path, index=False)
    return path

"""The Compare parameters tab: what each configuration costs, exactly, and what one's own runs reached."""

import itertools
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from pandas.io.formats.style import Styler

from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError
from peft_core.methods import METHODS
from peft_core.pictures.charts import parts_chart, parts_frame, runs_chart, runs_frame
from peft_core.pictures.pieces import message, size, working
from peft_core.presets import MODELS
from peft_core.problems import TITLES
from peft_core.ui.downloads import download_cache
from peft_core.ui.events import FOLLOWING, PRIVATE, download_by_click, plot, sentence_each
from peft_core.ui.fields import Form
from peft_core.ui.form import fill
from peft_core.workbench import Workbench

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
MOST = 200  # configurations in one table
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
    "total": "All",
    "file": "On disk",
}
WIDTHS = (186, 118, 38, 134, 95, 80, 90, 58, 102, 104, 82)  # of the columns, in pixels
SHOWN = ("lora", "head_only", "full")
FIRST = ("sentence-transformers/all-MiniLM-L6-v2", "nlptown/bert-base-multilingual-uncased-sentiment")


def build_compare(workbench: Workbench, form: Form, tabs: gr.Tabs) -> None:
    """Choices, one table and one chart; below, finished runs."""
    _build_counts(workbench, form, tabs)
    _build_own_runs(workbench, tabs)


def _build_counts(workbench: Workbench, form: Form, tabs: gr.Tabs) -> None:
    """Count what is chosen. A click on a row loads it into Train."""
    inputs = _build_choices(free=workbench.limits is None)
    with gr.Row():
        go = gr.Button("Count", variant="primary", elem_id="count", scale=0)
        log = gr.Checkbox(
            True, label="Log scale", container=False, elem_id="log-scale", scale=0, min_width=140
        )
        csv = gr.Button("Download CSV", elem_id="get-csv", scale=0)
    told = gr.HTML(elem_id="compare-told", visible=False)
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

    @sentence_each
    def count(names: list, kinds: list, widths: list, sets: list, labels: float) -> Any:
        asked = combinations(names, kinds, widths, sets, labels)
        settings = [workbench.config(config).to_dict() for config in asked]
        counted: list[dict[str, Any]] = []
        for report in workbench.worker.stream("count_all", settings):
            yield {told: gr.update(visible=True, value=working(report.share, report.what))}
            counted = report.result or counted
        found, refused = join(settings, counted)
        yield {
            rows: found,
            table: frame_of(found),
            told: gr.update(visible=bool(refused), value=message(" ".join(refused), "note")),
        }

    def redraw(found: list, use_log: bool) -> Any:
        return plot(parts_chart(parts_frame(found), log=use_log)) if found else gr.skip()

    def load_row(found: list, event: gr.SelectData) -> dict[Any, Any]:
        config = config_of(found[event.index[0]])
        facts = workbench.describe_model(config.model_name_or_path)
        return {**fill(form, config, facts["modules"]), tabs: gr.update(selected="train")}

    counted = go.click(count, inputs, [rows, table, told], **PRIVATE)
    for changed in (counted.success, log.change):  # drawn by the scale that is chosen when it is drawn
        changed(redraw, [rows, log], chart, **FOLLOWING)
    table.select(load_row, rows, [*form.values(), tabs], **PRIVATE)
    download_by_click(csv, write_csv, [rows], "file-csv")


def _build_choices(*, free: bool) -> list[Any]:
    """Models, methods, ranks, target modules and the number of labels, in the order of `combinations`."""
    with gr.Row():
        models = gr.Dropdown(
            [(preset.label, name) for name, preset in MODELS.items()], value=list(FIRST), multiselect=True,
            label="Base models", allow_custom_value=free, elem_id="compare-models", scale=3,
        )  # fmt: skip
        methods = gr.Dropdown(
            [(method.label, name) for name, method in METHODS.items()], value=list(SHOWN), multiselect=True,
            label="Methods", elem_id="compare-methods", scale=2,
        )  # fmt: skip
    with gr.Row():
        ranks = gr.CheckboxGroup(
            list(RANKS), value=[1, 8, 64], label="Ranks (r)", info="For methods that have one.",
            elem_id="compare-ranks", scale=3,
        )  # fmt: skip
        targets = gr.Dropdown(
            list(TARGETS), value=[PRESET_TARGETS], multiselect=True, allow_custom_value=True,
            label="Which matrices", info="Type any names, comma between.", elem_id="compare-targets", scale=2,
        )  # fmt: skip
        labels = gr.Number(2, label="Number of labels", precision=0, scale=1, elem_id="compare-labels")
    return [models, methods, ranks, targets, labels]


def _build_own_runs(workbench: Workbench, tabs: gr.Tabs) -> None:
    """One chart of the runs that one metric judges, and one table of them all."""
    gr.HTML("<h3>Your runs: score against trainable parameters</h3>")
    metric = gr.Radio(
        [TITLES["accuracy"]], value=TITLES["accuracy"], label="Judged by", visible=False, elem_id="own-metric"
    )
    none = gr.HTML(message("No run has ended yet: train one and it stands here.", "note"))
    with gr.Row(visible=False) as seen:
        chart = gr.Plot(show_label=False, elem_id="own-chart", container=False)
        table = gr.Dataframe(interactive=False, elem_id="own-runs", max_height=260)

    def own_runs(chosen: str) -> list[Any]:
        frame = runs_frame(workbench.list_runs())
        metrics = list(dict.fromkeys(frame["metric"]))
        shown = chosen if chosen in metrics or not metrics else metrics[0]
        return [
            gr.update(visible=not metrics),
            gr.update(visible=bool(metrics)),
            gr.update(choices=metrics or [shown], value=shown, visible=len(metrics) > 1),
            plot(runs_chart(frame, shown)) if len(frame) else gr.skip(),
            frame.round({"score": 4}),
        ]

    def redraw(chosen: str) -> Any:
        return plot(runs_chart(runs_frame(workbench.list_runs()), chosen))

    tabs.change(own_runs, metric, [none, seen, metric, chart, table], **PRIVATE)
    metric.input(redraw, metric, chart, **FOLLOWING)


def config_of(row: dict[str, Any]) -> TrainConfig:
    """The settings behind a row of the table, trained on data with whatever labels it has."""
    return TrainConfig.from_dict(
        {name: value for name, value in row["asked"].items() if name != "num_labels"}
    )


def combinations(names: list, kinds: list, widths: list, sets: list, labels: float) -> list[dict[str, Any]]:
    """Settings for every model × method, × rank where the method has one, × modules where it takes any."""
    asked: list[dict[str, Any]] = []
    for name, kind in itertools.product(names, kinds):
        base = {"model_name_or_path": name, "method": kind, "num_labels": labels}
        ranks = [{"r": width} for width in sorted(widths)] if has_rank(kind) else [{}]
        chosen = sets if METHODS[kind].takes_target_modules else [PRESET_TARGETS]
        for targets, rank in itertools.product(chosen, ranks):
            asked.append({**base, **rank, "target_modules": targets_for(name, targets)})
    if not asked:
        raise PeftCoreError(
            "Nothing is chosen; pick at least one base model and one method (and a rank for LoRA)."
        )
    if len(asked) > MOST:
        raise PeftCoreError(f"These choices make {len(asked)} configurations; choose fewer than {MOST + 1}.")
    return asked


def has_rank(method: str) -> bool:
    """Whether a method reads `r`."""
    return "r" in METHODS[method].settings


def targets_for(name: str, targets: str) -> list[str]:
    """Module names of a choice of targets; the preset's own where there is a preset."""
    if targets != PRESET_TARGETS:
        return [part.strip() for part in targets.split(",")]
    return list(MODELS[name].target_modules) if name in MODELS else ["query", "value"]


def join(settings: list[dict], counted: list[dict]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of settings and counts, and a sentence for each combination that cannot be."""
    rows, refused = [], []
    for one, count in zip(settings, counted, strict=True):
        model = one["model_name_or_path"]
        title = MODELS[model].label if model in MODELS else model
        if "error" in count:
            refused.append(f"{title}: {count['error']}")
            continue
        takes = METHODS[one["method"]].takes_target_modules
        targets = ", ".join(one["target_modules"]) if takes else ""
        rank = one["r"] if has_rank(one["method"]) else None
        name = f"{title} · {METHODS[one['method']].label}" + (f" r {rank}" if rank else "")
        if takes and one["target_modules"] != targets_for(model, PRESET_TARGETS):
            name += f" · {targets}"
        row = {"name": name, "model": model, "method": one["method"], "r": rank, "targets": targets}
        rows.append({**row, "asked": one, **count})
    return rows, list(dict.fromkeys(refused))


def frame_of(rows: list[dict[str, Any]]) -> Styler:
    """The table as people read it."""
    shown = [
        {
            **row,
            "model": MODELS[row["model"]].label if row["model"] in MODELS else row["model"],
            "method": METHODS[row["method"]].label,
            "r": row["r"] or "",
            "file": size(row["file_bytes"]),
        }
        for row in rows
    ]
    frame = pd.DataFrame(shown, columns=list(COLUMNS)).rename(columns=COLUMNS)
    counts = [COLUMNS[part] for part in ("adapter", "head", "head_copy", "trainable", "total")]
    return frame.style.format(thousands=",", subset=counts).format(precision=4, subset=[COLUMNS["percent"]])


def write_csv(rows: list[dict[str, Any]]) -> Path:
    """The table as a CSV file of plain numbers."""
    if not rows:
        raise PeftCoreError("Press Count first; then there is a table to download.")
    columns = [column for column in COLUMNS if column != "file"] + ["file_bytes"]
    path = download_cache().new_file("parameter-counts.csv")
    pd.DataFrame(rows)[columns].to_csv(path, index=False)
    return path

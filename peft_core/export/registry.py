"""Registry of the exports of a run, by name; runs in a worker process."""

import os
from pathlib import Path
from typing import Any

from peft_core.config import TrainConfig
from peft_core.data.labelled import is_hub_dataset
from peft_core.data.preparing import prepare_rows
from peft_core.errors import RunError
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import MAX_DROP, export_onnx
from peft_core.export.onnx.report import read_onnx_report
from peft_core.export.page.webpage import export_page
from peft_core.export.script.compose import partial_script
from peft_core.export.script.reproduction import reproduction_zip, script_of
from peft_core.export.snippets import ApiAccess, snippets, train_snippets
from peft_core.models.encoder import meta_model, model_config, plan_head
from peft_core.models.modules import feedforward_modules
from peft_core.progress import Progress
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows

EXPORT_KINDS = ("onnx", "embeddings", "page", "script")


def export_run(kind: str, run_dir: str, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Write one of `EXPORT_KINDS` and return its report as JSON types.

    Raises:
        RunError: the kind is unknown.
        PeftCoreError: the export fails; see the function of each kind.
    """
    if kind == "onnx":
        return export_onnx(run_dir, options.get("max_drop", MAX_DROP), progress)
    if kind == "embeddings":
        return export_embeddings(run_dir, progress)
    if kind == "page":
        return _export_page(run_dir, progress)
    if kind == "script":
        path = reproduction_zip(Run(Path(run_dir)), progress, rows=options.get("rows", True))
        return {"zip": str(path)}
    raise RunError(f"There is no export {kind!r}; it is one of {', '.join(EXPORT_KINDS)}.")


def run_code(run_dir: str, kind: str, access: ApiAccess) -> str:
    """Return the script that reproduces the run (`script`), or API code for it (`python`, `curl`, `mcp`)."""
    run = Run(Path(run_dir))
    if kind == "script":
        return script_of(run)
    rows = load_evaluation_rows(run)
    pair = rows.pairs[0] if rows.pairs else ""
    api_snippets = snippets(access, run.run_id, rows.texts[0], text_pair=pair, tool_prefix=_tool_prefix())
    return _select_snippet(api_snippets, kind)


def training_code(config: TrainConfig, kind: str, access: ApiAccess) -> str:
    """Return code for settings that were not trained yet.

    `script` is the central part of a training script; `python`, `curl` and `mcp` start the training through
    the API. Labels and problem type of a Hub dataset are unknown here, because it is not downloaded.

    Raises:
        DataError, ModelError, HubError: the data or the model cannot be read.
    """
    if kind == "script":
        return _script_part(config)
    api_snippets = train_snippets(access, config.to_dict(), tool_prefix=_tool_prefix())
    return _select_snippet(api_snippets, kind)


def _select_snippet(api_snippets: dict[str, str], kind: str) -> str:
    """Return the snippet of a kind; for MCP the client settings followed by the call."""
    return f"{api_snippets['mcp']}\n{api_snippets['mcp_call']}" if kind == "mcp" else api_snippets[kind]


def _tool_prefix() -> str:
    """Return the prefix that Gradio gives the names of MCP tools on a Space; empty elsewhere."""
    space = os.environ.get("SPACE_ID", "")
    return f"{space.split('/')[-1]}_" if space else ""


def _script_part(config: TrainConfig) -> str:
    facts = {} if is_hub_dataset(config.dataset_name) else _labels_and_problem_type(config)
    if facts:
        facts["head_change"] = plan_head(config, facts["labels"], facts["problem_type"])
    if config.method == "ia3":
        model = meta_model(model_config(config.model_name_or_path, config.revision), num_labels=2)
        facts["feedforward_modules"] = feedforward_modules(model, config.target_modules)
    return partial_script(config, **facts)


def _labels_and_problem_type(config: TrainConfig) -> dict[str, Any]:
    prepared = prepare_rows(config)
    names = tuple(map(str, prepared.label_names))
    return {"labels": names, "problem_type": prepared.columns.problem_type}


def _export_page(run_dir: str, progress: Progress) -> dict[str, Any]:
    """Export the page; first the ONNX model if it is missing or belongs to an earlier adapter."""
    if read_onnx_report(Run(Path(run_dir))) is None:
        export_onnx(run_dir, MAX_DROP, lambda share, stage: progress(0.9 * share, stage))
    return export_page(run_dir, lambda share, stage: progress(0.9 + 0.1 * share, stage))

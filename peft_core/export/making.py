"""Everything that can be made in a run's folder to take away, by name: it runs in a worker process."""

import os
from pathlib import Path
from typing import Any

from peft_core.config import TrainConfig
from peft_core.data.labelled import on_hub
from peft_core.data.preparing import prepare
from peft_core.encoder import model_config, plan_head, skeleton
from peft_core.errors import RunError
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import MAX_DROP, export_onnx
from peft_core.export.onnx.report import read_onnx_report
from peft_core.export.page.webpage import export_page
from peft_core.export.script.compose import copied_part
from peft_core.export.script.reproduction import reproduction_zip, script_of
from peft_core.export.snippets import ApiAccess, snippets, train_snippets
from peft_core.modules import feedforward_modules
from peft_core.progress import Progress
from peft_core.rows import judged_rows
from peft_core.runs import Run

MADE = ("onnx", "embeddings", "page", "script")


def make(kind: str, run_dir: str, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Make one of `MADE`; what comes back is its report. Raises RunError, or what the maker raises."""
    if kind == "onnx":
        return export_onnx(run_dir, options.get("max_drop", MAX_DROP), progress)
    if kind == "embeddings":
        return export_embeddings(run_dir, progress)
    if kind == "page":
        return _page(run_dir, progress)
    if kind == "script":
        path = reproduction_zip(Run(Path(run_dir)), progress, rows=options.get("rows", True))
        return {"zip": str(path)}
    raise RunError(f"There is nothing {kind!r} to make; it is one of {', '.join(MADE)}.")


def code(run_dir: str, kind: str, access: ApiAccess) -> str:
    """The script that reproduces the run (`script`), or how a program asks it (`python`, `curl`, `mcp`)."""
    run = Run(Path(run_dir))
    if kind == "script":
        return script_of(run)
    rows = judged_rows(run)
    pair = rows.pairs[0] if rows.pairs else ""
    texts = snippets(access, run.run_id, rows.texts[0], text_pair=pair, tool_prefix=_tool_prefix())
    return _copied(texts, kind)


def training_code(config: TrainConfig, kind: str, access: ApiAccess) -> str:
    """As `code`, for whoever has not trained yet: the heart of the script, or how a program starts it.

    Labels and task of a Hub data set are not known before it is fetched. Raises DataError, ModelError or
    HubError for data or a model that cannot be read.
    """
    if kind == "script":
        return _settings_in_python(config)
    texts = train_snippets(access, config.to_dict(), tool_prefix=_tool_prefix())
    return _copied(texts, kind)


def _copied(texts: dict[str, str], kind: str) -> str:
    """One of the texts; of MCP a client's settings and then the call that it makes."""
    return f"{texts['mcp']}\n{texts['mcp_call']}" if kind == "mcp" else texts[kind]


def _tool_prefix() -> str:
    """What gradio puts before the names of the MCP tools where a Space serves them."""
    space = os.environ.get("SPACE_ID", "")
    return f"{space.split('/')[-1]}_" if space else ""


def _settings_in_python(config: TrainConfig) -> str:
    known = {} if on_hub(config.dataset_name) else _labels_and_task(config)
    if known:
        known["head_change"] = plan_head(config, known["labels"], known["problem_type"])
    if config.method == "ia3":
        model = skeleton(model_config(config.model_name_or_path, config.revision), num_labels=2)
        known["feedforward_modules"] = feedforward_modules(model, config.target_modules)
    return copied_part(config, **known)


def _labels_and_task(config: TrainConfig) -> dict[str, Any]:
    prepared = prepare(config)
    names = tuple(map(str, prepared.label_names))
    return {"labels": names, "problem_type": prepared.columns.problem_type}


def _page(run_dir: str, progress: Progress) -> dict[str, Any]:
    """The page, of an ONNX folder that is made first if it is missing or of an earlier adapter."""
    if read_onnx_report(Run(Path(run_dir))) is None:
        export_onnx(run_dir, MAX_DROP, lambda share, what: progress(0.9 * share, what))
    return export_page(run_dir, lambda share, what: progress(0.9 + 0.1 * share, what))

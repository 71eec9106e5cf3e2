"""Everything that can be made in a run's folder to take away, by name: it runs in a worker process."""

from pathlib import Path
from typing import Any

from peft_core.errors import RunError
from peft_core.export import snippets
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import MAX_DROP, export_onnx
from peft_core.export.onnx.report import read_onnx_report
from peft_core.export.page.webpage import export_page
from peft_core.export.script.reproduction import reproduction_zip, script_of
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


def code(run_dir: str, kind: str, url: str) -> str:
    """The script that reproduces the run (`script`), or how a program asks it (`python`, `curl`, `mcp`)."""
    run = Run(Path(run_dir))
    if kind == "script":
        return script_of(run)
    rows = judged_rows(run)
    pair = rows.pairs[0] if rows.pairs else ""
    return snippets.snippets(url, run.run_id, rows.texts[0], text_pair=pair)[kind]


def _page(run_dir: str, progress: Progress) -> dict[str, Any]:
    """The page, of an ONNX folder that is made first if it is missing or of an earlier adapter."""
    if read_onnx_report(Run(Path(run_dir))) is None:
        export_onnx(run_dir, MAX_DROP, lambda share, what: progress(0.9 * share, what))
    return export_page(run_dir, lambda share, what: progress(0.9 + 0.1 * share, what))

"""Change files of a run and update their manifest, as the app would."""

import json
from pathlib import Path
from typing import Any

from peft_core.files.atomic import write_json
from peft_core.files.manifests import MANIFEST_FILE, read_manifest, write_manifest
from peft_core.runs import Run

EVALUATION_FILES = ("result.json", "evaluation.parquet", "validation.parquet")


def path_of(run: Run, name: str) -> Path:
    """Return the path of a run's file; the result and its rows are in `evaluation/`."""
    return run.results / name if name in EVALUATION_FILES else run.folder / name


def change_json(run: Run, name: str, **entries: Any) -> None:
    """Change entries of a JSON file of a run."""
    path = path_of(run, name)
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **entries})
    reseal(path.parent)


def reseal(folder: Path) -> None:
    """Rewrite a folder's manifest; that of a run folder lists the same files as before."""
    if (folder / "status.json").exists():
        write_manifest(folder, *read_manifest(folder).files)
    elif (folder / MANIFEST_FILE).exists():
        write_manifest(folder)

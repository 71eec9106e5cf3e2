"""Change files of a run as the app itself would have written them: with their manifest."""

import json
from pathlib import Path
from typing import Any

from peft_core.files.atomic import write_json
from peft_core.files.manifests import MANIFEST_FILE, read_manifest, write_manifest
from peft_core.runs import Run

OF_THE_RESULT = ("result.json", "evaluation.parquet", "validation.parquet")


def path_of(run: Run, name: str) -> Path:
    """Where a file of a run lies: the result and its rows in `evaluation/`."""
    return run.results / name if name in OF_THE_RESULT else run.folder / name


def change_json(run: Run, name: str, **entries: Any) -> None:
    """Change entries of a JSON file of a run."""
    path = path_of(run, name)
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **entries})
    reseal(path.parent)


def reseal(folder: Path) -> None:
    """Write a folder's manifest anew: of a run's own folder of the files that it named before."""
    if (folder / "status.json").exists():
        write_manifest(folder, *read_manifest(folder).files)
    elif (folder / MANIFEST_FILE).exists():
        write_manifest(folder)

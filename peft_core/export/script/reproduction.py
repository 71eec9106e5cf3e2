"""Zip of a run's script, with its rows as Parquet files if the script cannot read them from their source."""

import io
import zipfile
from pathlib import Path

from datasets import Dataset

from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.errors import RunError
from peft_core.export.script.compose import SCRIPT_FILE, training_script
from peft_core.export.script.data import FILES, ROW_FILES, rows_come_from, splits_of
from peft_core.export.script.facts import RunFacts
from peft_core.files.atomic import atomic_file
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_texts


def script_of(run: Run) -> str:
    """Return the script of a run; RunError if the run has no adapter or a required fact is missing."""
    return training_script(run.config(), RunFacts.read(run))


def reproduction_zip(run: Run, progress: Progress = no_progress, *, rows: bool = True) -> Path:
    """Write `RUN_ID-script.zip` in the run's folder, with `train.py` and the Parquet files that it reads.

    Args:
        run: the run.
        progress: callback for the share done, from 0 to 1, and the current stage.
        rows: whether to include the rows; without them the zip can be shared with people who may not have
            the training data.

    Raises:
        RunError: a required fact is missing (see `script_of`), or the data has changed since the training.
        DataError, HubError: the data cannot be read any more.
    """
    config, facts = run.config(), RunFacts.read(run)
    script, files = training_script(config, facts), {}
    if rows and rows_come_from(config, facts) == FILES:
        progress(0.0, "Reading the rows of the run")
        files = _row_files(run, config, facts)
    progress(0.8, "Packing")
    path = run.folder / "downloads" / "script" / f"{run.run_id}-script.zip"
    with (
        run.new_folder(path.parent) as staging,
        zipfile.ZipFile(staging / path.name, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(SCRIPT_FILE, script)
        for name, content in files.items():
            archive.writestr(name, content, zipfile.ZIP_STORED)
    progress(1.0, "Packed")
    return path


def save_rows(run: Run, folder: Path) -> None:
    """Write the Parquet files that a run's script reads; raises the errors of `reproduction_zip`."""
    for name, content in _row_files(run, run.config(), RunFacts.read(run)).items():
        with atomic_file(folder / name) as staging:
            staging.write_bytes(content)


def _row_files(run: Run, config: TrainConfig, facts: RunFacts) -> dict[str, bytes]:
    data = load_labeled_splits(config)
    parts = {"train": data.train, "validation": data.validation, "test": data.eval}
    texts, pairs = load_evaluation_texts(run)
    is_unchanged = all(len(rows) == facts.rows(part) for part, rows in parts.items()) and (
        data.eval["text"][:] == texts and (pairs is None or data.eval["text_pair"][:] == pairs)
    )
    if not is_unchanged:
        raise RunError(
            f"The data of the run {run.run_id!r} has changed since it was trained, so no script can repeat "
            "the run; train again with its settings."
        )
    return {ROW_FILES[part]: _parquet(parts[part]) for part in splits_of(facts)}


def _parquet(rows: Dataset) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()

"""A run's script, with the rows that it reads where no few lines would read the same ones, as one zip."""

import io
import zipfile
from pathlib import Path

from datasets import Dataset

from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labelled_text
from peft_core.errors import RunError
from peft_core.export.script.compose import SCRIPT_FILE, training_script
from peft_core.export.script.data import FILES, ROW_FILES, parts_of, rows_come_from
from peft_core.export.script.facts import RunFacts
from peft_core.files import atomic_file
from peft_core.progress import Progress, unheard
from peft_core.rows import judged_texts
from peft_core.runs import Run


def script_of(run: Run) -> str:
    """The script of a run; RunError if it has no adapter or has lost what a script needs."""
    return training_script(run.config(), RunFacts.read(run))


def reproduction_zip(run: Run, progress: Progress = unheard, *, rows: bool = True) -> Path:
    """`RUN_ID-script.zip` in the run's folder: `train.py`, and its Parquet files where it reads such.

    With `rows` False the script alone, for where the training rows are not for everyone to take. `progress`
    hears a share from 0 to 1 and what is being done. Raises RunError as `script_of`, or if the data has
    changed since; DataError or HubError if it cannot be read any more.
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
    """Write the Parquet files that a run's script reads into a folder. Raises as `reproduction_zip`."""
    for name, content in _row_files(run, run.config(), RunFacts.read(run)).items():
        with atomic_file(folder / name) as staging:
            staging.write_bytes(content)


def _row_files(run: Run, config: TrainConfig, facts: RunFacts) -> dict[str, bytes]:
    data = load_labelled_text(config)
    parts = {"train": data.train, "validation": data.validation, "test": data.eval}
    texts, pairs = judged_texts(run)
    same = all(len(rows) == facts.rows(part) for part, rows in parts.items()) and (
        data.eval["text"][:] == texts and (pairs is None or data.eval["text_pair"][:] == pairs)
    )
    if not same:
        raise RunError(
            f"The data of the run {run.run_id!r} has changed since it was trained, so no script can repeat "
            "the run; train again with its settings."
        )
    return {ROW_FILES[part]: _parquet(parts[part]) for part in parts_of(facts)}


def _parquet(rows: Dataset) -> bytes:
    held = io.BytesIO()
    rows.to_parquet(held)
    return held.getvalue()

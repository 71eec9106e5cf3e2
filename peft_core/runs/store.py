"""The folder of all runs: create, find, list, delete and restore them by their ids."""

import contextlib
import json
import os
import re
import secrets
import time
from pathlib import Path

from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, RunError
from peft_core.files.atomic import (
    Stamp,
    atomic_folder,
    make_folder,
    remove_folder,
    remove_tree,
    stamp_of,
    sweep_staging,
)
from peft_core.files.manifests import write_manifest
from peft_core.files.records import SCHEMA_VERSION, write_sealed
from peft_core.runs.ownership import Ownership, is_owner, write_ownership
from peft_core.runs.records import ENDED, FINISHED, SCHEDULED, RunState
from peft_core.runs.run import CONFIG_FILE, LOCK_FILE, STATUS_FILE, Run
from peft_core.runs.trash import (
    TRASH,
    TRASH_SECONDS,
    free_disk,
    move_to_trash,
    purge_trash,
    restore_from_trash,
)

UPLOADS, TOKENS = ".uploads", ".tokens"  # beside the runs: uploaded files, cached tokenized texts
_SHARED_FOLDERS = (UPLOADS, TOKENS, TRASH)
_FOLDERS_WITH_STAGING = ("", "checkpoints", "downloads", "predictions")  # of a run
_STAGING_OF_VERSION_0 = (".adapter", ".merged", ".onnx", ".page", ".embeddings", "checkpoints/.staging")
_SETTLED_NS = 1_000_000_000  # after which a second change cannot have the same time as the one before
_cache: dict[str, tuple[Stamp, tuple[Run, ...]]] = {}  # the runs of each folder, with the folder's stamp
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)


def create(
    runs_dir: Path, config: TrainConfig, *, owner: str | None = None, forecast_seconds: float | None = None
) -> Run:
    """Create a run folder with its config and status SCHEDULED, atomically.

    Args:
        runs_dir: The folder of runs.
        config: The settings.
        owner: SHA-256 of a visitor's token; None for the host.
        forecast_seconds: Forecast for the training.
    """
    make_folder(runs_dir)
    run_id = _new_id(runs_dir, config)
    with atomic_folder(runs_dir / run_id) as staging:
        settings = {**json.loads(config.to_json()), "schema_version": SCHEMA_VERSION}
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (staging / CONFIG_FILE).write_text(text, encoding="utf-8")
        write_manifest(staging)
        if owner is not None:
            write_ownership(staging, Ownership(owner=owner))
        state = RunState(status=SCHEDULED, created=time.time(), forecast_seconds=forecast_seconds)
        write_sealed(staging / STATUS_FILE, state)
    return Run(runs_dir / run_id)


def _new_id(runs_dir: Path, config: TrainConfig) -> str:
    """Return an id that neither a run has nor a deleted run that can still be restored."""
    while True:
        run_id = f"{_slug(config)}-{secrets.token_hex(3)}"
        if not any(os.path.lexists(folder / run_id) for folder in (runs_dir, runs_dir / TRASH)):
            return run_id


def find(runs_dir: Path, run_id: str) -> Run:
    """Return the run with an id. An id is a name, never a path.

    Raises:
        RunError: There is no such run.
    """
    if not _is_run_id(run_id) or not (runs_dir / run_id).is_dir():
        raise unknown_run(run_id)
    return Run(runs_dir / run_id)


def unknown_run(run_id: str) -> RunError:
    """Return the error for an id that no run has."""
    return RunError(f"There is no run {run_id!r}; ask for the list of runs.")


def _is_run_id(name: object) -> bool:
    return isinstance(name, str) and _RUN_ID.fullmatch(name) is not None


def list_runs(runs_dir: Path) -> list[Run]:
    """Return all runs, newest first.

    The list is cached until the folder's time changes, as it does when a run is created, deleted or restored:
    each page polls every second, and the launcher three times a second.
    """
    key, stamp, now = str(runs_dir), stamp_of(runs_dir), time.time_ns()
    cached = _cache.get(key)
    if cached is not None and cached[0] == stamp:
        return list(cached[1])
    runs = _read_list(runs_dir)
    if stamp is not None and now - stamp.mtime_ns > _SETTLED_NS:
        _cache[key] = (stamp, tuple(runs))
    return runs


def _read_list(runs_dir: Path) -> list[Run]:
    if not runs_dir.is_dir():
        return []
    folders = [Run(path) for path in runs_dir.iterdir() if path.is_dir() and _RUN_ID.fullmatch(path.name)]
    return sorted(folders, key=lambda run: (run.state().created, run.run_id), reverse=True)


def delete(runs_dir: Path, run_id: str) -> None:
    """Move a run into the trash, from where `restore` brings it back for an hour.

    If the disk is nearly full, the run is removed permanently.

    Raises:
        RunError: The run waits or trains.
    """
    run = _find_ended(runs_dir, run_id)
    move_to_trash(run.folder)
    purge_trash(runs_dir, TRASH_SECONDS)
    free_disk(runs_dir)


def restore(runs_dir: Path, run_id: str) -> Run:
    """Restore a deleted run.

    Raises:
        RunError: It is no longer in the trash, or there is a run with this id.
    """
    folder = runs_dir / run_id if _is_run_id(run_id) else None
    if folder is None or not (runs_dir / TRASH / run_id).is_dir():
        raise RunError(
            f"The run {run_id!r} cannot be restored: deleted runs are kept for an hour, or less where the "
            "disk is full."
        )
    restore_from_trash(folder)
    return Run(folder)


def remove(runs_dir: Path, run_id: str) -> None:
    """Remove a run permanently.

    Raises:
        RunError: The run waits or trains.
    """
    remove_folder(_find_ended(runs_dir, run_id).folder)


def _find_ended(runs_dir: Path, run_id: str) -> Run:
    run = find(runs_dir, run_id)
    state = run.state()
    if state.status not in ENDED:
        raise RunError(f"The run {run_id!r} is {state.status}; stop it before you delete it.")
    if os.path.lexists(run.folder / LOCK_FILE):  # without it no process trains, and a full disk has no room
        with contextlib.suppress(DamagedError), run.lock():  # RunError if a training has just begun;
            pass  # DamagedError if the lock is not a regular file, which no process can hold
    return run


def sweep(runs_dir: Path) -> int:
    """Remove what dead processes left half written beside the runs and in each run; return the count.

    Runs that were deleted more than an hour ago are removed permanently, and not counted.
    """
    visitors = (path for path in (runs_dir / UPLOADS).glob("*") if is_owner(path.name))
    shared = (runs_dir / name for name in _SHARED_FOLDERS)
    swept = sum(map(sweep_staging, [runs_dir, *shared, *visitors]))
    purge_trash(runs_dir, TRASH_SECONDS)
    for run in list_runs(runs_dir):
        swept += sum(sweep_staging(run.folder / name) for name in _FOLDERS_WITH_STAGING)
        status = run.state().status
        if status == FINISHED and run.checkpoints.is_dir() and not run.is_version_0:
            remove_tree(run.checkpoints)  # the process died just after it had finished
            swept += 1
        if status in ENDED:
            for name in _STAGING_OF_VERSION_0:
                if (run.folder / name).exists():
                    remove_tree(run.folder / name)
                    swept += 1
    return swept


def _slug(config: TrainConfig) -> str:
    """Return the readable prefix of an id, such as rotten-tomatoes-r8."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(config.dataset_name).name.lower()).strip("-")[:40]
    return f"{name or 'run'}-r{config.r}"

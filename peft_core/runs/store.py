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
from peft_core.files import (
    Stamp,
    atomic_folder,
    make_folder,
    remove_folder,
    remove_tree,
    stamp_of,
    sweep_staging,
)
from peft_core.manifests import write_manifest
from peft_core.records import SCHEMA_VERSION, write_sealed
from peft_core.runs.ownership import Ownership, is_owner, write_ownership
from peft_core.runs.records import ENDED, FINISHED, SCHEDULED, RunState
from peft_core.runs.run import CONFIG_FILE, LOCK_FILE, STATUS_FILE, Run
from peft_core.runs.trash import SECONDS_KEPT, TRASH, discard, free_disk, purge_trash, take_back

UPLOADS, TOKENS = ".uploads", ".tokens"  # beside the runs: uploaded files, texts that were tokenized before
_SHARED_FOLDERS = (UPLOADS, TOKENS, TRASH)
_FOLDERS_WITH_STAGING = ("", "checkpoints", "downloads", "predictions")  # of a run
_STAGING_OF_VERSION_0 = (".adapter", ".merged", ".onnx", ".page", ".embeddings", "checkpoints/.staging")
_SETTLED = 1_000_000_000  # ns after which a second change cannot have the same time as the one before
_listed: dict[str, tuple[Stamp, tuple[Run, ...]]] = {}  # runs by folder, with the folder's stamp
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)


def create(
    runs_dir: Path, config: TrainConfig, *, owner: str | None = None, forecast_seconds: float | None = None
) -> Run:
    """A new run folder with its config, status SCHEDULED; it appears whole or not at all.

    `owner` is the SHA-256 of a visitor's token; None for the host. `forecast_seconds` is how long the
    training probably takes.
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
    """An id that no run has, nor one that was deleted and can come back."""
    while True:
        run_id = f"{_slug(config)}-{secrets.token_hex(3)}"
        if not any(os.path.lexists(folder / run_id) for folder in (runs_dir, runs_dir / TRASH)):
            return run_id


def find(runs_dir: Path, run_id: str) -> Run:
    """The run of an id; RunError if there is none (ids are names, never paths)."""
    if not _is_run_id(run_id) or not (runs_dir / run_id).is_dir():
        raise unknown_run(run_id)
    return Run(runs_dir / run_id)


def unknown_run(run_id: str) -> RunError:
    """The error of an id that names no run."""
    return RunError(f"There is no run {run_id!r}; ask for the list of runs.")


def _is_run_id(name: object) -> bool:
    return isinstance(name, str) and _RUN_ID.fullmatch(name) is not None


def list_runs(runs_dir: Path) -> list[Run]:
    """All runs, the newest first.

    The folder is read again only once its time has changed, as it does when a run is made, deleted or
    restored: each page asks every second, and the launcher three times.
    """
    key, stamp, now = str(runs_dir), stamp_of(runs_dir), time.time_ns()
    known = _listed.get(key)
    if known is not None and known[0] == stamp:
        return list(known[1])
    listed = _read_list(runs_dir)
    if stamp is not None and now - stamp.mtime_ns > _SETTLED:
        _listed[key] = (stamp, tuple(listed))
    return listed


def _read_list(runs_dir: Path) -> list[Run]:
    if not runs_dir.is_dir():
        return []
    folders = [Run(path) for path in runs_dir.iterdir() if path.is_dir() and _RUN_ID.fullmatch(path.name)]
    return sorted(folders, key=lambda run: (run.state().created, run.run_id), reverse=True)


def delete(runs_dir: Path, run_id: str) -> None:
    """Move a run into the trash; it leaves the list at once. RunError while it waits or trains.

    `restore` brings it back for an hour, unless the disk is short of room: then it is removed for good.
    """
    run = _find_ended(runs_dir, run_id)
    discard(run.folder)
    purge_trash(runs_dir, SECONDS_KEPT)
    free_disk(runs_dir)


def restore(runs_dir: Path, run_id: str) -> Run:
    """Bring a deleted run back as it was.

    Raises RunError if it is not in the trash any more, or if there is a run of this id.
    """
    folder = runs_dir / run_id if _is_run_id(run_id) else None
    if folder is None or not (runs_dir / TRASH / run_id).is_dir():
        raise RunError(
            f"The run {run_id!r} cannot be restored: deleted runs are kept for an hour, or less where the "
            "disk is full."
        )
    take_back(folder)
    return Run(folder)


def remove(runs_dir: Path, run_id: str) -> None:
    """Remove a run for good; RunError while it waits or trains."""
    remove_folder(_find_ended(runs_dir, run_id).folder)


def _find_ended(runs_dir: Path, run_id: str) -> Run:
    run = find(runs_dir, run_id)
    state = run.state()
    if state.status not in ENDED:
        raise RunError(f"The run {run_id!r} is {state.status}; stop it before you delete it.")
    if os.path.lexists(run.folder / LOCK_FILE):  # else nobody holds it, and a full disk has no room for it
        with contextlib.suppress(DamagedError), run.lock():  # RunError if a training has just begun
            pass  # and DamagedError if the lock is no file, which nobody can hold
    return run


def sweep(runs_dir: Path) -> int:
    """Remove what dead processes left half-written beside the runs and in each run; returns how many.

    Runs that were deleted more than an hour ago are removed for good, and not counted.
    """
    visitors = (path for path in (runs_dir / UPLOADS).glob("*") if is_owner(path.name))
    shared = (runs_dir / name for name in _SHARED_FOLDERS)
    swept = sum(map(sweep_staging, [runs_dir, *shared, *visitors]))
    purge_trash(runs_dir, SECONDS_KEPT)
    for run in list_runs(runs_dir):
        swept += sum(sweep_staging(run.folder / name) for name in _FOLDERS_WITH_STAGING)
        status = run.state().status
        if status == FINISHED and run.checkpoints.is_dir() and not run.is_version_0:
            remove_tree(run.checkpoints)  # of a process that died just after it had finished
            swept += 1
        if status in ENDED:
            for name in _STAGING_OF_VERSION_0:
                if (run.folder / name).exists():
                    remove_tree(run.folder / name)
                    swept += 1
    return swept


def _slug(config: TrainConfig) -> str:
    """A readable start for an id, such as rotten-tomatoes-r8."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(config.dataset_name).name.lower()).strip("-")[:40]
    return f"{name or 'run'}-r{config.r}"

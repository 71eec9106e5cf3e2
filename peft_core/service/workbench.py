"""The facade behind the page and the API endpoints, over runs, workers and limits; it speaks JSON types."""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.access.run_access import RunAccess
from peft_core.access.visitors import LOCAL_USER, Visitor
from peft_core.config import TrainConfig
from peft_core.data.unpacking import size_of
from peft_core.data.uploads import check_files, hide_upload_folders
from peft_core.disk.forecast import EXPORT_SIZES, model_bytes, training_bytes
from peft_core.disk.quotas import Usage
from peft_core.disk.storage import Reservation, Storage
from peft_core.errors import ConfigError, DataError, RunError
from peft_core.export.archives import folder_of, zip_of
from peft_core.export.hub.push import push as push_to_hub
from peft_core.export.snippets import ApiAccess
from peft_core.merging.certificate import certificate_of_merged
from peft_core.models.presets import with_absolute_paths
from peft_core.progress import Progress
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.runs.ownership import read_ownership
from peft_core.runs.queue import first_in_queue
from peft_core.service.inference import InferenceService, or_none
from peft_core.service.launcher import Launcher
from peft_core.service.limits import Limits, check_names_no_files, check_presets, settings_naming_files
from peft_core.service.references import tasks
from peft_core.service.visitor_uploads import TOKEN_NEEDED, VisitorUploads
from peft_core.service.worker import Report, Worker, in_thread

SECONDS_BETWEEN_SWEEPS = 600.0


class _SweepTimer:
    """Limits the cleanup of the folder of runs to one per ten minutes."""

    def __init__(self) -> None:
        self._next = 0.0

    def is_due(self) -> bool:
        """Return whether a cleanup is due, and if so start the next ten minutes."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + SECONDS_BETWEEN_SWEEPS
        return True


@dataclass(frozen=True)
class Workbench(InferenceService):
    """The actions of the page and the API.

    Attributes:
        launcher: starts and stops trainings.
        uploads: the uploads of the current visitor.
    """

    launcher: Launcher
    uploads: VisitorUploads
    _sweep_timer: _SweepTimer = field(default_factory=_SweepTimer)

    @classmethod
    def open(
        cls,
        runs_dir: Path,
        *,
        public: bool = False,
        visitor: Callable[[], Visitor] = lambda: LOCAL_USER,
        examples: Collection[str] = (),
    ) -> "Workbench":
        """Return a workbench over a folder of runs; nothing is started or written yet.

        Args:
            runs_dir: the folder.
            public: whether to apply the limits of a public demo.
            visitor: returns the current visitor.
            examples: ids of runs that every visitor may read.
        """
        limits = Limits() if public else None
        worker = Worker(limits.answer_seconds if limits else None)
        jobs = Worker(limits.job_seconds, limits.job_bytes) if limits else Worker()
        files = Worker(limits.reading_seconds, limits.reading_bytes) if limits else worker
        launcher = Launcher(runs_dir, limits)
        access = RunAccess(launcher.runs_dir, visitor, frozenset(examples))
        uploads = VisitorUploads(launcher.runs_dir, visitor, limits, files)
        storage = Storage(launcher.runs_dir, run_lock=launcher.lock) if limits else None
        return cls(access, worker, jobs, files, limits, storage, launcher, uploads)

    @property
    def runs_dir(self) -> Path:
        return self.launcher.runs_dir

    def start(self) -> None:
        """Warm the workers, remove unfinished files of dead processes, and resume the queue of runs."""
        if self._sweep_timer.is_due():  # every page that opens calls this method
            runs.sweep(self.runs_dir)
            if self.storage is not None:
                self.storage.expire()
        self.worker.warm()
        self.files.warm()
        self.launcher.resume_queue()

    def config(self, settings: Mapping[str, Any]) -> TrainConfig:
        """Return checked settings; raise ConfigError for a wrong one, or one that the visitor may not set."""
        config = TrainConfig.from_dict(self.uploads.resolve(settings))
        if self.limits is not None:
            check_presets(config, self.uploads.folder)
            self.limits.check(config, self.uploads.rows(config.dataset_name))
        elif not self.access.visitor().may_name_files:
            check_names_no_files(config, self.uploads.folder)
        return config

    def train(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Start or queue a run; return `{run_id, waiting_for}`.

        `waiting_for` is the run ahead in the queue, or None; its id is hidden if the visitor may not read it.
        """
        visitor, config = self.access.visitor(), self.config(settings)
        if not visitor.owns_all and visitor.owner is None:
            raise ConfigError(TOKEN_NEEDED)
        self.files.run(tasks.check_trainable, config.to_dict())
        seconds, needed = self._forecast(config)
        self._check_runs(visitor.owner)
        self.launcher.check_queue(visitor.owner)  # before old files are removed to make room
        with self.reserve(needed, "training", Path(config.dataset_name)) as reservation:
            ahead = self.launcher.current()
            run = self.launcher.submit(
                with_absolute_paths(config), owner=visitor.owner, forecast_seconds=seconds
            )
            if reservation is not None:
                reservation.keep_until_ended(run.run_id)
        return {"run_id": run.run_id, "waiting_for": self._name_for_visitor(ahead) if ahead else None}

    def _forecast(self, config: TrainConfig) -> tuple[float | None, int]:
        """Return the forecast seconds of a training, and on a public demo the bytes that it writes, else 0.

        Raises ConfigError if it takes more time or memory than a public demo allows.
        """
        if self.limits is None:
            return self.worker.run(tasks.forecast_seconds, config.to_dict()), 0
        cost = self.worker.run(tasks.cost, config.to_dict(), self.launcher.training_process())
        self.limits.check_forecast(cost)
        return cost["seconds"], training_bytes(cost["trainable"])

    def _check_runs(self, owner: str | None) -> None:
        if self.limits is None or owner is None:
            return
        own = sum(read_ownership(run.folder).owner == owner for run in runs.list_runs(self.runs_dir))
        if own >= self.limits.max_runs:
            raise RunError(f"You have {own} runs, the most that this public demo keeps; delete some.")

    def _name_for_visitor(self, run: Run) -> str:
        return run.run_id if self.access.may_read(run) else "another visitor's run"

    def train_again(self, run_id: str) -> dict[str, Any]:
        """Train with the settings of an earlier run, on its data and base model as they are now."""
        return self.train(self.settings_of(run_id).to_dict())

    def current_run(self) -> Run | None:
        """Return the run that trains now or comes next, of those that the visitor may read."""
        return first_in_queue(self.list_runs())

    def settings_of(self, run_id: str) -> TrainConfig:
        """Return the settings of a run; on a public demo the folders of uploads are hidden."""
        settings = self.find(run_id).config().to_dict()
        return TrainConfig.from_dict(hide_upload_folders(settings) if self.limits else settings)

    def list_runs(self) -> list[Run]:
        """Return the runs that the visitor may read, the newest first."""
        return self.access.list_runs()

    def status(self, run_id: str) -> dict[str, Any]:
        """Return the state, the settings and the result (or None) of a run."""
        return self.describe(self.find(run_id))

    def describe(self, run: Run) -> dict[str, Any]:
        """Return the `status` of a run; parts whose files are lost are None."""
        state, damage = run.state(), run.damage()
        metrics, config = or_none(run.result), or_none(run.config)
        description = {
            "run_id": run.run_id,
            **state.to_dict(),
            **self.launcher.queue_place(run).to_dict(),
            "settings": config.to_dict() if config else None,
            "may_change": self.access.owns(run),
            "can_continue": state.status in (runs.FAILED, runs.KILLED) and can_continue(run),
            "has_adapter": run.has_adapter,
            "merged": certificate_of_merged(run) is not None,
            "damage": damage,
            "usable": run.usable_parts() if damage else [],
            "result": metrics.to_dict() if metrics else None,
        }
        return self._hide_paths(description)

    def _hide_paths(self, description: dict[str, Any]) -> dict[str, Any]:
        """Remove folders of this machine: visitors may read an example that was trained on local files."""
        description = hide_upload_folders(description)
        settings = description["settings"] or {}
        for name in ("dataset_name", "model_name_or_path") if self.limits and settings else ():
            settings[name] = Path(settings[name]).name if os.path.isabs(settings[name]) else settings[name]
        return description

    def stop(self, run_id: str) -> dict[str, Any]:
        """Request a run to stop; return `{run_id, status}`."""
        return self._status_of(self.launcher.stop(self.find_own(run_id).run_id))

    def delete(self, run_id: str) -> dict[str, Any]:
        """Delete a run and return `{run_id, deleted}`; for an hour it can be restored.

        Raises RunError if the run has not ended.
        """
        self.launcher.delete(self.find_own(run_id).run_id)
        return {"run_id": run_id, "deleted": True}

    def restore(self, run_id: str) -> dict[str, Any]:
        """Restore a deleted run and return `{run_id, status}`.

        Raises RunError if it was removed permanently, StorageError if there is no longer room for it.
        """
        self.access.check_owns_deleted(run_id)
        with self.storage.reserve_restore(run_id) if self.storage else nullcontext():
            return self._status_of(self.launcher.restore(run_id))

    def resume(self, run_id: str) -> dict[str, Any]:
        """Continue a run from its newest checkpoint; return `{run_id, status}`."""
        return self._status_of(self.launcher.resume(self.find_own(run_id).run_id))

    def evaluate(self, run_id: str) -> dict[str, Any]:
        """Evaluate the newest checkpoint of a run without another step; return `{run_id, status}`."""
        run = self.find_own(run_id)
        return self._status_of(self.launcher.resume(run.run_id, evaluate_only=True))

    @staticmethod
    def _status_of(run: Run) -> dict[str, Any]:
        return {"run_id": run.run_id, "status": run.state().status}

    def count(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return exact parameter counts; no weights are read."""
        return self.worker.run(tasks.count, self.config(settings).to_dict())

    def count_all(self, settings: Sequence[Mapping[str, Any]]) -> Iterator[Report]:
        """Count several configurations; yield reports, the last with the counts or `error` of each."""
        configs = [self.config(configuration) for configuration in settings]
        return self.worker.stream(tasks.count_all, [config.to_dict() for config in configs])

    def cost(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the counts, the forecast seconds and memory of a training, and the free memory in bytes."""
        return self.worker.run(tasks.cost, self.config(settings).to_dict(), self.launcher.training_process())

    def describe_model(self, name: str, revision: str | None = None) -> dict[str, Any]:
        """Return a base model's type, size, labels and modules, from its configuration alone."""
        config = self.config({"model_name_or_path": name, "revision": revision or None})
        return self.worker.run(tasks.describe_model, config.model_name_or_path, config.revision)

    def inspect(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is known of the data before training: columns, inferred roles, splits, findings."""
        return hide_upload_folders(self.files.run(tasks.inspect, self.config(settings).to_dict()))

    def upload(self, paths: Sequence[Path], *, link: bool = False) -> str:
        """Store files as a data set of the visitor and return its `dataset_name`.

        Args:
            paths: of the files.
            link: whether to hard-link files instead of copying them; nobody may change them afterwards.

        Raises:
            DataError: if a file is too large or cannot be stored.
        """
        visitor = self.access.visitor()
        if not visitor.owns_all and visitor.owner is None:
            raise DataError(TOKEN_NEEDED)
        if self.limits is not None:
            check_files(paths, self.limits.max_upload_bytes)  # before old files are removed to make room
        with self.reserve(sum(map(size_of, paths)), "upload"):
            return self.uploads.store(paths, self._data_in_use(list_all=self.limits is None), link=link)

    def usage(self) -> Usage | None:
        """Return the disk usage of the visitor's runs and uploads; None if there is no quota."""
        return self.storage.usage(self.access.visitor().owner) if self.storage else None

    def was_expired(self, run_id: str) -> bool:
        """Return whether a run was removed for its age, or to make room."""
        return self.storage is not None and self.storage.was_expired(run_id)

    def _reserve_for(
        self, run: Run, purpose: str, models: float
    ) -> AbstractContextManager[Reservation | None]:
        """Reserve disk space for so many copies of the run's whole model in float32."""
        metrics = or_none(run.result) if self.storage else None
        needed = int(models * model_bytes(metrics.parameters.total)) if metrics else 0
        return self.reserve(needed, purpose, run.folder)

    def _data_in_use(self, *, list_all: bool) -> set[str]:
        """Return the data sets of all runs, or only of those that wait or train."""
        listed = runs.list_runs(self.runs_dir)
        using = (run for run in listed if list_all or run.state().status not in runs.ENDED)
        configs = (or_none(run.config) for run in using)
        return {config.dataset_name for config in configs if config is not None}

    def merge(self, run_id: str) -> Iterator[Report]:
        """Merge a run; yield reports, the last with the certificate."""
        run = self.find_own(run_id)
        with self._reserve_for(run, "merge", 1.0):
            yield from self.long_task_worker.stream(tasks.merge, str(run.folder))

    def make(self, kind: str, run_id: str, **options: Any) -> Iterator[Report]:
        """Write an export; yield reports, the last with the export's report. `archive` returns its zip.

        `kind` is `onnx` (option max_drop), `embeddings`, `page` or `script`.
        """
        run = self.find_own(run_id)
        with self._reserve_for(run, "export", EXPORT_SIZES.get(kind, 1.0)):
            yield from self.jobs.stream(tasks.export_run, str(run.folder), kind, options)

    def archive(self, run_id: str, kind: str) -> Path:
        """Return the zip of a part or an export of a run; a `script` is written first.

        `kind` is `script` or one of `archives.KINDS`. Raises RunError if the run has nothing of this kind.
        """
        if kind != "script":
            run = self.find(run_id)
            folder = folder_of(run, kind)
            with self.storage.reserve_copy(run.folder, folder) if self.storage else nullcontext():
                return zip_of(run, kind)
        *_, last = self.make("script", run_id)
        return Path(last.result["zip"])

    def holds(self, run_id: str | None, kind: str) -> bool:
        """Return whether a run has a part or an export of this kind."""
        return bool(run_id) and or_none(lambda: folder_of(self.find(run_id), kind)) is not None

    def push(
        self, run_id: str, kind: str, repo_id: str, token: str, private: bool, overwrite: bool
    ) -> Iterator[Report]:
        """Push to the Hub; yield reports, the last with the URL. The token is not stored."""
        run = self.find_own(run_id)

        def upload(progress: Progress) -> dict[str, str]:
            with run.detect_deletion():
                return push_to_hub(
                    run, kind, repo_id, token, private=private, overwrite=overwrite, progress=progress
                )

        return in_thread(upload)

    def code(self, run_id: str, kind: str, access: ApiAccess) -> str:
        """Return the run as a `script`, or API calls with its id as `python`, `curl` or `mcp`."""
        return hide_upload_folders(self.worker.run(tasks.code, str(self.find(run_id).folder), kind, access))

    def training_code(self, settings: Mapping[str, Any], kind: str, access: ApiAccess) -> str:
        """Return the `code` of settings that were not trained yet; it logs in if they name local files."""
        config = self.config(settings)
        login = access.login or bool(settings_naming_files(config, self.uploads.folder))
        access = replace(access, login=login)
        return hide_upload_folders(self.worker.run(tasks.training_code, config.to_dict(), kind, access))

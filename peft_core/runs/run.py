"""One run folder: the paths of its files, and readers for its state, settings, metrics and result.

No file is trusted because it exists. `manifest.json` lists `config.json` and `inputs.json`,
`evaluation/manifest.json` the result and its rows, `adapter/manifest.json` the adapter, and `status.json`
carries its own digest; each is verified as it is read. Reading a run never takes its lock: whether the
training process is alive follows from the process's identity (`process_identity`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, PeftCoreError, RunError
from peft_core.files import manifests
from peft_core.files.atomic import NOT_REGULAR, atomic_folder, remove_tree, translate_disk_errors
from peft_core.files.process_identity import command_line, is_same_process
from peft_core.files.records import read_json, read_record, write_sealed
from peft_core.runs.metrics import read_metrics
from peft_core.runs.read_cache import read_cached
from peft_core.runs.records import ENDED, FAILED, FINISHED, KILLED, RUNNING, RunResult, RunState

CONFIG_FILE, STATUS_FILE, RESULT_FILE, LOCK_FILE = "config.json", "status.json", "result.json", "lock"
_FOLDERS = (
    "adapter", "evaluation", "checkpoints", "merged", "onnx", "embeddings", "page", "downloads",
    "predictions", "probe", "vectors",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder, named by its id. The object holds no state; parsed records are cached by file times."""

    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def results(self) -> Path:
        """Folder of the result and its rows: `evaluation/`, or the run folder for schema version 0."""
        folder = self.folder / "evaluation"
        return folder if folder.is_dir() or not self.is_version_0 else self.folder

    @property
    def evaluation(self) -> Path:
        """Parquet of the test rows, as `evaluation_rows.write_evaluation_rows` writes it."""
        return self.results / "evaluation.parquet"

    @property
    def validation(self) -> Path:
        """Parquet file of the validation rows, if there were any."""
        return self.results / "validation.parquet"

    @property
    def certificate(self) -> Path:
        """Certificate of the merged model, inside the model's folder."""
        return self.merged / "certificate.json"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def is_version_0(self) -> bool:
        """Whether the run is of schema version 0: it has no manifest, and its config has no version."""
        if (self.folder / manifests.MANIFEST_FILE).exists():
            return False
        try:
            return "schema_version" not in read_json(self.folder / CONFIG_FILE)
        except DamagedError:
            return False

    @property
    def has_adapter(self) -> bool:
        """Whether adapter weights exist; `verify` checks that they are undamaged."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    @property
    def was_evaluated(self) -> bool:
        """Whether the run once had a result, and so an adapter, which is saved first; both may be lost."""
        return (self.folder / "evaluation").is_dir() or self.state().status == FINISHED

    def verify_adapter(self) -> None:
        """Raise DamagedError if an adapter was saved and is lost or damaged."""
        if self.adapter.is_dir():
            self.verify(self.adapter)
        if not self.has_adapter and self.was_evaluated:
            raise DamagedError(f"{self._damage_prefix}its adapter is missing; train it again.")

    def verify(self, folder: Path) -> None:
        """Raise DamagedError, with the run's id, if a folder of this run differs from its manifest."""
        if not self.is_version_0:
            with self._with_run_name():
                manifests.verify_folder(folder)

    @contextlib.contextmanager
    def new_folder(self, folder: Path) -> Iterator[Path]:
        """Yield a staging folder to fill; at the end it gets a manifest and replaces `folder`.

        Raises:
            RunError: The run was deleted before the end.
        """
        with self.detect_deletion(), atomic_folder(folder, root=self.folder) as staging:
            yield staging
            manifests.write_manifest(staging)

    @contextlib.contextmanager
    def detect_deletion(self) -> Iterator[None]:
        """Raise RunError, instead of any other error, if the run is deleted before the block ends.

        Libraries create missing folders when they save, so they may recreate the folder of a deleted run, but
        never its records. A folder that has lost both records is removed.
        """
        if not self.folder.is_dir():
            raise RunError(f"There is no run {self.run_id!r}; it may have been deleted.")
        had_records, failure = self._has_records(), None
        try:
            yield
        except Exception as error:
            failure = error
        is_recreated = had_records and self.folder.is_dir() and not self._has_records()
        if is_recreated:
            remove_tree(self.folder)
        if is_recreated or (failure is not None and not self.folder.is_dir()):
            raise RunError(f"The run {self.run_id!r} was deleted meanwhile; choose another run.") from failure
        if failure is not None:
            raise failure

    def _has_records(self) -> bool:
        return any(os.path.lexists(self.folder / name) for name in (CONFIG_FILE, STATUS_FILE))

    def config(self) -> TrainConfig:
        """Return the settings. Raises DamagedError if `config.json` is missing or damaged."""
        return read_cached("config", self.folder, self._read_config)

    def _read_config(self) -> TrainConfig:
        try:
            if not self.is_version_0:
                manifests.verify_file(self.folder, CONFIG_FILE)
            values = read_json(self.folder / CONFIG_FILE)
            values.pop("schema_version", None)
            return TrainConfig.from_dict(values)
        except PeftCoreError as error:
            raise DamagedError(f"The run {self.run_id!r} has no usable {CONFIG_FILE}: {error}") from error

    def result(self) -> RunResult:
        """Return the result of a finished or stopped run. Raises RunError if it is missing or damaged."""
        return read_cached("result", self.folder, self._read_result)

    def _read_result(self) -> RunResult:
        if not (self.results / RESULT_FILE).is_file() and not (self.folder / "evaluation").is_dir():
            self.refuse_unevaluated()
            if self.was_evaluated:
                raise DamagedError(
                    f"{self._damage_prefix}its result and its test rows are missing; train it again."
                )
            raise RunError(f"The run {self.run_id!r} has no {RESULT_FILE}.")
        with self._with_run_name():
            if not self.is_version_0:
                manifests.verify_folder(self.results)
            record = read_record(self.results / RESULT_FILE, RunResult)
            evaluated, present = record.adapter_sha256, self._adapter_sha256()
            if evaluated and present and evaluated != present:
                raise DamagedError(
                    "its result belongs to another adapter than the one in adapter/; continue it."
                )
        return record

    def refuse_unevaluated(self) -> None:
        """Raise RunError for a stopped run that has an adapter, but never evaluated its test rows."""
        if self.has_adapter and not self.evaluation.is_file() and self.state().status == KILLED:
            raise RunError(
                f"The run {self.run_id!r} was stopped before its test rows were evaluated; evaluate or "
                "continue it first."
            )

    def state(self) -> RunState:
        """Return the current state.

        A run whose process died, or whose status file is lost, is returned as FAILED, with the reason in
        `error` (and in `damage`).
        """
        try:
            state = self._read_state()
            if state.status == RUNNING and not self._is_alive(state):
                state = self._read_state()  # it may have ended between the two reads
                if state.status == RUNNING and not self._is_alive(state):
                    return state.replace(status=FAILED, error=_died_message(state))
            return state
        except DamagedError as error:
            damage = f"The state of the run {self.run_id!r} is lost: {error}"
            return RunState(status=FAILED, created=self._created_fallback(), error=damage, damage=damage)

    def damage(self) -> list[str]:
        """Return one message for each damaged part.

        The files are verified again only after one of them has another time, size or inode.
        """
        return list(read_cached("damage", self.folder, self._find_damage))

    def _find_damage(self) -> list[str]:
        checks: tuple[Callable[[], Any], ...] = (
            self._read_state,
            self.config,
            self._verify_own_files,
            self._verify_file_types,
            self.verify_adapter,
            lambda: self.result() if self.was_evaluated else None,
        )
        problems = []
        for check in checks:
            try:
                check()
            except DamagedError as error:
                problems.append(str(error).removeprefix(self._damage_prefix))
        return list(dict.fromkeys([*problems, *filter(None, [self.metrics_damage()])]))

    def usable_parts(self) -> list[str]:
        """Return the display names of the parts of a run that exist and are undamaged."""
        checks: dict[str, Callable[[], Any]] = {
            "settings": self.config,
            "adapter": lambda: manifests.read_manifest(self.adapter) and self.verify(self.adapter),
            "result and test rows": self.result,
        }
        usable = []
        for name, check in checks.items():
            with contextlib.suppress(RunError):
                check()
                usable.append(name)
        return usable

    def update(self, **changes: Any) -> None:
        """Change fields of the state, atomically. Raises DamagedError if the current state is lost."""
        write_sealed(self.folder / STATUS_FILE, self._read_state().replace(**changes))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl up to the first line that is half written or damaged."""
        return [dict(row) for row in read_metrics(self.folder).rows]

    def metrics_damage(self) -> str:
        """Return a message if rows of metrics.jsonl are lost, else an empty string."""
        log = read_metrics(self.folder)
        if log.damage:
            return log.damage
        expected_check = self._last_metrics_check()
        if expected_check is None or expected_check in log.checks:
            return ""
        return "metrics.jsonl is missing its last rows; the curve is incomplete."

    def _last_metrics_check(self) -> str | None:
        """Return the check of the last row from the state or, if that is lost, from the result.

        The result of a continued run is of an earlier training, whose rows may be gone.
        """
        try:
            return self._read_state().metrics_check
        except DamagedError:
            with contextlib.suppress(RunError):
                return self.result().get("metrics_check")
            return None

    def request_stop(self, reason: str = "") -> None:
        """Ask the training process to stop. `reason` is a full sentence; the run's note begins with it."""
        with translate_disk_errors():
            (self.folder / "stop").touch()
            if reason:
                (self.folder / "stop").write_text(reason, encoding="utf-8")

    def stop_reason(self) -> str:
        """Return the reason passed to `request_stop`, or an empty string."""
        try:
            return (self.folder / "stop").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def stop_requested(self) -> bool:
        return (self.folder / "stop").exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the training process; the system releases it when the process exits or is killed.

        Raises:
            RunError: Another process trains this run.
            DamagedError: The lock is not a regular file.
        """
        lock = FileLock(self.folder / LOCK_FILE, timeout=0)
        try:
            with translate_disk_errors():
                lock.acquire()
        except Timeout as error:
            raise RunError(f"The run {self.run_id!r} is being trained by another process.") from error
        except OSError as error:
            raise DamagedError(
                f"{self._damage_prefix}its file {LOCK_FILE!r} cannot be locked ({error.strerror}); remove it."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def is_unfinished(self) -> bool:
        """Whether the state on disk is that of a run that waits or trains."""
        return self._read_state().status not in ENDED

    def training_process(self) -> int | None:
        """Return the pid of the process that trains this run, verified by start time and command line."""
        state = self._read_state()
        if state.status != RUNNING or state.pid is None or state.pid <= 1 or not self._is_alive(state):
            return None
        command = command_line(state.pid)
        return state.pid if str(self.folder) in command or self.run_id in " ".join(command) else None

    @property
    def _damage_prefix(self) -> str:
        return f"The run {self.run_id!r} is damaged: "

    def _verify_own_files(self) -> None:
        """Raise DamagedError if a file that the run folder's manifest lists is missing or damaged."""
        if self.is_version_0:
            return
        with self._with_run_name():
            for name in manifests.read_manifest(self.folder).files:
                manifests.verify_file(self.folder, name)

    def _verify_file_types(self) -> None:
        """Raise DamagedError if the lock is not a regular file, or an expected folder is not a folder."""
        lock = self.folder / LOCK_FILE
        if os.path.lexists(lock) and not lock.is_file():
            raise DamagedError(f"{LOCK_FILE} cannot be used: {NOT_REGULAR}.")
        for path in (self.folder / name for name in _FOLDERS):
            if os.path.lexists(path) and not path.is_dir():
                raise DamagedError(f"{path.name} cannot be used: it is not a folder.")

    def _is_alive(self, state: RunState) -> bool:
        if state.pid is None or state.pid < 1:
            return False
        if state.process is None:  # of schema version 0
            return state.pid > 1 and self.run_id in " ".join(command_line(state.pid))
        return is_same_process(state.pid, state.process)

    def _read_state(self) -> RunState:
        return read_record(f"{self.folder}/{STATUS_FILE}", RunState, sealed=True)

    def _adapter_sha256(self) -> str | None:
        """Return the hash of the adapter's weights from its manifest; None without a readable manifest."""
        try:
            entry = manifests.read_manifest(self.adapter).files.get("adapter_model.safetensors")
        except DamagedError:
            return None
        return entry.sha256 if entry else None

    def _created_fallback(self) -> float:
        """Return the time of `config.json`, which is written once, as creation time if the state is lost."""
        for path in (self.folder / CONFIG_FILE, self.folder):
            with contextlib.suppress(OSError):
                return max(0.0, path.stat().st_mtime)
        return 0.0

    @contextlib.contextmanager
    def _with_run_name(self) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            raise DamagedError(f"{self._damage_prefix}{error}") from error


def _died_message(state: RunState) -> str:
    where = (
        f" at step {state.step} of {state.max_steps}" if state.step else f" while {state.stage or 'starting'}"
    )
    return f"The training process ended unexpectedly{where}: it was killed, or memory or the disk ran out."

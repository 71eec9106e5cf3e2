"""One run folder: where its files lie, and its state, settings, metrics and result as they are read from it.

Nothing here is trusted because a file exists. `manifest.json` names `config.json` and `inputs.json`,
`evaluation/manifest.json` names the result and its rows, `adapter/manifest.json` the adapter, and
`status.json` carries its own digest: each is verified as it is read. Looking at a run never takes its lock;
whether its process lives is told by the process's identity.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peft_core import manifests
from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, PeftCoreError, RunError
from peft_core.files import NOT_REGULAR, atomic_folder, remove_tree, translate_disk_errors
from peft_core.process_identity import command_line, is_same_process
from peft_core.records import read_json, read_record, write_sealed
from peft_core.runs.metrics import read_metrics
from peft_core.runs.records import ENDED, FAILED, FINISHED, KILLED, RUNNING, RunResult, RunState
from peft_core.runs.signatures import remember

CONFIG_FILE, STATUS_FILE, RESULT_FILE, LOCK_FILE = "config.json", "status.json", "result.json", "lock"
_FOLDERS = (
    "adapter", "evaluation", "checkpoints", "merged", "onnx", "embeddings", "page", "downloads",
    "predictions", "probe", "vectors",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder, named by its id. It holds no state; parsed records are cached by their files' times."""

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
        """The folder of the result and its rows; of schema version 0 they lie in the run folder."""
        folder = self.folder / "evaluation"
        return folder if folder.is_dir() or not self.is_version_0 else self.folder

    @property
    def evaluation(self) -> Path:
        """Parquet of the test rows, as `rows.write_rows` writes it."""
        return self.results / "evaluation.parquet"

    @property
    def validation(self) -> Path:
        """The same of the validation rows, where there were any."""
        return self.results / "validation.parquet"

    @property
    def certificate(self) -> Path:
        """The certificate of the merged model, inside its folder."""
        return self.merged / "certificate.json"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def is_version_0(self) -> bool:
        """Whether the run was made before files were verified: it has no manifest and says no version."""
        if (self.folder / manifests.MANIFEST_FILE).exists():
            return False
        try:
            return "schema_version" not in read_json(self.folder / CONFIG_FILE)
        except DamagedError:
            return False

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is there; `verify` tells whether it is whole."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    @property
    def was_evaluated(self) -> bool:
        """Whether there was a result, and so an adapter, which is saved before it; `verify` tells whether
        they are whole."""
        return (self.folder / "evaluation").is_dir() or self.state().status == FINISHED

    def verify_adapter(self) -> None:
        """Raise DamagedError if an adapter was saved and is lost, or not as it was written."""
        if self.adapter.is_dir():
            self.verify(self.adapter)
        if not self.has_adapter and self.was_evaluated:
            raise DamagedError(f"{self._damage_prefix}it has lost its adapter; train it again.")

    def verify(self, folder: Path) -> None:
        """Raise DamagedError, with the run's name, unless a folder of this run is as it was written."""
        if not self.is_version_0:
            with self._with_run_name():
                manifests.verify_folder(folder)

    @contextlib.contextmanager
    def new_folder(self, folder: Path) -> Iterator[Path]:
        """A staging folder to fill; at the end it gets a manifest and takes the place of `folder`.

        Raises RunError if the run is deleted before that.
        """
        with self.detect_deletion(), atomic_folder(folder, root=self.folder) as staging:
            yield staging
            manifests.write_manifest(staging)

    @contextlib.contextmanager
    def detect_deletion(self) -> Iterator[None]:
        """Raise RunError, in place of any other error, if the run is deleted before the block ends.

        Libraries create missing folders when they save, and so the folder of a deleted run again, but never
        its records: a folder that has lost both is removed.
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
        """The settings; RunError if the file is missing or damaged."""
        return remember("config", self.folder, self._read_config)

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
        """What a finished (or stopped) run measured; RunError if there is none, or it is damaged."""
        return remember("result", self.folder, self._read_result)

    def _read_result(self) -> RunResult:
        if not (self.results / RESULT_FILE).is_file() and not (self.folder / "evaluation").is_dir():
            self.refuse_unevaluated()
            if self.was_evaluated:
                raise DamagedError(
                    f"{self._damage_prefix}it has lost its result and its test rows; train it again."
                )
            raise RunError(f"The run {self.run_id!r} has no {RESULT_FILE}.")
        with self._with_run_name():
            if not self.is_version_0:
                manifests.verify_folder(self.results)
            result = read_record(self.results / RESULT_FILE, RunResult)
            measured, present = result.adapter_sha256, self._adapter_sha256()
            if measured and present and measured != present:
                raise DamagedError("its result is of another adapter than the one in adapter/; continue it.")
        return result

    def refuse_unevaluated(self) -> None:
        """Raise RunError for a stopped run that keeps an adapter, but never evaluated its test rows."""
        if self.has_adapter and not self.evaluation.is_file() and self.state().status == KILLED:
            raise RunError(
                f"The run {self.run_id!r} was stopped before its test rows were evaluated; evaluate or "
                "continue it first."
            )

    def state(self) -> RunState:
        """What the run does now. A run whose process died without a word, or whose status is lost, reads
        FAILED, with `error` (and `damage`) saying why."""
        try:
            state = self._read_state()
            if state.status == RUNNING and not self._is_alive(state):
                state = self._read_state()  # it may have ended between the two looks
                if state.status == RUNNING and not self._is_alive(state):
                    return state.changed(status=FAILED, error=_died_message(state))
            return state
        except DamagedError as error:
            damage = f"The state of the run {self.run_id!r} is lost: {error}"
            return RunState(status=FAILED, created=self._created_fallback(), error=damage, damage=damage)

    def damage(self) -> list[str]:
        """What is damaged, a sentence each, as far as it can be told without hashing large files.

        The files are compared again only once one of them has another time, size or inode.
        """
        return list(remember("damage", self.folder, self._find_damage))

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

    def usable(self) -> list[str]:
        """The parts of a run that are there and whole, as people call them."""
        parts: dict[str, Callable[[], Any]] = {
            "settings": self.config,
            "adapter": lambda: manifests.read_manifest(self.adapter) and self.verify(self.adapter),
            "result and test rows": self.result,
        }
        usable = []
        for name, read in parts.items():
            with contextlib.suppress(RunError):
                read()
                usable.append(name)
        return usable

    def update(self, **changes: Any) -> None:
        """Change entries of the state, whole or not at all; DamagedError if the present one is lost."""
        write_sealed(self.folder / STATUS_FILE, self._read_state().changed(**changes))

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far, up to the first line that is half-written or damaged."""
        return [dict(row) for row in read_metrics(self.folder).rows]

    def metrics_damage(self) -> str:
        """A sentence if rows of metrics.jsonl are lost; empty if none are."""
        log = read_metrics(self.folder)
        if log.damage:
            return log.damage
        written = self._last_metrics_check()
        if written is None or written in log.checks:
            return ""
        return "metrics.jsonl has lost its last rows; the curve is not whole."

    def _last_metrics_check(self) -> str | None:
        """The check of the last row that the state knows of or, where that is lost, of the result's last.

        The result of a run that is continued is of an earlier training, whose rows may be gone.
        """
        try:
            return self._read_state().metrics_check
        except DamagedError:
            with contextlib.suppress(RunError):
                return self.result().get("metrics_check")
            return None

    def request_stop(self, reason: str = "") -> None:
        """Ask the training process to stop; a reason, which is a sentence, begins the note of the run."""
        with translate_disk_errors():
            (self.folder / "stop").touch()
            if reason:
                (self.folder / "stop").write_text(reason, encoding="utf-8")

    def stop_reason(self) -> str:
        """The sentence that `request_stop` was given; empty if it was none."""
        try:
            return (self.folder / "stop").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def stop_requested(self) -> bool:
        return (self.folder / "stop").exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the training process; the system releases it when the process exits, even if it is killed.

        Raises RunError if another process trains this run, DamagedError if the lock is no file.
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
        """Whether the state, as it was written last, is of a run that waits or trains."""
        return self._read_state().status not in ENDED

    def training_process(self) -> int | None:
        """The pid of the process that trains this run now, proven by start time and command line."""
        state = self._read_state()
        if state.status != RUNNING or state.pid is None or state.pid <= 1 or not self._is_alive(state):
            return None
        command = command_line(state.pid)
        return state.pid if str(self.folder) in command or self.run_id in " ".join(command) else None

    @property
    def _damage_prefix(self) -> str:
        return f"The run {self.run_id!r} is damaged: "

    def _verify_own_files(self) -> None:
        """Raise DamagedError unless the files that the run's own manifest names are as they were written."""
        if self.is_version_0:
            return
        with self._with_run_name():
            for name in manifests.read_manifest(self.folder).files:
                manifests.verify_file(self.folder, name)

    def _verify_file_types(self) -> None:
        """Raise DamagedError if the lock is not a file, or the name of a folder belongs to something else."""
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
        """The hash of the adapter's weights as its manifest has it; None if there is no such manifest."""
        try:
            entry = manifests.read_manifest(self.adapter).files.get("adapter_model.safetensors")
        except DamagedError:
            return None
        return entry.sha256 if entry else None

    def _created_fallback(self) -> float:
        """About when the run was made, for one whose state is lost: its settings are written once."""
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

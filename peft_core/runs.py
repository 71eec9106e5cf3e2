"""The run folder: create, list, load, status, metrics and result; everything else reads runs through here."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError, RunError

SCHEDULED, RUNNING, FINISHED, FAILED, KILLED = "SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"
ENDED = (FINISHED, FAILED, KILLED)
_RESULT_KEYS = {
    "baseline", "train_rows", "eval_rows", "parameters", "untrained", "train_seconds", "tokens_per_second",
}  # fmt: skip
_TASK_KEYS = {
    "single_label_classification": {
        "accuracy", "accuracy_interval", "macro_f1", "confusion_matrix", "labels", "train_label_shares",
    },
    "multi_label_classification": {
        "micro_f1", "micro_f1_interval", "macro_f1", "subset_accuracy", "per_label", "labels",
        "train_label_shares",
    },
    "regression": {
        "spearman", "spearman_interval", "pearson", "mae", "rmse", "points", "train_label_range",
    },
}  # fmt: skip
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class Run:
    """One run folder, named by its id. Nothing of it is kept in memory."""

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
    def is_merged(self) -> bool:
        return (self.merged / "model.safetensors").is_file()

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.json"

    @property
    def evaluation(self) -> Path:
        """Parquet of the test rows, as `rows.save_rows` writes it."""
        return self.folder / "evaluation.parquet"

    @property
    def validation(self) -> Path:
        """The same of the validation rows, where there were any."""
        return self.folder / "validation.parquet"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def can_continue(self) -> bool:
        """Whether a checkpoint is left to go on from."""
        return any((self.folder / "checkpoints").glob("checkpoint-*"))

    @property
    def has_adapter(self) -> bool:
        return (self.adapter / "adapter_model.safetensors").is_file()

    def config(self) -> TrainConfig:
        """The settings; RunError if the file is missing or damaged."""
        try:
            return TrainConfig.from_dict(self._read("config.json"))
        except PeftCoreError as error:
            raise RunError(f"The run {self.run_id!r} has no usable config.json: {error}") from error

    def result(self) -> dict[str, Any]:
        """What a finished (or stopped) run measured; RunError if there is none, or parts of it are lost."""
        result = {"problem_type": "single_label_classification", **self._read("result.json")}
        if "majority" in result:  # what runs of one label called their baseline before there were other tasks
            result["baseline"] = result.pop("majority")
        lost = sorted((_RESULT_KEYS | _TASK_KEYS.get(result["problem_type"], set())) - set(result))
        if lost:
            raise RunError(
                f"The result.json of the run {self.run_id!r} has lost its {lost[0]}; train it again."
            )
        return result

    def state(self) -> dict[str, Any]:
        """`status`, and as known: stage, problem_type, step, max_steps, tokens_per_second, eta, error,
        created, started, ended (seconds since the epoch). A run whose process died without a word reads
        FAILED."""
        try:
            state = self._read("status.json")
        except RunError:
            return {"status": FAILED, "error": f"The run {self.run_id!r} has lost its status.json."}
        if state.get("status") not in (SCHEDULED, RUNNING, *ENDED):
            return {**state, "status": FAILED, "error": f"The status.json of {self.run_id!r} has no status."}
        if state["status"] == RUNNING and not self.is_locked():
            state = self._read("status.json")  # it may have ended between the two looks
            if state["status"] == RUNNING:
                return {**state, "status": FAILED, "error": _died(state)}
        return state

    def update(self, **changes: Any) -> None:
        """Change entries of the status, whole or not at all."""
        with contextlib.suppress(RunError):
            changes = {**self._read("status.json"), **changes}
        write_json(self.folder / "status.json", changes)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far, without a line that is half-written or damaged."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows of steps that a run which continues from a checkpoint takes again, and the result."""
        kept = [
            json.dumps(row) + "\n"
            for row in self.metrics()
            if row["step"] <= step and not any(key.startswith("test_") for key in row)
        ]
        write_text(self.folder / "metrics.jsonl", "".join(kept))

    def request_stop(self) -> None:
        (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.folder / "stop").exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the training process for as long as it lives: the system lets go of it however it dies.

        Raises RunError if another process trains this run.
        """
        try:
            # is_locked() of another process may hold it for an instant, so one refusal says nothing
            with FileLock(self.folder / "lock", timeout=3):
                yield
        except Timeout as error:
            raise RunError(f"The run {self.run_id!r} is being trained by another process.") from error

    def is_locked(self) -> bool:
        """Whether a process trains this run now."""
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return False
        except Timeout:
            return True

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"The run {self.run_id!r} has no {name}.") from error
        except (OSError, ValueError) as error:
            raise RunError(f"The {name} of the run {self.run_id!r} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise RunError(f"The {name} of the run {self.run_id!r} holds no object.")
        return found


def create(runs_dir: Path, config: TrainConfig) -> Run:
    """A new run folder with its config, status SCHEDULED; it appears whole or not at all."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    run_id = f"{_slug(config)}-{secrets.token_hex(3)}"
    staging = runs_dir / f".{run_id}"
    with whole_folder(staging, runs_dir / run_id):
        (staging / "config.json").write_text(config.to_json(), encoding="utf-8")
        write_json(staging / "status.json", {"status": SCHEDULED, "created": time.time()})
    return Run(runs_dir / run_id)


def find(runs_dir: Path, run_id: str) -> Run:
    """The run of an id; RunError if there is none (ids are names, never paths)."""
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id) or not (runs_dir / run_id).is_dir():
        raise RunError(f"There is no run {run_id!r}; ask for the list of runs.")
    return Run(runs_dir / run_id)


def list_runs(runs_dir: Path) -> list[Run]:
    """All runs, the newest first."""
    if not runs_dir.is_dir():
        return []
    found = [Run(path) for path in runs_dir.iterdir() if path.is_dir() and _RUN_ID.fullmatch(path.name)]
    return sorted(found, key=lambda run: (run.state().get("created", 0.0), run.run_id), reverse=True)


def delete(runs_dir: Path, run_id: str) -> None:
    """Remove a run that no process trains. It disappears by one rename; its files are removed after that.

    Raises RunError if there is no such run.
    """
    run = find(runs_dir, run_id)
    hidden = runs_dir / f".deleted-{run_id}-{secrets.token_hex(3)}"
    run.folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


# what safetensors, torch.save and datasets say of a full disk or of a file that may not grow
_FULL = ("No space left", "File too large", "unexpected pos", "iostream error", "Not enough disk space")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, from Python or from a library's own writer, comes of a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in str(seen) for words in _FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def disk_full_in_words() -> Iterator[None]:
    """Turn a full disk into a RunError; other errors pass."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise RunError(
                "The disk is full: free some space and try again; nothing half-written is left."
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """A JSON file that appears whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole or not at all."""
    with whole_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file written under a temporary name, synced, renamed; nothing is left of it if the writing fails."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_full_in_words():
            yield staging
            _fsync(staging)
            staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(staging: Path, final: Path) -> Iterator[Path]:
    """A folder filled under a temporary name, synced, renamed; nothing is left if the filling fails."""
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_full_in_words():
            staging.mkdir(parents=True)
            yield staging
            for path in staging.rglob("*"):
                if path.is_file():
                    _fsync(path)
            shutil.rmtree(final, ignore_errors=True)
            staging.replace(final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _slug(config: TrainConfig) -> str:
    """A readable start for an id, such as rotten-tomatoes-r8."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(config.dataset_name).name.lower()).strip("-")[:40]
    return f"{name or 'run'}-r{config.r}"


def _died(state: dict[str, Any]) -> str:
    step = state.get("step")
    where = (
        f" at step {step} of {state.get('max_steps')}" if step else f" while {state.get('stage', 'starting')}"
    )
    return f"The training process ended without a word{where}: it was killed, or memory or the disk ran out."

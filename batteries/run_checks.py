"""Invariants of a run folder after the death of its process: each part is complete, absent or reported.

Each function returns one sentence per violation.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.errors import DamagedError, PeftCoreError, RunError
from peft_core.files.manifests import verify_folder
from peft_core.inference.loading import MERGED
from peft_core.inference.predictor import Predictor
from peft_core.merging.certificate import verified_certificate
from peft_core.runs import FAILED, FINISHED, Run, RunState
from peft_core.runs.checkpoints import choose_checkpoint
from peft_core.runs.evaluation_rows import VALIDATION, load_evaluation_rows
from peft_core.runs.store import TOKENS
from peft_core.runs.trash import TRASH

MADE = ("adapter", "evaluation", "embeddings", "onnx", "page", "vectors", "probe")  # folders with a manifest
TEXTS = ("The food was awful and the staff rude.", "Wonderful, the best pizza.")
DIED = "ended unexpectedly"


def torn_parts(run: Run) -> list[str]:
    """Return parts of a run that exist and differ from what was written."""
    folders = [run.folder / name for name in MADE] + sorted((run.folder / "downloads").glob("[!.]*"))
    checks: dict[str, Callable[[], Any]] = {
        str(folder.relative_to(run.folder)): lambda folder=folder: verify_folder(folder)
        for folder in folders
        if folder.is_dir()
    }
    checks["settings"] = run.config
    if run.state().status != FINISHED:  # a finished run may have died while it removed them
        checks["checkpoints"] = lambda: choose_checkpoint(run)
    if run.certificate.is_file():
        checks["merged"] = lambda: _verify_merged_of_current_adapter(run)
    problems = [f"{name} is torn: {error}" for name, check in checks.items() for error in _damage(check)]
    return problems + [f"it is reported as damaged: {sentence}" for sentence in run.damage()]


def unusable_parts(run: Run) -> list[str]:
    """Return parts of a run that are complete but cannot be loaded and used."""
    checks: dict[str, Callable[[], Any]] = {}
    if run.has_adapter:
        checks["adapter"] = lambda: Predictor(run.folder).predict(TEXTS)
    if run.evaluation.is_file() and _result_matches_adapter(run):
        checks["evaluation"] = lambda: (load_evaluation_rows(run), load_evaluation_rows(run, VALIDATION))
    if run.certificate.is_file() and _is_merged(run):
        checks["merged"] = lambda: Predictor(run.folder, MERGED).predict(TEXTS)
    return [f"{name} cannot be used: {error}" for name, check in checks.items() for error in _errors(check)]


def state_problems(run: Run, last_status: str) -> list[str]:
    """Return a problem if the state of a run whose process died contradicts the last status that it wrote.

    A run that was RUNNING must be FAILED and report that its process died.
    """
    state = run.state()
    if last_status in runs.ENDED:
        is_expected = state.status == last_status
    elif last_status == runs.RUNNING:
        is_expected = state.status == FINISHED or _died(state)
    else:  # killed before or after it wrote RUNNING
        is_expected = state.status == runs.SCHEDULED or _died(state)
    return [] if is_expected else [f"its state is {state.status} ({state.error}) after {last_status}"]


def _died(state: RunState) -> bool:
    return state.status == FAILED and DIED in (state.error or "")


def lock_problems(run: Run) -> list[str]:
    """Return a problem if the lock of a dead process is not free."""
    return [f"its lock is taken: {error}" for error in _errors(lambda: _lock(run))]


def staging_left(runs_dir: Path) -> list[str]:
    """Return leftover staging files and folders of dead processes.

    The old content of a folder whose new name could not be synced is kept until the next sweep, deleted runs
    for an hour.
    """
    permanent = (TOKENS, TRASH)
    hidden = [
        path for path in runs_dir.rglob("*") if path.name.startswith(".") and path.name not in permanent
    ]
    outermost = [path for path in hidden if path.parent not in hidden]
    return [f"{path.relative_to(runs_dir)} is left" for path in outermost if not _is_old_content(path)]


def _is_old_content(path: Path) -> bool:
    """Whether a staging folder contains only one complete folder that was replaced by another."""
    inside = list(path.iterdir()) if path.is_dir() else []
    if len(inside) != 1 or not path.with_name(inside[0].name).is_dir():
        return False
    try:
        verify_folder(inside[0])
    except DamagedError:
        return False
    return True


def chosen_step(run: Run) -> int:
    """Return the step from which a run would resume; 0 if it would start anew or cannot resume."""
    try:
        choice = choose_checkpoint(run)
        return choice.step if choice else 0
    except RunError:
        return 0


def _damage(check: Callable[[], Any]) -> Iterator[str]:
    try:
        check()
    except DamagedError as error:
        yield str(error)


def _errors(check: Callable[[], Any]) -> Iterator[str]:
    try:
        check()
    except PeftCoreError as error:
        yield str(error)
    except Exception as error:  # any other error is a bug, and reported too
        yield f"{type(error).__name__}: {error} (a bug)"


def _verify_merged_of_current_adapter(run: Run) -> None:
    """Verify a merged model; one of an earlier adapter is not torn and passes."""
    try:
        verified_certificate(run)
    except DamagedError:
        raise
    except RunError:
        return


def _is_merged(run: Run) -> bool:
    return not list(_errors(lambda: verified_certificate(run)))


def _result_matches_adapter(run: Run) -> bool:
    return not any("belongs to another adapter" in error for error in _errors(run.result))


def _lock(run: Run) -> None:
    with run.lock():
        pass

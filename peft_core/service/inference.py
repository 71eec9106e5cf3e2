"""Inference on trained runs for the page and the API; arguments and return values are JSON types."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from peft_core.access.run_access import RunAccess
from peft_core.data.characters import check_text
from peft_core.data.unpacking import size_of, unpacked_bytes
from peft_core.disk.storage import Reservation, Storage
from peft_core.errors import ConfigError, DataError, RunError
from peft_core.inference.classifier import Classifier
from peft_core.runs import Run
from peft_core.service.limits import Limits
from peft_core.service.references import tasks
from peft_core.service.worker import Report, Worker

T = TypeVar("T")
PREDICTION_BYTES = 100_000_000  # reserved for a predicted file beside three times the size of its input


@dataclass(frozen=True)
class InferenceService:
    """Predictions, attributions and decision rules of the runs that the current visitor may use.

    Attributes:
        access: Which runs the current visitor may read and change.
        worker: Runs short tasks, in response to clicks.
        jobs: Runs tasks that take minutes, so that they do not delay short tasks.
        files: Reads data files; a separate worker in a public demo.
        limits: Limits of a public demo; None on a user's own machine.
        storage: Enforces disk quotas in a public demo; None elsewhere.
    """

    access: RunAccess
    worker: Worker
    jobs: Worker
    files: Worker
    limits: Limits | None
    storage: Storage | None

    def reserve(
        self, needed: int, description: str, *uses: Path
    ) -> AbstractContextManager[Reservation | None]:
        """Reserve bytes that the visitor is about to write, and protect the folders in use from removal.

        Args:
            needed: Bytes.
            description: What the bytes are for, as used in error messages.
            *uses: Folders that must stay meanwhile.

        Raises:
            StorageError: If there is not enough room.
        """
        if self.storage is None:
            return nullcontext()
        return self.storage.reserve(self.access.visitor().owner, needed, description, uses=uses)

    @property
    def long_task_worker(self) -> Worker:
        """The `jobs` worker in a public demo, else the worker that has the models loaded."""
        return self.worker if self.limits is None else self.jobs

    def find(self, run_id: str) -> Run:
        """Return a run that the visitor may read; RunError for any other run, as for an unknown id."""
        return self.access.find(run_id)

    def find_own(self, run_id: str) -> Run:
        """Return a run that the visitor may change; RunError for any other run."""
        return self.access.find_own(run_id)

    def _folder(self, run_id: str) -> str:
        """Return the folder of a run that may be read, as the worker's tasks take it."""
        return str(self.find(run_id).folder)

    def result_of(self, run_id: str | None) -> dict[str, Any]:
        """Return a run's evaluation results; empty if there is no run, or it has no adapter.

        A run that was not evaluated has only `problem_type` and `text_pair`, from its adapter.
        """
        if not run_id:
            return {}
        result = or_none(lambda: self.find(run_id).result())
        if result is not None:
            return result.to_dict()
        classifier = or_none(lambda: Classifier.read(self.find(run_id)))
        return (
            {"problem_type": classifier.problem_type, "text_pair": classifier.text_pair} if classifier else {}
        )

    def predict(self, text: str, run_id: str, variant: str, text_pair: str | None = None) -> dict[str, Any]:
        """Predict one text: `label`, `scores`, `ms`, `note`, and `labels` or `value` by problem type."""
        texts = self._checked_texts(text, text_pair)
        return self.worker.run(tasks.predict, self._folder(run_id), variant, *texts)

    def compare(self, text: str, run_id: str, text_pair: str | None = None) -> dict[str, Any]:
        """Predict one text with every variant that the run has."""
        texts = self._checked_texts(text, text_pair)
        return self.worker.run(tasks.compare, self._folder(run_id), *texts)

    def compare_runs(self, text: str, run_ids: Sequence[str], text_pair: str | None = None) -> list[dict]:
        """Predict one text with the adapter of each run; `error` where that fails.

        Runs of the same base model share its weights in memory.
        """
        texts = self._checked_texts(text, text_pair)
        run_ids = list(dict.fromkeys(run_ids))
        if not run_ids:
            raise DataError("No run is chosen; choose one or more.")
        if self.limits is not None and len(run_ids) > self.limits.max_compared:
            raise DataError(f"{len(run_ids)} runs are chosen; choose at most {self.limits.max_compared}.")
        return self.worker.run(tasks.compare_runs, [self._folder(run_id) for run_id in run_ids], *texts)

    def preview_file(
        self, path: Path, run_id: str, sheet_name: str | None = None, header_row: int | None = None
    ) -> dict[str, Any]:
        """Return a file's `columns`, their roles and its first `rows`, as `tables.preview_file` does."""
        folder = self._folder(run_id)
        self._check_bytes(path)
        return self.files.run(tasks.preview_file, folder, str(path), sheet_name or None, header_row or None)

    def predict_file(
        self, path: Path, run_id: str, variant: str, columns: Mapping[str, Any], name: str | None = None
    ) -> Iterator[Report]:
        """Predict every row of a file.

        Yields progress reports, the last with what `tables.predict_file` returns.

        Args:
            path: The file.
            run_id: The run.
            variant: base, adapter or merged.
            columns: Column names under `text`, `text_pair` and `label`; `exact` to compute in float32;
                `sheet_name` and `header_row` choose a table as the settings of these names do.
            name: Name under which `cancel(name)` ends the job.
        """
        run = self.find_own(run_id)
        self._check_bytes(path)
        names = ("text", "text_pair", "label", "sheet_name", "header_row")
        request = {name: columns.get(name) or None for name in names} | {"exact": bool(columns.get("exact"))}
        request["max_rows"] = self.limits.max_upload_rows if self.limits else None
        with self.reserve(PREDICTION_BYTES + 3 * size_of(path), "prediction", run.folder):
            arguments = (str(run.folder), variant, str(path), request)
            if name is None:
                yield from self.jobs.stream(tasks.predict_file, *arguments)
            else:
                yield from self.jobs.stream_cancellable(name, tasks.predict_file, *arguments)

    def explain(
        self, text: str, run_id: str, label: str | None = None, text_pair: str | None = None
    ) -> Iterator[Report]:
        """Attribute a label (by default the predicted one) to the words of a text, in every variant.

        Yields progress reports, the last with the attributions.
        """
        text, text_pair = self._checked_texts(text, text_pair)
        return self.long_task_worker.stream(tasks.explain, self._folder(run_id), text, label, text_pair)

    def review(
        self, run_id: str, kind: str, query: str, true: str, predicted: str, max_rows: int
    ) -> dict[str, Any]:
        """Return test rows: `all` or the `hardest` that match, or those with `suspected` labels."""
        folder = self._folder(run_id)
        return self.worker.run(tasks.review, folder, kind, query, true or None, predicted or None, max_rows)

    def row(self, run_id: str, number: int) -> dict[str, Any]:
        """Return one test row by its number, from 1."""
        return self.worker.run(tasks.row, self._folder(run_id), number)

    def decision_rule(self, run_id: str) -> dict[str, Any]:
        """Return the saved rule: `temperature`, `thresholds` by label (empty: none), `abstain_below`."""
        return self.worker.run(tasks.decision_rule, self._folder(run_id))

    def evaluate_decision_rule(self, run_id: str, decision_rule: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate a decision rule on the run's test rows, beside the default rule."""
        return self.worker.run(tasks.evaluate_decision_rule, self._folder(run_id), dict(decision_rule))

    def suggest_decision_rule(
        self, run_id: str, thresholds: bool, percent_right: float | None
    ) -> dict[str, Any]:
        """Fit a decision rule to the run's validation rows.

        Args:
            run_id: The run.
            thresholds: Whether to fit thresholds as well as the temperature.
            percent_right: Accuracy of the answers, in percent, to reach by abstaining; None to answer always.
        """
        if percent_right and not 0 < percent_right <= 100:
            raise ConfigError(f"An accuracy of {percent_right:g} % is not possible; choose 1 to 100.")
        share = percent_right / 100 if percent_right else None
        return self.worker.run(tasks.suggest_decision_rule, self._folder(run_id), thresholds, share)

    def save_decision_rule(self, run_id: str, decision_rule: Mapping[str, Any]) -> None:
        """Save a decision rule with the run, for its predictions and exports."""
        self.worker.run(tasks.save_decision_rule, str(self.find_own(run_id).folder), dict(decision_rule))

    def neighbors(self, query: str, run_id: str) -> dict[str, list[dict[str, Any]]]:
        """Return the test rows nearest to a query, under `base` and `adapted`."""
        self.check_text(query)
        return self.worker.run(tasks.find_neighbors, self._folder(run_id), query)

    def cancel(self, name: str) -> None:
        """Cancel a job that was started under this name."""
        self.jobs.cancel(name)

    def _check_bytes(self, path: Path) -> None:
        if self.limits is None:
            return
        size = unpacked_bytes(path, self.limits.max_upload_bytes)
        if size > self.limits.max_upload_bytes:
            raise DataError(
                f"{path.name!r} has {size / 1e6:,.0f} MB or more; this public demo takes at most "
                f"{self.limits.max_upload_bytes / 1e6:,.0f} MB."
            )

    def _checked_texts(self, text: Any, text_pair: Any) -> tuple[str, str | None]:
        self.check_text(text)
        if text_pair in (None, ""):
            return text, None
        self.check_text(text_pair)
        return text, text_pair

    def check_text(self, text: Any) -> None:
        """Raise DataError for a text that is empty, not Unicode, or longer than a public demo allows."""
        if not isinstance(text, str) or not text.strip():
            raise DataError("The text is empty; type a sentence to classify.")
        check_text(text)
        if self.limits is not None and len(text) > self.limits.max_characters:
            raise DataError(
                f"The text has {len(text):,} characters; this public demo takes at most "
                f"{self.limits.max_characters:,}."
            )


def or_none(read: Callable[[], T]) -> T | None:
    """Return `read()`; None if it raises RunError because the run or a part of it is missing or damaged."""
    try:
        return read()
    except RunError:
        return None

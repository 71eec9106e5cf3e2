"""What the page and the endpoints can ask of a trained run, in JSON types."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from peft_core.data.characters import check_text
from peft_core.data.unpacking import size_of, unpacked_bytes
from peft_core.disk.storage import Reservation, Storage
from peft_core.errors import ConfigError, DataError, RunError
from peft_core.inference.classifier import Classifier
from peft_core.limits import Limits
from peft_core.run_access import RunAccess
from peft_core.runs import Run
from peft_core.worker import Report, Worker

Read = TypeVar("Read")
PREDICTION_BYTES = 100_000_000  # of a predicted file, whose probabilities take more than its texts


@dataclass(frozen=True)
class InferenceService:
    """Predictions, explanations and decision rules of the runs that whoever asks may use.

    Attributes:
        access: the runs that whoever asks now may read and change.
        worker: answers clicks.
        jobs: works for minutes, so that a job holds up nobody's click.
        files: reads data files; where strangers come, a worker of its own.
        limits: None on a person's own machine, set where strangers come.
        storage: keeps the disk within its quotas where strangers come, else None.
    """

    access: RunAccess
    worker: Worker
    jobs: Worker
    files: Worker
    limits: Limits | None
    storage: Storage | None

    def reserve(self, needed: int, what: str, *uses: Path) -> AbstractContextManager[Reservation | None]:
        """Bytes that whoever asks is about to write, while folders that are used stay; StorageError."""
        if self.storage is None:
            return nullcontext()
        return self.storage.reserve(self.access.visitor().owner, needed, what, uses=uses)

    @property
    def for_minutes(self) -> Worker:
        """Where strangers come, a worker whose tasks hold up nobody's click; else the one that is warm."""
        return self.worker if self.limits is None else self.jobs

    def find(self, run_id: str) -> Run:
        """A run to read; RunError for one that whoever asks may not read, as for an unknown id."""
        return self.access.find(run_id)

    def find_own(self, run_id: str) -> Run:
        """A run to change; RunError for one that whoever asks may not change."""
        return self.access.find_own(run_id)

    def result_of(self, run_id: str | None) -> dict[str, Any]:
        """What a run measured; empty for no run, and for one that has no adapter or is gone.

        Of a run that was not evaluated `problem_type` and `text_pair`, as its adapter says.
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
        """`{label, scores, ms, note}` of one text, with `labels` or `value` where the task has them."""
        texts = self._checked_texts(text, text_pair)
        return self.worker.run("predict", str(self.find(run_id).folder), variant, *texts)

    def compare(self, text: str, run_id: str, text_pair: str | None = None) -> dict[str, Any]:
        """One text in every variant that the run has."""
        texts = self._checked_texts(text, text_pair)
        return self.worker.run("compare", str(self.find(run_id).folder), *texts)

    def compare_runs(self, text: str, run_ids: Sequence[str], text_pair: str | None = None) -> list[dict]:
        """What the adapter of each run says of one text, or `error`; runs of one base hold it once."""
        texts = self._checked_texts(text, text_pair)
        run_ids = list(dict.fromkeys(run_ids))
        if not run_ids:
            raise DataError("No run is chosen; choose one or more.")
        if self.limits is not None and len(run_ids) > self.limits.max_compared:
            raise DataError(f"{len(run_ids)} runs are chosen; choose at most {self.limits.max_compared}.")
        return self.worker.run("compare_runs", [str(self.find(name).folder) for name in run_ids], *texts)

    def look_at_file(
        self, path: Path, run_id: str, sheet_name: str | None = None, header_row: int | None = None
    ) -> dict[str, Any]:
        """A file's `columns`, their roles, its first `rows`; a workbook's `sheets`, `sheet`, `header_row`."""
        folder = str(self.find(run_id).folder)
        self._check_bytes(path)
        return self.files.run("look_at_file", folder, str(path), sheet_name or None, header_row or None)

    def predict_file(
        self, path: Path, run_id: str, variant: str, columns: Mapping[str, Any], name: str | None = None
    ) -> Iterator[Report]:
        """Reports, the last with `path` and what the written file holds; `cancel(name)` ends it.

        `columns` names `text`, and `text_pair` and `label` where there are any; `exact` keeps to float32.
        `sheet_name` and `header_row` choose a table as the settings of these names do.
        """
        run = self.find_own(run_id)
        self._check_bytes(path)
        names = ("text", "text_pair", "label", "sheet_name", "header_row")
        request = {name: columns.get(name) or None for name in names} | {"exact": bool(columns.get("exact"))}
        request["most_rows"] = self.limits.max_upload_rows if self.limits else None
        with self.reserve(PREDICTION_BYTES + 3 * size_of(path), "prediction", run.folder):
            yield from self.jobs.stream(
                "predict_file", str(run.folder), variant, str(path), request, name=name
            )

    def explain(
        self, text: str, run_id: str, label: str | None = None, text_pair: str | None = None
    ) -> Iterator[Report]:
        """Reports, the last with what each word of a text adds to a label (by default the predicted one) in
        every variant."""
        typed, pair = self._checked_texts(text, text_pair)
        return self.for_minutes.stream("explain", str(self.find(run_id).folder), typed, label, pair)

    def review(
        self, run_id: str, kind: str, query: str, true: str, predicted: str, most: int
    ) -> dict[str, Any]:
        """Test rows: `all` or the `hardest` that match, or those with `suspected` labels."""
        folder = str(self.find(run_id).folder)
        return self.worker.run("review", folder, kind, query, true or None, predicted or None, most)

    def row(self, run_id: str, number: int) -> dict[str, Any]:
        """One test row by its number."""
        return self.worker.run("row", str(self.find(run_id).folder), number)

    def rule(self, run_id: str) -> dict[str, Any]:
        """`temperature`, `thresholds` by label (empty: plain) and `abstain_below`, as saved with the run."""
        return self.worker.run("rule", str(self.find(run_id).folder))

    def judge_rule(self, run_id: str, rule: Mapping[str, Any]) -> dict[str, Any]:
        """What a rule is worth on the run's test rows, beside the plain one."""
        return self.worker.run("judge_rule", str(self.find(run_id).folder), dict(rule))

    def suggest_rule(self, run_id: str, thresholds: bool, percent_right: float | None) -> dict[str, Any]:
        """A rule from the run's validation rows; `percent_right` of the answers are to be right, if given."""
        if percent_right and not 0 < percent_right <= 100:
            raise ConfigError(f"{percent_right:g} % of right answers cannot be; ask for 1 to 100.")
        share = percent_right / 100 if percent_right else None
        return self.worker.run("suggest_rule", str(self.find(run_id).folder), thresholds, share)

    def save_rule(self, run_id: str, rule: Mapping[str, Any]) -> None:
        """Keep a rule with the run: predictions and exports go by it."""
        self.worker.run("save_rule", str(self.find_own(run_id).folder), dict(rule))

    def neighbours(self, query: str, run_id: str) -> dict[str, list[dict[str, Any]]]:
        """The test rows nearest to a query, under `base` and `adapted`."""
        self.check_text(query)
        return self.worker.run("neighbours", str(self.find(run_id).folder), query)

    def cancel(self, name: str) -> None:
        """End a job that was started under this name."""
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


def or_none(read: Callable[[], Read]) -> Read | None:
    """What a call reads of a run; None for a run, or a part of it, that is not there or damaged."""
    try:
        return read()
    except RunError:
        return None

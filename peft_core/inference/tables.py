"""Predict every row of a data file and write the file with the predictions, streaming the rows."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.data.cells import as_text, short_repr
from peft_core.data.columns import TEXT_COLUMNS
from peft_core.data.files import damage_note
from peft_core.data.formats import ReadOptions
from peft_core.data.streams import Chunk, RowStream, open_rows
from peft_core.data.writers import writer_for
from peft_core.errors import DataError, RunError
from peft_core.files.atomic import atomic_file, make_folder, translate_disk_errors
from peft_core.inference.metrics import headline_interval, task_metrics
from peft_core.inference.precision import MIN_ROWS, SAMPLE, optimize_for_inference
from peft_core.inference.predictor import Predictor
from peft_core.inference.trained_labels import TrainedLabels, trained_data
from peft_core.problem_types import MULTI, REGRESSION, headline, join_labels
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run

PREDICTIONS = "predictions"  # the folder of a run that holds the written files
BYTES_PER_ROW = 5000  # mean size to which rows may unpack, where their number is limited
_MAX_FILES = 5  # in PREDICTIONS; older ones are removed


@dataclass(frozen=True)
class Request:
    """A file and the columns to read.

    Attributes:
        path: The file.
        text: Name of the text column.
        text_pair: Name of the second text's column, for a run that was trained on pairs.
        label: Name of the column of true labels, for metrics; None without them.
        max_rows: Most rows that the file may have; None for no limit.
        exact: Whether to predict in float32, however long it takes.
        sheet_name: As in `ReadOptions`.
        header_row: As in `ReadOptions`.
    """

    path: Path
    text: str
    text_pair: str | None = None
    label: str | None = None
    max_rows: int | None = None
    exact: bool = False
    sheet_name: str | None = None
    header_row: int | None = None

    @property
    def options(self) -> ReadOptions:
        """How the file is read; a limit of rows also limits the size to which it may unpack."""
        max_bytes = None if self.max_rows is None else BYTES_PER_ROW * self.max_rows
        return ReadOptions(self.sheet_name, self.header_row, max_bytes)


def preview_file(path: Path, run: Run, options: ReadOptions | None = None) -> dict[str, Any]:
    """Read a file's columns and first rows, and infer the columns' roles.

    Returns:
        `columns`; `rows`, the first five; `text`, `text_pair` and `label`, the names of these columns by the
        run's own names or by content, or None; for a workbook also `sheets`, and the `sheet` and `header_row`
        that are read.

    Raises:
        DataError: If the file cannot be read.
    """
    stream = open_rows(path, options or ReadOptions())
    first_rows = next(stream.chunks(), [])
    trained_columns = trained_data(run).get("columns", {})
    names = {role: trained_columns.get(f"{role}_column") for role in ("text", "text_pair", "label")}
    roles = {role: name if name in stream.columns else None for role, name in names.items()}
    roles["text"] = roles["text"] or _guess_text_column(stream.columns, first_rows)
    return {"columns": stream.columns, "rows": first_rows[:5], **roles, **stream.facts()}


def predict_file(predictor: Predictor, request: Request, progress: Progress = no_progress) -> dict[str, Any]:
    """Predict every row of a file, and write the rows with the predictions into the run's folder.

    The file is read twice: first to count and check every row, so that nothing is written of a file that
    cannot be read completely.

    Returns:
        `path` of the written file, its `columns`, the number of `rows`, of `empty` and `abstained` ones and
        of `neutralised` cells, `seconds`; `metrics` (with `headline`, `interval` and the number of `judged`
        rows), or None without labels; `form`, the description of the model from
        `precision.optimize_for_inference`, or None if it was not optimized; `notes`, sentences on rows with
        invalid bytes; `read`, the sheet of a workbook.

    Raises:
        DataError: If the file cannot be read, or has a label that the model does not know.
        RunError: If the disk is full; nothing is left then.
    """
    start = time.perf_counter()
    if predictor.shows_baseline:
        raise RunError(f"{predictor.fallback_note} It predicts the same for every row; choose the adapter.")
    stream = open_rows(request.path, request.options)
    job = _FilePrediction(predictor, request, stream, progress)
    job.check()
    form = job.optimize()
    folder = predictor.run.folder / PREDICTIONS
    with translate_disk_errors():
        make_folder(folder, root=predictor.run.folder)
    writer_class = writer_for(stream)
    suffix = writer_class.suffix or stream.file.format
    name = f"{request.path.name.split('.')[0][:60]}-{predictor.variant}-{secrets.token_hex(3)}{suffix}"
    with atomic_file(folder / name) as staging:
        writer = writer_class(staging, stream, job.added)
        try:
            for rows in stream.chunks():
                writer.write(rows, job.predict(rows))
        finally:
            writer.close()
    _remove_old(folder)
    return {
        "path": str(folder / name),
        "columns": writer.columns,
        "rows": job.done,
        "empty": job.empty,
        "abstained": job.abstained,
        "neutralised": writer.neutralized,
        "seconds": time.perf_counter() - start,
        "metrics": job.metrics(),
        "form": form,
        "notes": [damage_note(stream.damaged_rows, stream.damaged).sentence] if stream.damaged else [],
        "read": stream.facts(),
    }


class _FilePrediction:
    """The prediction of one file, with the counts, logits and labels of the rows done so far."""

    def __init__(self, predictor: Predictor, request: Request, stream: RowStream, progress: Progress) -> None:
        self.predictor, self.request, self.stream, self.progress = predictor, request, stream, progress
        self.problem_type, self.names = predictor.classifier.problem_type, predictor.classifier.labels
        self.decision_rule = predictor.decision_rule
        self._columns = _column_indices(stream, request, predictor)
        self._label_reader = TrainedLabels(predictor.run, self.names, self.problem_type)
        self.total = self.done = self.empty = self.abstained = 0
        self._sample: list[list[str]] = []  # the first rows' texts
        self._logits: list[np.ndarray] = []
        self._truth: list[Any] = []

    @property
    def added(self) -> dict[str, type]:
        """The added columns and their types."""
        if self.problem_type == REGRESSION:
            return {"predicted_value": float}
        abstained = {"abstained": bool} if self.decision_rule.abstain_below > 0 else {}
        probabilities = {f"probability_{label}": float for label in self.names}
        return {"predicted_label": str, "confidence": float, **abstained, **probabilities}

    def check(self) -> None:
        """Count the rows; DataError for a row that cannot be read or has a label unknown to the model."""
        max_rows = self.request.max_rows
        for rows in self.stream.chunks():
            for number, label in enumerate(self._labels(rows), self.total + 1):
                self._check_label(number, label)
            self.total += len(rows)
            if len(self._sample) < SAMPLE:
                self._sample += self._texts(rows)[1][: SAMPLE - len(self._sample)]
            if max_rows is not None and self.total > max_rows:
                raise DataError(
                    f"{self.request.path.name!r} has more than {max_rows:,} rows, the most that this public "
                    "demo takes; split it."
                )
            self.progress(0.0, f"Reading: {self.total:,} rows")
        if not self.total:
            raise DataError(f"The file {self.request.path.name!r} has no rows; add some.")

    def optimize(self) -> dict[str, Any] | None:
        """Optimize the model for inference if there are enough rows; return the description of its form."""
        if self.request.exact or self.total < MIN_ROWS or not self._sample:
            return None
        self.progress(0.0, "Optimizing the model for inference")
        texts, *pair = map(list, zip(*self._sample, strict=True))
        self.predictor, form = optimize_for_inference(self.predictor, texts, *pair)
        return form

    def predict(self, rows: Chunk) -> list[list[Any]]:
        """Return the added cells of each row; they are None for a row without text."""
        indices, texts_of_rows = self._texts(rows)
        cells: list[list[Any]] = [[None] * len(self.added)] * len(rows)
        if indices:
            texts, *pair = map(list, zip(*texts_of_rows, strict=True))
            logits = self.predictor.logits(texts, pair[0] if pair else None, self._progress_of(len(rows)))
            for i, predicted_cells in zip(indices, self._cells(logits), strict=True):
                cells[i] = predicted_cells
            self._add_to_metrics([rows[i] for i in indices], logits)
        self.done += len(rows)
        self.empty += len(rows) - len(indices)
        return cells

    def metrics(self) -> dict[str, Any] | None:
        """Return the metrics over the rows that have a label and a prediction; None without any."""
        if not self._truth:
            return None
        true = np.asarray(self._truth)
        predicted = self.decision_rule.decide(np.concatenate(self._logits), self.problem_type)
        return {
            **task_metrics(self.problem_type, predicted, true),
            "headline": headline(self.problem_type),
            "interval": list(headline_interval(self.problem_type, predicted, true)),
            "judged": len(true),
        }

    def _texts(self, rows: Chunk) -> tuple[list[int], list[list[str]]]:
        """Return the indices of the rows that have text, and the one or two texts of each of them."""
        columns = [self._columns[role] for role in ("text", "text_pair") if role in self._columns]
        texts_of_rows = [[as_text(row[column]) for column in columns] for row in rows]
        indices = [i for i, texts in enumerate(texts_of_rows) if all(text.strip() for text in texts)]
        return indices, [texts_of_rows[i] for i in indices]

    def _progress_of(self, rows: int) -> Callable[[float], None]:
        done_before = self.done

        def report_progress(share: float) -> None:
            done = done_before + share * rows
            self.progress(done / self.total, f"{done:,.0f} of {self.total:,} rows")

        return report_progress

    def _cells(self, logits: np.ndarray) -> Iterator[list[Any]]:
        predicted = self.decision_rule.decide(logits, self.problem_type)
        if self.problem_type == REGRESSION:
            yield from ([float(number)] for number in predicted)
            return
        probabilities = self.decision_rule.probabilities(logits, self.problem_type).tolist()
        confidences = self.decision_rule.confidence(logits, self.problem_type).tolist()
        abstain_below = self.decision_rule.abstain_below
        for decided, row_probabilities, confidence in zip(predicted, probabilities, confidences, strict=True):
            if self.problem_type == MULTI:
                label = join_labels([self.names[i] for i in np.flatnonzero(decided)])
            else:
                label = self.names[decided]
            abstained = confidence < abstain_below
            flag = [abstained] if abstain_below > 0 else []
            yield [None if abstained else label, confidence, *flag, *row_probabilities]

    def _add_to_metrics(self, rows: Chunk, logits: np.ndarray) -> None:
        """Store the logits and labels of the rows that have a label and a prediction."""
        abstained = self.decision_rule.abstains(logits, self.problem_type)
        self.abstained += int(abstained.sum())
        labels = self._labels(rows)
        indices = [i for i, label in enumerate(labels) if label is not None and not abstained[i]]
        if indices:
            self._logits.append(logits[indices])
            self._truth += [self._encode_label(labels[i]) for i in indices]

    def _labels(self, rows: Chunk) -> list[Any]:
        """Return the rows' labels, read as in training; empty without a label column."""
        if "label" not in self._columns:
            return []
        return self._label_reader.read(
            [row[self._columns["label"]] for row in rows], self.request.label or ""
        )

    def _check_label(self, number: int, label: Any) -> None:
        where = f"{self.request.path.name!r}, data row {number:,}, column {short_repr(self.request.label)}"
        if self.problem_type == REGRESSION:
            if isinstance(label, str):
                raise DataError(
                    f"{where} is {short_repr(label)}, which is not a number; correct the cell, or choose no "
                    "label column."
                )
            return
        labels = (label or ()) if self.problem_type == MULTI else (label,)
        unknown = next((name for name in labels if name is not None and name not in self.names), None)
        if unknown is not None:
            names = ", ".join(map(short_repr, self.names[:20]))
            raise DataError(
                f"{where}: the model has no label {short_repr(unknown)}, only {names}; correct the cell, or "
                "choose no label column."
            )

    def _encode_label(self, label: Any) -> Any:
        """Convert a label to the format of `problem_types.decide`."""
        if self.problem_type == MULTI:
            return [int(name in label) for name in self.names]
        return label if self.problem_type == REGRESSION else self.names.index(label)


def _guess_text_column(columns: list[str], rows: Chunk) -> str | None:
    """Return a column with a usual name, else the one with the longest texts on average."""
    by_name = {name.casefold(): name for name in reversed(columns)}
    usual = next((by_name[name] for name in TEXT_COLUMNS if name in by_name), None)
    lengths = [
        np.mean([len(cell) if isinstance(cell, str) else 0 for cell in cells])
        for cells in zip(*rows, strict=True)
    ]
    return usual or (columns[int(np.argmax(lengths))] if lengths and max(lengths) > 0 else None)


def _column_indices(stream: RowStream, request: Request, predictor: Predictor) -> dict[str, int]:
    """Return the index of each role's column.

    Raises:
        DataError: If a column is missing, or the run reads pairs and the request does not, or vice versa.
    """
    name, columns = request.path.name, ", ".join(map(short_repr, stream.columns[:30]))
    if not request.text:
        raise DataError(f"No text column is named for {name!r}; it has {columns}.")
    roles = {"text": request.text, "text_pair": request.text_pair, "label": request.label}
    for column in filter(None, roles.values()):
        if column not in stream.columns:
            raise DataError(f"{name!r} has no column {short_repr(column)}; it has {columns}.")
    if predictor.classifier.text_pair != bool(request.text_pair):
        step = "name the second text's column" if predictor.classifier.text_pair else "name one text column"
        reads = "pairs" if predictor.classifier.text_pair else "one text"
        raise DataError(f"The run {predictor.run.run_id!r} reads {reads}; {step}.")
    return {role: stream.columns.index(column) for role, column in roles.items() if column}


def _remove_old(folder: Path) -> None:
    files = sorted(
        (path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime
    )
    for path in files[:-_MAX_FILES]:
        path.unlink(missing_ok=True)

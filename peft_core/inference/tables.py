"""A file in, the same file out with what a model says of each row; never all rows in memory."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.data.columns import TEXT_COLUMNS, as_text
from peft_core.data.files import damage_note, shown
from peft_core.data.formats import ReadOptions
from peft_core.data.streams import Chunk, RowStream, open_rows
from peft_core.data.writers import writer_for
from peft_core.errors import DataError, RunError
from peft_core.files import atomic_file, make_folder, translate_disk_errors
from peft_core.inference.precision import SAMPLE, WORTH_IT, quicker
from peft_core.inference.predictor import Predictor
from peft_core.inference.trained_labels import TrainedLabels, trained_data
from peft_core.metrics import headline_interval, task_metrics
from peft_core.problems import MULTI, REGRESSION, headline, joined
from peft_core.progress import Progress, unheard
from peft_core.runs import Run

PREDICTIONS = "predictions"  # the folder in a run that keeps what was predicted
BYTES_A_ROW = 5000  # that rows may unpack to on average, if their number is bounded
_KEPT = 5  # files in it; older ones go


@dataclass(frozen=True)
class Request:
    """A file's columns to read; `label` only where the rows carry labels to be judged by.

    `sheet_name` and `header_row` choose the table as `ReadOptions` does.
    """

    path: Path
    text: str
    text_pair: str | None = None
    label: str | None = None
    most_rows: int | None = None
    exact: bool = False  # answer in float32 whatever the time
    sheet_name: str | None = None
    header_row: int | None = None

    @property
    def options(self) -> ReadOptions:
        """How the file is read: where its rows are bounded, what it unpacks to is so as well."""
        most = None if self.most_rows is None else BYTES_A_ROW * self.most_rows
        return ReadOptions(self.sheet_name, self.header_row, most)


def look(path: Path, run: Run, options: ReadOptions | None = None) -> dict[str, Any]:
    """The `columns` of a file, its first `rows`, and which are `text`, `text_pair` and `label` by the run's
    own names or by their content (None where none is); of a workbook also its `sheets`, and the `sheet` and
    `header_row` that are read. Raises DataError."""
    stream = open_rows(path, options or ReadOptions())
    first = next(stream.chunks(), [])
    trained = trained_data(run).get("columns", {})
    named = {role: trained.get(f"{role}_column") for role in ("text", "text_pair", "label")}
    found = {role: name if name in stream.columns else None for role, name in named.items()}
    found["text"] = found["text"] or _guess_text(stream.columns, first)
    return {"columns": stream.columns, "rows": first[:5], **found, **stream.facts()}


def predict_file(predictor: Predictor, request: Request, progress: Progress = unheard) -> dict[str, Any]:
    """`path` of the written file, and what it holds: columns, rows, empty, abstained, neutralised, seconds,
    `metrics` (with `headline`, `interval` and `judged` rows) where the rows carry labels, and the `form` of
    the model that answered, as `precision.quicker` describes it (None where it was not looked for). `notes`
    are sentences on rows that could not be read as they are, and `read` tells the sheet of a workbook.

    The file is read twice: first to count and check every row, so that nothing is written of one that cannot
    be read whole. Raises DataError, one sentence; a full disk gives RunError and leaves nothing.
    """
    start = time.perf_counter()
    if predictor.shows_baseline:
        raise RunError(f"{predictor.standing_in} It says the same of every row; choose the adapter.")
    stream = open_rows(request.path, request.options)
    job = _Job(predictor, request, stream, progress)
    job.check()
    form = job.take_quicker_form()
    folder = predictor.run.folder / PREDICTIONS
    with translate_disk_errors():
        make_folder(folder, root=predictor.run.folder)
    kind = writer_for(stream)
    suffix = kind.suffix or stream.file.format
    name = f"{request.path.name.split('.')[0][:60]}-{predictor.variant}-{secrets.token_hex(3)}{suffix}"
    with atomic_file(folder / name) as staging:
        writer = kind(staging, stream, job.added)
        try:
            for rows in stream.chunks():
                writer.write(rows, job.answers(rows))
        finally:
            writer.close()
    _forget_old(folder)
    return {
        "path": str(folder / name),
        "columns": writer.columns,
        "rows": job.done,
        "empty": job.empty,
        "abstained": job.abstained,
        "neutralised": writer.neutralised,
        "seconds": time.perf_counter() - start,
        "metrics": job.metrics(),
        "form": form,
        "notes": [damage_note(stream.damaged_rows, stream.damaged).sentence] if stream.damaged else [],
        "read": stream.facts(),
    }


class _Job:
    """One file under one predictor: what was asked, and what is known of the rows answered so far."""

    def __init__(self, predictor: Predictor, request: Request, stream: RowStream, progress: Progress) -> None:
        self.predictor, self.request, self.stream, self.progress = predictor, request, stream, progress
        self.task, self.names = predictor.classifier.problem_type, predictor.classifier.labels
        self.rule = predictor.decision
        self.places = _places(stream, request, predictor)
        self._trained_labels = TrainedLabels(predictor.run, self.names, self.task)
        self.total = self.done = self.empty = self.abstained = 0
        self._sample: list[list[str]] = []  # the first rows' texts
        self._logits: list[np.ndarray] = []
        self._truth: list[Any] = []

    @property
    def added(self) -> dict[str, type]:
        """The added columns and what they hold."""
        if self.task == REGRESSION:
            return {"predicted_value": float}
        silence = {"abstained": bool} if self.rule.abstain_below > 0 else {}
        shares = {f"probability_{label}": float for label in self.names}
        return {"predicted_label": str, "confidence": float, **silence, **shares}

    def check(self) -> None:
        """Count the rows; DataError for one that cannot be read, or whose label the model does not know."""
        most = self.request.most_rows
        for rows in self.stream.chunks():
            for number, label in enumerate(self._labels(rows), self.total + 1):
                self._check_label(number, label)
            self.total += len(rows)
            if len(self._sample) < SAMPLE:
                self._sample += self._texts(rows)[1][: SAMPLE - len(self._sample)]
            if most is not None and self.total > most:
                raise DataError(
                    f"{self.request.path.name!r} has more than {most:,} rows, the most that this public demo "
                    "takes; split it."
                )
            self.progress(0.0, f"Reading: {self.total:,} rows")
        if not self.total:
            raise DataError(f"The file {self.request.path.name!r} holds no rows; add some.")

    def take_quicker_form(self) -> dict[str, Any] | None:
        """Let the rows be answered by a quicker form of the model, where there are enough of them."""
        if self.request.exact or self.total < WORTH_IT or not self._sample:
            return None
        self.progress(0.0, "Looking for the fastest way")
        texts, *pair = map(list, zip(*self._sample, strict=True))
        self.predictor, form = quicker(self.predictor, texts, *pair)
        return form

    def answers(self, rows: Chunk) -> list[list[Any]]:
        """The added cells of each row; a row without text gets none."""
        full, sides = self._texts(rows)
        cells: list[list[Any]] = [[None] * len(self.added)] * len(rows)
        if full:
            texts, *pair = map(list, zip(*sides, strict=True))
            logits = self.predictor.logits(texts, pair[0] if pair else None, self._heard(len(rows)))
            for i, answer in zip(full, self._cells(logits), strict=True):
                cells[i] = answer
            self._judge([rows[i] for i in full], logits)
        self.done += len(rows)
        self.empty += len(rows) - len(full)
        return cells

    def metrics(self) -> dict[str, Any] | None:
        """The task's metrics over the answered, labelled rows; None without any."""
        if not self._truth:
            return None
        truth = np.asarray(self._truth)
        decided = self.rule.decide(np.concatenate(self._logits), self.task)
        return {
            **task_metrics(self.task, decided, truth),
            "headline": headline(self.task),
            "interval": list(headline_interval(self.task, decided, truth)),
            "judged": len(truth),
        }

    def _texts(self, rows: Chunk) -> tuple[list[int], list[list[str]]]:
        """The rows that have text, and the text of each, or both of its texts."""
        places = [self.places[side] for side in ("text", "text_pair") if side in self.places]
        read = [[as_text(row[place]) for place in places] for row in rows]
        full = [i for i, texts in enumerate(read) if all(text.strip() for text in texts)]
        return full, [read[i] for i in full]

    def _heard(self, rows: int) -> Callable[[float], None]:
        before = self.done

        def heard(share: float) -> None:
            done = before + share * rows
            self.progress(done / self.total, f"{done:,.0f} of {self.total:,} rows")

        return heard

    def _cells(self, logits: np.ndarray) -> Iterator[list[Any]]:
        decided = self.rule.decide(logits, self.task)
        if self.task == REGRESSION:
            yield from ([float(value)] for value in decided)
            return
        shares = self.rule.probabilities(logits, self.task).tolist()
        sure = self.rule.confidence(logits, self.task).tolist()
        for given, each, confidence in zip(decided, shares, sure, strict=True):
            several = self.task == MULTI
            label = joined([self.names[i] for i in np.flatnonzero(given)]) if several else self.names[given]
            silent = confidence < self.rule.abstain_below
            flag = [silent] if self.rule.abstain_below > 0 else []
            yield [None if silent else label, confidence, *flag, *each]

    def _judge(self, rows: Chunk, logits: np.ndarray) -> None:
        """Add rows that have a label and an answer to what the metrics are of."""
        silent = self.rule.abstains(logits, self.task)
        self.abstained += int(silent.sum())
        truth = self._labels(rows)
        kept = [i for i, label in enumerate(truth) if label is not None and not silent[i]]
        if kept:
            self._logits.append(logits[kept])
            self._truth += [self._index(truth[i]) for i in kept]

    def _labels(self, rows: Chunk) -> list[Any]:
        """The rows' labels as training read them; none where no label column is named."""
        if "label" not in self.places:
            return []
        return self._trained_labels.read(
            [row[self.places["label"]] for row in rows], self.request.label or ""
        )

    def _check_label(self, number: int, label: Any) -> None:
        where = f"{self.request.path.name!r}, data row {number:,}, column {shown(self.request.label)}"
        if self.task == REGRESSION:
            if isinstance(label, str):
                raise DataError(
                    f"{where} holds {shown(label)}, which is no number; mend the cell, or name no label."
                )
            return
        given = (label or ()) if self.task == MULTI else (label,)
        unknown = next((name for name in given if name is not None and name not in self.names), None)
        if unknown is not None:
            has = ", ".join(map(shown, self.names[:20]))
            raise DataError(
                f"{where}: the model knows no label {shown(unknown)}, only {has}; mend the cell, or name no "
                "label column."
            )

    def _index(self, label: Any) -> Any:
        if self.task == MULTI:
            return [int(name in label) for name in self.names]
        return label if self.task == REGRESSION else self.names.index(label)


def _guess_text(columns: list[str], rows: Chunk) -> str | None:
    """A usual name, else the column with the longest texts."""
    by_name = {name.casefold(): name for name in reversed(columns)}
    known = next((by_name[name] for name in TEXT_COLUMNS if name in by_name), None)
    lengths = [
        np.mean([len(v) if isinstance(v, str) else 0 for v in cells]) for cells in zip(*rows, strict=True)
    ]
    return known or (columns[int(np.argmax(lengths))] if lengths and max(lengths) > 0 else None)


def _places(stream: RowStream, request: Request, predictor: Predictor) -> dict[str, int]:
    """Where the named columns stand; DataError for one that is not there, or a pair where none is read."""
    name, has = request.path.name, ", ".join(map(shown, stream.columns[:30]))
    if not request.text:
        raise DataError(f"No text column is named for {name!r}; it has {has}.")
    wanted = {"text": request.text, "text_pair": request.text_pair, "label": request.label}
    for column in filter(None, wanted.values()):
        if column not in stream.columns:
            raise DataError(f"{name!r} has no column {shown(column)}; it has {has}.")
    if predictor.classifier.text_pair != bool(request.text_pair):
        step = "name the second text's column" if predictor.classifier.text_pair else "name one text column"
        reads = "pairs" if predictor.classifier.text_pair else "one text"
        raise DataError(f"The run {predictor.run.run_id!r} reads {reads}; {step}.")
    return {role: stream.columns.index(column) for role, column in wanted.items() if column}


def _forget_old(folder: Path) -> None:
    files = sorted(
        (path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime
    )
    for path in files[:-_KEPT]:
        path.unlink(missing_ok=True)

"""Storage of a run's test and validation rows with their labels and logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peft_core.errors import RunError
from peft_core.files.atomic import open_regular, translate_disk_errors
from peft_core.problem_types import MULTI, REGRESSION, decide
from peft_core.runs import Run

TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True)
class EvaluationRows:
    """Test or validation rows of a run.

    Attributes:
        texts: First or only texts.
        pairs: Second texts, or None.
        labels: Labels in the form that `problem_types.decide` returns.
        logits: Raw outputs before any temperature, float64 of shape (rows, outputs).
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


def write_evaluation_rows(path: Path, columns: dict[str, Any], logits: np.ndarray, problem_type: str) -> None:
    """Write evaluation rows to a Parquet file in a staging folder.

    Its columns are text, text_pair (if any), label, predicted (multi-hot for several labels) and logits.

    Args:
        path: File to create.
        columns: The columns text, text_pair and label; others are ignored.
        logits: Raw outputs of shape (rows, outputs).
        problem_type: Problem type of the run.
    """
    names = [name for name in ("text", "text_pair", "label") if name in columns]
    frame = pd.DataFrame({name: columns[name] for name in names})
    frame["predicted"] = list(decide(logits, problem_type))
    frame["logits"] = list(logits)
    with translate_disk_errors():
        frame.to_parquet(path)


def load_evaluation_rows(run: Run, split: str = TEST) -> EvaluationRows:
    """Load the test or validation rows of a run.

    Raises:
        RunError: If the rows are lost, or the run was saved without logits.
    """
    frame = _read_frame(run, split)
    if "logits" not in frame:
        raise RunError(
            f"The run {run.run_id!r} was trained by an earlier version, which saved no logits; train it "
            "again with its settings."
        )
    problem_type = run.result()["problem_type"]
    labels = np.stack(frame["label"].tolist()) if problem_type == MULTI else frame["label"].to_numpy()
    labels = labels.astype(np.float64 if problem_type == REGRESSION else np.int64)
    pairs = frame["text_pair"].tolist() if "text_pair" in frame else None
    logits = np.stack(frame["logits"].tolist()).astype(np.float64)
    return EvaluationRows(frame["text"].tolist(), pairs, labels, logits)


def load_evaluation_texts(run: Run) -> tuple[list[str], list[str] | None]:
    """Load the texts of a run's test rows, and their second texts or None.

    Raises:
        RunError: If the rows are lost.
    """
    frame = _read_frame(run, TEST)
    return frame["text"].tolist(), frame["text_pair"].tolist() if "text_pair" in frame else None


def _read_frame(run: Run, split: str) -> pd.DataFrame:
    path = run.evaluation if split == TEST else run.validation
    if not path.is_file():
        run.refuse_unevaluated()
    if run.evaluation.is_file() or (run.folder / "evaluation").is_dir():
        run.result()  # also verifies the evaluation files
    if split == VALIDATION and not path.is_file() and run.evaluation.is_file():
        raise RunError(f"The run {run.run_id!r} has no validation rows; train it on more rows.")
    try:
        with open_regular(path) as file:
            frame = pd.read_parquet(file)
        if not len(frame) or "text" not in frame:
            raise ValueError("no rows")
        return frame
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"The {split} rows of the run {run.run_id!r} are missing or damaged; train it again."
        ) from error

"""The test and validation rows of a run as its folder keeps them: texts, labels and raw outputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peft_core.errors import RunError
from peft_core.files import open_regular, translate_disk_errors
from peft_core.problems import MULTI, REGRESSION, decide
from peft_core.runs import Run

TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True)
class JudgedRows:
    """`labels` are as `problems.decide` gives them; `logits` float64 of shape (rows, outputs), before any
    temperature."""

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


def write_rows(path: Path, columns: dict[str, Any], logits: np.ndarray, problem_type: str) -> None:
    """Write a Parquet file into a folder that is being filled.

    Its columns are text, text_pair if any, label, predicted (of several labels lists of 0 and 1) and logits.
    """
    names = [name for name in ("text", "text_pair", "label") if name in columns]
    frame = pd.DataFrame({name: columns[name] for name in names})
    frame["predicted"] = list(decide(logits, problem_type))
    frame["logits"] = list(logits)
    with translate_disk_errors():
        frame.to_parquet(path)


def judged_rows(run: Run, part: str = TEST) -> JudgedRows:
    """The test or validation rows of a run; RunError if they are lost, or it keeps no raw outputs of them."""
    frame = _frame(run, part)
    if "logits" not in frame:
        raise RunError(
            f"The run {run.run_id!r} was trained before raw outputs were kept; train it again with its "
            "settings."
        )
    task = run.result()["problem_type"]
    labels = np.stack(frame["label"]) if task == MULTI else frame["label"].to_numpy()
    labels = labels.astype(np.float64 if task == REGRESSION else np.int64)
    pairs = frame["text_pair"].tolist() if "text_pair" in frame else None
    return JudgedRows(frame["text"].tolist(), pairs, labels, np.stack(frame["logits"]).astype(np.float64))


def judged_texts(run: Run) -> tuple[list[str], list[str] | None]:
    """The texts of a run's test rows, and their second texts or None; RunError if the rows are lost."""
    frame = _frame(run, TEST)
    return frame["text"].tolist(), frame["text_pair"].tolist() if "text_pair" in frame else None


def _frame(run: Run, part: str) -> pd.DataFrame:
    path = run.evaluation if part == TEST else run.validation
    if not path.is_file():
        run.refuse_unevaluated()
    if run.evaluation.is_file() or (run.folder / "evaluation").is_dir():
        run.result()  # verifies the rows beside it
    if part == VALIDATION and not path.is_file() and run.evaluation.is_file():
        raise RunError(f"The run {run.run_id!r} keeps no validation rows; train it on more rows.")
    try:
        with open_regular(path) as file:
            frame = pd.read_parquet(file)
        if not len(frame) or "text" not in frame:
            raise ValueError("no rows")
        return frame
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"The run {run.run_id!r} has lost its {part} rows; train it again.") from error

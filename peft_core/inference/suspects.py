"""Find rows of a run's test or validation split whose labels may be wrong, by confident learning."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.regression.rank import get_label_quality_scores

from peft_core.inference.review import MAX_ROWS, Evaluation, percent
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import TEST

# "confident_learning" takes rows whose probability of another class exceeds that class's mean; cleanlab's
# other filters skip classes that have few rows
_FILTER_OPTIONS: dict[str, Any] = {"filter_by": "confident_learning", "n_jobs": 1}
OUTLYING = 3.0  # robust standard deviations from the median error from which a number is suspected


@dataclass(frozen=True)
class _Suspect:
    """A row whose label may be wrong.

    Attributes:
        index: Of the row, from 0.
        quality: How well the model agrees with the label, from 0 to 1.
        reason: A sentence for the user.
    """

    index: int
    quality: float
    reason: str


def suspected_labels(run: Run, part: str = TEST, max_rows: int = 50) -> list[dict[str, Any]]:
    """Return the rows whose label is probably wrong, lowest quality first.

    Single and multi-label: confident learning by cleanlab, for each label separately if multi-label; a label
    that no row has, or every row, is never suspected. Regression: rows whose error lies OUTLYING robust
    standard deviations or more from the median error, ranked by cleanlab's residual score. All scores use
    probabilities at the run's temperature, on rows that the model was not trained on.

    Args:
        run: The run.
        part: TEST or VALIDATION.
        max_rows: Most rows to return, at most MAX_ROWS.

    Returns:
        The keys of `Evaluation.to_records`, with the `reason` and `quality` (0 to 1: how well the model
        agrees with the label).

    Raises:
        RunError: If the rows are lost.

    Source: Northcutt et al. 2021, arXiv:1911.00068.
    """
    evaluation = Evaluation.read(run, part)
    suspects = _FINDERS[evaluation.problem_type](evaluation)
    suspects = sorted(suspects, key=lambda suspect: (suspect.quality, suspect.index))
    suspects = suspects[: min(MAX_ROWS, max(1, int(max_rows)))]
    rows = evaluation.to_records(
        [suspect.index for suspect in suspects], [suspect.reason for suspect in suspects]
    )
    return [{**row, "quality": suspect.quality} for row, suspect in zip(rows, suspects, strict=True)]


def _single_label_suspects(evaluation: Evaluation) -> list[_Suspect]:
    labels, probabilities = evaluation.rows.labels, evaluation.probabilities
    if len(np.unique(labels)) < 2:  # cleanlab raises for a single class
        return []
    indices = np.flatnonzero(find_label_issues(labels, probabilities, **_FILTER_OPTIONS))
    names, best = evaluation.labels, probabilities.argmax(-1)
    return [
        _Suspect(
            int(i),
            float(probabilities[i, labels[i]]),
            f"Labeled {names[labels[i]]} ({percent(probabilities[i, labels[i]])}), but predicted as "
            f"{names[best[i]]} ({percent(probabilities[i, best[i]])}).",
        )
        for i in indices
    ]


def _multi_label_suspects(evaluation: Evaluation) -> list[_Suspect]:
    labels, probabilities = evaluation.rows.labels, evaluation.probabilities
    varied = np.flatnonzero(labels.any(0) & ~labels.all(0))
    if not len(varied):
        return []
    sets = [np.flatnonzero(row).tolist() for row in labels[:, varied]]
    issues = np.zeros(labels.shape, dtype=bool)
    issues[:, varied] = find_multilabel_issues_per_class(sets, probabilities[:, varied], **_FILTER_OPTIONS)
    agreement = np.where(labels == 1, probabilities, 1 - probabilities)
    return [
        _Suspect(
            int(i), float(agreement[i, issues[i]].min()), _multi_label_reason(evaluation, int(i), issues[i])
        )
        for i in np.flatnonzero(issues.any(-1))
    ]


def _multi_label_reason(evaluation: Evaluation, i: int, issues: np.ndarray) -> str:
    parts = [
        f"{evaluation.labels[k]} is {'given' if evaluation.rows.labels[i, k] else 'missing'}, and has "
        f"{percent(evaluation.probabilities[i, k])}"
        for k in np.flatnonzero(issues)
    ]
    return f"{'; '.join(parts)}."


def _regression_suspects(evaluation: Evaluation) -> list[_Suspect]:
    labels, predicted = evaluation.rows.labels, evaluation.decided
    errors = predicted - labels
    median = np.median(errors)
    scale = 1.4826 * np.median(np.abs(errors - median)) or errors.std()  # the MAD of normal errors is 0.6745
    if not scale:
        return []
    quality = get_label_quality_scores((labels + median) / scale, predicted / scale, method="residual")
    distance = np.abs(errors - median) / scale
    return [
        _Suspect(
            int(i),
            float(quality[i]),
            f"Labeled {labels[i]:.4g}, but predicted as {predicted[i]:.4g}: {distance[i]:.1f} times the "
            "usual error.",
        )
        for i in np.flatnonzero(distance >= OUTLYING)
    ]


_FINDERS = {SINGLE: _single_label_suspects, MULTI: _multi_label_suspects, REGRESSION: _regression_suspects}

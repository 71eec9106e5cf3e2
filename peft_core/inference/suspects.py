"""Which labels of the rows that a run was judged on may be wrong, by confident learning."""

from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.regression.rank import get_label_quality_scores

from peft_core.inference.review import MOST, Judged, percent
from peft_core.problems import MULTI, REGRESSION, SINGLE
from peft_core.rows import TEST
from peft_core.runs import Run

# rows that are surely of another class; the other filters leave a class alone that has few rows
_HOW = {"filter_by": "confident_learning", "n_jobs": 1}
OUTLYING = 3.0  # robust standard deviations from which on an error is no longer the model's usual one


def suspected_labels(run: Run, part: str = TEST, most: int = 50) -> list[dict[str, Any]]:
    """Rows whose given label is probably wrong, the likeliest first, as `Judged.describe` gives them, with
    `quality` (0 to 1: how well the model and the given label agree) and the reason.

    One label and several: confident learning (Northcutt et al. 2021, arXiv:1911.00068) by cleanlab, of
    several for each label by itself; a label that no row has, or every row, is never suspected. Numbers:
    ranked by cleanlab's residual score, those whose error lies 3 robust standard deviations or more from the
    usual one. All from probabilities at the run's temperature, on rows that the model was not trained on.
    Raises RunError for lost rows.
    """
    judged = Judged.read(run, part)
    found = _FINDERS[judged.problem_type](judged)
    found = sorted(found, key=lambda one: (one[1], one[0]))[: min(MOST, max(1, int(most)))]
    rows = judged.describe([i for i, _, _ in found], [reason for _, _, reason in found])
    return [{**row, "quality": float(quality)} for row, (_, quality, _) in zip(rows, found, strict=True)]


def _wrong_class(judged: Judged) -> list[tuple[int, float, str]]:
    """Place, quality and reason of each suspected row."""
    given, shares = judged.rows.labels, judged.probabilities
    if len(np.unique(given)) < 2:  # nothing to compare with, which cleanlab refuses
        return []
    places = np.flatnonzero(find_label_issues(given, shares, **_HOW))
    names, best = judged.labels, shares.argmax(-1)
    return [
        (
            i,
            shares[i, given[i]],
            f"Labelled {names[given[i]]} ({percent(shares[i, given[i]])}), but reads like "
            f"{names[best[i]]} ({percent(shares[i, best[i]])}).",
        )
        for i in places
    ]


def _wrong_classes(judged: Judged) -> list[tuple[int, float, str]]:
    given, shares = judged.rows.labels, judged.probabilities
    varied = np.flatnonzero(given.any(0) & ~given.all(0))
    if not len(varied):
        return []
    sets = [np.flatnonzero(row).tolist() for row in given[:, varied]]
    issues = np.zeros(given.shape, dtype=bool)
    issues[:, varied] = find_multilabel_issues_per_class(sets, shares[:, varied], **_HOW)
    agreement = np.where(given == 1, shares, 1 - shares)
    return [
        (i, agreement[i, issues[i]].min(), _doubts(judged, i, issues[i]))
        for i in np.flatnonzero(issues.any(-1))
    ]


def _doubts(judged: Judged, i: int, doubted: np.ndarray) -> str:
    """What is doubted of one row's labels."""
    parts = [
        f"{judged.labels[k]} is {'given' if judged.rows.labels[i, k] else 'missing'}, and has "
        f"{percent(judged.probabilities[i, k])}"
        for k in np.flatnonzero(doubted)
    ]
    return f"{'; '.join(parts)}."


def _wrong_number(judged: Judged) -> list[tuple[int, float, str]]:
    given, found = judged.rows.labels, judged.decided
    errors = found - given
    usual = np.median(errors)
    scale = 1.4826 * np.median(np.abs(errors - usual)) or errors.std()  # the MAD of normal errors is 0.6745
    if not scale:
        return []
    quality = get_label_quality_scores((given + usual) / scale, found / scale, method="residual")
    far = np.abs(errors - usual) / scale
    return [
        (
            i,
            quality[i],
            f"Labelled {given[i]:.4g}, but reads like {found[i]:.4g}: {far[i]:.1f} times the usual error.",
        )
        for i in np.flatnonzero(far >= OUTLYING)
    ]


_FINDERS = {SINGLE: _wrong_class, MULTI: _wrong_classes, REGRESSION: _wrong_number}

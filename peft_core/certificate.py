"""The certificate that proves a merge: what was compared, and whether it holds."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from peft_core.problems import REGRESSION, SINGLE
from peft_core.runs import Run

TOLERANCE = 1e-5  # largest difference of a float32 logit that rounding explains


@dataclass(frozen=True)
class MergeCertificate:
    """Three models' float32 logits compared on the run's evaluation rows: the adapter on its base, the merged
    model in memory, and the merged model loaded again from disk.
    `max_logit_diff_*` are against the adapter. An adapter trained over a base in 8 or 4 bits is merged into
    the original weights: the two last numbers say what quantisation had changed, and are no fault."""

    run_id: str
    rows: int
    max_logit_diff_merged: float
    max_logit_diff_reloaded: float
    label_flips: int
    tolerance: float
    head_sha256: str
    head_sha256_reloaded: str
    labels: tuple[str, ...]
    labels_reloaded: tuple[str, ...]
    adapter_sha256: str
    base_model_name_or_path: str
    base_revision: str | None
    created: float
    problem_type: str = SINGLE
    trained_in_bits: int = 32
    max_logit_diff_quantised: float | None = None
    label_flips_quantised: int | None = None

    @property
    def problems(self) -> list[str]:
        """What does not hold, in words; empty for a certificate that holds."""
        differences = (self.max_logit_diff_merged, self.max_logit_diff_reloaded)
        within = all(difference <= self.tolerance for difference in differences)  # false for NaN too
        allowed = f"(at most {self.tolerance:g} is allowed)"
        checks = {
            f"a logit differs by {max(differences):.2g} {allowed}": not within,
            f"{self.label_flips} of {self.rows} labels flip": self.label_flips > 0,
            "the head on disk is not the trained one": self.head_sha256 != self.head_sha256_reloaded,
            "the labels on disk are not the trained ones": self.labels != self.labels_reloaded,
        }
        return [what for what, wrong in checks.items() if wrong]

    @property
    def holds(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with `holds` and `problems`."""
        return {
            **asdict(self),
            "labels": list(self.labels),
            "labels_reloaded": list(self.labels_reloaded),
            "holds": self.holds,
            "problems": self.problems,
        }


def tolerance(problem_type: str, logits: np.ndarray) -> float:
    """The largest difference that rounding explains: of logits as it is, of numbers relative to their size.

    Prices in thousands are float32 numbers that lie a thousand times further apart than logits do.
    """
    largest = float(np.abs(logits).max()) if problem_type == REGRESSION else 1.0
    return TOLERANCE * max(1.0, largest)


def read_certificate(run: Run) -> MergeCertificate | None:
    """The certificate of a run that was merged (or whose merge failed), or None."""
    try:
        held = json.loads(run.certificate.read_text(encoding="utf-8"))
        del held["holds"], held["problems"]
        held |= {"labels": tuple(held["labels"]), "labels_reloaded": tuple(held["labels_reloaded"])}
        return MergeCertificate(**held)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def certificate_of_merged(run: Run) -> MergeCertificate | None:
    """The certificate of `merged/` if it is there, holds, and is of the very adapter that the run has now."""
    found = read_certificate(run)
    if found is None or not found.holds or not run.is_merged:
        return None
    return found if found.adapter_sha256 == sha256_of_adapter(run) else None


def sha256_of_adapter(run: Run) -> str:
    """The hash of the trained weights' file, as the certificate names it."""
    with (run.adapter / "adapter_model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

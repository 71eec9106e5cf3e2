"""The merge certificate: which models were compared, with which result, and the files it covers.

The certificate is stored in `merged/` beside the files whose SHA-256 and sizes it lists, and appears together
with them by one rename, so it never describes other weights. Every reader of `merged/` calls
`verified_certificate` first, which compares each file with the certificate, and the adapter with the one that
was merged.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.errors import DamagedError, RunError
from peft_core.files.hashing import sha256_of_file
from peft_core.files.manifests import FileEntry, entries_of
from peft_core.files.records import read_json
from peft_core.problem_types import REGRESSION, SINGLE
from peft_core.runs import Run

CERTIFICATE_FILE = "certificate.json"
NOT_MODEL_FILES = (CERTIFICATE_FILE, "decision.json")  # of merged/: users may change the decision rule

TOLERANCE = 1e-5  # largest difference of a float32 logit that rounding explains


@dataclass(frozen=True)
class MergeCertificate:
    """Comparison of three models by their float32 logits on the run's test rows.

    The models are the adapter on its base, the merged model in memory, and the merged model loaded again from
    disk. `max_logit_diff_*` are differences from the adapter. An adapter trained on a base in 8 or 4 bits is
    merged into the original weights; `*_quantised` measure the effect of quantization and do not count as
    problems. `files` are those of the merged model, from which it was loaded again.
    """

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
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Descriptions of the checks that failed; empty if the certificate holds."""
        differences = (self.max_logit_diff_merged, self.max_logit_diff_reloaded)
        within = all(difference <= self.tolerance for difference in differences)  # false for NaN too
        allowed = f"(at most {self.tolerance:g} is allowed)"
        checks = {
            f"a logit differs by {max(differences):.2g} {allowed}": not within,
            f"{self.label_flips} of {self.rows} labels flip": self.label_flips > 0,
            "the head on disk is not the trained one": self.head_sha256 != self.head_sha256_reloaded,
            "the labels on disk are not the trained ones": self.labels != self.labels_reloaded,
        }
        return [description for description, failed in checks.items() if failed]

    @property
    def holds(self) -> bool:
        """Whether every check passed."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, with `holds` and `problems`."""
        return {
            **asdict(self),
            "files": {name: entry.to_dict() for name, entry in self.files.items()},
            "labels": list(self.labels),
            "labels_reloaded": list(self.labels_reloaded),
            "holds": self.holds,
            "problems": self.problems,
        }


def tolerance(problem_type: str, logits: np.ndarray) -> float:
    """Return the largest difference that rounding explains: absolute for logits, relative for a regression.

    The spacing of float32 numbers grows with their size: for prices in thousands it is a thousand times that
    of logits.
    """
    largest = float(np.abs(logits).max()) if problem_type == REGRESSION else 1.0
    return TOLERANCE * max(1.0, largest)


def verified_certificate(run: Run) -> MergeCertificate:
    """Return the certificate of `merged/` after checking all files against it.

    Raises:
        RunError: If the run is not merged, or was merged from an earlier adapter.
        DamagedError: If a file has changed since it was written.
    """
    if not run.certificate.is_file():
        raise RunError(f"The run {run.run_id!r} is not merged yet; merge it first.")
    try:
        run.verify(run.merged)
        certificate = read_certificate(run.certificate)
        _compare_files(run.merged, certificate)
    except DamagedError as error:
        raise DamagedError(
            f"The merged model of {run.run_id!r} is damaged; merge it again: {error}"
        ) from error
    run.verify(run.adapter)
    if certificate.adapter_sha256 != sha256_of_adapter(run):
        raise RunError(f"The merged model of {run.run_id!r} belongs to an earlier adapter; merge it again.")
    return certificate


def certificate_of_merged(run: Run) -> MergeCertificate | None:
    """Return `verified_certificate`, or None where it raises RunError."""
    try:
        return verified_certificate(run)
    except RunError:
        return None


def read_certificate(path: Path) -> MergeCertificate:
    """Read a certificate without checking the files it lists; DamagedError if it is lost or damaged."""
    values = read_json(path)
    try:
        del values["holds"], values["problems"]
        values |= {"labels": tuple(values["labels"]), "labels_reloaded": tuple(values["labels_reloaded"])}
        values["files"] = {name: FileEntry.from_dict(entry) for name, entry in values["files"].items()}
        return MergeCertificate(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path.name} is damaged: {error}.") from error


def sha256_of_adapter(run: Run) -> str:
    """Return the SHA-256 of the adapter's weights file, as stored in the certificate."""
    return sha256_of_file(run.adapter / "adapter_model.safetensors")


def _compare_files(folder: Path, certificate: MergeCertificate) -> None:
    if entries_of(folder, without=NOT_MODEL_FILES) != certificate.files:
        raise DamagedError("its files differ from those that its certificate names")
    if not certificate.holds:
        raise DamagedError("its certificate does not hold")

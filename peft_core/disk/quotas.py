"""Quotas of a public demo: how much disk space visitors may use, and how long their files are kept."""

from dataclasses import dataclass

from peft_core.disk.usage import describe_bytes

_HOUR, _DAY = 3600.0, 86_400.0


@dataclass(frozen=True)
class Quotas:
    """Limits of the disk space of a public demo.

    Attributes:
        visitor_bytes: Maximum size of one visitor's runs and uploads.
        total_bytes: Maximum size of the whole folder of runs.
        min_free_bytes: Free space that must remain on the disk.
        run_seconds: How long a run is kept after it ended.
        shared_run_seconds: The same for a run with a share link.
        upload_seconds: How long an upload is kept after its last use.
        young_run_seconds: A run that ended more recently than this is never removed to make room.
        young_upload_seconds: The same for an upload, since its owner may be about to train on it.
    """

    visitor_bytes: int = 4_000_000_000
    total_bytes: int = 20_000_000_000
    min_free_bytes: int = 2_000_000_000
    run_seconds: float = 7 * _DAY
    shared_run_seconds: float = 30 * _DAY
    upload_seconds: float = 7 * _DAY
    young_run_seconds: float = _HOUR
    young_upload_seconds: float = 600.0

    def describe(self) -> str:
        """Return the quotas as a sentence for the page."""
        times = (self.run_seconds, self.shared_run_seconds, self.upload_seconds)
        run_days, shared_days, upload_days = map(_days, times)
        return (
            f"You may use {describe_bytes(self.visitor_bytes)}; a run is removed {run_days} after it ended, "
            f"a shared one after {shared_days}, an upload {upload_days} after it was used last, and earlier "
            "if the disk is full."
        )


@dataclass(frozen=True)
class Usage:
    """Size and number of one visitor's runs and uploads.

    `total_bytes` is less than the sum of both sizes if they share files by hard links.
    """

    run_bytes: int
    upload_bytes: int
    total_bytes: int
    runs: int
    uploads: int
    quota_bytes: int

    def describe(self) -> str:
        """Return the usage as a sentence for the page."""
        used, quota = describe_bytes(self.total_bytes), describe_bytes(self.quota_bytes)
        return f"You use {used} of {quota}: {_count(self.runs, 'run')}, {_count(self.uploads, 'upload')}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _days(seconds: float) -> str:
    return _count(round(seconds / _DAY), "day")

"""Findings on how files were read, in addition to those of the audit."""

from collections.abc import Mapping
from typing import Any

from peft_core.data.audit import EXAMPLES, Finding


def reading_findings(record: Mapping[str, Any]) -> list[Finding]:
    """Return a finding for each reading note of each file in a `RawRows.record`."""
    return [
        Finding(
            note["kind"],
            note["count"],
            tuple(f"{facts['name']} row {row:,}" for row in note["rows"][:EXAMPLES]),
            f"{facts['name']}: {note['sentence']}",
        )
        for facts in record.get("files", ())
        for note in facts.get("notes", ())
    ]

"""Visitors of a public demo with runs and uploads of their own, marked by a canary, and what they may change.

A canary stands in the test rows, the settings and the label names of a visitor's runs, and in the rows and a
column's name of the upload. Runs are copies of one that was trained, with manifests written anew.
"""

import csv
import hashlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from peft_core.access.visitors import sha256_of
from peft_core.data.uploads import PREFIX, store_upload
from peft_core.files.manifests import write_manifest
from peft_core.runs import Run
from peft_core.runs.ownership import OWNER_FILE, Ownership, read_ownership, write_ownership
from peft_core.runs.store import UPLOADS
from peft_core.runs.trash import TRASH

# What the app writes into a run that is only read: exports, predictions and what they are computed from.
_DERIVED = {"downloads", "predictions", "probe", "vectors", "lock"}
_ROWS = 40


@dataclass(frozen=True)
class Link:
    """A share link as its owner got it, and when it ended by the monotonic clock; None while it works."""

    secret: str
    ended: float | None = None


@dataclass
class Possession:
    """What a visitor has, and the changes that the visitor made: all others are wrong.

    Attributes:
        canary: what no other visitor may read.
        kept: the id of a run that stays.
        spare: the id of a run that the visitor may delete.
        uploads: the names of uploads, the first of which was there before.
        links: the links of `kept`, the newest last.
        is_sharing: whether a link works at the end; None if that is not known, since a request got no answer.
        has_deleted: whether `spare` was deleted; None likewise.
    """

    token: str
    canary: str
    kept: str
    spare: str
    uploads: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    is_sharing: bool | None = False
    has_deleted: bool | None = False
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return sha256_of(self.token)

    @property
    def runs(self) -> tuple[str, str]:
        return self.kept, self.spare

    @property
    def secrets(self) -> tuple[str, str, str]:
        """What no answer to another may hold."""
        return self.canary, self.token, self.owner


def rows_with(canary: str, number: int) -> bytes:
    """A CSV file whose rows and columns hold a canary; another one for each number."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("text", "label", canary))
    for row in range(_ROWS):
        writer.writerow((f"Text {row} of file {number}, {canary}", ("bad", "good")[row % 2], row))
    return text.getvalue().encode()


def give(runs_dir: Path, trained: Run, numbers: random.Random, scratch: Path) -> Possession:
    """A new visitor with two runs and an upload."""
    token, canary = f"{numbers.getrandbits(256):064x}", f"cnry{numbers.getrandbits(48):012x}"
    kept, spare = (f"run-{numbers.getrandbits(48):012x}" for _ in range(2))
    possession = Possession(token, canary, kept, spare)
    for run_id in possession.runs:
        run = Run(shutil.copytree(trained.folder, runs_dir / run_id))
        mark(run, canary)
        write_ownership(run.folder, Ownership(owner=possession.owner))
        possession.hashes[run_id] = hashes_of(run.folder)
    file = scratch / "rows.csv"
    file.write_bytes(rows_with(canary, 0))
    upload = store_upload([file], runs_dir.absolute() / UPLOADS / possession.owner)
    possession.uploads.append(PREFIX + upload.folder.name)
    return possession


def mark(run: Run, canary: str) -> None:
    """Put a canary into a run's settings, test rows and label names."""
    settings = json.loads((run.folder / "config.json").read_text("utf-8"))
    (run.folder / "config.json").write_text(json.dumps({**settings, "text_column": canary}), "utf-8")
    write_manifest(run.folder, *json.loads((run.folder / "manifest.json").read_text("utf-8"))["files"])
    for path in (run.evaluation, run.validation):
        table = pq.read_table(path)
        texts = pa.array([f"{text} {canary}" for text in table["text"].to_pylist()], pa.large_string())
        pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", texts), path)
    for path in (run.results / "result.json", run.adapter / "classifier.json"):
        named = path.read_text("utf-8").replace('"good"', f'"good {canary}"')
        path.write_text(named, "utf-8")
    write_manifest(run.results)
    write_manifest(run.adapter)


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a run but for its owner's record and what reading it makes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in _DERIVED
        and path.relative_to(folder).as_posix() != OWNER_FILE
    }


def wrong_changes(runs_dir: Path, possessions: list[Possession]) -> Iterator[str]:
    """A sentence for each change on the disk that no visitor had a right to."""
    expected = {run_id for each in possessions for run_id in each.runs}
    for path in runs_dir.iterdir():
        if not path.name.startswith(".") and path.name not in expected:
            yield f"changed: there is {path.name}, which nobody made"
    owners = {each.owner for each in possessions}
    for path in (runs_dir / UPLOADS).iterdir():
        if path.name not in owners:
            yield f"changed: .uploads holds {path.name}, which is nobody's"
    for possession in possessions:
        yield from _changes_of_runs(runs_dir, possession)
        yield from _changes_of_uploads(runs_dir / UPLOADS / possession.owner, possession)


def _changes_of_runs(runs_dir: Path, possession: Possession) -> Iterator[str]:
    for run_id in possession.runs:
        present, trashed = runs_dir / run_id, runs_dir / TRASH / run_id
        may_be_deleted = possession.has_deleted is not False and run_id == possession.spare
        must_be_deleted = may_be_deleted and possession.has_deleted is True
        if present.is_dir() == must_be_deleted or (not present.is_dir() and not may_be_deleted):
            yield f"changed: {run_id} was {'kept' if must_be_deleted else 'deleted'}"
        folder = present if present.is_dir() else trashed
        now = hashes_of(folder)
        yield from (
            f"changed: {name} of {run_id}"
            for name in sorted({*now, *possession.hashes[run_id]})
            if now.get(name) != possession.hashes[run_id].get(name)
        )
        ownership, sharing = read_ownership(folder), possession.is_sharing and run_id == possession.kept
        if ownership.owner != possession.owner:
            yield f"changed: the owner of {run_id}"
        if possession.is_sharing is not None and bool(ownership.link_sha256) != bool(sharing):
            yield f"changed: the link of {run_id}"


def _changes_of_uploads(folder: Path, possession: Possession) -> Iterator[str]:
    names = {PREFIX + path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names != set(possession.uploads):
        yield f"changed: the uploads of {possession.owner[:6]} are {sorted(names)}"
    for path in folder.rglob("*.csv"):
        if possession.canary.encode() not in path.read_bytes():
            yield f"changed: {path.parent.name} of {possession.owner[:6]}"

"""Runs and uploads of a visitor of a public demo, marked by a canary, and the changes that are allowed.

The canary is in the test rows, the settings and the label names of a visitor's runs, and in the rows and a
column name of the upload. The runs are copies of one trained run with new manifests.
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

# Written by the app into a run that is only read: exports, predictions and their caches.
_DERIVED = {"downloads", "predictions", "probe", "vectors", "lock"}
_ROWS = 40


@dataclass(frozen=True)
class Link:
    """A share link: its secret, and its end by the monotonic clock (None while it works)."""

    secret: str
    ended: float | None = None


@dataclass
class Possession:
    """The runs, uploads and links of a visitor, and the changes that the visitor made; others are failures.

    Attributes:
        canary: a word that no other visitor may read.
        main_run_id: of a run that is never deleted.
        spare_run_id: of a run that the visitor may delete.
        uploads: names of uploads; the first exists from the start.
        links: share links of the main run, the newest last.
        is_sharing: whether a link works at the end; None if unknown, after a request without an answer.
        has_deleted: whether the spare run was deleted; None if unknown.
    """

    token: str
    canary: str
    main_run_id: str
    spare_run_id: str
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
        return self.main_run_id, self.spare_run_id

    @property
    def secrets(self) -> tuple[str, str, str]:
        """Words that no answer to another visitor may contain."""
        return self.canary, self.token, self.owner


def canary_csv(canary: str, number: int) -> bytes:
    """Return a CSV file with a canary in its rows and columns; each number gives another file."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("text", "label", canary))
    for row in range(_ROWS):
        writer.writerow((f"Text {row} of file {number}, {canary}", ("bad", "good")[row % 2], row))
    return text.getvalue().encode()


def create_possession(runs_dir: Path, trained: Run, rng: random.Random, scratch: Path) -> Possession:
    """Create a visitor with two runs and an upload."""
    token, canary = f"{rng.getrandbits(256):064x}", f"cnry{rng.getrandbits(48):012x}"
    main_run_id, spare_run_id = (f"run-{rng.getrandbits(48):012x}" for _ in range(2))
    possession = Possession(token, canary, main_run_id, spare_run_id)
    for run_id in possession.runs:
        run = Run(shutil.copytree(trained.folder, runs_dir / run_id))
        insert_canary(run, canary)
        write_ownership(run.folder, Ownership(owner=possession.owner))
        possession.hashes[run_id] = file_hashes(run.folder)
    file = scratch / "rows.csv"
    file.write_bytes(canary_csv(canary, 0))
    upload = store_upload([file], runs_dir.absolute() / UPLOADS / possession.owner)
    possession.uploads.append(PREFIX + upload.folder.name)
    return possession


def insert_canary(run: Run, canary: str) -> None:
    """Insert a canary into a run's settings, test rows and label names."""
    settings = json.loads((run.folder / "config.json").read_text("utf-8"))
    (run.folder / "config.json").write_text(json.dumps({**settings, "text_column": canary}), "utf-8")
    write_manifest(run.folder, *json.loads((run.folder / "manifest.json").read_text("utf-8"))["files"])
    for path in (run.evaluation, run.validation):
        table = pq.read_table(path)
        texts = pa.array([f"{text} {canary}" for text in table["text"].to_pylist()], pa.large_string())
        pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", texts), path)
    for path in (run.results / "result.json", run.adapter / "classifier.json"):
        renamed = path.read_text("utf-8").replace('"good"', f'"good {canary}"')
        path.write_text(renamed, "utf-8")
    write_manifest(run.results)
    write_manifest(run.adapter)


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a run, except its ownership and derived files."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in _DERIVED
        and path.relative_to(folder).as_posix() != OWNER_FILE
    }


def unexpected_changes(runs_dir: Path, possessions: list[Possession]) -> Iterator[str]:
    """Yield a sentence for each change on the disk that no visitor was allowed to make."""
    expected = {run_id for each in possessions for run_id in each.runs}
    for path in runs_dir.iterdir():
        if not path.name.startswith(".") and path.name not in expected:
            yield f"changed: there is {path.name}, which nobody made"
    owners = {each.owner for each in possessions}
    for path in (runs_dir / UPLOADS).iterdir():
        if path.name not in owners:
            yield f"changed: .uploads holds {path.name}, which is nobody's"
    for possession in possessions:
        yield from _run_changes(runs_dir, possession)
        yield from _upload_changes(runs_dir / UPLOADS / possession.owner, possession)


def _run_changes(runs_dir: Path, possession: Possession) -> Iterator[str]:
    for run_id in possession.runs:
        present, trashed = runs_dir / run_id, runs_dir / TRASH / run_id
        may_be_deleted = possession.has_deleted is not False and run_id == possession.spare_run_id
        must_be_deleted = may_be_deleted and possession.has_deleted is True
        if present.is_dir() == must_be_deleted or (not present.is_dir() and not may_be_deleted):
            yield f"changed: {run_id} was {'kept' if must_be_deleted else 'deleted'}"
        folder = present if present.is_dir() else trashed
        now = file_hashes(folder)
        yield from (
            f"changed: {name} of {run_id}"
            for name in sorted({*now, *possession.hashes[run_id]})
            if now.get(name) != possession.hashes[run_id].get(name)
        )
        ownership, sharing = (
            read_ownership(folder),
            possession.is_sharing and run_id == possession.main_run_id,
        )
        if ownership.owner != possession.owner:
            yield f"changed: the owner of {run_id}"
        if possession.is_sharing is not None and bool(ownership.link_sha256) != bool(sharing):
            yield f"changed: the link of {run_id}"


def _upload_changes(folder: Path, possession: Possession) -> Iterator[str]:
    names = {PREFIX + path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names != set(possession.uploads):
        yield f"changed: the uploads of {possession.owner[:6]} are {sorted(names)}"
    for path in folder.rglob("*.csv"):
        if possession.canary.encode() not in path.read_bytes():
            yield f"changed: {path.parent.name} of {possession.owner[:6]}"

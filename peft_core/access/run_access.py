"""Access rights to runs, and their share links.

The user of an app that is not public owns every run. On a public demo a visitor owns the runs that they
started, and may read only these, the host's examples, and the run whose share link they opened. A run that a
visitor may not read gives the same error as an unknown id.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peft_core import runs
from peft_core.access.visitors import Visitor, sha256_of
from peft_core.errors import RunError
from peft_core.files.atomic import translate_disk_errors
from peft_core.runs import Run
from peft_core.runs.ownership import Ownership, read_ownership, write_ownership


@dataclass(frozen=True)
class RunAccess:
    """The current visitor's access to the runs of a folder.

    Attributes:
        runs_dir: The folder of all runs.
        visitor: Returns the visitor of the current request.
        examples: Ids of runs that everyone may read.
    """

    runs_dir: Path
    visitor: Callable[[], Visitor]
    examples: frozenset[str] = frozenset()

    def find(self, run_id: str) -> Run:
        """Return a run that the visitor may read.

        Raises:
            RunError: There is no such run, or the visitor may not read it.
        """
        run = runs.find(self.runs_dir, run_id)
        if not self.may_read(run):
            raise runs.unknown_run(run_id)
        return run

    def find_own(self, run_id: str) -> Run:
        """Return a run that the visitor may change.

        Raises:
            RunError: As for `find`, or the visitor may only read the run.
        """
        run = self.find(run_id)
        if not self.owns(run):
            raise RunError(
                f"The run {run_id!r} is not yours: you can read it, but not change it. Train one of your own."
            )
        return run

    def check_owns_deleted(self, run_id: str) -> None:
        """Raise RunError, as for an unknown id, unless a deleted run is the visitor's."""
        visitor = self.visitor()
        if visitor.owns_all:
            return
        folders = {trashed.folder.name: trashed.folder for trashed in runs.list_trash(self.runs_dir)}
        if run_id not in folders or not read_ownership(folders[run_id]).is_owned_by(visitor.owner):
            raise runs.unknown_run(run_id)

    def list_runs(self) -> list[Run]:
        """Return the runs that the visitor may read, newest first."""
        visitor = self.visitor()
        return [run for run in runs.list_runs(self.runs_dir) if self._is_readable_by(visitor, run)]

    def owns(self, run: Run) -> bool:
        """Return whether the visitor may change a run."""
        visitor = self.visitor()
        return visitor.owns_all or read_ownership(run.folder).is_owned_by(visitor.owner)

    def share(self, run_id: str) -> str:
        """Return the secret of a run's share link, which is created if there is none.

        Raises:
            RunError: The run is not the visitor's.
        """
        run, visitor = self._owned_by_visitor(run_id), self.visitor()
        ownership = read_ownership(run.folder)
        nonce = ownership.link_nonce or secrets.token_hex(16)
        secret = visitor.share_secret(run.run_id, nonce)
        shared = ownership.replace(link_nonce=nonce, link_sha256=sha256_of(secret))
        if shared != ownership:
            _write(run, shared)
        return secret

    def shared_secret(self, run: Run) -> str | None:
        """Return the secret of a run's share link to its owner; None to others, and if it is not shared."""
        visitor, ownership = self.visitor(), read_ownership(run.folder)
        if visitor.token is None or not ownership.link_nonce or not ownership.is_owned_by(visitor.owner):
            return None
        return visitor.share_secret(run.run_id, ownership.link_nonce)

    def revoke(self, run_id: str) -> None:
        """Revoke a run's share link permanently.

        Raises:
            RunError: The run is not the visitor's.
        """
        run = self._owned_by_visitor(run_id)
        _write(run, read_ownership(run.folder).replace(link_nonce=None, link_sha256=None))

    def _owned_by_visitor(self, run_id: str) -> Run:
        run = self.find_own(run_id)
        if self.visitor().token is None:
            raise RunError("Only runs of a public demo have share links.")
        return run

    def may_read(self, run: Run) -> bool:
        """Return whether the visitor may read a run."""
        return self._is_readable_by(self.visitor(), run)

    def _is_readable_by(self, visitor: Visitor, run: Run) -> bool:
        if visitor.owns_all or run.run_id in self.examples:
            return True
        ownership = read_ownership(run.folder)
        return ownership.is_owned_by(visitor.owner) or ownership.is_shared_with(visitor.link)


def _write(run: Run, ownership: Ownership) -> None:
    with translate_disk_errors():
        write_ownership(run.folder, ownership)

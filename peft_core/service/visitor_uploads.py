"""The uploads of the current visitor: storing them, counting their rows, and resolving their names.

What an upload passes before it comes here is listed in `access/__init__.py`.
"""

import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_core.access.visitors import TOKEN_HEADER, Visitor
from peft_core.data.formats import max_unpacked_bytes
from peft_core.data.uploads import PREFIX, UPLOADS, is_upload, store_upload
from peft_core.errors import ConfigError, DataError, PeftCoreError
from peft_core.files.atomic import translate_disk_errors
from peft_core.service.limits import Limits
from peft_core.service.references import tasks
from peft_core.service.worker import Worker

TOKEN_NEEDED = (
    "This public demo needs a token to tell visitors apart, and your request has none: "
    f"send the header {TOKEN_HEADER} with 64 random hex digits of your own, the same with each request."
)


class VisitorUploads:
    """The uploads of the current visitor in a folder of runs."""

    def __init__(
        self, runs_dir: Path, visitor: Callable[[], Visitor], limits: Limits | None, files: Worker
    ) -> None:
        """Manage the uploads.

        Args:
            runs_dir: The folder of runs.
            visitor: Returns the visitor of the current request.
            limits: Limits of a public demo; None for an app that is not public.
            files: The worker that reads the files.
        """
        self._root = runs_dir.absolute() / UPLOADS
        self._visitor, self._limits, self._files = visitor, limits, files
        self._rows: dict[str, int] = {}
        self._storing = threading.Lock()  # one upload is copied at a time

    @property
    def folder(self) -> Path:
        """Folder of the visitor's uploads; for a visitor without a token, one that is always empty."""
        visitor = self._visitor()
        return self._root if visitor.owns_all else self._root / (visitor.owner or "nobody")

    def resolve(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings with the name of an upload (`upload:…`) replaced by its folder.

        Raises:
            ConfigError: The visitor has no such upload.
        """
        name = settings.get("dataset_name")
        if self._visitor().owns_all or not isinstance(name, str) or not name.startswith(PREFIX):
            return dict(settings)
        folder = str(self.folder / name.removeprefix(PREFIX))
        if not is_upload(folder, self.folder):
            raise ConfigError(f"There is no upload {name[:100]!r}; upload the file again.")
        return {**settings, "dataset_name": folder}

    def store(self, paths: Sequence[Path], in_use: Collection[str], *, link: bool = False) -> str:
        """Store files as a data set and return its `dataset_name`.

        Args:
            paths: The files.
            in_use: Data sets that are not removed to make room.
            link: As for `store_upload`.

        Raises:
            DataError: The files cannot be stored or, on a public demo, cannot be read.
        """
        visitor = self._visitor()
        if not visitor.owns_all and visitor.owner is None:
            raise DataError(TOKEN_NEEDED)
        if self._limits is None:
            with self._storing, translate_disk_errors():
                return str(store_upload(paths, self.folder, in_use=in_use, link=link).folder)
        with self._storing, translate_disk_errors():
            folder, is_new = store_upload(
                paths,
                self.folder,
                in_use=in_use,
                link=link,
                max_uploads=self._limits.max_uploads,
                max_bytes=self._limits.max_upload_bytes,
            )
        try:
            self._check_rows(folder)
        except PeftCoreError:
            if is_new:  # otherwise a run may wait for it or train on it
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return str(folder) if visitor.owns_all else PREFIX + folder.name

    def rows(self, name: str) -> int | None:
        """Return the number of rows of an upload, cached by its folder; None for other data sets."""
        if not is_upload(name, self.folder):
            return None
        if name not in self._rows:
            files = [str(path) for path in sorted(Path(name).iterdir())]
            max_bytes = max_unpacked_bytes(self._limits.max_upload_bytes) if self._limits else None
            self._rows[name] = self._files.run(tasks.count_rows, files, max_bytes)
        return self._rows[name]

    def _check_rows(self, folder: Path) -> None:
        assert self._limits is not None  # only a public demo checks the rows
        rows, max_rows = self.rows(str(folder)) or 0, self._limits.max_upload_rows
        if rows > max_rows:
            raise DataError(f"The files have {rows:,} rows; this public demo takes at most {max_rows:,}.")

"""Access to the bytes of a table on disk: a plain file, a .gz, or the only table in a .zip.

Unpacked bytes are counted while they are read and never taken from the archive's headers, so that a
decompression bomb stops at the limit. Nothing is unpacked to disk. Members are counted before they are
listed: 10 MB hold 200,000 entries of a .zip or 500,000 empty members of a .gz, which would block the server
process for seconds in the standard library.

If a file cannot be read (missing, no permission, disk failure), a DataError names the file but not its
folder.
"""

import contextlib
import errno
import gzip
import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from peft_core.data.cells import first_error_line
from peft_core.data.formats import SUFFIXES, TABLE_SUFFIXES, max_unpacked_bytes, suffix_of
from peft_core.errors import DataError, reason_of

_DAMAGE = (  # bz2 raises OSError, ValueError or EOFError
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, RuntimeError, NotImplementedError, ValueError, MemoryError,
)  # fmt: skip
_ABOUT = re.compile(r"(read.?me|licen[cs]e|copying|changelog|data_?card)\b", re.IGNORECASE)
_BLOCK = 1_000_000
_ZIP_ENTRY, _GZIP_MEMBER = b"PK\x01\x02", b"\x1f\x8b\x08"  # first bytes of each
_MAX_MEMBERS = 1000  # of an archive, plus one for each _BYTES_PER_MEMBER of its size
_BYTES_PER_MEMBER = 10_000


@dataclass(frozen=True)
class DataFile:
    """One table on disk.

    Attributes:
        format: Suffix of the table itself, such as `.csv`.
        member: Name of the table inside a .zip.
    """

    path: Path
    format: str
    member: str | None = None

    @property
    def name(self) -> str:
        """File name for messages and reports."""
        return self.path.name

    @property
    def is_packed(self) -> bool:
        """Whether the file is compressed."""
        return self.path.suffix.lower() in (".gz", ".zip")

    def open(self, max_bytes: int) -> BinaryIO:
        """Open the unpacked bytes; reading raises DataError after `max_bytes` and for damage."""
        if not self.is_packed:
            with describe_read_errors(self.name):
                return self.path.open("rb")
        return cast(BinaryIO, io.BufferedReader(_Unpacked(self, max_bytes), _BLOCK))

    def read(self, max_bytes: int) -> bytes:
        """Read all unpacked bytes; raise DataError for more than `max_bytes` and for damage."""
        size = size_of(self.path)
        if size > max_bytes:
            raise DataError(
                f"{self.name!r} has {size / 1e6:,.0f} MB; at most {max_bytes / 1e6:,.0f} MB are read, so "
                "leave out rows or columns that are not needed, or split it."
            )
        with describe_read_errors(self.name), self.open(max_bytes) as file:
            return file.read()


@contextlib.contextmanager
def describe_read_errors(name: str) -> Iterator[None]:
    """Translate OSError to a DataError with this file name and the reason."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name!r} cannot be read: {reason_of(error)}.") from error


def read_error(name: str, error: BaseException) -> DataError | None:
    """Return the DataError for a file that the system could not read; None if its content is at fault.

    For damaged content libraries raise an OSError without errno, or with EINVAL.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return DataError(f"{name!r} cannot be read: {reason_of(error)}.")
    return None


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; raise DataError if it cannot be read."""
    with describe_read_errors(path.name):
        return path.stat().st_size


def locate(path: Path) -> DataFile:
    """Locate the table in a file.

    Raises:
        DataError: If the suffix is not supported, or a .zip does not hold exactly one table.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{path.name!r} is not a {' '.join(SUFFIXES)} file; save it as one of these.")
    if suffix == ".zip":
        return _only_table(path)
    return DataFile(path, suffix.removesuffix(".gz"))


def unpacked_bytes(path: Path, max_bytes: int) -> int:
    """Count the unpacked bytes of a table, up to shortly after `max_bytes`.

    Raises:
        DataError: If the file is damaged, or a workbook's XML exceeds `formats.max_unpacked_bytes`.
    """
    table = locate(path)
    if table.format == ".xlsx" and size_of(path) <= max_bytes:
        book = io.BytesIO(table.read(max_bytes)) if table.is_packed else path
        check_workbook(table.name, book, max_unpacked_bytes(max_bytes))
    if not table.is_packed:
        return size_of(path)
    size = 0
    with table.open(max_bytes + 2 * _BLOCK) as file:
        while size <= max_bytes and (block := file.read(_BLOCK)):
            size += len(block)
    return size


def check_workbook(name: str, file: "BinaryIO | Path", max_bytes: int) -> None:
    """Raise DataError if a workbook declares over `max_bytes` of XML; no member unpacks to more.

    A file that is not an archive passes; opening it reports the error.
    """
    try:
        _check_members(name, file, _ZIP_ENTRY)
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (*_DAMAGE, OSError):
        return
    if size > max_bytes:
        raise DataError(f"{name!r} unpacks to over {max_bytes / 1e6:,.0f} MB; leave out rows or columns.")


def _check_members(name: str, file: "BinaryIO | Path", start: bytes) -> None:
    """Raise DataError for an archive with too many members, counted by the first bytes of each (`start`)."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        count, size, tail = 0, 0, b""
        while block := stream.read(_BLOCK):
            count += (tail + block).count(start)
            size, tail = size + len(block), block[1 - len(start) :]
        stream.seek(0)
    limit = _MAX_MEMBERS + size // _BYTES_PER_MEMBER
    if count > limit:
        raise DataError(
            f"{name!r} is an archive of {count:,} members; at most {limit:,} are read, so pack fewer files."
        )


class _Unpacked(io.RawIOBase):
    """Stream of a compressed table that stops at a limit and raises DataError for damage."""

    def __init__(self, table: DataFile, max_bytes: int) -> None:
        self._table, self._remaining, self._max_bytes = table, max_bytes, max_bytes
        self._archive: zipfile.ZipFile | None = None
        try:
            if table.member is None:
                _check_members(table.name, table.path, _GZIP_MEMBER)
                self._stream: BinaryIO = cast(BinaryIO, gzip.GzipFile(table.path))
            else:
                self._archive = zipfile.ZipFile(table.path)
                self._stream = cast(BinaryIO, self._archive.open(table.member))
        except (*_DAMAGE, OSError) as error:
            raise _damaged(table.name, error) from error

    def readable(self) -> bool:
        return True

    # the stub has Buffer, which has no length; io.BufferedReader passes a memoryview
    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            block = self._stream.read(len(buffer))
        except (*_DAMAGE, OSError) as error:
            raise _damaged(self._table.name, error) from error
        self._remaining -= len(block)
        if self._remaining < 0:
            raise _too_large(self._table.name, self._max_bytes)
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        for file in (getattr(self, "_stream", None), getattr(self, "_archive", None)):
            if file is not None:
                file.close()
        super().close()


def _only_table(path: Path) -> DataFile:
    try:
        _check_members(path.name, path, _ZIP_ENTRY)
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except (*_DAMAGE, OSError) as error:
        raise _damaged(path.name, error) from error
    tables = [name for name in names if _is_table(name)]
    if len(tables) == 1:
        return DataFile(path, str(PurePosixPath(tables[0]).suffix.lower()), tables[0])
    if not tables:
        holds = ", ".join(map(repr, names[:5])) or "nothing"
        raise DataError(f"{path.name!r} has no {' '.join(TABLE_SUFFIXES)} file, only {holds}; add one.")
    holds = ", ".join(map(repr, tables[:5])) + (" …" if len(tables) > 5 else "")
    raise DataError(f"{path.name!r} holds {len(tables)} tables, {holds}; give each as a file of its own.")


def _is_table(name: str) -> bool:
    """Return whether an archive member is a table, not a text about it or a file of an operating system."""
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in TABLE_SUFFIXES and not hidden and not _ABOUT.match(path.name)


def _damaged(name: str, error: BaseException) -> DataError:
    if "password" in str(error):
        return DataError(f"{name!r} is locked with a password; unpack it first.")
    damage = DataError(f"{name!r} is a damaged archive ({first_error_line(error)}); pack it again.")
    return read_error(name, error) or damage


def _too_large(name: str, max_bytes: int) -> DataError:
    return DataError(
        f"{name!r} has over {max_bytes / 1e6:,.0f} MB once unpacked; leave out rows or columns that are not "
        "needed, or split it."
    )

"""A data file as it lies on disk, and the bytes of the table in it: plain, in a .gz, or alone in a .zip.

Unpacked bytes are counted while they are read, never taken from what an archive claims, so that a file that
unpacks without end is stopped at the limit. Nothing unpacked is written to the disk. Members are counted
before they are listed: 10 MB hold 200,000 entries of a .zip, or 500,000 empty members of a .gz, for which the
standard library needs seconds of the process that answers everybody.

A file that cannot be read (it is gone, may not be read, or its disk fails) is one DataError, which names the
file and not its folder.
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

from peft_core.data.cells import first_line
from peft_core.data.formats import SUFFIXES, TABLES, most_unpacked, suffix_of
from peft_core.errors import DataError, reason_of

_DAMAGE = (  # bz2 raises OSError, ValueError or EOFError
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, RuntimeError, NotImplementedError, ValueError, MemoryError,
)  # fmt: skip
_ABOUT = re.compile(r"(read.?me|licen[cs]e|copying|changelog|data_?card)\b", re.IGNORECASE)
_BLOCK = 1_000_000
_ZIP_ENTRY, _GZIP_MEMBER = b"PK\x01\x02", b"\x1f\x8b\x08"  # what each begins with
_MOST_MEMBERS = 1000  # of an archive, and one more for each
_BYTES_A_MEMBER = 10_000  # of it


@dataclass(frozen=True)
class DataFile:
    """One table on disk: `format` is the table's own suffix, `member` its name inside a .zip."""

    path: Path
    format: str
    member: str | None = None

    @property
    def name(self) -> str:
        """The file's name as messages and reports give it."""
        return self.path.name

    @property
    def is_packed(self) -> bool:
        """Whether the table's bytes differ from the file's."""
        return self.path.suffix.lower() in (".gz", ".zip")

    def open(self, most_bytes: int) -> BinaryIO:
        """The table's bytes from the first; reading raises DataError after `most_bytes` and for damage."""
        if not self.is_packed:
            with describe_read_errors(self.name):
                return self.path.open("rb")
        return cast(BinaryIO, io.BufferedReader(_Unpacked(self, most_bytes), _BLOCK))

    def read(self, most_bytes: int) -> bytes:
        """All bytes of the table; DataError for more than `most_bytes`, and for damage."""
        size = size_of(self.path)
        if size > most_bytes:
            raise DataError(
                f"{self.name!r} has {size / 1e6:,.0f} MB; at most {most_bytes / 1e6:,.0f} MB are read, so "
                "leave out rows or columns that are not needed, or split it."
            )
        with describe_read_errors(self.name), self.open(most_bytes) as file:
            return file.read()


@contextlib.contextmanager
def describe_read_errors(name: str) -> Iterator[None]:
    """Raise DataError, which gives this name and the system's reason, for a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name!r} cannot be read: {reason_of(error)}.") from error


def read_error(name: str, error: BaseException) -> DataError | None:
    """Return the error for a file that the system could not read; None where its content is at fault.

    For damaged content libraries raise an OSError without a number, or with that of an invalid argument.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return DataError(f"{name!r} cannot be read: {reason_of(error)}.")
    return None


def size_of(path: Path) -> int:
    """A file's bytes on the disk; DataError if it cannot be read."""
    with describe_read_errors(path.name):
        return path.stat().st_size


def locate(path: Path) -> DataFile:
    """The table in a file; DataError for a suffix that is not read, or a .zip without exactly one table."""
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{path.name!r} is no {' '.join(SUFFIXES)} file; save it as one of these.")
    if suffix == ".zip":
        return _only_table(path)
    return DataFile(path, suffix.removesuffix(".gz"))


def unpacked_bytes(path: Path, most_bytes: int) -> int:
    """A table's size in bytes, counted until it is beyond `most_bytes`; DataError for damage.

    A workbook, which is an archive itself, may have `formats.most_unpacked` bytes of XML: DataError for more.
    """
    table = locate(path)
    if table.format == ".xlsx" and size_of(path) <= most_bytes:
        book = io.BytesIO(table.read(most_bytes)) if table.is_packed else path
        check_workbook(table.name, book, most_unpacked(most_bytes))
    if not table.is_packed:
        return size_of(path)
    size = 0
    with table.open(most_bytes + 2 * _BLOCK) as file:
        while size <= most_bytes and (block := file.read(_BLOCK)):
            size += len(block)
    return size


def check_workbook(name: str, file: "BinaryIO | Path", most_bytes: int) -> None:
    """Raise DataError for a workbook that claims over `most_bytes` of XML: no member has more than it claims.

    One that is no archive at all passes; whoever opens it says so.
    """
    try:
        _check_members(name, file, _ZIP_ENTRY)
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (*_DAMAGE, OSError):
        return
    if size > most_bytes:
        raise DataError(f"{name!r} unpacks to over {most_bytes / 1e6:,.0f} MB; leave out rows or columns.")


def _check_members(name: str, file: "BinaryIO | Path", start: bytes) -> None:
    """Raise DataError for an archive that may have more members than are listed, by what each begins with."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        count, size, tail = 0, 0, b""
        while block := stream.read(_BLOCK):
            count += (tail + block).count(start)
            size, tail = size + len(block), block[1 - len(start) :]
        stream.seek(0)
    most = _MOST_MEMBERS + size // _BYTES_A_MEMBER
    if count > most:
        raise DataError(f"{name!r} is an archive of {count:,} members; at most {most:,} are read: pack less.")


class _Unpacked(io.RawIOBase):
    """A compressed table as a stream that stops at a limit and whose errors are one sentence."""

    def __init__(self, table: DataFile, most_bytes: int) -> None:
        self._table, self._left, self._most = table, most_bytes, most_bytes
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

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            block = self._stream.read(len(buffer))
        except (*_DAMAGE, OSError) as error:
            raise _damaged(self._table.name, error) from error
        self._left -= len(block)
        if self._left < 0:
            raise _too_large(self._table.name, self._most)
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
        raise DataError(f"{path.name!r} holds no {' '.join(TABLES)} file, only {holds}; add one.")
    holds = ", ".join(map(repr, tables[:5])) + (" …" if len(tables) > 5 else "")
    raise DataError(f"{path.name!r} holds {len(tables)} tables, {holds}; give each as a file of its own.")


def _is_table(name: str) -> bool:
    """Whether a file in an archive is data, not a text about it or what an operating system leaves there."""
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in TABLES and not hidden and not _ABOUT.match(path.name)


def _damaged(name: str, error: BaseException) -> DataError:
    if "password" in str(error):
        return DataError(f"{name!r} is locked with a password; unpack it first.")
    damage = DataError(f"{name!r} is a damaged archive ({first_line(error)}); pack it again.")
    return read_error(name, error) or damage


def _too_large(name: str, most_bytes: int) -> DataError:
    return DataError(
        f"{name!r} has over {most_bytes / 1e6:,.0f} MB once unpacked; leave out rows or columns that are not "
        "needed, or split it."
    )

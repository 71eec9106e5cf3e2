"""Bytes to text, so that damage stays where it is: a bad byte changes its own cell and no other row.

A file is UTF-16 or UTF-32 by its byte order mark or its zero bytes, UTF-8 if its bytes are, and
Windows-1252 where nothing speaks for UTF-8. A UTF-8 file with some bad bytes stays a UTF-8 file: each bad
byte becomes a lone surrogate (Python's `surrogateescape`, PEP 383) and each zero byte `ZERO`, which no valid
text holds, so that after parsing the cells that hold damage are known exactly. `mend` makes them readable.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass

from peft_core.errors import DataError

ZERO = "\udc00"  # stands for a zero byte until the rows are known; surrogateescape makes U+DC80 to U+DCFF
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
BYTEWISE = ("utf-8", "utf-8-sig", "cp1252")  # encodings in which one bad byte leaves the rest readable
_SAMPLE = 100_000  # characters by which Windows-1252 is judged
_MOST_ZEROS = 0.01  # of a text's characters, and so of its control characters where some are zero bytes
_FEW_ZEROS = 3  # are mended in however short a text
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r\x1b")
_DAMAGED = re.compile("[\udc00\udc80-\udcff]")
_BAD_BYTES = re.compile("[\udc80-\udcff]+")
_RAISED = re.compile("[a-zß-ÿ][À-ÖØ-Þ]")  # an upper-case accent within a word: half a UTF-8 character


@dataclass(frozen=True)
class Decoded:
    """A text, its encoding's name, and whether it holds marks of bad or zero bytes."""

    text: str
    encoding: str
    damaged: bool


def decode(name: str, data: bytes) -> Decoded:
    """The text of a file's bytes; DataError for what is no text, or in no encoding that is known here."""
    encoding = detect_encoding(name, [data])
    if encoding in BYTEWISE:
        text = data.decode(encoding, "surrogateescape").replace("\0", ZERO)
        return Decoded(text, encoding, is_damaged(text))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise DataError(
            f"{name!r}, row {row}: byte {error.start:,} is no {encoding}; save the file again in UTF-8."
        ) from error
    if text.count("\0") > max(_FEW_ZEROS, _MOST_ZEROS * len(text)):
        raise _no_text(name)
    text = text.replace("\0", ZERO)
    return Decoded(text, encoding, is_damaged(text))


def detect_encoding(name: str, blocks: Iterable[bytes]) -> str:
    """The encoding of a file whose bytes come in blocks; all are read unless the first settles it.

    Raises DataError for what is no text, or in an alphabet whose encoding only its writer knows.
    """
    counts, sample, first = _Counts(), b"", True
    for block in blocks:
        if first:
            marked = _by_mark(block) or _by_zeros(block)
            if marked is not None and marked != "utf-8-sig":
                return marked
            sample, first, has_mark = block[:_SAMPLE], False, marked is not None
        elif not sample or sample.isascii():
            sample = block[:_SAMPLE] if not block.isascii() else sample
        counts.add(block)
    counts.close()
    most = _MOST_ZEROS * counts.size
    if counts.zeros > max(_FEW_ZEROS, most) or counts.controls > counts.zeros > 0 and counts.controls > most:
        raise _no_text(name)
    if not first and has_mark:
        return "utf-8-sig"
    if 2 * counts.valid >= counts.bad:
        return "utf-8"
    return _western(name, sample, counts)


def is_damaged(text: str) -> bool:
    """Whether a decoded text holds marks of bad or zero bytes."""
    return not text.isascii() and _DAMAGED.search(text) is not None


def mend(text: str) -> str:
    """A text with � for bad bytes that stand together, and a space for each zero byte."""
    return _BAD_BYTES.sub("\ufffd", text.replace(ZERO, " ")) if is_damaged(text) else text


class _Counts:
    """Valid characters beyond ASCII, bad bytes, zero bytes and control characters of all blocks."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.valid = self.bad = self.zeros = self.controls = self.size = 0

    def add(self, block: bytes, final: bool = False) -> None:
        self.size += len(block)
        self.zeros += block.count(0)
        self.controls += len(block) - len(block.translate(None, _CONTROLS))
        if block.isascii() and not final and not self._decoder.getstate()[0]:
            return
        text = self._decoder.decode(block, final)
        beyond = len(text) - len(text.encode("ascii", "ignore"))
        bad = sum(len(run) for run in _BAD_BYTES.findall(text))
        self.bad += bad
        self.valid += beyond - bad

    def close(self) -> None:
        self.add(b"", final=True)


def _by_mark(data: bytes) -> str | None:
    return next((encoding for mark, encoding in MARKS if data.startswith(mark)), None)


def _by_zeros(data: bytes) -> str | None:
    """UTF-16 without a mark, whose plain letters have a zero byte each on the same side."""
    zeros = [half.count(0) / max(1, len(half)) for half in (data[0:4000:2], data[1:4000:2])]
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


def _western(name: str, sample: bytes, counts: _Counts) -> str:
    """Windows-1252 for a text whose accents are rare, UTF-8 where they would stand in impossible places."""
    text = sample.decode("cp1252", "surrogateescape")
    letters = [c for c in text if c.isalpha() or not c.isascii()]
    odd = sum(not c.isascii() for c in letters)
    controls = sum(ord(c) < 32 and c not in "\0\t\n\r\f" for c in text)
    if odd > 0.3 * len(letters) + 5 or controls > 0.01 * len(text) + 2:
        raise DataError(f"{name!r} is in no encoding that is known here; save it again in UTF-8.")
    undefined = sum(len(run) for run in _BAD_BYTES.findall(text))
    if not counts.valid and counts.bad == len(_RAISED.findall(text)) + undefined:
        return "utf-8"
    return "cp1252"


def _no_text(name: str) -> DataError:
    return DataError(f"{name!r} is no text file: it holds zero bytes. Save it again as CSV in UTF-8.")

"""Decode the bytes of text files so that an invalid byte affects its own cell only.

A file is read as UTF-16 or UTF-32 if its byte order mark or its zero bytes indicate that, as UTF-8 if its
bytes are valid UTF-8, and as Windows-1252 if nothing indicates UTF-8. A UTF-8 file with some invalid
bytes is still read as UTF-8: each invalid byte becomes a lone surrogate (Python's `surrogateescape`, PEP 383)
and each zero byte `ZERO_BYTE_MARKER`. No valid text contains these characters, so after parsing it is known
exactly which cells are damaged. `repair_text` then makes them readable.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass

from peft_core.errors import DataError

ZERO_BYTE_MARKER = "\udc00"  # surrogateescape itself produces only U+DC80 to U+DCFF
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
BYTEWISE_ENCODINGS = ("utf-8", "utf-8-sig", "cp1252")  # one bad byte leaves the rest readable
_SAMPLE = 100_000  # bytes that decide whether a text is Windows-1252
_MAX_ZERO_SHARE = 0.01  # share of zero bytes in a text; also of control characters in a text with zero bytes
_ALWAYS_ALLOWED_ZEROS = 3  # zero bytes that a text of any length may have
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r\x1b")
_DAMAGED = re.compile("[\udc00\udc80-\udcff]")
_BAD_BYTES = re.compile("[\udc80-\udcff]+")
_INNER_UPPER_ACCENT = re.compile(
    "[a-zß-ÿ][À-ÖØ-Þ]"
)  # an upper-case accent inside a word: half a UTF-8 character


@dataclass(frozen=True)
class Decoded:
    """A decoded text. `damaged` tells whether it has markers of invalid or zero bytes."""

    text: str
    encoding: str
    damaged: bool


def decode(name: str, data: bytes) -> Decoded:
    """Decode the bytes of a file.

    Raises:
        DataError: If the file is binary or its encoding is unknown.
    """
    encoding = detect_encoding(name, [data])
    if encoding in BYTEWISE_ENCODINGS:
        text = data.decode(encoding, "surrogateescape").replace("\0", ZERO_BYTE_MARKER)
        return Decoded(text, encoding, is_damaged(text))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise DataError(
            f"{name!r}, row {row}: byte {error.start:,} is not valid {encoding}; "
            "save the file again in UTF-8."
        ) from error
    if text.count("\0") > max(_ALWAYS_ALLOWED_ZEROS, _MAX_ZERO_SHARE * len(text)):
        raise _not_text_error(name)
    text = text.replace("\0", ZERO_BYTE_MARKER)
    return Decoded(text, encoding, is_damaged(text))


def detect_encoding(name: str, blocks: Iterable[bytes]) -> str:
    """Return the encoding of a file given in blocks; all are read unless the first one decides it.

    Raises:
        DataError: If the file is binary or its encoding is unknown.
    """
    counts, sample, first, has_mark = _ByteCounts(), b"", True, False
    for block in blocks:
        if first:
            encoding = _encoding_from_mark(block) or _encoding_from_zeros(block)
            if encoding is not None and encoding != "utf-8-sig":
                return encoding
            sample, first, has_mark = block[:_SAMPLE], False, encoding is not None
        elif not sample or sample.isascii():
            sample = block[:_SAMPLE] if not block.isascii() else sample
        counts.add(block)
    counts.close()
    limit = _MAX_ZERO_SHARE * counts.size
    too_many_zeros = counts.zeros > max(_ALWAYS_ALLOWED_ZEROS, limit)
    if too_many_zeros or (counts.controls > counts.zeros > 0 and counts.controls > limit):
        raise _not_text_error(name)
    if has_mark:
        return "utf-8-sig"
    if 2 * counts.valid >= counts.bad:
        return "utf-8"
    return _cp1252_or_utf8(name, sample, counts)


def is_damaged(text: str) -> bool:
    """Return whether a decoded text has markers of invalid or zero bytes."""
    return not text.isascii() and _DAMAGED.search(text) is not None


def repair_text(text: str) -> str:
    """Replace each run of invalid bytes by � and each zero byte by a space."""
    return _BAD_BYTES.sub("\ufffd", text.replace(ZERO_BYTE_MARKER, " ")) if is_damaged(text) else text


class _ByteCounts:
    """Counts of valid non-ASCII characters and of invalid, zero and control bytes in all blocks."""

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


def _encoding_from_mark(data: bytes) -> str | None:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)), None)


def _encoding_from_zeros(data: bytes) -> str | None:
    """Recognize UTF-16 without a byte order mark: each ASCII letter has a zero byte on the same side."""
    zeros = [half.count(0) / max(1, len(half)) for half in (data[0:4000:2], data[1:4000:2])]
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


def _cp1252_or_utf8(name: str, sample: bytes, counts: _ByteCounts) -> str:
    """Return `cp1252` if accented letters are rare, or `utf-8` if they occur only in impossible places.

    Raises:
        DataError: If the text has too many non-ASCII letters or control characters for Windows-1252.
    """
    text = sample.decode("cp1252", "surrogateescape")
    letters = [c for c in text if c.isalpha() or not c.isascii()]
    non_ascii = sum(not c.isascii() for c in letters)
    controls = sum(ord(c) < 32 and c not in "\0\t\n\r\f" for c in text)
    if non_ascii > 0.3 * len(letters) + 5 or controls > 0.01 * len(text) + 2:
        raise DataError(f"{name!r} has an unknown encoding; save it again in UTF-8.")
    undefined = sum(len(run) for run in _BAD_BYTES.findall(text))
    if not counts.valid and counts.bad == len(_INNER_UPPER_ACCENT.findall(text)) + undefined:
        return "utf-8"
    return "cp1252"


def _not_text_error(name: str) -> DataError:
    return DataError(f"{name!r} is not a text file: it contains zero bytes. Save it again as CSV in UTF-8.")

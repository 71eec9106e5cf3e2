"""Hostile archives: decompression bombs, huge directories, and false headers."""

import bz2
import gzip
import io
import lzma
import random
import struct
import zipfile
from collections.abc import Mapping

MAX_BYTES = 9_500_000  # a public demo accepts 10 MB
_ROWS = b"text,label\n" + b"good,pos\nbad,neg\n" * 200
_NAMES = (
    "../../../../tmp/evil.csv", "/etc/evil.csv", "C:\\evil.csv", "a/../../b.csv", f"{'x' * 60_000}.csv",
)  # fmt: skip
_ENTRY, _END = b"PK\x01\x02", b"PK\x05\x06"

NamedFile = tuple[str, bytes]  # a file's name and its bytes


def zipped(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a .zip with these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def gzip_ratio(rng: random.Random) -> NamedFile:
    """Gigabytes of rows in a few megabytes, as one member or several."""
    part = gzip.compress(b"good,pos\n" * 11_000_000, 9, mtime=0)
    return "a.csv.gz", gzip.compress(_ROWS, mtime=0) + part * rng.randint(5, 50)


def gzip_nested(rng: random.Random) -> NamedFile:
    data = b"a,b\n" * 20_000_000
    for _ in range(rng.randint(2, 6)):
        data = gzip.compress(data, 9, mtime=0)
    return "a.csv.gz", data


def gzip_empty_members(rng: random.Random) -> NamedFile:
    return "a.csv.gz", gzip.compress(_ROWS, mtime=0) + gzip.compress(b"", mtime=0) * rng.randint(
        3000, 470_000
    )


def gzip_damage(rng: random.Random) -> NamedFile:
    data = bytearray(gzip.compress(_ROWS * 100, mtime=0) * 20)
    for _ in range(rng.randint(1, 50)):
        data[rng.randrange(10, len(data))] = rng.randrange(256)
    return "a.jsonl.gz", bytes(data[: rng.randint(100, len(data))])


def zip_ratio(rng: random.Random) -> NamedFile:
    compression = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return "a.zip", zipped({"a.csv": b"good,pos\n" * rng.randint(2_000_000, 20_000_000)}, compression)


def zip_of_zips(rng: random.Random) -> NamedFile:
    data = zipped({"a.csv": _ROWS})
    for depth in range(rng.randint(5, 300)):
        data = zipped({f"{depth}.zip": data, f"{depth}.csv": b"a,b\n1,2\n"}, zipfile.ZIP_STORED)
    return "a.zip", zipped({"in.zip": data})


def zip_many_entries(rng: random.Random) -> NamedFile:
    """A directory of far more entries than the end record counts, all with the same offset."""
    original = zipped({"a.csv": _ROWS})
    start, end = original.index(_ENTRY), original.index(_END)
    entry = original[start:end]
    directory = entry + entry.replace(b"a.csv", b"b.txt") * rng.randint(2000, MAX_BYTES // len(entry) - 10)
    size = struct.pack("<L", len(directory))
    return "a.zip", original[:start] + directory + original[end : end + 12] + size + original[end + 16 :]


def zip_overlapping(rng: random.Random) -> NamedFile:
    """Entries with different names that share the bytes of one member, a table among them."""
    original = zipped({"a.csv": b"good,pos\n" * 1_000_000})
    start, end = original.index(_ENTRY), original.index(_END)
    entry, count = original[start:end], rng.randint(2, 900)
    copies = b"".join(entry.replace(b"a.csv", f"{i:03d}.x".encode()[:5]) for i in range(count))
    directory = entry + copies
    counts = struct.pack("<HH", count + 1, count + 1)
    tail = original[end : end + 8] + counts + struct.pack("<L", len(directory)) + original[end + 16 :]
    return "a.zip", original[:start] + directory + tail


def zip_traversal(rng: random.Random) -> NamedFile:
    return "a.zip", zipped({rng.choice(_NAMES): _ROWS})


def zip_lies(rng: random.Random) -> NamedFile:
    """A directory entry whose size, checksum, flags or method differ from the member's."""
    data = bytearray(zipped({"a.csv": _ROWS * 1000}))
    offset = data.index(_ENTRY) + rng.choice((8, 10, 16, 20, 24, 28, 42))
    data[offset : offset + 4] = rng.randbytes(4)
    return "a.zip", bytes(data)


def zip_wide_dictionary(rng: random.Random) -> NamedFile:
    """A member whose header asks for a dictionary of up to 4 GB."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}]
    packed = lzma.compress(_ROWS * 100, lzma.FORMAT_RAW, filters=filters)
    data = bytearray(zipped({"a.csv": _ROWS * 100}, zipfile.ZIP_LZMA))
    start = data.index(b"a.csv") + 5
    data[start + 5 : start + 9] = struct.pack("<L", rng.choice((0xFFFFFFFF, 0xF0000000, 0x80000000)))
    return "a.zip", bytes(data) if rng.random() < 0.7 else bytes(data[: len(packed)])


def zip_bzip2_bomb(rng: random.Random) -> NamedFile:
    """A member with a false size whose bzip2 stream expands 700,000 times."""
    packed = bz2.compress(bytes(45_000_000))
    data = zipped({"a.csv": _ROWS * 400}, zipfile.ZIP_BZIP2)
    start, end = data.index(_ENTRY), data.index(_END)
    member = data[: data.index(b"BZh")] + packed * rng.randint(1, 200)
    start_field = struct.pack("<L", len(member))
    return "a.zip", member + data[start : end + 16] + start_field + data[end + 20 :]


ARCHIVES = (
    gzip_ratio, zip_many_entries, gzip_empty_members, zip_ratio, gzip_nested, zip_of_zips, gzip_damage,
    zip_overlapping, zip_traversal, zip_lies, zip_wide_dictionary, zip_bzip2_bomb,
)  # fmt: skip

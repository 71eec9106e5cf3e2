"""Hostile texts: CSV, JSON, cells, inputs for the readers' regular expressions, and annotation exports."""

import json
import random
from typing import Any

from batteries.bomb_archives import MAX_BYTES, NamedFile

_HEADER = "text,label\n"
_COMBINING = "\u0301\u0316\u0327\u0345"


def _csv(text: str, encoding: str = "utf-8") -> NamedFile:
    return "a.csv", text.encode(encoding, "surrogatepass")


def _json(text: str, name: str = "a.json") -> NamedFile:
    return name, text.encode("utf-8", "surrogatepass")


def _lines(records: list[Any]) -> NamedFile:
    return _json("\n".join(map(json.dumps, records)), "a.jsonl")


def _labeled(cells: list[str]) -> NamedFile:
    """Return rows with these cells as labels, up to half of `MAX_BYTES`."""
    records, size = [], 0
    while size < MAX_BYTES // 2 and len(records) < 20_000:
        cell = cells[len(records) % len(cells)]
        size += len(json.dumps(cell)) + 40
        records.append({"text": f"good {len(records)}", "label": cell})
    return _lines(records)


def header_of_commas(rng: random.Random) -> NamedFile:
    mark = rng.choice(",;\t|")
    return _csv(mark * rng.randint(1001, 1_000_000) + "\na,b\n")


def one_cell(rng: random.Random) -> NamedFile:
    cell = rng.choice(("a" * 9_000_000, '"' + "a\n" * 4_400_000 + '"', "a " * 4_500_000))
    return _csv(f"{_HEADER}{cell},pos\nbad,neg\n" * 1)


def open_quotes(rng: random.Random) -> NamedFile:
    """Unclosed quotation marks: one, or one in each row."""
    row = rng.choice(('"good,pos\n', 'a"b,"pos\n', '\\"good,"pos\n', '"good"x,pos\n', '"\\",pos\n'))
    rows = row * rng.choice((1, 1000, 800_000)) + "good,pos\n" * 1000
    return _csv(_HEADER + rows[:MAX_BYTES])


def zero_bytes(rng: random.Random) -> NamedFile:
    return _csv(rng.choice(("\0" * 9_000_000, "\0a\0,\0b\0\n" * 1_000_000, f"{_HEADER}a\0,b\n" * 200_000)))


def empty_lines(rng: random.Random) -> NamedFile:
    end = rng.choice(("\n", "\r", "\r\n", " \n"))
    head = rng.choice((f"text,label{end}", f"text{end}", ""))
    return _csv(head + end * (9_400_000 // len(end)) + f"good,pos{end}")


def carriage_returns(rng: random.Random) -> NamedFile:
    return _csv(rng.choice(("a,b\r", "\r", "a,b\r\r\n", '"a\rb",c\r')) * 1_000_000)


def long_numbers(rng: random.Random) -> NamedFile:
    number = rng.choice(
        ("1" * 1_000_000, "1," * 500_000 + "1", "0." + "1" * 1_000_000, "1e" + "9" * 1_000_000)
    )
    rows = "".join(f'good {i},"{number}"\n' for i in range(9))
    return _csv(_HEADER + rows)


def byte_order_marks(rng: random.Random) -> NamedFile:
    """Byte order marks that contradict the encoding."""
    mark = rng.choice((b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 1000))
    body = (_HEADER + "good,pos\nbäd,neg\n" * 100_000).encode(
        rng.choice(("utf-8", "utf-16-be", "utf-32-le", "cp1252"))
    )
    return "a.csv", mark + body


def many_cells(rng: random.Random) -> NamedFile:
    columns = rng.choice((2, 50, 999))
    row = ",".join(["x"] * columns) + "\n"
    return _csv(row * (9_000_000 // len(row)))


def deep_values(rng: random.Random) -> NamedFile:
    depth = rng.choice((900, 100_000, 1_000_000))
    start, end = rng.choice((("[", "]"), ('{"a":', "}"), ('{"a":[', "]}")))
    inside = start * depth + "1" + end * depth
    return _json(rng.choice((inside, f'{{"text": "good", "label": {inside}}}', start * depth)))


def huge_numbers(rng: random.Random) -> NamedFile:
    number = rng.choice(
        ("1" * 4000, "1" * 4301, "9" * 1_000_000, "1e400", "-1e-999999999", "0." + "3" * 100_000)
    )
    return _json("\n".join(f'{{"text": "good {i}", "label": {number}}}' for i in range(9)), "a.jsonl")


def long_key(rng: random.Random) -> NamedFile:
    """A key as long as the file; some look like paths of uploads."""
    key = rng.choice(("a", "/", "/.uploads/", "'/")) * 4_400_000
    return _json(f'{{"{key[:4_400_000]}.uploads": "good", "label": "x"}}\n' * 2, "a.jsonl")


def many_keys(rng: random.Random) -> NamedFile:
    keys = (f'"{i}": {rng.choice(("1", "[]", "{}", "[1]"))}' for i in range(600_000))
    return _json("{" + ", ".join(keys) + "}")


def repeated_keys(rng: random.Random) -> NamedFile:
    return _json("{" + '"text": "good", "label": [1],' * 300_000 + '"id": 1}')


def lone_surrogates(rng: random.Random) -> NamedFile:
    cell = rng.choice(("\\ud800", "\\udc00\\ud800", "\\ud83d\\ude00", "\\u0000"))
    where = rng.choice(('{"text": "%s", "label": "x"}', '{"%s": "a", "label": "x"}'))
    return _json("\n".join(where % (cell * 10) for _ in range(20_000)), "a.jsonl")


def many_values(rng: random.Random) -> NamedFile:
    part = rng.choice(("1", "[]", "{}", '{"a":1}', "null", '""'))
    many = ",".join([part] * (9_000_000 // (len(part) + 1)))
    return _json(rng.choice(("[%s]", '{"data": [%s]}', '{"columns": [%s], "data": [[1]]}')) % many)


def nested_shapes(rng: random.Random) -> NamedFile:
    """Very large objects by key, or columns of them."""
    if rng.random() < 0.5:
        rows = ", ".join(f'"{i}": {{"text": "a", "label": "b"}}' for i in range(200_000))
    else:
        cells = ", ".join(f'"{i}": "a"' for i in range(300_000))
        rows = f'"text": {{{cells}}}, "label": {{{cells}}}'
    return _json("{" + rows + "}")


def label_lists(rng: random.Random) -> NamedFile:
    """For the patterns of list items, escapes and numbers in a list."""
    n = rng.choice((1000, 19_000))
    inside = (
        "'" + "a" * n,
        "'" + "\\" * n,
        " " * n + "'",
        "'a' " * (n // 4),
        "1" * n,
        "\\x" * (n // 2),
        "[" * n,
        "," * n,
    )
    return _labeled([f"[{text}]" for text in rng.sample(inside, 3)] + ["['a', 'b']"])


def grouped_numbers(rng: random.Random) -> NamedFile:
    """For the patterns of numbers, with a last character that makes them invalid."""
    n = rng.choice((1000, 100_000))
    digits = (
        "1,111" + ",111" * n,
        "1" + ",11" * n,
        "1 111" + " 111" * n,
        "1" * n,
        "1." * n,
        "-" * n,
        " " * n + "1",
    )
    return _labeled([f"{text}{end}" for text in rng.sample(digits, 3) for end in ("", "x")])


def escaped_quotes(rng: random.Random) -> NamedFile:
    """For the patterns of quoted cells and backslashes."""
    n = rng.choice((1000, 1_000_000))
    cell = rng.choice(('"' * n, "\\" * n, '\\"' * n, '""' * n, '"' + "\\" * n, "a\\" * n))
    return _csv(f"{_HEADER}{cell},pos\n" * max(1, MAX_BYTES // 2 // (len(cell) + 5)))


def upload_paths(rng: random.Random) -> NamedFile:
    """For the patterns that hide upload paths, in names that messages and the page show."""
    n = rng.choice((990, 100_000))
    name = rng.choice(("/" * n, "'/" * (n // 2), "/a" * (n // 2), "~/" * (n // 2)))[:n] + "/.uploads"
    return _lines([{name: f"good {i}", "label": name} for i in range(10)])


def declared_delimiters(rng: random.Random) -> NamedFile:
    return _csv(f"sep=;{rng.choice((' ', chr(9))) * rng.choice((1000, 4_000_000))}x\na;b\n")


def invalid_bytes(rng: random.Random) -> NamedFile:
    """For the patterns of words, surrogates and bytes that are not text."""
    part = rng.choice((b"\xff", b"\x80a", b"a\xc3", "ß\xdcß\xdc".encode("cp1252"), "ไ".encode() * 3, b"!?"))
    row = part * (rng.choice((100, 400_000)) // len(part)) + b",pos\n"
    return "a.csv", (_HEADER + "café,neg\n" * 3).encode() + row * max(1, 8_000_000 // len(row))


def formula_numbers(rng: random.Random) -> NamedFile:
    """For the patterns of numbers that are not formulas and of characters that a sheet cannot contain."""
    n = rng.choice((1000, 1_000_000))
    cell = rng.choice(("-" + "1 ," * n + "x", "=" * n, "+" + "." * n, "-1" + "e" * n, "@" + "\x01" * n))
    return _csv(f'{_HEADER}"{cell}",pos\n' * max(1, 4_000_000 // len(cell)))


def huge_text(rng: random.Random) -> NamedFile:
    cell = rng.choice(("a", " ", "a ", "\u00a0", "\ufdfa", "字")) * 1_500_000
    return _lines(
        [
            {"text": cell[: 1_500_000 // len(cell[0].encode())] + str(i), "label": "xy"[i % 2]}
            for i in range(4)
        ]
    )


def combining_marks(rng: random.Random) -> NamedFile:
    """Combining marks of different classes after one letter, which normalization must sort."""
    n = rng.choice((1000, 50_000, 400_000))
    cell = "a" + "".join(rng.choices(_COMBINING, k=n))
    count = max(4, min(400, 1_500_000 // n))
    rows = (f'{{"text": "{cell}{i}", "label": "{"xy"[i % 2]}"}}' for i in range(count))
    return _json("\n".join(rows)[: MAX_BYTES // 2], "a.jsonl")


def long_labels(rng: random.Random) -> NamedFile:
    n = rng.choice((999, 1001, 100_000))
    return _labeled([mark * n for mark in "abcd"])


def different_labels(rng: random.Random) -> NamedFile:
    mark = rng.choice("|;,")
    return _labeled([mark.join(f"{i} {j}" for j in range(rng.choice((1, 300)))) for i in range(2000)])


def same_texts(rng: random.Random) -> NamedFile:
    rows = "".join(f"good,{'xy'[i % 2]}\n" for i in range(20_000))
    return _csv(_HEADER + rows * rng.choice((1, 40)))


def shared_pairs(rng: random.Random) -> NamedFile:
    """Pairs that form one chain through shared texts."""
    rows = (f'{{"premise": "{i}", "hypothesis": "{i + 1}", "label": "{"xy"[i % 2]}"}}' for i in range(20_000))
    return _json("\n".join(rows), "a.jsonl")


def task_results(rng: random.Random) -> NamedFile:
    """A Label Studio task with as many results, or fields, as fit into a file."""
    names = ["s"] * 80_000 if rng.random() < 0.5 else [f"s{i}" for i in range(80_000)]
    results = [
        {"from_name": n, "type": "choices", "value": {"choices": [str(i)]}} for i, n in enumerate(names)
    ]
    return _json(json.dumps([{"data": {"text": "good"}, "annotations": [{"result": results}]}]))


def task_choices(rng: random.Random) -> NamedFile:
    kind, choice = rng.choice(
        (("choices", "a"), ("taxonomy", ["a", "b"]), ("textarea", "a"), ("choices", {"a": [1]}))
    )
    key = "text" if kind == "textarea" else kind
    annotation = {"from_name": "s", "type": kind, "value": {key: [choice] * 300_000}}
    return _json(
        json.dumps([{"data": {"text": "good"}, "annotations": [{"result": [annotation, annotation]}]}])
    )


def nested_answers(rng: random.Random) -> NamedFile:
    deep: Any = "a"
    for _ in range(rng.choice((50, 900))):
        deep = [deep] if rng.random() < 0.5 else {"choices": deep}
    record = rng.choice((
        {"data": deep, "annotations": [{"result": [deep]}]},
        {"fields": {"text": deep}, "responses": {"label": [{"value": deep, "user_id": "u"}]}},
        {"id": 1, "text": "good", "label": [deep]},
        {"annotator": 1, "annotation_id": 1, "lead_time": 1, "s": {"choices": [deep]}},
    ))  # fmt: skip
    return _lines([record] * 200)


def many_answers(rng: random.Random) -> NamedFile:
    answers = [{"value": str(i), "user_id": "u"} for i in range(200_000)]
    records = [{"fields": {"text": "good"}, "responses": {"label": answers}}]
    if rng.random() < 0.5:
        records = [{"fields": {"text": "good"}, "responses": {f"q{i}": answers[:1] for i in range(100_000)}}]
    return _json(json.dumps(records))


def many_passages(rng: random.Random) -> NamedFile:
    label: Any = rng.choice(([0, 1, "a"], "a", {"label": "a", "start_offset": 1}, {"label": ["a"]}))
    return _lines([{"id": 1, "text": "good", "label": [label] * 80_000, "Comments": []}] * 3)


CSV = (
    header_of_commas, one_cell, open_quotes, empty_lines, zero_bytes, carriage_returns, long_numbers,
    byte_order_marks, many_cells,
)  # fmt: skip
JSON = (
    long_key, deep_values, many_keys, huge_numbers, repeated_keys, lone_surrogates, many_values,
    nested_shapes,
)  # fmt: skip
PATTERNS = (
    upload_paths, label_lists, grouped_numbers, escaped_quotes, declared_delimiters, invalid_bytes,
    formula_numbers,
)  # fmt: skip
CELLS = (huge_text, combining_marks, long_labels, different_labels, same_texts, shared_pairs)
EXPORTS = (task_results, nested_answers, task_choices, many_answers, many_passages)

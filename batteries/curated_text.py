"""Curated CSV files: delimiters, line ends, encodings, damage, and files without rows."""

import gzip
import json

from batteries.curated import CSV, TWO, read, refused

_DELIMITED = (
    read("plain", CSV),
    read("no line end at the end", CSV.rstrip()),
    read("Windows line ends", CSV.replace("\n", "\r\n")),
    read("old Mac line ends", CSV.replace("\n", "\r")),
    read("mixed line ends", "text,label\r\ngood,pos\nbad,neg\r"),
    read("a mark of UTF-8", b"\xef\xbb\xbf" + CSV.encode()),
    read("UTF-16 with a mark", CSV.encode("utf-16")),
    read("UTF-16 without a mark", CSV.encode("utf-16-le")),
    read("UTF-16, the other order", CSV.encode("utf-16-be")),
    read("UTF-32", CSV.encode("utf-32")),
    read(
        "Windows-1252",
        "text,label\nschön,pos\nbad “here”,neg\n".encode("cp1252"),
        (("schön", "pos"), ("bad “here”", "neg")),
    ),
    read("semicolons", CSV.replace(",", ";")),
    read("tabs in a .csv", CSV.replace(",", "\t")),
    read("bars", CSV.replace(",", "|")),
    read("commas in a .tsv", CSV, name="a.tsv"),
    read("a name in capitals", CSV, name="A.CSV"),
    read("a line that names the delimiter", "sep=;\n" + CSV.replace(",", ";")),
    read(
        "blank lines",
        "\n\ntext,label\n\ngood,pos\n\nbad,neg\n\n\n",
        predicted=(("", ""), TWO[0], ("", ""), TWO[1]),
    ),
    read("a line of spaces", "text,label\ngood,pos\n   \nbad,neg\n", predicted=(TWO[0], ("", ""), TWO[1])),
    read("empty cells at the end of rows", "text,label\ngood,pos,,\nbad,neg,\n"),
    read(
        "delimiters in quotation marks",
        'text,label\n"good, very",pos\nbad,neg\n',
        (("good, very", "pos"), ("bad", "neg")),
    ),
    read(
        "line ends in quotation marks",
        'text,label\n"good\r\nvery",pos\nbad,neg\n',
        (("good\r\nvery", "pos"), ("bad", "neg")),
    ),
    read(
        "doubled quotation marks",
        'text,label\n"a ""good"" one",pos\nbad,neg\n',
        (('a "good" one', "pos"), ("bad", "neg")),
    ),
    read(
        "backslashes before quotation marks",
        'text,label\n"a \\"good\\", one",pos\nbad,neg\n',
        (('a "good", one', "pos"), ("bad", "neg")),
    ),
    read(
        "quotation marks that are text",
        'text\tlabel\n"good\tpos\na 5" one\tneg\n',
        (('"good', "pos"), ('a 5" one', "neg")),
        name="a.tsv",
    ),
    read("words for nothing", "text,label\nnull,NA\nNone,nan\n", (("null", "NA"), ("None", "nan"))),
    read("codes with zeros", "text,label\ngood,01\nbad,002\n", (("good", "01"), ("bad", "002"))),
    read(
        "two columns of one name",
        "text,text\na b,pos\nc d,neg\n",
        (("a b", "pos"), ("c d", "neg")),
        columns=("text", "text (2)"),
    ),
    read(
        "a column without a name",
        "text,\na b,pos\nc d,neg\n",
        (("a b", "pos"), ("c d", "neg")),
        columns=("text", "column 2"),
    ),
    read(
        "an index without a name", ",text,label\n0,a,pos\n1,b,neg\n", (("0", "a", "pos"), ("1", "b", "neg"))
    ),
    read(
        "an empty column", "text,label,note\ngood,pos,\nbad,neg,\n", (("good", "pos", ""), ("bad", "neg", ""))
    ),
    read("one row", "text,label\ngood,pos\n", (("good", "pos"),)),
    read("no label", "text\ngood film\nbad film\n", (("good film",), ("bad film",))),
    read(
        "no header",
        "good film,pos\nbad film,neg\nnice,pos\ndull,neg\n",
        (("good film", "pos"), ("bad film", "neg"), ("nice", "pos"), ("dull", "neg")),
        columns=("column 1", "column 2"),
    ),
    read("spaces around names", " text , label \ngood,pos\nbad,neg\n"),
    read("blank rows of one column", 'text\na\n\nb\n""\nc\n', (("a",), ("",), ("b",), ("",), ("c",))),
    read("blank lines at the end of one column", "text\na\n\n\n", (("a",), ("",), ("",))),
    read(
        "a line separator in a text",
        "text,label\na\u2028b,pos\nc\x85d,neg\n",
        (("a\u2028b", "pos"), ("c\x85d", "neg")),
    ),
    read(
        "a huge cell",
        f"text,label\n{'word ' * 100_000},pos\nbad,neg\n",
        (("word " * 100_000, "pos"), ("bad", "neg")),
    ),
    read("formulas", "text,label\n=1+1,pos\n@SUM(A1),neg\n", (("=1+1", "pos"), ("@SUM(A1)", "neg"))),
)
_DAMAGED = (
    read(
        "one bad byte",
        b"text,label\ncaf\xc3\xa9,pos\ncaf\xc3 bar,neg\n",
        (("café", "pos"), ("caf\ufffd bar", "neg")),
    ),
    read(
        "a lone byte of nothing",
        b"text,label\ncaf\xc3\xa9,pos\nx\xffy,neg\n",
        (("café", "pos"), ("x\ufffdy", "neg")),
    ),
    read(
        "half of the only accent",
        b"text,label\ngood,pos\ncaf\xc3 bar,neg\n",
        (("good", "pos"), ("caf\ufffd bar", "neg")),
    ),
    read(
        "a character cut at the end",
        b"text,label\ngood \xc3\xa9,pos\nbad,neg\xe2\x82",
        (("good é", "pos"), ("bad", "neg\ufffd")),
    ),
    read(
        "a bad byte in a name",
        b"te\xffxt,label\ncaf\xc3\xa9,pos\nbad,neg\n",
        (("café", "pos"), ("bad", "neg")),
        columns=("te\ufffdxt", "label"),
    ),
    read(
        "a zero byte", f"text,label\n{'good ' * 30},pos\nb\0d,neg\n", (("good " * 30, "pos"), ("b d", "neg"))
    ),
    read(
        "a bad byte in JSON",
        b'{"text": "caf\xc3\xa9", "label": "pos"}\n{"text": "x\xffy", "label": "neg"}',
        (("café", "pos"), ("x\ufffdy", "neg")),
        "a.jsonl",
    ),
    read(
        "a zero byte in JSON",
        json.dumps({"text": "good " * 30, "label": "pos"}) + '\n{"text": "b\0d", "label": "neg"}',
        (("good " * 30, "pos"), ("b d", "neg")),
        "a.jsonl",
    ),
    refused("zero bytes everywhere", "text,label\n\0\1,pos\n", "not a text file"),
    refused("UTF-16 cut in a character", "text,label\nà,b\n".encode("utf-16")[:-1], "utf-16"),
    refused(
        "Russian in its own encoding",
        "текст,метка\nхороший фильм,да\n".encode("cp1251") * 9,
        "unknown encoding",
    ),
    refused("a picture named .csv", bytes(range(128, 256)) * 20, "unknown encoding"),
)
_EMPTY_OR_UNEVEN = (
    refused("nothing", "", "no rows"),
    refused("spaces", " \n \n", "no rows"),
    refused("a mark alone", b"\xef\xbb\xbf", "no rows"),
    refused("a header alone", "text,label\n", "no rows"),
    refused("a header of one column alone", "text\n", "no rows"),
    refused("a header alone in a .gz", gzip.compress(b"text,label\n"), "no rows", "a.csv.gz"),
    refused("a cell too many", "text,label\ngood,pos\nbad, but long,neg\n", "row 3, column 3"),
    refused("a cell too few", "text,label\ngood,pos\nbad\n", "row 3, column 'label'"),
    refused(
        "a quotation mark never closed", 'text,label\ngood,pos\n"bad, so,neg\nfine,pos\n', "quotation mark"
    ),
    refused("another kind of file", "text", "save it as one of these", "a.txt"),
)

TEXT_FILES = (*_DELIMITED, *_DAMAGED, *_EMPTY_OR_UNEVEN)

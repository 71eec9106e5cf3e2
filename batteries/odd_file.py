"""One odd data file with its expected rows or error."""

from dataclasses import dataclass

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class OddFile:
    """A file and its expected outcome: rows of text cells, or an error that contains `refusal`.

    `rows` is None if any rows are right. `predicted` are the rows of a file to predict if they differ from
    those for training. `loose` are indexes of damaged rows, whose cells may differ. With `may_refuse` any
    `PeftCoreError` is right as well.
    """

    title: str
    name: str
    data: bytes
    columns: tuple[str, ...] | None = None
    rows: Rows | None = None
    predicted: Rows | None = None
    refusal: str | None = None
    loose: frozenset[int] = frozenset()
    may_refuse: bool = False

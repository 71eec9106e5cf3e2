"""One odd data file with its right answer."""

from dataclasses import dataclass

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class OddFile:
    """A file and what must come of it: these rows of cells as texts, or an error that holds these words.

    `rows` is None where any rows are right. `predicted` are the rows of a file to predict where they differ
    from those to train on. `loose` are places in `rows` whose cells may differ because they hold the damage.
    With `may_refuse`, any named error is right as well.
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

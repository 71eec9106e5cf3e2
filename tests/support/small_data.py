"""A small data set whose words determine its labels."""

import csv
import random
from pathlib import Path
from typing import Any

from tiny import LABEL_WORDS, SUBJECTS

TRAIN_ROWS, TEST_ROWS, VALIDATION_ROWS = 160, 40, 20
LABELS = {"bad": LABEL_WORDS[0], "good": LABEL_WORDS[4]}


def write_small_data(folder: Path) -> Path:
    """Write train.csv, validation.csv and test.csv with the columns text and label (bad or good)."""
    sentences = list(_sentences())
    write_csv(folder / "train.csv", sentences[:TRAIN_ROWS])
    write_csv(folder / "test.csv", sentences[TRAIN_ROWS : TRAIN_ROWS + TEST_ROWS])
    write_csv(folder / "validation.csv", sentences[TRAIN_ROWS + TEST_ROWS :])
    return folder


def write_csv(path: Path, rows: list[tuple[str, Any]], columns: tuple[str, str] = ("text", "label")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def _sentences() -> list[tuple[str, str]]:
    """Return distinct texts with alternating labels, the same at each call."""
    rng, labels_by_text = random.Random(1), {}
    while len(labels_by_text) < TRAIN_ROWS + TEST_ROWS + VALIDATION_ROWS:
        label = list(LABELS)[len(labels_by_text) % 2]
        words = rng.sample(LABELS[label], 3)
        subjects = rng.sample(SUBJECTS, 2)
        text = f"The {subjects[0]} was {words[0]} and the {subjects[1]} {words[1]}, really {words[2]}."
        labels_by_text.setdefault(text, label)
    return list(labels_by_text.items())

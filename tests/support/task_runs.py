"""Multi-label, regression and text pair rows, and runs trained on them as fixtures of conftest.py."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import LABEL_WORDS, SUBJECTS

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import LabeledSplits
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.training import entry, setup

TOPICS = {"food": LABEL_WORDS[0], "drink": LABEL_WORDS[3], "room": LABEL_WORDS[4]}
MORE_MODULES = ["query", "value", "intermediate.dense"]


def topic_rows(count: int, seed: int) -> Dataset:
    """Return texts about none, some or all of three topics, each with its own words."""
    rng, rows = random.Random(seed), {"text": [], "label": []}
    for _ in range(count):
        topic_labels = [float(rng.random() < share) for share in (0.5, 0.5, 0.3)]
        words = rng.sample(LABEL_WORDS[2], 1)
        for own, has in zip(TOPICS.values(), topic_labels, strict=True):
            words += rng.sample(own, 3) if has else []
        rng.shuffle(words)
        rows["text"].append("We had " + " and ".join(words) + ".")
        rows["label"].append(topic_labels)
    return Dataset.from_dict(rows)


def number_rows(count: int, seed: int, unit: float = 1.0, offset: float = 0.0) -> Dataset:
    """Return reviews of 1 to 5 stars, labeled `stars * unit + offset`."""
    rng, rows = random.Random(seed), {"text": [], "label": []}
    for _ in range(count):
        stars = rng.randint(1, 5)
        words = rng.sample(LABEL_WORDS[stars - 1], 3)
        rows["text"].append(f"The {rng.choice(SUBJECTS)} was {words[0]}, {words[1]} and {words[2]}.")
        rows["label"].append(stars * unit + offset)
    return Dataset.from_dict(rows)


def pair_rows(count: int, seed: int) -> Dataset:
    """Return text pairs whose label depends on the second text alone."""
    rng, rows = random.Random(seed), {"text": [], "text_pair": [], "label": []}
    for _ in range(count):
        label = rng.randint(0, 1)
        rows["text"].append(f"How was the {rng.choice(SUBJECTS)}?")
        rows["text_pair"].append(f"It was {rng.choice(LABEL_WORDS[4 * label])}.")
        rows["label"].append(label)
    return Dataset.from_dict(rows)


def labeled_splits(
    make: Callable[..., Dataset], names: tuple[str, ...], problem_type: str, **options: Any
) -> LabeledSplits:
    parts = [make(count, seed, **options) for seed, count in enumerate((240, 40, 60))]
    return LabeledSplits(
        *parts, label_names=names, has_label_names=True, problem_type=problem_type, record={}
    )


@pytest.fixture(scope="session")
def fit(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Return a function that trains the tiny model on given rows in this process."""

    def train_rows(data: LabeledSplits, **changes: Any) -> Run:
        settings = {
            "model_name_or_path": str(tiny_model),
            "max_length": 64,
            "num_train_epochs": 6,
            "learning_rate": 0.03,
        }
        run = runs.create(tmp_path_factory.mktemp("runs"), TrainConfig.from_dict({**settings, **changes}))
        train_on(data, run)
        return run

    return train_rows


def train_on(data: LabeledSplits, run: Run) -> None:
    """Start or continue a run on these rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "load_labeled_splits", lambda config: data)
        entry.train(run.folder)


@pytest.fixture(scope="session")
def topics(fit: Callable[..., Run]) -> Run:
    return fit(multi_label_splits(), num_train_epochs=12, target_modules=MORE_MODULES)


@pytest.fixture(scope="session")
def calm_topics(fit: Callable[..., Run]) -> Run:
    """The same at a learning rate at which rounding errors do not change the resulting model."""
    return fit(multi_label_splits(), num_train_epochs=25, learning_rate=0.01, target_modules=MORE_MODULES)


def multi_label_splits() -> LabeledSplits:
    return labeled_splits(topic_rows, tuple(TOPICS), MULTI)


@pytest.fixture(scope="session")
def stars(fit: Callable[..., Run]) -> Run:
    return fit(labeled_splits(number_rows, (), REGRESSION))


@pytest.fixture(scope="session")
def pairs(fit: Callable[..., Run]) -> Run:
    return fit(labeled_splits(pair_rows, ("bad", "good"), SINGLE), num_train_epochs=10)

"""What a model card tells of a run, read once from its folder; its names as others may read them."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_core.certificate import MergeCertificate, certificate_of_merged
from peft_core.export.hub.markdown import LONGEST, escaped, name, plain
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import Decision
from peft_core.methods import METHODS, Method
from peft_core.presets import DATASETS, MODELS
from peft_core.problems import headline
from peft_core.runs import Run, RunResult
from peft_core.sources import from_hub, hub_commit

HUB = "https://huggingface.co"
LANGUAGES = {"en": "English"}


@dataclass(frozen=True)
class Facts:
    """One run. No path of this machine is among its words."""

    run: Run
    classifier: Classifier
    settings: dict[str, Any]
    result: RunResult
    decision: Decision

    @classmethod
    def read(cls, run: Run) -> "Facts":
        """From a finished (or stopped) run; RunError if it has no adapter, or files of it are lost."""
        return cls(run, Classifier.read(run), run.config().to_dict(), run.result(), Decision.read(run))

    @property
    def task(self) -> str:
        return self.classifier.problem_type

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    @property
    def method(self) -> Method:
        return METHODS[self.settings["method"]]

    @property
    def headline(self) -> str:
        """The name of the metric that is told first."""
        return headline(self.task)

    @property
    def data(self) -> dict[str, Any]:
        """What was read, left out and split; empty for a run that kept no record of it."""
        return self.result.get("data") or {}

    @cached_property
    def certificate(self) -> MergeCertificate | None:
        """The merge certificate, if it holds for this adapter and for the files of the merged model."""
        return certificate_of_merged(self.run)

    @property
    def beats_baseline(self) -> bool:
        """Whether chance alone does not explain that it is better than the best constant answer."""
        return self.result[f"{self.headline}_interval"][0] > self.result["baseline"][self.headline]

    @property
    def base_id(self) -> str | None:
        """The base model's id on the Hub, or None for a local folder."""
        base = self.classifier.base_model_name_or_path
        return base if from_hub(base, self.classifier.base_revision) else None

    @property
    def base_words(self) -> str:
        """The base model as Markdown, with the revision that names its very bytes."""
        base, revision = self.classifier.base_model_name_or_path, self.classifier.base_revision
        if self.base_id is None:
            words = f"a local model ({name(Path(base).name)})"
        else:
            words = f"[{escaped(base)}]({HUB}/{base})"
        commit = hub_commit(revision)
        if commit:
            return f"{words}, revision {name(commit)}"
        digest = (revision or "").removeprefix("sha256:")
        return f"{words}, SHA-256 of its weights {name(digest)}" if digest else words

    @property
    def base_licence(self) -> str:
        """The base model's licence as its card names it, or an empty text where that is not known."""
        preset = MODELS.get(self.classifier.base_model_name_or_path)
        return preset.licence if preset else ""

    @property
    def language(self) -> str | None:
        """The texts' language (ISO 639-1) where it is known."""
        preset = DATASETS.get(self.settings["dataset_name"])
        return preset.language if preset else None

    @property
    def dataset_id(self) -> str | None:
        """The data set's id on the Hub, or None for any other."""
        return self.settings["dataset_name"] if self.data.get("source") == "Hub" else None

    @property
    def dataset_name(self) -> str:
        """What people call the data set: its name or its files, on one line."""
        held = self.settings["dataset_name"]
        files = [file["name"] for file in self.data.get("files", ())]
        if held in DATASETS and self.dataset_id is None:
            return DATASETS[held].label.removesuffix(" (embedded)")
        return plain(self.dataset_id or ", ".join(files) or Path(held).name)

    @property
    def dataset_words(self) -> str:
        """The data set as Markdown."""
        if self.dataset_id is None:
            return escaped(self.dataset_name)
        return f"[{escaped(self.dataset_id)}]({HUB}/datasets/{self.dataset_id})"

    @property
    def dataset_slug(self) -> str:
        """An identifier for the data set, where it has none on the Hub."""
        return re.sub(r"[^a-z0-9]+", "-", self.dataset_name.lower())[:LONGEST].strip("-") or "data"

    def split_of(self, role: str) -> str:
        """The split that a role's rows come from; held-out rows come from the training split."""
        setting = {"validation": "validation_split", "test": "eval_split"}.get(role, "train_split")
        return self.settings["train_split" if role in self.data.get("held_out", ()) else setting]

"""Facts of a run for its model card, with names in publishable form."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_core.export.hub.markdown import MAX_LENGTH, code_name, escaped, plain
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.merging.certificate import MergeCertificate, certificate_of_merged
from peft_core.methods.registry import METHODS, Method
from peft_core.models.presets import DATASETS, MODELS
from peft_core.models.sources import hub_commit, is_hub_model
from peft_core.problem_types import headline
from peft_core.runs import Run, RunResult

HUB = "https://huggingface.co"
LANGUAGES = {"en": "English"}


@dataclass(frozen=True)
class Facts:
    """Facts of one run; the Markdown texts contain no path of this machine."""

    run: Run
    classifier: Classifier
    settings: dict[str, Any]
    result: RunResult
    decision_rule: DecisionRule

    @classmethod
    def read(cls, run: Run) -> "Facts":
        """Read a finished or stopped run; RunError if it has no adapter or its files are lost."""
        return cls(run, Classifier.read(run), run.config().to_dict(), run.result(), DecisionRule.read(run))

    @property
    def problem_type(self) -> str:
        return self.classifier.problem_type

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    @property
    def method(self) -> Method:
        return METHODS[self.settings["method"]]

    @property
    def headline(self) -> str:
        """Name of the headline metric."""
        return headline(self.problem_type)

    @property
    def data(self) -> dict[str, Any]:
        """The data record: rows read, dropped and split; empty for runs of early versions."""
        return self.result.get("data") or {}

    @cached_property
    def certificate(self) -> MergeCertificate | None:
        """The merge certificate, if it is valid for this adapter and the files of the merged model."""
        return certificate_of_merged(self.run)

    @property
    def beats_baseline(self) -> bool:
        """Whether the 95 % interval of the headline metric lies above the best constant answer."""
        return self.result[f"{self.headline}_interval"][0] > self.result["baseline"][self.headline]

    @property
    def base_id(self) -> str | None:
        """Hub id of the base model, or None for a local folder."""
        base = self.classifier.base_model_name_or_path
        return base if is_hub_model(base, self.classifier.base_revision) else None

    @property
    def base_markdown(self) -> str:
        """The base model as Markdown, with its commit or the hash of its weights."""
        base, revision = self.classifier.base_model_name_or_path, self.classifier.base_revision
        if self.base_id is None:
            markdown = f"a local model ({code_name(Path(base).name)})"
        else:
            markdown = f"[{escaped(base)}]({HUB}/{base})"
        commit = hub_commit(revision)
        if commit:
            return f"{markdown}, revision {code_name(commit)}"
        digest = (revision or "").removeprefix("sha256:")
        return f"{markdown}, SHA-256 of its weights {code_name(digest)}" if digest else markdown

    @property
    def base_license(self) -> str:
        """License of the base model as its card names it; empty if it is unknown."""
        preset = MODELS.get(self.classifier.base_model_name_or_path)
        return preset.license if preset else ""

    @property
    def language(self) -> str | None:
        """Language of the texts (ISO 639-1), or None if it is unknown."""
        preset = DATASETS.get(self.settings["dataset_name"])
        return preset.language if preset else None

    @property
    def dataset_id(self) -> str | None:
        """Hub id of the dataset, or None if it is not from the Hub."""
        return self.settings["dataset_name"] if self.data.get("source") == "Hub" else None

    @property
    def dataset_name(self) -> str:
        """Name of the dataset or of its files, on one line."""
        name = self.settings["dataset_name"]
        files = [file["name"] for file in self.data.get("files", ())]
        if name in DATASETS and self.dataset_id is None:
            return DATASETS[name].label.removesuffix(" (embedded)")
        return plain(self.dataset_id or ", ".join(files) or Path(name).name)

    @property
    def dataset_markdown(self) -> str:
        """The dataset as Markdown."""
        if self.dataset_id is None:
            return escaped(self.dataset_name)
        return f"[{escaped(self.dataset_id)}]({HUB}/datasets/{self.dataset_id})"

    @property
    def dataset_slug(self) -> str:
        """Identifier of a dataset that is not on the Hub."""
        return re.sub(r"[^a-z0-9]+", "-", self.dataset_name.lower())[:MAX_LENGTH].strip("-") or "data"

    def split_of(self, role: str) -> str:
        """Return the split that the rows of a role come from; held-out rows come from the training split."""
        setting = {"validation": "validation_split", "test": "eval_split"}.get(role, "train_split")
        return self.settings["train_split" if role in self.data.get("held_out", ()) else setting]

"""Every method on every family of encoders: trained, loaded again in a fresh process, merged.

The suite trains a share of the cells; `benchmarks/method_matrix.py` trains all of them.
"""

import gc
import json
import shutil
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from processes import python
from safetensors.torch import load_file
from small_data import write_small_data
from tiny import make_tiny

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError
from peft_core.methods import adapters
from peft_core.methods.registry import METHODS, find_model_conflict
from peft_core.training.entry import train

FAMILIES = {
    "bert": "BERT", "roberta": "RoBERTa", "distilbert": "DistilBERT", "deberta-v2": "DeBERTa-v2",
    "modernbert": "ModernBERT", "electra": "ELECTRA", "mpnet": "MPNet", "albert": "ALBERT",
}  # fmt: skip
TARGETS = {
    "distilbert": ["q_lin", "v_lin"],
    "deberta-v2": ["query_proj", "value_proj"],
    "modernbert": ["Wqkv"],
    "mpnet": ["attn.q", "attn.v"],
}
LORA_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "LoRA, all linear": {"target_modules": ["all-linear"]},
    "LoRA, rsLoRA": {"use_rslora": True},
    "LoRA, DoRA": {"use_dora": True},
    "LoRA, LoRA+": {"loraplus_lr_ratio": 4.0},
    "LoRA, PiSSA start": {"init_lora_weights": "pissa"},
    "LoRA, OLoRA start": {"init_lora_weights": "olora"},
    "LoRA, EVA start": {"init_lora_weights": "eva"},
}
# sizes that fit into a matrix of width 32
SMALL = {
    "r": 4, "init_r": 6, "target_r": 4, "oft_block_size": 8, "block_size": 8, "n_frequency": 100,
    "encoder_hidden_size": 16, "num_virtual_tokens": 4, "max_length": 64, "num_train_epochs": 2,
    "learning_rate": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One method on one model family.

    Attributes:
        variant: the method, or the variant of LoRA.
        family: the `model_type` of the encoder.
        run_id: the trained run.
        reason: why the method cannot be used on the family; empty if it can.
        reload: the largest logit difference between the reloaded adapter and the trained model.
        merge: the same between merged model and adapter; None if the method cannot be merged.
        holds: whether the merge certificate holds.
        encoder_changed: whether the merged encoder's weights differ from those of the base model.
    """

    variant: str
    family: str
    run_id: str = ""
    reason: str = ""
    reload: float = 0.0
    merge: float | None = None
    holds: bool = True
    encoder_changed: bool = True

    @property
    def mark(self) -> str:
        """Return the mark of the cell in the table."""
        if self.reason:
            return "—"
        return "✓" if self.merge is not None else "✓ no merge"


def variants() -> dict[str, dict[str, Any]]:
    """Return the settings of every method and variant, by the name in the table."""
    plain = {method.label: {"method": name} for name, method in METHODS.items()}
    return plain | {name: {"method": "lora", **changes} for name, changes in LORA_VARIANTS.items()}


def settings_of(variant: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return a variant's settings for tiny models of a family."""
    return {**SMALL, "target_modules": TARGETS.get(family, ["query", "value"]), **variant}


def variants_of_the_suite(family: str) -> list[str]:
    """Return the variants that the test suite trains on a family.

    All on BERT; elsewhere LoRA, the impossible ones, and a share such that each variant is trained on two
    families.
    """
    names, number = list(variants()), list(FAMILIES).index(family)
    if number == 0:
        return names
    share = [name for place, name in enumerate(names) if place % (len(FAMILIES) - 1) == number - 1]
    impossible = [
        name
        for name, settings in variants().items()
        if find_model_conflict(TrainConfig.from_dict(settings_of(settings, family)).to_dict(), family)
    ]
    return [name for name in names if name in {"LoRA", *share, *impossible}]


def train_family(family: str, folder: Path, data: Path, names: Collection[str]) -> list[Cell]:
    """Train each of these variants below `folder`; a cell has the run, or the reason why there is none."""
    model = make_tiny(folder / "model", family)
    gc.freeze()  # keeps imported objects out of the garbage collections of each training
    chosen = {name: settings for name, settings in variants().items() if name in names}
    return [_trained(name, settings, family, folder, model, data) for name, settings in chosen.items()]


def check_cells(cells: list[Cell], folders: Iterable[Path]) -> list[Cell]:
    """Return the cells with what a fresh process measures when it loads and merges the runs."""
    process = python("-m", "matrix_check", *(str(folder / "runs") for folder in folders))
    assert process.returncode == 0, process.stderr
    measured = json.loads(process.stdout.splitlines()[-1])
    return [cell if cell.reason else replace(cell, **measured[cell.run_id]) for cell in cells]


def cells_of_the_suite(folder: Path) -> list[Cell]:
    """Return the cells of `variants_of_the_suite`, trained in this process and checked in a fresh one."""
    data = write_small_data(folder / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = [
            cell
            for family in FAMILIES
            for cell in train_family(family, folder / family, data, variants_of_the_suite(family))
        ]
    return check_cells(cells, [folder / family for family in FAMILIES])


def _trained(
    name: str, variant: Mapping[str, Any], family: str, folder: Path, model: Path, data: Path
) -> Cell:
    config = TrainConfig.from_dict(
        {**settings_of(variant, family), "model_name_or_path": str(model), "dataset_name": str(data)}
    )
    expected = find_model_conflict(config.to_dict(), family)
    run = runs.create(folder / "runs", config)
    try:
        train(run.folder)
    except PeftCoreError as error:
        assert str(error) == expected, f"{name} on {family}: {error}"
        assert _is_impossible(run), f"{name} works on {family}, though it is said that {expected}"
        shutil.rmtree(run.folder)
        return Cell(name, family, reason=expected)
    return Cell(name, family, run.run_id)


def _is_impossible(run: runs.Run) -> bool:
    """Whether training fails, or trains nothing but what starts untrained, when nobody refuses it."""
    with mock.patch.object(adapters, "find_model_conflict", return_value=""):
        try:
            train(run.folder)
        except (ValueError, IndexError):
            return True
    trained = load_file(run.adapter / "adapter_model.safetensors")
    return all(name.startswith(tuple(run.result()["untrained"])) for name in trained)

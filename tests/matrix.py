"""Every method on every family of encoders: trained, loaded again in a fresh process, merged.

`make matrix` prints the table into README.
"""

import gc
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from processes import python
from safetensors.torch import load_file
from small_data import write_small_data
from tiny import make_tiny

from peft_core import adapters, runs
from peft_core.config import TrainConfig
from peft_core.errors import PeftCoreError
from peft_core.methods import METHODS, unworkable_on
from peft_core.train import train

FAMILIES = {
    "bert": "BERT", "roberta": "RoBERTa", "distilbert": "DistilBERT", "deberta-v2": "DeBERTa-v2",
    "modernbert": "ModernBERT", "electra": "ELECTRA", "mpnet": "MPNet", "albert": "ALBERT",
}  # fmt: skip
README = Path(__file__).resolve().parent.parent / "README.md"
MARKS = ("<!-- matrix -->", "<!-- end of matrix -->")
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
# sizes that a matrix 32 wide can hold
SMALL = {
    "r": 4, "init_r": 6, "target_r": 4, "oft_block_size": 8, "block_size": 8, "n_frequency": 100,
    "encoder_hidden_size": 16, "num_virtual_tokens": 4, "max_length": 64, "num_train_epochs": 2,
    "learning_rate": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One method on one family. `reason` says why it is impossible; the numbers are of a real run otherwise.

    `reload` and `merge` are the largest logit differences, from the trained model's own evaluation and from
    the adapter; `merge` is None where the method cannot merge, and `holds` the certificate's word;
    `encoder_changed` says whether the merged encoder's weights are other than the base model's.
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
        """What the table shows."""
        if self.reason:
            return "—"
        return "✓" if self.merge is not None else "✓ no merge"


def variants() -> dict[str, dict[str, Any]]:
    """Settings by the name that the table shows."""
    plain = {method.label: {"method": name} for name, method in METHODS.items()}
    return plain | {name: {"method": "lora", **changes} for name, changes in LORA_VARIANTS.items()}


def settings_of(variant: Mapping[str, Any], family: str) -> dict[str, Any]:
    """A variant's settings for tiny models of a family."""
    return {**SMALL, "target_modules": TARGETS.get(family, ["query", "value"]), **variant}


def variants_of_the_suite(family: str) -> list[str]:
    """What the test suite trains: all variants on BERT; elsewhere LoRA, what is impossible, and a share such
    that every variant is met on two families."""
    names, number = list(variants()), list(FAMILIES).index(family)
    if number == 0:
        return names
    share = [name for place, name in enumerate(names) if place % (len(FAMILIES) - 1) == number - 1]
    impossible = [
        name
        for name, one in variants().items()
        if unworkable_on(TrainConfig.from_dict(settings_of(one, family)).to_dict(), family)
    ]
    return [name for name in names if name in {"LoRA", *share, *impossible}]


def train_family(family: str, folder: Path, data: Path, names: Collection[str]) -> list[Cell]:
    """A run of each variant of these names under `folder`, or the reason why there is none."""
    model = make_tiny(folder / "model", family)
    gc.freeze()  # every training collects garbage twice, and would look through all that was imported
    chosen = {name: one for name, one in variants().items() if name in names}
    return [_trained(name, one, family, folder, model, data) for name, one in chosen.items()]


def check_cells(cells: list[Cell], folders: Iterable[Path]) -> list[Cell]:
    """The cells with what a fresh process finds when it loads and merges each run under these folders."""
    done = python("-m", "matrix_check", *(str(folder / "runs") for folder in folders))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [cell if cell.reason else replace(cell, **found[cell.run_id]) for cell in cells]


def matrix(folder: Path) -> list[Cell]:
    """Every cell, family by family; two families at a time, each in a process of its own."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        parts = pool.map(lambda family: _in_its_own_process(family, folder / family), FAMILIES)
        return [cell for part in parts for cell in part]


def family_cells(family: str, folder: Path) -> list[Cell]:
    """A family's column."""
    data = write_small_data(folder / "data")
    return check_cells(train_family(family, folder, data, variants()), [folder])


def cells_of_the_suite(folder: Path) -> list[Cell]:
    """The cells of `variants_of_the_suite`, trained in this process and checked in one fresh one."""
    data = write_small_data(folder / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = [
            cell
            for family in FAMILIES
            for cell in train_family(family, folder / family, data, variants_of_the_suite(family))
        ]
    return check_cells(cells, [folder / family for family in FAMILIES])


def _in_its_own_process(family: str, folder: Path) -> list[Cell]:
    done = python("-W", "ignore", "-m", "matrix", family, str(folder), timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Cell(**cell) for cell in json.loads(done.stdout.splitlines()[-1])]


def table(cells: list[Cell]) -> str:
    """The matrix in Markdown, and below it the reasons why a cell is empty."""
    lines = [f"| Method | {' | '.join(FAMILIES.values())} |", f"|---|{'---|' * len(FAMILIES)}"]
    for variant in variants():
        marks = [cell.mark for cell in cells if cell.variant == variant]
        lines.append(f"| {variant} | {' | '.join(marks)} |")
    reasons = dict.fromkeys(f"- {cell.reason}" for cell in cells if cell.reason)
    return "\n".join([*lines, "", *reasons])


def marks_in_readme(family: str) -> dict[str, str]:
    """A family's column of the table that stands in README, by variant."""
    column = 2 + list(FAMILIES).index(family)
    text = README.read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    return {row[1].strip(): row[column].strip() for row in rows[1:]}


def put_into_readme(marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two marks in README."""
    before, rest = README.read_text(encoding="utf-8").split(marks[0])
    _, after = rest.split(marks[1])
    README.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")


def _trained(
    name: str, variant: Mapping[str, Any], family: str, folder: Path, model: Path, data: Path
) -> Cell:
    config = TrainConfig.from_dict(
        {**settings_of(variant, family), "model_name_or_path": str(model), "dataset_name": str(data)}
    )
    expected = unworkable_on(config.to_dict(), family)
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
    with mock.patch.object(adapters, "unworkable_on", return_value=""):
        try:
            train(run.folder)
        except (ValueError, IndexError):
            return True
    trained = load_file(run.adapter / "adapter_model.safetensors")
    return all(name.startswith(tuple(run.result()["untrained"])) for name in trained)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        column = family_cells(sys.argv[1], Path(sys.argv[2]))
        sys.stdout.write(json.dumps([asdict(cell) for cell in column]) + "\n")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            put_into_readme(MARKS, table(matrix(Path(scratch))))

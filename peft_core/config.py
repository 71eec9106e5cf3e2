"""TrainConfig: all settings of a run, each with its default, label, help and bounds."""

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

from peft_core.errors import ConfigError
from peft_core.methods.registry import METHODS, defaults_of, find_conflict
from peft_core.setting import Setting, format_number, setting

EMBEDDED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_DATASET = "rotten_tomatoes"
LORA_INITIALIZATIONS = ("default", "gaussian", "pissa", "olora", "eva")
PROBLEM_TYPES = {
    "single_label_classification": "One label per text",
    "multi_label_classification": "Several labels per text",
    "regression": "A number per text",
}
REMEDIES = {
    "empty": "Leave out rows without text or label",
    "duplicates": "Keep one of each repeated row",
    "conflicts": "Leave out texts that have different labels",
    "leakage": "Leave out training rows whose text is also in the evaluation rows",
    "small_classes": "Leave out labels with too few rows to split",
    "label_spelling": "Make one label of labels that differ only in case or spaces",
    "shared_texts": "Leave out training rows that share one text of a pair with evaluation rows",
}
DECIMAL_MARKS = {"point": "Point, as in 1,234.5", "comma": "Comma, as in 1.234,5"}
BASE_HEADS = {
    "by_name": "Keep it, matched by label name",
    "by_order": "Keep it, matched by order",
    "fresh": "Start a fresh one",
}
COMPILE_MODES = ("auto", "on", "off")
ARITHMETIC_MODES = ("fast", "plain")
BEST_METRICS = (
    "loss", "accuracy", "macro_f1", "weighted_f1", "mcc", "micro_f1", "subset_accuracy", "spearman",
    "pearson", "mae", "rmse",
)  # fmt: skip
LR_SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run, validated on creation and stored in the run folder as `config.json`."""

    model_name_or_path: str = setting(
        EMBEDDED_MODEL, "Base model", "A preset, a Hub model id, or a local folder with safetensors weights."
    )
    revision: str | None = setting(
        None,
        "Revision",
        "Branch, tag or commit of the base model on the Hub; if empty, a preset uses its pinned commit.",
    )
    dataset_name: str = setting(
        EMBEDDED_DATASET,
        "Data set",
        "An embedded data set, a Hub data set id, a local file or a folder of files.",
    )
    dataset_config_name: str | None = setting(None, "Data configuration", "Name of a configuration, if any.")
    train_split: str = setting("train", "Training split", "The split that the model learns from.")
    validation_split: str = setting(
        "validation",
        "Validation split",
        "The split for the curves and the choice of the best step; held out if absent.",
    )
    eval_split: str = setting(
        "test",
        "Test split",
        "The split that the result is measured on; held out of the training rows if absent.",
    )
    split_seed: int = setting(
        42, "Split seed", "Decides which rows are held out; keep it to compare runs.",
        minimum=0, maximum=2**32 - 1,
    )  # fmt: skip
    sheet_name: str | None = setting(
        None, "Sheet", "Sheet of a workbook; if empty, the first one with a table."
    )
    header_row: int | None = setting(
        None, "Header row", "Row of a sheet, or line of a CSV, that names the columns; guessed if 0.",
        minimum=1, maximum=1_048_576,
    )  # fmt: skip
    text_column: str | None = setting(None, "Text column", "Guessed from the data when empty.")
    text_pair_column: str | None = setting(
        None, "Second text column", "For pairs of texts, such as a question and an answer."
    )
    label_column: str | None = setting(None, "Label column", "Guessed from the data when empty.")
    label_columns: tuple[str, ...] = setting(
        (), "Label columns", "Several columns of 0 and 1, one for each label, instead of a label column."
    )
    decimal_mark: str | None = setting(
        None, "Decimal mark", "Of the numbers in the label column; inferred from all of them when empty.",
        choices=tuple(DECIMAL_MARKS),
    )  # fmt: skip
    base_head: str = setting(
        "by_name", "Head of the base model", "Whether its head is kept, and how outputs match labels.",
        choices=tuple(BASE_HEADS),
    )  # fmt: skip
    problem_type: str | None = setting(
        None, "Task", "Guessed from the labels when empty.", choices=tuple(PROBLEM_TYPES)
    )
    label_separator: str | None = setting(
        None, "Label separator", "Between several labels in one cell; guessed when empty."
    )
    num_labels: int | None = setting(
        None, "Number of labels", "Taken from the data if 0.", minimum=2, maximum=1000
    )
    class_weight: str = setting(
        "none", "Class weights", "Balanced counts a rare label's errors more.", choices=("none", "balanced")
    )
    remedies: tuple[str, ...] = setting(
        (), "Remedies", "Corrections of what the audit found.", choices=tuple(REMEDIES)
    )
    method: str = setting(
        "lora", "Method", "What is trained; everything else stays frozen.", choices=tuple(METHODS)
    )
    target_modules: tuple[str, ...] = setting(
        ("query", "value"),
        "Which matrices",
        "Module names, as print(model) shows them; all-linear selects all linear modules.",
    )
    r: int = setting(8, "Rank (r)", "Width of the low-rank matrices.", minimum=1, maximum=2048)
    lora_alpha: int = setting(16, "Alpha", "The update is scaled by alpha / r.", minimum=1, maximum=4096)
    lora_dropout: float = setting(
        0.0, "LoRA dropout", "Share of inputs to A dropped in training.", minimum=0.0, maximum=0.9
    )
    use_rslora: bool = setting(False, "rsLoRA", "Scale by alpha / √r, so that a high rank learns as fast.")
    use_dora: bool = setting(False, "DoRA", "Train each weight's length apart from its direction.")
    init_lora_weights: str = setting(
        "default", "Start", "How A and B are initialized: with no change, or from the weights or the data.",
        choices=LORA_INITIALIZATIONS,
    )  # fmt: skip
    loraplus_lr_ratio: float = setting(
        1.0, "LoRA+ ratio", "B learns this many times faster than A.", minimum=1.0, maximum=256.0
    )
    init_r: int = setting(12, "First rank", "AdaLoRA begins with this rank.", minimum=1, maximum=512)
    target_r: int = setting(8, "Target rank", "AdaLoRA's mean rank at the end.", minimum=1, maximum=512)
    orth_reg_weight: float = setting(
        0.5, "Orthogonality", "AdaLoRA's weight of keeping P and Q orthogonal.", minimum=0.0, maximum=10.0
    )
    alpha: int = setting(
        8, "LoHa and LoKr alpha", "The update is scaled by alpha / r.", minimum=1, maximum=4096
    )
    decompose_factor: int = setting(
        -1,
        "Kronecker factor",
        "LoKr's first factor; -1 makes both factors as equal as possible.",
        minimum=-1,
        maximum=1024,
    )
    d_initial: float = setting(
        0.1, "First d", "Initial value of VeRA's scaling vector d.", minimum=0.0, maximum=10.0
    )
    randlora_alpha: int = setting(
        64, "RandLoRA alpha", "The update is scaled by alpha / r.", minimum=1, maximum=16384
    )
    oft_block_size: int = setting(
        32,
        "OFT block size",
        "Size of the rotated blocks; it must divide the weight's width.",
        minimum=2,
        maximum=4096,
    )
    boft_block_size: int = setting(
        4,
        "BOFT block size",
        "Size of the rotated blocks; it must divide the weight's width.",
        minimum=2,
        maximum=4096,
    )
    n_frequency: int = setting(
        1000, "Frequencies", "Fourier coefficients trained for each weight.", minimum=1, maximum=1_000_000
    )
    scaling: float = setting(
        150.0, "Scaling", "FourierFT's factor of the inverse transform.", more_than=0.0, maximum=10_000.0
    )
    block_size: int = setting(
        64, "C3A block size", "Size of the circulant blocks; it must divide both sides of the weight.",
        minimum=1, maximum=4096,
    )  # fmt: skip
    num_virtual_tokens: int = setting(
        10, "Virtual tokens", "Trained vectors put before the text.", minimum=1, maximum=256
    )
    encoder_hidden_size: int = setting(
        128, "Prompt encoder width", "Width of the network that makes the virtual tokens.",
        minimum=1, maximum=4096,
    )  # fmt: skip
    load_in_bits: int = setting(
        32, "Base weights", "Bits of a base weight in training: 32, or 8 or 4 with bitsandbytes (QLoRA).",
        minimum=4, maximum=32,
    )  # fmt: skip
    top_layers: int = setting(
        0, "Top layers", "Train only this many of the last layers, which is faster; 0 trains all.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    learning_rate: float = setting(
        2e-3, "Learning rate", "LoRA on an encoder needs 1e-3 to 5e-3.", more_than=0.0, maximum=1.0
    )
    lr_scheduler_type: str = setting(
        "linear", "Schedule", "How the learning rate falls after warm-up.", choices=LR_SCHEDULERS
    )
    warmup_steps: float = setting(
        0.1, "Warm-up", "Share of all steps if below 1, else a number of steps.", minimum=0.0, maximum=100_000
    )
    weight_decay: float = setting(0.0, "Weight decay", "AdamW's decay.", minimum=0.0, maximum=1.0)
    num_train_epochs: float = setting(
        1.0, "Epochs", "Passes over the training rows.", more_than=0.0, maximum=100.0
    )
    per_device_train_batch_size: int = setting(
        16,
        "Batch size",
        "Texts per batch on average; all batches have about the same number of tokens.",
        minimum=1,
        maximum=1024,
    )
    gradient_accumulation_steps: int = setting(
        1, "Accumulated batches", "Batches whose gradients make one step: a larger batch in less memory.",
        minimum=1, maximum=1024,
    )  # fmt: skip
    max_grad_norm: float = setting(
        1.0, "Max gradient norm", "A step's gradient is scaled down to this norm; 0 does not scale it.",
        minimum=0.0, maximum=1000.0,
    )  # fmt: skip
    label_smoothing_factor: float = setting(
        0.0, "Label smoothing", "Share of each target that is spread evenly over the labels.",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    eval_steps: int | None = setting(
        None, "Evaluation interval", "Steps between evaluations on validation rows; if empty, four in total.",
        minimum=1, maximum=1_000_000,
    )  # fmt: skip
    load_best_model_at_end: bool = setting(
        True, "Keep the best step", "End with the weights of the evaluation that was best on validation rows."
    )
    metric_for_best_model: str | None = setting(
        None, "Best by", "The metric that decides which step is best; the task's first one when empty.",
        choices=BEST_METRICS,
    )  # fmt: skip
    early_stopping_patience: int = setting(
        0, "Patience", "Stop after this many evaluations in a row without improvement; 0 never stops early.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    early_stopping_threshold: float = setting(
        0.0, "Least improvement", "A smaller change of the metric does not count as an improvement.",
        minimum=0.0, maximum=1000.0,
    )  # fmt: skip
    max_length: int = setting(
        128, "Max length", "Texts are cut after this many tokens.", minimum=4, maximum=8192
    )
    max_train_samples: int = setting(
        3000,
        "Training rows",
        "At most this many, chosen at random with the seed.",
        minimum=1,
        maximum=1_000_000,
    )
    max_eval_samples: int = setting(
        1000,
        "Evaluation rows",
        "At most this many, chosen at random with the seed.",
        minimum=1,
        maximum=1_000_000,
    )
    dropout: float = setting(
        0.0, "Dropout", "Dropout rate inside the base model; most were trained with 0.1.",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    arithmetic: str = setting(
        "fast", "Arithmetic", "Plain uses float32 and stock modules: slower, the same up to rounding.",
        choices=ARITHMETIC_MODES,
    )  # fmt: skip
    torch_compile: str = setting(
        "auto", "Compile", "Compile the layers with torch.compile; auto compiles where it saves time.",
        choices=COMPILE_MODES,
    )  # fmt: skip
    seed: int = setting(42, "Seed", "The same seed gives the same adapter.", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        for name, annotation in _annotations().items():
            value = _coerce(name, annotation, getattr(self, name))
            object.__setattr__(self, name, value)
            _check_bounds(name, value)
        if not self.target_modules and METHODS[self.method].takes_target_modules:
            raise ConfigError("target_modules is empty; name at least one module, such as query.")
        reason = find_conflict(dataclasses.asdict(self))
        if reason:
            raise ConfigError(reason)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Create a config from a dict of settings; missing ones take their method's defaults.

        Raises:
            ConfigError: A key is unknown (the message names the nearest one), or a value has the wrong type
                or is out of bounds.
        """
        if not isinstance(settings, Mapping):
            raise ConfigError(f"Settings are {type(settings).__name__}; give an object of setting names.")
        for key in settings:
            if key not in SETTINGS:
                raise ConfigError(_unknown(str(key)))
        own = defaults_of(settings.get("method", cls.method), settings.get("target_modules"))
        return cls(**{**own, **settings})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_json(self) -> str:
        """Return the settings as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


@functools.cache
def _annotations() -> dict[str, Any]:
    """Return the types of the settings; cached, since resolving them dominates the creation of a config."""
    return get_type_hints(TrainConfig)


SETTINGS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in dataclasses.fields(TrainConfig)}


def _unknown(key: str) -> str:
    words = {name: name for name in SETTINGS}
    words |= {spec.label.lower(): name for name, spec in SETTINGS.items()}
    near = difflib.get_close_matches(key.lower(), words, n=1, cutoff=0.0)
    return f"There is no setting named {key!r}; did you mean {words[near[0]]!r}?"


def _coerce(name: str, annotation: Any, value: Any) -> Any:
    """Convert a value of JSON or a form to the field's type.

    Raises:
        ConfigError: The value does not fit the type.
    """
    kinds = get_args(annotation)
    if type(None) in kinds:
        if value is None or value == "":
            return None
        annotation = next(kind for kind in kinds if kind is not type(None))
    elif value is None or value == "":
        raise ConfigError(f"{name} is empty; fill in {SETTINGS[name].label!r}.")
    if get_origin(annotation) is tuple:
        return _names(name, value)
    if annotation is bool:
        return _flag(name, value)
    if annotation is str:
        return _text(name, value)
    if not is_number(value):
        raise ConfigError(f"{name} is {value!r}; it takes a number {SETTINGS[name].bounds()}.")
    if annotation is int and value != int(value):
        raise ConfigError(f"{name} is {value}; it takes a whole number {SETTINGS[name].bounds()}.")
    return annotation(value)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number that fits a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} is {value!r}; it takes a text that is not empty.")
    return value.strip()


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it takes true or false.")
    return value


def _names(setting_name: str, value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{setting_name} is {value!r}; it takes a list of names.")
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _check_bounds(name: str, value: Any) -> None:
    spec = SETTINGS[name]
    choices = value if isinstance(value, tuple) else (value,) if value is not None else ()
    for choice in choices if spec.choices else ():
        if choice not in spec.choices:
            raise ConfigError(f"{name} is {choice!r}; it takes one of {', '.join(spec.choices)}.")
    if is_number(value) and not spec.allows(value):
        raise ConfigError(f"{name} is {format_number(value)}; it must be {spec.bounds()}.")

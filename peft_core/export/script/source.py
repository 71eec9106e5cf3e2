"""Python source as text: values that cannot be mistaken for code, and the imports that a text needs."""

import ast
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WIDTH = 110
_PACKAGE = Path(__file__).parents[2]
Argument = str | tuple[str, str]  # of a call, in the second form with a comment
_ALIASES = {"np": "numpy", "pd": "pandas"}
_MODULES = ("hashlib", "json", "math", "torch")
_NAMES = {
    "collections.abc": ("Iterator", "Sequence"),
    "importlib.util": ("find_spec",),
    "itertools": ("islice",),
    "pathlib": ("Path",),
    "typing": ("Any",),
    "datasets": ("Dataset", "load_dataset"),
    "peft": (
        "AdaLoraConfig", "BOFTConfig", "C3AConfig", "EvaConfig", "FourierFTConfig", "HiraConfig", "IA3Config",
        "LNTuningConfig", "LoHaConfig", "LoKrConfig", "LoraConfig", "OFTConfig", "PeftModel",
        "PrefixTuningConfig", "PromptEncoderConfig", "PromptTuningConfig", "RandLoraConfig", "TaskType",
        "VeraConfig", "get_peft_model", "initialize_lora_eva_weights", "prepare_model_for_kbit_training",
    ),
    "peft.optimizers": ("create_loraplus_optimizer",),
    "peft.utils": ("ModulesToSaveWrapper",),
    "scipy.stats": ("pearsonr", "spearmanr"),
    "sklearn.metrics": (
        "accuracy_score", "f1_score", "matthews_corrcoef", "mean_absolute_error", "root_mean_squared_error",
    ),
    "torch.nn.functional": ("binary_cross_entropy_with_logits", "cross_entropy", "mse_loss"),
    "torch.utils.data": ("DataLoader", "Sampler"),
    "transformers": (
        "AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer", "BitsAndBytesConfig",
        "DataCollatorWithPadding", "EarlyStoppingCallback", "Trainer", "TrainerCallback",
        "TrainingArguments", "set_seed",
    ),
}  # fmt: skip


def literal(value: Any) -> str:
    """A value as a Python expression that evaluates to it and does nothing else.

    Takes None, bool, int, finite float, str, lists and dicts of them; anything else is a TypeError, and a
    number that source cannot hold a ValueError.
    Every character that is not printable is escaped, so no text can end its line or hide what it says.
    """
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number that source can hold")
        return repr(value)
    if isinstance(value, str):
        quoted = repr(str(value))
        return f'"{quoted[1:-1]}"' if '"' not in value and "'" not in value else quoted
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    raise TypeError(f"{type(value).__name__} has no literal")


def assign(name: str, value: Any, sign: str = " = ") -> str:
    """`name = value`, a list or dict that does not fit on a line one item a line; `sign` may be "=" alone."""
    line = f"{name}{sign}{literal(value)}"
    if len(line) <= WIDTH or not isinstance(value, list | tuple | dict):
        return line
    if isinstance(value, dict):
        items, (start, end) = [f"{literal(key)}: {literal(item)}," for key, item in value.items()], "{}"
    else:
        items, (start, end) = [f"{literal(item)}," for item in value], "[]"
    return f"{name}{sign}{start}\n{indented(items)}\n{end}"


def call(head: str, arguments: Iterable[Argument]) -> str:
    """A call with each argument on a line of its own; one given with a comment has it at its line's end."""
    pairs = [argument if isinstance(argument, tuple) else (argument, "") for argument in arguments]
    lines = [f"{code},  # {comment}" if comment else f"{code}," for code, comment in pairs]
    return f"{head}(\n{indented(lines)}\n)"


def indented(lines: Iterable[str]) -> str:
    """Lines four blanks further in."""
    return "\n".join(f"    {line}" if line else line for text in lines for line in text.split("\n"))


def own_source(module: str, *paths: str) -> str:
    """The text of these parts of one of this project's modules, read and not imported.

    A path names a constant, a function or a class, or a class and a part of it, as `RunTrainer.compute_loss`.
    """
    text = (_PACKAGE / module).read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    found = [_part_of(tree.body, path.split(".")) for path in paths]
    return "\n\n\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in found)


def _part_of(nodes: list[ast.stmt], path: list[str]) -> ast.stmt:
    for node in nodes:
        names = [getattr(target, "id", None) for target in getattr(node, "targets", ())]
        if path[0] in (getattr(node, "name", None), *names):
            return node if len(path) == 1 else _part_of(node.body, path[1:])
    raise LookupError(path[0])


def imports_of(body: str) -> str:
    """The imports behind the names that a text uses, sorted as ruff sorts them: Python's own come first."""
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    whole = [name for name in _MODULES if name in used]
    plain = {name: f"import {name}" for name in whole}
    plain |= {module: f"import {module} as {alias}" for alias, module in _ALIASES.items() if alias in used}
    names = {module: sorted(set(known) & used, key=_place) for module, known in _NAMES.items()}
    chosen = {module: _from(module, found) for module, found in names.items() if found}
    sections = []
    for own in (True, False):
        lines = [plain[name] for name in sorted(plain) if _is_standard(name) == own]
        lines += [chosen[name] for name in sorted(chosen) if _is_standard(name) == own]
        sections.append("\n".join(lines))
    return "\n\n".join(filter(None, sections))


def _from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return f"from {module} import (\n{indented([f'{name},' for name in names])}\n)"


def _place(name: str) -> tuple[int, str]:
    """Constants, classes, functions: as ruff's isort orders the names of one import."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names

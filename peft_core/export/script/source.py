"""Python source as text: safe literals, calls, parts of this project's source, and imports."""

import ast
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WIDTH = 110
_PACKAGE = Path(__file__).parents[2]
Argument = str | tuple[str, str]  # an argument of a call, alone or with a comment
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
    """Return a value as a Python expression that evaluates to it and does nothing else.

    Characters that are not printable are escaped, so that no text can end its line or hide its content.

    Args:
        value: None, bool, int, finite float or str, or a list, tuple (written as a list) or dict of these.

    Raises:
        TypeError: the type is not supported.
        ValueError: a float is infinite or NaN.
    """
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no literal in Python source")
        return repr(value)
    if isinstance(value, str):
        quoted = repr(str(value))
        return f'"{quoted[1:-1]}"' if '"' not in value and "'" not in value else quoted
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(entry)}' for key, entry in value.items())}}}"
    raise TypeError(f"{type(value).__name__} has no literal")


def assign(name: str, value: Any, sign: str = " = ") -> str:
    """Return `name = value`; a list or dict longer than `WIDTH` has one element per line."""
    line = f"{name}{sign}{literal(value)}"
    if len(line) <= WIDTH or not isinstance(value, list | tuple | dict):
        return line
    if isinstance(value, dict):
        lines, (start, end) = [f"{literal(key)}: {literal(entry)}," for key, entry in value.items()], "{}"
    else:
        lines, (start, end) = [f"{literal(element)}," for element in value], "[]"
    return f"{name}{sign}{start}\n{indented(lines)}\n{end}"


def call(function: str, arguments: Iterable[Argument]) -> str:
    """Return a call with one argument per line, followed by its comment if it has one."""
    pairs = [argument if isinstance(argument, tuple) else (argument, "") for argument in arguments]
    lines = [f"{code},  # {comment}" if comment else f"{code}," for code, comment in pairs]
    return f"{function}(\n{indented(lines)}\n)"


def indented(lines: Iterable[str]) -> str:
    """Indent lines by four spaces."""
    return "\n".join(f"    {line}" if line else line for text in lines for line in text.split("\n"))


def own_source(module: str, *paths: str) -> str:
    """Return the source of parts of one of this project's modules, without importing it.

    A path names a constant, a function or a class, or a member of a class such as `RunTrainer.compute_loss`.
    """
    text = (_PACKAGE / module).read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    nodes = [_find_node(tree.body, path.split(".")) for path in paths]
    return "\n\n\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes)


def _find_node(body: list[ast.stmt], path: list[str]) -> ast.stmt:
    for node in body:
        names = [getattr(target, "id", None) for target in getattr(node, "targets", ())]
        if path[0] in (getattr(node, "name", None), *names):
            if len(path) == 1:
                return node
            assert isinstance(node, ast.ClassDef)  # a path of two names is a class and its member
            return _find_node(node.body, path[1:])
    raise LookupError(path[0])


def imports_of(body: str) -> str:
    """Return the imports of the names that a source uses, sorted as by ruff, standard library first."""
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    modules = {name: f"import {name}" for name in _MODULES if name in used}
    modules |= {module: f"import {module} as {alias}" for alias, module in _ALIASES.items() if alias in used}
    names = {module: sorted(set(names) & used, key=_sort_key) for module, names in _NAMES.items()}
    members = {module: _from_import(module, used_names) for module, used_names in names.items() if used_names}
    sections = []
    for is_standard in (True, False):
        lines = [modules[name] for name in sorted(modules) if _is_standard(name) == is_standard]
        lines += [members[name] for name in sorted(members) if _is_standard(name) == is_standard]
        sections.append("\n".join(lines))
    return "\n\n".join(filter(None, sections))


def _from_import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return f"from {module} import (\n{indented([f'{name},' for name in names])}\n)"


def _sort_key(name: str) -> tuple[int, str]:
    """Return the key by which ruff sorts imported names: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names

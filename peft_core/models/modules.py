"""The modules of an encoder that a PEFT method can target: linear modules by role, norms, the head."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from peft_core.errors import ModelError
from peft_core.methods.registry import ALL_LINEAR, HEAD_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

QUERY, KEY, VALUE = "attention query", "attention key", "attention value"
FUSED, ATTENTION_OUTPUT = "attention query, key and value in one", "attention output"
MLP_IN, MLP_OUT = "MLP in", "MLP out"
EMBEDDINGS, POOLER, OTHER = "embeddings", "pooler", "other"
WHOLE = "all linear modules of the encoder without its pooler"
ROLES = (QUERY, KEY, VALUE, FUSED, ATTENTION_OUTPUT, MLP_IN, MLP_OUT, EMBEDDINGS, POOLER, OTHER)

_FUSED_NAMES = {"wqkv", "qkv", "qkv_proj", "in_proj", "query_key_value", "query_key"}
_OUTPUT_NAMES = {"dense", "out_lin", "o", "wo", "o_proj", "out_proj", "post_proj"}
_MLP_IN_NAMES = {"lin1", "fc1", "wi", "ffn", "linear_1", "dense1", "gate_proj", "up_proj"}
_MLP_OUT_NAMES = {"lin2", "fc2", "wo", "ffn_output", "linear_2", "dense2", "down_proj"}
_LETTERS = {"q": QUERY, "query": QUERY, "k": KEY, "key": KEY, "v": VALUE, "value": VALUE}


@dataclass(frozen=True)
class ModuleChoice:
    """A name for `target_modules` and the modules that it matches.

    Attributes:
        name: The name as `target_modules` takes it.
        roles: The roles of the matched modules.
        matches: How many modules the name matches.
        shapes: The distinct weight shapes (out, in), that of the first match first.
        rank_cost: Parameters that each unit of rank adds over all matches: the sum of in + out.
        trap: A warning about an unexpected effect; empty if there is none.
    """

    name: str
    roles: tuple[str, ...]
    matches: int
    shapes: tuple[tuple[int, int], ...]
    rank_cost: int
    trap: str

    @property
    def label(self) -> str:
        """The text in the picker: the name, a line of facts, and the trap if there is one."""
        size = f"{self.matches} matrices"
        if len(self.shapes) == 1:
            out, into = self.shapes[0]
            size = f"{self.matches} × ({out:,} × {into:,})"
        facts = f"{' and '.join(self.roles)} · {size} · {self.rank_cost:,} per rank"
        return "\n".join(filter(None, (self.name, facts, self.trap)))


def config_of(model: nn.Module) -> "PreTrainedConfig":
    """Return the transformers configuration of a model, or of the model inside a PEFT wrapper."""
    # torch types every attribute of a Module as Tensor or Module
    return cast("PreTrainedConfig", model.config)


def linear_modules(model: nn.Module) -> list[ModuleChoice]:
    """Return the names that `target_modules` can take in the encoder, sorted by role, without the head.

    Where a leaf name such as `dense` covers several roles, each role gets the shortest suffix of its own.
    """
    linears = _encoder_linears(model)
    choices: dict[str, ModuleChoice] = {}
    for group in _by_position(linears).values():
        name = _group_name(group, linears)
        choices.setdefault(name, _choice(name, linears, model))
    return sorted(choices.values(), key=lambda choice: ROLES.index(choice.roles[-1]))


def all_linear(model: nn.Module) -> ModuleChoice:
    """Return the choice `all-linear`: every linear module of the encoder except its pooler."""
    return _choice_of(ALL_LINEAR, (WHOLE,), _without_pooler(model), "")


def expand_target_modules(model: nn.Module, names: Sequence[str], top_layers: int = 0) -> tuple[str, ...]:
    """Return the names with `all-linear` replaced by names that match exactly the encoder's linear modules.

    PEFT's own `all-linear` includes BERT's pooler and fails on DistilBERT's `pre_classifier`. With
    `top_layers`, the names match only modules in the last `top_layers` layers.
    """
    if top_layers:
        return _exact_names(_in_top_layers(model, names, top_layers), model)
    expanded: list[str] = []
    for name in names:
        expanded += _exact_names(_without_pooler(model), model) if name == ALL_LINEAR else (name,)
    return tuple(dict.fromkeys(expanded))


def encoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """Return the encoder's layers: the longest `ModuleList` of modules of one class; None without one."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    return max(lists, key=len, default=None)


def feedforward_modules(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that match a linear module of an MLP; IA3 scales these at their input."""
    mlps = [path for path in _encoder_linears(model) if _role(path) in (MLP_IN, MLP_OUT)]
    return tuple(name for name in names if any(_matches(path, name) for path in mlps))


def layer_norms(model: nn.Module) -> tuple[str, ...]:
    """Return names that match exactly the encoder's normalization layers, not the head's, for LN-tuning."""
    norms = [path for path, module in model.named_modules() if _is_norm(module) and not _in_head(path, model)]
    return _exact_names(norms, model)


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the children with weights outside the encoder, which a checkpoint of the bare encoder lacks."""
    return tuple(
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    )


def output_layer(model: nn.Module, outputs: int) -> tuple[str, nn.Linear] | None:
    """Return path and module of the head's last linear layer, in PEFT's trained copy where there is one."""
    candidates = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and any(part.endswith(HEAD_NAMES) for part in path.split("."))
        and "original_module" not in path.split(".")
    ]
    return candidates[-1] if candidates else None


def full_precision_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that may start untrained and so keep full precision: the head and the pooler."""
    poolers = (path for path, _ in model.named_modules() if path.endswith(("pooler", "pooler.dense")))
    return (*head_modules(model), *poolers)


def check_target_modules(model: nn.Module, target_modules: Sequence[str], top_layers: int = 0) -> None:
    """Raise ModelError if a name matches no linear module of the encoder; the message lists the valid names.

    With `top_layers`, the names together must match a module in the last `top_layers` layers.
    """
    for name in target_modules:
        linears = _without_pooler(model) if name == ALL_LINEAR else _encoder_linears(model)
        if not any(name == ALL_LINEAR or _matches(path, name) for path in linears):
            available = ", ".join(choice.name for choice in linear_modules(model)) or "none"
            raise ModelError(
                f"target_modules names {name!r}, which matches nothing in this model; it has {available}."
            )
    if not top_layers:
        return
    layers = len(encoder_layers(model) or ())
    if top_layers > layers:
        raise ModelError(
            f"top_layers is {top_layers}, but the layers of this model that have weights of their own are "
            f"{layers}; set it to 0 for all."
        )
    if not _in_top_layers(model, target_modules, top_layers):
        raise ModelError(
            f"target_modules names {', '.join(target_modules)}, which matches nothing in the model's last "
            f"{top_layers} layers; set top_layers to 0 or name others."
        )


def _encoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _in_head(path, model)
    }


def _without_pooler(model: nn.Module) -> dict[str, nn.Linear]:
    return {path: module for path, module in _encoder_linears(model).items() if _role(path) != POOLER}


def _in_top_layers(model: nn.Module, names: Sequence[str], top_layers: int) -> dict[str, nn.Linear]:
    """Return the linear modules in the last `top_layers` layers that the names match."""
    layers = encoder_layers(model) or []
    inside = {module for layer in layers[-top_layers:] for module in layer.modules()}
    return {
        path: module
        for path, module in _encoder_linears(model).items()
        if module in inside and any(name == ALL_LINEAR or _matches(path, name) for name in names)
    }


def _in_head(path: str, model: nn.Module) -> bool:
    """Whether a module is outside the encoder or a part of its path ends with a head name, as in PEFT."""
    parts = path.split(".")
    return parts[0] != model.base_model_prefix or any(part.endswith(HEAD_NAMES) for part in parts)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    has_vector_weight = isinstance(weight, nn.Parameter) and weight.ndim == 1
    return has_vector_weight and type(module).__name__.endswith("Norm")


def _role(path: str) -> str:
    """Return the role of a linear module by its path; `other` where the names do not tell."""
    parts = path.lower().split(".")
    leaf, above = parts[-1], parts[:-1]
    if "pooler" in parts:
        return POOLER
    if any(part.startswith("embedding") or part.endswith("embeddings") for part in parts):
        return EMBEDDINGS
    if "bottleneck" in parts or "adapter_modules" in parts:
        return OTHER
    if leaf in _FUSED_NAMES:
        return FUSED
    for word in leaf.split("_"):
        if word in _LETTERS:
            return _LETTERS[word]
    if any("attention" in part or "attn" in part for part in above):
        return ATTENTION_OUTPUT if leaf in _OUTPUT_NAMES else OTHER
    if leaf in _MLP_IN_NAMES or above[-1] in ("intermediate", "dense"):
        return MLP_IN
    if leaf in _MLP_OUT_NAMES or above[-1] == "output":
        return MLP_OUT
    return OTHER


def _by_position(paths: Collection[str]) -> dict[str, list[str]]:
    """Group paths that differ only in layer numbers; the keys are the paths without these numbers."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(re.sub(r"\.\d+(?=\.|$)", "", path), []).append(path)
    return groups


def _group_name(group: Sequence[str], paths: Collection[str]) -> str:
    """Return the shortest suffix that matches only this group; the last two names if there is none."""
    foreign = {suffix for path in paths if path not in group for suffix in _suffixes(path)}
    shared = set.intersection(*({*_suffixes(path)} for path in group))
    own = [suffix for suffix in shared if suffix not in foreign]
    return min(own, key=len) if own else ".".join(group[0].split(".")[-2:])


def _choice(name: str, linears: dict[str, nn.Linear], model: nn.Module) -> ModuleChoice:
    matched = {path: module for path, module in linears.items() if _matches(path, name)}
    roles = tuple(dict.fromkeys(_role(path) for path in matched))
    return _choice_of(name, roles, matched, _trap(name, roles, linears, model))


def _choice_of(name: str, roles: tuple[str, ...], matched: dict[str, nn.Linear], trap: str) -> ModuleChoice:
    shapes = [(out, into) for out, into in (module.weight.shape for module in matched.values())]
    return ModuleChoice(
        name, roles, len(shapes), tuple(dict.fromkeys(shapes)), sum(out + into for out, into in shapes), trap
    )


def _trap(name: str, roles: tuple[str, ...], paths: Collection[str], model: nn.Module) -> str:
    """Return a warning about an unexpected effect of a name; empty if there is none."""
    leaf = name.split(".")[-1]
    of_leaf = {_role(path) for path in paths if _matches(path, leaf)}
    words = []
    if len(roles) > 1:
        words.append(f"This name matches both; no name matches the {roles[-1]} alone.")
    elif leaf != name and of_leaf == {ATTENTION_OUTPUT, MLP_OUT}:
        words.append(f"{leaf} alone would match {ATTENTION_OUTPUT} and {MLP_OUT}.")
    layers = _layers_per_matrix(model)
    if layers > 1 and not {POOLER, EMBEDDINGS} & set(roles):
        words.append(f"Shared: one matrix serves {layers} layers.")
    if POOLER in roles:
        words.append("Used by this head only; without effect if the token vectors are averaged.")
    return " ".join(words)


def _layers_per_matrix(model: nn.Module) -> int:
    """Return how many layers share the same weights: 12 in ALBERT base, 1 in other models."""
    config = config_of(model)
    groups = getattr(config, "num_hidden_groups", None)
    return config.num_hidden_layers // groups if groups else 1


def _exact_names(paths: Collection[str], model: nn.Module) -> tuple[str, ...]:
    """Return short suffixes that match the modules at these paths and nothing else in the model."""
    foreign = {suffix for path, _ in model.named_modules() if path not in paths for suffix in _suffixes(path)}
    names: list[str] = []
    for path in paths:
        if not any(_matches(path, name) for name in names):
            names.append(next(suffix for suffix in _suffixes(path) if suffix not in foreign))
    return tuple(names)


def _suffixes(path: str) -> Iterator[str]:
    """Yield the suffixes of a path, shortest first, without those that begin with a layer number."""
    parts = path.split(".")
    for start in reversed(range(len(parts))):
        if not parts[start].isdigit():
            yield ".".join(parts[start:])


def _matches(path: str, name: str) -> bool:
    """Whether a name in `target_modules` matches a path, by PEFT's rule for lists."""
    return path == name or path.endswith(f".{name}")

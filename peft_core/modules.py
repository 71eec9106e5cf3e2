"""What a method can be applied to in an encoder: its linear modules by role, its norms, and their names."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from peft_core.errors import ModelError
from peft_core.methods import ALL_LINEAR, HEAD_NAMES

QUERY, KEY, VALUE = "attention query", "attention key", "attention value"
FUSED, ATTENTION_OUTPUT = "attention query, key and value in one", "attention output"
MLP_IN, MLP_OUT = "MLP in", "MLP out"
EMBEDDINGS, POOLER, OTHER = "embeddings", "pooler", "other"
WHOLE = "every matrix of the encoder, no pooler, no head"
ROLES = (QUERY, KEY, VALUE, FUSED, ATTENTION_OUTPUT, MLP_IN, MLP_OUT, EMBEDDINGS, POOLER, OTHER)

_FUSED_NAMES = {"wqkv", "qkv", "qkv_proj", "in_proj", "query_key_value", "query_key"}
_OUTPUT_NAMES = {"dense", "out_lin", "o", "wo", "o_proj", "out_proj", "post_proj"}
_MLP_IN_NAMES = {"lin1", "fc1", "wi", "ffn", "linear_1", "dense1", "gate_proj", "up_proj"}
_MLP_OUT_NAMES = {"lin2", "fc2", "wo", "ffn_output", "linear_2", "dense2", "down_proj"}
_LETTERS = {"q": QUERY, "query": QUERY, "k": KEY, "key": KEY, "v": VALUE, "value": VALUE}


@dataclass(frozen=True)
class ModuleChoice:
    """A name for `target_modules` and what it takes in.

    `shapes` are the weights' different (out, in), the first match's first; `rank_cost` is what each unit of
    rank adds over all matches (the sum of in + out); `trap` is what a person may not expect, if anything.
    """

    name: str
    roles: tuple[str, ...]
    matches: int
    shapes: tuple[tuple[int, int], ...]
    rank_cost: int
    trap: str

    @property
    def label(self) -> str:
        """What the picker shows: the name, then a line of facts, then the trap if there is one."""
        size = f"{self.matches} matrices"
        if len(self.shapes) == 1:
            out, into = self.shapes[0]
            size = f"{self.matches} × ({out:,} × {into:,})"
        facts = f"{' and '.join(self.roles)} · {size} · {self.rank_cost:,} per rank"
        return "\n".join(filter(None, (self.name, facts, self.trap)))


def linear_modules(model: nn.Module) -> list[ModuleChoice]:
    """What `target_modules` can name in the encoder, grouped by role; the head is left out.

    Where a leaf name such as `dense` covers several roles, each role gets the shortest suffix of its own.
    """
    linears = _encoder_linears(model)
    choices: dict[str, ModuleChoice] = {}
    for group in _by_place(linears).values():
        name = _group_name(group, linears)
        choices.setdefault(name, _choice(name, linears, model))
    return sorted(choices.values(), key=lambda choice: ROLES.index(choice.roles[-1]))


def all_linear(model: nn.Module) -> ModuleChoice:
    """The choice `all-linear`: every linear module of the encoder but its pooler."""
    return _of_paths(ALL_LINEAR, (WHOLE,), _without_pooler(model), "")


def expand_target_modules(model: nn.Module, names: Sequence[str], top_layers: int = 0) -> tuple[str, ...]:
    """The names with `all-linear` replaced by names that match exactly the encoder's linear modules.

    PEFT's own `all-linear` takes BERT's pooler along and fails on DistilBERT's `pre_classifier`. With
    `top_layers` the names are those of the matrices in the last so many layers alone.
    """
    if top_layers:
        return _exact_names(_in_top_layers(model, names, top_layers), model)
    found: list[str] = []
    for name in names:
        every = _exact_names(_without_pooler(model), model) if name == ALL_LINEAR else (name,)
        found.extend(every)
    return tuple(dict.fromkeys(found))


def encoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The encoder's layers: the longest list of modules of one kind. None without one."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    return max(lists, key=len, default=None)


def feedforward_modules(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that match a matrix of an MLP; IA3 scales these at their input."""
    mlps = [path for path, module in _encoder_linears(model).items() if _role(path) in (MLP_IN, MLP_OUT)]
    return tuple(name for name in names if any(_matches(path, name) for path in mlps))


def layer_norms(model: nn.Module) -> tuple[str, ...]:
    """Names that match exactly the encoder's normalisation layers, for LN-tuning; the head's are left out."""
    norms = [path for path, module in model.named_modules() if _is_norm(module) and not _in_head(path, model)]
    return _exact_names(norms, model)


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """The parts with weights outside the encoder: what a checkpoint of the bare encoder lacks."""
    return tuple(
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    )


def output_layer(model: nn.Module, outputs: int) -> tuple[str, nn.Linear] | None:
    """The path and the module of the head's last linear layer, in PEFT's trained copy where there is one."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and any(part.endswith(HEAD_NAMES) for part in path.split("."))
        and "original_module" not in path.split(".")
    ]
    return found[-1] if found else None


def whole_modules(model: nn.Module) -> tuple[str, ...]:
    """The parts that may start untrained, so that they must keep full precision: the head and the pooler."""
    poolers = (path for path, _ in model.named_modules() if path.endswith(("pooler", "pooler.dense")))
    return (*head_modules(model), *poolers)


def check_target_modules(model: nn.Module, target_modules: Sequence[str], top_layers: int = 0) -> None:
    """Raise ModelError, listing what there is, if a name matches no matrix of the encoder, or of its layers
    where only the last `top_layers` are to change."""
    for name in target_modules:
        linears = _without_pooler(model) if name == ALL_LINEAR else _encoder_linears(model)
        if not any(name == ALL_LINEAR or _matches(path, name) for path in linears):
            has = ", ".join(choice.name for choice in linear_modules(model)) or "none"
            raise ModelError(
                f"target_modules names {name!r}, which matches nothing in this model; it has {has}."
            )
    if not top_layers:
        return
    layers = len(encoder_layers(model) or ())
    if top_layers > layers:
        raise ModelError(
            f"top_layers is {top_layers}, but the layers of this model that have weights of their own are "
            f"{layers}; take 0 for all."
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
    """Those of the matrices that the names match which lie in the last so many layers."""
    layers = encoder_layers(model) or []
    inside = {module for layer in layers[-top_layers:] for module in layer.modules()}
    return {
        path: module
        for path, module in _encoder_linears(model).items()
        if module in inside and any(name == ALL_LINEAR or _matches(path, name) for name in names)
    }


def _in_head(path: str, model: nn.Module) -> bool:
    """Whether a module lies outside the encoder, or PEFT's own rule (a head's name ends a part) takes it."""
    parts = path.split(".")
    return parts[0] != model.base_model_prefix or any(part.endswith(HEAD_NAMES) for part in parts)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    one_vector = isinstance(weight, nn.Parameter) and weight.ndim == 1
    return one_vector and type(module).__name__.endswith("Norm")


def _role(path: str) -> str:
    """What a linear module does, from its path; `other` where the names say nothing."""
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


def _by_place(paths: Collection[str]) -> dict[str, list[str]]:
    """Paths by what is left of them without layer numbers."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(re.sub(r"\.\d+(?=\.|$)", "", path), []).append(path)
    return groups


def _group_name(group: Sequence[str], paths: Collection[str]) -> str:
    """The shortest suffix that matches this group alone; the two last names where none does."""
    others = {suffix for path in paths if path not in group for suffix in _suffixes(path)}
    shared = set.intersection(*({*_suffixes(path)} for path in group))
    own = [suffix for suffix in shared if suffix not in others]
    return min(own, key=len) if own else ".".join(group[0].split(".")[-2:])


def _choice(name: str, linears: dict[str, nn.Linear], model: nn.Module) -> ModuleChoice:
    taken = {path: module for path, module in linears.items() if _matches(path, name)}
    roles = tuple(dict.fromkeys(_role(path) for path in taken))
    return _of_paths(name, roles, taken, _trap(name, roles, linears, model))


def _of_paths(name: str, roles: tuple[str, ...], taken: dict[str, nn.Linear], trap: str) -> ModuleChoice:
    shapes = [tuple(module.weight.shape) for module in taken.values()]
    return ModuleChoice(
        name, roles, len(shapes), tuple(dict.fromkeys(shapes)), sum(out + into for out, into in shapes), trap
    )


def _trap(name: str, roles: tuple[str, ...], paths: Collection[str], model: nn.Module) -> str:
    """What a person may not expect of a name, in plain words."""
    leaf = name.split(".")[-1]
    of_leaf = {_role(path) for path in paths if _matches(path, leaf)}
    words = []
    if len(roles) > 1:
        words.append(f"This name takes both; no name takes the {roles[-1]} alone.")
    elif leaf != name and of_leaf == {ATTENTION_OUTPUT, MLP_OUT}:
        words.append(f"{leaf} alone would name {ATTENTION_OUTPUT} and {MLP_OUT}.")
    layers = _layers_served(model)
    if layers > 1 and not {POOLER, EMBEDDINGS} & set(roles):
        words.append(f"Shared: one matrix serves {layers} layers.")
    if POOLER in roles:
        words.append("Feeds this head alone; lost where a model's token vectors are averaged.")
    return " ".join(words)


def _layers_served(model: nn.Module) -> int:
    """How many layers use the same weights: 12 in ALBERT base, 1 elsewhere."""
    groups = getattr(model.config, "num_hidden_groups", None)
    return model.config.num_hidden_layers // groups if groups else 1


def _exact_names(wanted: Collection[str], model: nn.Module) -> tuple[str, ...]:
    """The fewest short suffixes that match all of the wanted modules and nothing else in the model."""
    others = {suffix for path, _ in model.named_modules() if path not in wanted for suffix in _suffixes(path)}
    names: list[str] = []
    for path in wanted:
        if not any(_matches(path, name) for name in names):
            names.append(next(suffix for suffix in _suffixes(path) if suffix not in others))
    return tuple(names)


def _suffixes(path: str) -> Iterator[str]:
    """The ends of a path that can name it, the shortest first; none begins with a layer's number."""
    parts = path.split(".")
    for start in reversed(range(len(parts))):
        if not parts[start].isdigit():
            yield ".".join(parts[start:])


def _matches(path: str, name: str) -> bool:
    """PEFT's rule for a list of target modules."""
    return path == name or path.endswith(f".{name}")

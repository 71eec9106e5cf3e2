"""The third card: the method, its own settings alone, and the matrices it works on."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from peft_core.config import SETTINGS, TrainConfig
from peft_core.methods import ALL_LINEAR, LORA, METHODS, Method, defaults_of
from peft_core.presets import MODELS, STARTING, starting_point
from peft_core.ui.events import FOLLOWING, PRIVATE, sentence
from peft_core.ui.fields import DEFAULTS, Form, field
from peft_core.workbench import Workbench

OWN_SETTINGS = tuple(
    name
    for name in SETTINGS
    if name != "target_modules" and any(name in method.settings for method in METHODS.values())
)
# Settings of any card that some method wants otherwise than the rest, such as the learning rate.
DEFAULTED = tuple(dict.fromkeys((*STARTING, *(name for m in METHODS.values() for name in m.defaults))))
QUICK = {"Usual": "usual", "Attention only": "attention", "All linear": "all"}
_GROUPS = ("", "virtual tokens", "the model's own weights")


@dataclass(frozen=True)
class MethodCard:
    """What the card shows beside its fields: what the method is, what is not offered, and quick choices."""

    line: gr.HTML
    missing: gr.HTML
    settings: gr.Row
    quick: gr.Row
    buttons: tuple[gr.Button, ...]


def build_method_card(form: Form) -> MethodCard:
    """The method, its line, a field for each setting of any method (seen only where it is read), targets."""
    method = DEFAULTS.method
    form["method"] = gr.Dropdown(
        method_choices(""), value=method, label=SETTINGS["method"].label, elem_id="method"
    )
    line = gr.HTML(method_line(method), elem_id="method-line")
    missing = gr.HTML(visible=False, elem_id="method-missing")
    with gr.Row(elem_classes="settings") as settings:
        for name in OWN_SETTINGS:
            form[name] = field(name, min_width=150, visible=name in METHODS[method].settings)
    with gr.Row(elem_classes="quick") as quick:
        buttons = tuple(
            gr.Button(word, size="sm", min_width=80, elem_id=f"take-{kind}") for word, kind in QUICK.items()
        )
    form["target_modules"] = gr.CheckboxGroup(
        list(DEFAULTS.target_modules),
        value=list(DEFAULTS.target_modules),
        label=SETTINGS["target_modules"].label,
        info="Per rank: what each unit of r adds to train.",
        elem_id="target_modules",
        elem_classes="modules",
    )
    return MethodCard(line, missing, settings, quick, buttons)


def wire_method_card(card: MethodCard, form: Form, workbench: Workbench, rows: gr.State) -> None:
    """A method brings its fields and its defaults; a button chooses modules. `rows` are the data's."""
    method, modules = form["method"], form["target_modules"]
    model = [form["model_name_or_path"], form["revision"]]
    shown = [card.line, card.settings, card.quick, modules, *[form[name] for name in OWN_SETTINGS]]
    method.change(lambda chosen: method_fields(card, form, chosen), method, shown, **PRIVATE)
    filled = [form[name] for name in dict.fromkeys((*OWN_SETTINGS, *DEFAULTED)) if name in form]
    method.input(partial(method_values, form), [method, rows], filled, **FOLLOWING)
    rate = form["learning_rate"]
    modules.input(rate_for, [method, modules, rate, rows], rate, **FOLLOWING)
    for button, kind in zip(card.buttons, QUICK.values(), strict=True):

        def take(
            name: str, revision: str, chosen: str, rate: float, rows: int, kind: str = kind
        ) -> list[Any]:
            facts = workbench.describe_model(name, revision)
            names = quick_targets(kind, name, facts["modules"])
            return [names, rate_for(chosen, names, rate, rows)]

        button.click(sentence(take), [*model, method, rate, rows], [modules, rate], **PRIVATE)


def method_choices(model_type: str) -> list[tuple[str, str]]:
    """Label and name of each method that this kind of encoder can take, the model's own weights last."""
    able = [(name, method) for name, method in METHODS.items() if not method.cannot(model_type)]
    able.sort(key=lambda pair: _GROUPS.index(_group(pair[1])))
    return [(_label(method), name) for name, method in able]


def method_line(name: str) -> str:
    """What the method does, where it is from, whether it merges, and what to know before."""
    method = METHODS[name]
    merge = f"Cannot be merged: {method.cannot_merge}." if method.cannot_merge else ""
    more = "".join(f"<p>{html.escape(words)}</p>" for words in (merge, method.note) if words)
    source = f'<span class="quiet">{html.escape(method.source)}</span>'
    return f'<div class="facts"><p>{html.escape(method.help)} {source}</p>{more}</div>'


def not_offered(model_type: str) -> str:
    """Which methods this kind of encoder cannot take and why, each reason once; empty if it takes all."""
    reasons: dict[str, list[str]] = {}
    for method in METHODS.values():
        if method.cannot(model_type):
            reasons.setdefault(method.cannot(model_type), []).append(method.label)
    lines = "".join(
        f"<p><b>{html.escape(', '.join(labels))}</b>: {html.escape(reason)}</p>"
        for reason, labels in reasons.items()
    )
    return f'<div class="facts quiet">Not offered for this model: {lines}</div>' if lines else ""


def method_fields(card: MethodCard, form: Form, name: str) -> dict[Any, Any]:
    """Updates that show the settings of a method and hide the rest."""
    method = METHODS[name]
    updates: dict[Any, Any] = {form[own]: gr.update(visible=own in method.settings) for own in OWN_SETTINGS}
    for part in (form["target_modules"], card.quick):
        updates[part] = gr.update(visible=method.takes_target_modules)
    updates[card.settings] = gr.update(visible=any(own in method.settings for own in OWN_SETTINGS))
    return {**updates, card.line: method_line(name)}


def method_values(form: Form, name: str, rows: int) -> dict[Any, Any]:
    """Updates that fill in a method's own defaults, and what it wants to begin with on so many rows."""
    own = {**_plain(), **defaults_of(name), **starting_point(name, rows)}
    names = dict.fromkeys((*METHODS[name].settings, *DEFAULTED))
    return {form[key]: gr.update(value=_listed(own[key])) for key in names if key in form and key in own}


def default_targets(name: str, modules: Sequence[Mapping[str, Any]]) -> list[str]:
    """The usual modules of a model: the preset's, else attention's query and value."""
    names = [module["name"] for module in modules]
    preset = [module for module in MODELS[name].target_modules if module in names] if name in MODELS else []
    usual = [m["name"] for m in modules if _role_in(m, ("attention query", "attention value"))]
    return preset or usual or names[:1]


def quick_targets(kind: str, name: str, modules: Sequence[Mapping[str, Any]]) -> list[str]:
    """The modules behind a button: the usual ones, all of attention, or all-linear."""
    if kind == "all":
        return [ALL_LINEAR]
    if kind == "attention":
        return [m["name"] for m in modules if _role_in(m, ("attention",))]
    return default_targets(name, modules)


def rate_for(method: str, target_modules: Sequence[str], rate: float, rows: int) -> float:
    """The rate that these modules want, unless a person has chosen one."""
    wanted = [starting_point(LORA, rows, names)["learning_rate"] for names in ((), [ALL_LINEAR])]
    if method != LORA or rate not in wanted:
        return rate
    return starting_point(LORA, rows, target_modules)["learning_rate"]


def _role_in(module: Mapping[str, Any], starts: tuple[str, ...]) -> bool:
    """Whether all that a name takes has a role that begins so."""
    return all(role.startswith(starts) for role in module["roles"])


def _plain() -> dict[str, Any]:
    """TrainConfig's defaults, without the modules, which are the model's."""
    return {name: value for name, value in TrainConfig().to_dict().items() if name != "target_modules"}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _group(method: Method) -> str:
    if "num_virtual_tokens" in method.settings:
        return _GROUPS[1]
    return _GROUPS[0] if method.peft_config else _GROUPS[2]


def _label(method: Method) -> str:
    merge = "cannot merge" if method.cannot_merge else ""
    return " · ".join(filter(None, (method.label, _group(method), merge)))

"""The third card of the form: the method, the settings that it reads, and its target modules."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from peft_core.config import SETTINGS, TrainConfig
from peft_core.methods.registry import ALL_LINEAR, LORA, METHODS, Method, defaults_of
from peft_core.models.presets import MODELS, RECOMMENDED_SETTINGS, recommended_settings
from peft_core.service.workbench import Workbench
from peft_core.ui.events import FOLLOWING, PRIVATE, show_errors
from peft_core.ui.fields import DEFAULTS, Form, field

OWN_SETTINGS = tuple(
    name
    for name in SETTINGS
    if name != "target_modules" and any(name in method.settings for method in METHODS.values())
)
# Settings of any card whose default depends on the method, such as the learning rate.
DEFAULTED = tuple(
    dict.fromkeys((*RECOMMENDED_SETTINGS, *(name for m in METHODS.values() for name in m.defaults)))
)
QUICK = {"Usual": "usual", "Attention only": "attention", "All linear": "all"}
_GROUPS = ("", "virtual tokens", "the model's own weights")


@dataclass(frozen=True)
class MethodCard:
    """The card's components beside the form's fields.

    Attributes:
        description: of the method.
        missing: the methods that are not offered for the model.
        settings: the row of the method's settings.
        quick: the row of `buttons`.
        buttons: quick choices of target modules.
    """

    description: gr.HTML
    missing: gr.HTML
    settings: gr.Row
    quick: gr.Row
    buttons: tuple[gr.Button, ...]


def build_method_card(form: Form) -> MethodCard:
    """Build the method, its description, a field per setting of any method, and the target modules."""
    method = DEFAULTS.method
    form["method"] = gr.Dropdown(
        method_choices(""), value=method, label=SETTINGS["method"].label, elem_id="method"
    )
    description = gr.HTML(method_line(method), elem_id="method-line")
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
        info="Per rank: trainable parameters that each unit of r adds.",
        elem_id="target_modules",
        elem_classes="modules",
    )
    return MethodCard(description, missing, settings, quick, buttons)


def wire_method_card(card: MethodCard, form: Form, workbench: Workbench, rows: gr.State) -> None:
    """Wire the method to its fields and defaults, and the buttons to modules; `rows` are training rows."""
    method, modules = form["method"], form["target_modules"]
    model = [form["model_name_or_path"], form["revision"]]
    outputs = [card.description, card.settings, card.quick, modules]
    outputs += [form[name] for name in OWN_SETTINGS]
    method.change(lambda chosen: method_fields(card, form, chosen), method, outputs, **PRIVATE)
    filled = [form[name] for name in dict.fromkeys((*OWN_SETTINGS, *DEFAULTED)) if name in form]
    method.input(partial(method_values, form), [method, rows], filled, **FOLLOWING)
    rate = form["learning_rate"]
    modules.input(rate_for, [method, modules, rate, rows], rate, **FOLLOWING)
    for button, kind in zip(card.buttons, QUICK.values(), strict=True):

        def select_modules(
            name: str, revision: str, chosen: str, rate: float, rows: int, kind: str = kind
        ) -> list[Any]:
            facts = workbench.describe_model(name, revision)
            names = quick_targets(kind, name, facts["modules"])
            return [names, rate_for(chosen, names, rate, rows)]

        button.click(show_errors(select_modules), [*model, method, rate, rows], [modules, rate], **PRIVATE)


def method_choices(model_type: str) -> list[tuple[str, str]]:
    """Return label and name of each method that this model type supports, those without PEFT last."""
    supported = [name for name, method in METHODS.items() if not method.unsupported_reason(model_type)]
    supported.sort(key=lambda name: _GROUPS.index(_group(METHODS[name])))
    return [(_label(METHODS[name]), name) for name in supported]


def method_line(name: str) -> str:
    """Return HTML with what the method does, its source, whether it merges, and a note."""
    method = METHODS[name]
    merge = f"Cannot be merged: {method.cannot_merge}." if method.cannot_merge else ""
    more = "".join(f"<p>{html.escape(text)}</p>" for text in (merge, method.note) if text)
    source = f'<span class="quiet">{html.escape(method.source)}</span>'
    return f'<div class="facts"><p>{html.escape(method.help)} {source}</p>{more}</div>'


def not_offered(model_type: str) -> str:
    """Return HTML with the methods that a model type does not support, by reason; "" if there are none."""
    reasons: dict[str, list[str]] = {}
    for method in METHODS.values():
        if method.unsupported_reason(model_type):
            reasons.setdefault(method.unsupported_reason(model_type), []).append(method.label)
    lines = "".join(
        f"<p><b>{html.escape(', '.join(labels))}</b>: {html.escape(reason)}</p>"
        for reason, labels in reasons.items()
    )
    return f'<div class="facts quiet">Not offered for this model: {lines}</div>' if lines else ""


def method_fields(card: MethodCard, form: Form, name: str) -> dict[Any, Any]:
    """Return updates that show the settings of a method and hide the others."""
    method = METHODS[name]
    updates: dict[Any, Any] = {form[own]: gr.update(visible=own in method.settings) for own in OWN_SETTINGS}
    for part in (form["target_modules"], card.quick):
        updates[part] = gr.update(visible=method.takes_target_modules)
    updates[card.settings] = gr.update(visible=any(own in method.settings for own in OWN_SETTINGS))
    return {**updates, card.description: method_line(name)}


def method_values(form: Form, name: str, rows: int) -> dict[Any, Any]:
    """Return updates that fill in a method's defaults and its recommended settings for so many rows."""
    own = {**_defaults(), **defaults_of(name), **recommended_settings(name, rows)}
    names = dict.fromkeys((*METHODS[name].settings, *DEFAULTED))
    return {form[key]: gr.update(value=_as_list(own[key])) for key in names if key in form and key in own}


def default_targets(name: str, modules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the default target modules of a model: the preset's, else attention's query and value."""
    names = [module["name"] for module in modules]
    preset = [module for module in MODELS[name].target_modules if module in names] if name in MODELS else []
    usual = [m["name"] for m in modules if _role_in(m, ("attention query", "attention value"))]
    return preset or usual or names[:1]


def quick_targets(kind: str, name: str, modules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the target modules of a button: the defaults, all of attention, or all-linear."""
    if kind == "all":
        return [ALL_LINEAR]
    if kind == "attention":
        return [m["name"] for m in modules if _role_in(m, ("attention",))]
    return default_targets(name, modules)


def rate_for(method: str, target_modules: Sequence[str], rate: float, rows: int) -> float:
    """Return LoRA's recommended learning rate for these modules, or `rate` if it was chosen by hand."""
    recommended = [recommended_settings(LORA, rows, names)["learning_rate"] for names in ((), [ALL_LINEAR])]
    if method != LORA or rate not in recommended:
        return rate
    return recommended_settings(LORA, rows, target_modules)["learning_rate"]


def _role_in(module: Mapping[str, Any], starts: tuple[str, ...]) -> bool:
    """Return whether every module that a name matches has a role with such a start."""
    return all(role.startswith(starts) for role in module["roles"])


def _defaults() -> dict[str, Any]:
    """Return TrainConfig's defaults without the target modules, which depend on the model."""
    return {name: setting for name, setting in TrainConfig().to_dict().items() if name != "target_modules"}


def _as_list(setting: Any) -> Any:
    return list(setting) if isinstance(setting, tuple) else setting


def _group(method: Method) -> str:
    if "num_virtual_tokens" in method.settings:
        return _GROUPS[1]
    return _GROUPS[0] if method.peft_config else _GROUPS[2]


def _label(method: Method) -> str:
    merge = "cannot merge" if method.cannot_merge else ""
    return " · ".join(filter(None, (method.label, _group(method), merge)))

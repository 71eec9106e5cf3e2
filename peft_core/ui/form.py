"""The form: the components of the settings of TrainConfig, in four numbered cards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from peft_core.config import TrainConfig
from peft_core.data.uploads import dataset_label
from peft_core.errors import PeftCoreError
from peft_core.methods.registry import ALL_LINEAR, METHODS
from peft_core.models.presets import DATASETS, DEFAULT_ROWS, MODELS, RECIPES
from peft_core.service.workbench import Workbench
from peft_core.ui.data_card import GUESSED, DataCard, build_data_card
from peft_core.ui.events import FOLLOWING
from peft_core.ui.fields import DEFAULTS, Form, fields
from peft_core.ui.method_card import (
    OWN_SETTINGS,
    MethodCard,
    build_method_card,
    default_targets,
    method_choices,
    method_values,
    not_offered,
    wire_method_card,
)
from peft_core.ui.model_card import build_model_card, model_facts
from peft_core.views.components import cost, describe_method, message, method_picture, quantity

_EMPTY_TEXT = (*GUESSED, "metric_for_best_model")  # fields in which an empty text means None


@dataclass(frozen=True)
class Cards:
    """The four cards, and the components of three of them beside their fields."""

    accordions: list[gr.Accordion]
    facts: gr.HTML
    data: DataCard
    method: MethodCard


def build_form(workbench: Workbench) -> tuple[Form, gr.Radio, Cards]:
    """Build the four cards; return the fields by the name of the setting, the recipes and the cards."""
    recipe = gr.Radio(list(RECIPES), value=next(iter(RECIPES)), label="Start from", elem_id="recipe")
    form: Form = {}
    with gr.Accordion(open=False, elem_classes="card") as model:
        facts = build_model_card(form, allow_custom=workbench.limits is None)
    with gr.Accordion(open=False, elem_classes="card") as data:
        data_card = build_data_card(form, workbench)
    with gr.Accordion(open=False, elem_classes="card") as method:
        method_card = build_method_card(form)
    with gr.Accordion(open=False, elem_classes="card") as training:
        fields(
            form,
            ("learning_rate", "num_train_epochs"),
            ("per_device_train_batch_size", "max_length"),
            ("warmup_steps", "weight_decay"),
            ("lr_scheduler_type", "seed"),
            ("dropout", "arithmetic", "torch_compile"),
        )
        with gr.Accordion("Best step and early stopping", open=False, elem_classes="more"):
            fields(
                form,
                ("load_best_model_at_end", "metric_for_best_model"),
                ("early_stopping_patience", "early_stopping_threshold"),
                ("eval_steps",),
            )
        with gr.Accordion("Gradient and loss", open=False, elem_classes="more"):
            fields(form, ("gradient_accumulation_steps", "max_grad_norm", "label_smoothing_factor"))
    accordions = [model, data, method, training]
    for card, label in zip(accordions, summaries(DEFAULTS.to_dict()), strict=True):
        card.label = label
    return form, recipe, Cards(accordions, facts, data_card, method_card)


def settings_of(form: Form, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the settings by name, from the values that a handler with `inputs={...}` gets.

    Settings that the chosen method does not read are left out, so that they keep their defaults.
    """
    settings = {name: values[component] for name, component in form.items()}
    for name in ("num_labels", "eval_steps", "header_row"):
        settings[name] = settings[name] or None  # an empty number field has the value 0
    method_settings = METHODS[settings["method"]].settings
    return {
        name: setting
        for name, setting in settings.items()
        if name in method_settings or name not in OWN_SETTINGS
    }


def fill(form: Form, config: TrainConfig, choices: list[dict[str, Any]]) -> dict[Any, Any]:
    """Return updates that put a config into the form; `choices` are the model's modules."""
    updates: dict[Any, Any] = {
        form[name]: gr.update(value="" if setting is None and name in _EMPTY_TEXT else setting)
        for name, setting in config.to_dict().items()
        if name in form
    }
    updates[form["method"]] = gr.update(choices=method_choices(""), value=config.method)
    updates[form["target_modules"]] = gr.update(
        choices=_choice_pairs(choices),
        value=[m for m in config.target_modules if m in {c["name"] for c in choices}],
    )
    return updates


def summaries(settings: Mapping[str, Any], total: int | None = None) -> list[str]:
    """Return the title line of each card, which summarizes its settings."""
    s = {**DEFAULTS.to_dict(), **settings}
    name = s["model_name_or_path"]
    model = MODELS[name].label if name in MODELS else name
    data = dataset_label(s["dataset_name"])
    size = f" · {quantity(total)}" if total else ""
    most = "" if s["dataset_name"] in DATASETS else "up to "
    return [
        f"1  Model    {model}{size}",
        f"2  Data    {data} · {most}{s['max_train_samples']:,} rows",
        f"3  Method    {describe_method(s)}",
        f"4  Training    {_epochs(s['num_train_epochs'])} · rate {s['learning_rate']:g} · seed {s['seed']}",
    ]


def wire_form(
    page: gr.Blocks,
    workbench: Workbench,
    form: Form,
    recipe: gr.Radio,
    cards: Cards,
    *,
    strip: gr.HTML,
    picture: gr.HTML,
) -> None:
    """Wire changes to the cost strip, the picture and the cards' titles, and the model to its modules."""

    def show_cost(values: dict) -> list[Any]:
        settings = settings_of(form, values)
        try:
            config = workbench.config(settings)
            forecast = workbench.cost(config.to_dict())
            method_svg = _picture(workbench, config)
        except PeftCoreError as error:
            return [message(str(error)), gr.skip(), *[gr.skip()] * len(cards.accordions)]
        lines = summaries(config.to_dict(), _base_size(forecast))
        return [cost(forecast), method_svg, *[gr.update(label=line) for line in lines]]

    def read_model(name: str, revision: str, method: str, modules: list[str], rows: int) -> dict[Any, Any]:
        try:
            facts = workbench.describe_model(name, revision)
        except PeftCoreError:  # the cost strip shows it
            return {cards.facts: ""}
        offered = _offer(form, cards, name, facts, method=method, modules=modules, rows=rows)
        return {cards.facts: model_facts(name, facts), **offered}

    def fill_recipe(name: str) -> dict[Any, Any]:
        config = TrainConfig.from_dict(RECIPES[name])
        facts = workbench.describe_model(config.model_name_or_path)
        return {cards.data.rows: DEFAULT_ROWS, **fill(form, config, facts["modules"])}

    all_fields = list(form.values())
    changes = [page.load, *[component.change for component in all_fields]]
    gr.on(changes, show_cost, set(all_fields), [strip, picture, *cards.accordions], **FOLLOWING)
    model = [form[name] for name in ("model_name_or_path", "revision")]
    gr.on(
        [page.load, *[component.change for component in model]],
        read_model,
        [*model, form["method"], form["target_modules"], cards.data.rows],
        [cards.facts, cards.method.missing, *all_fields],
        **FOLLOWING,
    )
    recipe.input(fill_recipe, recipe, [cards.data.rows, *all_fields], **FOLLOWING)
    wire_method_card(cards.method, form, workbench, cards.data.rows)


def _offer(
    form: Form,
    cards: Cards,
    name: str,
    facts: Mapping[str, Any],
    *,
    method: str,
    modules: list[str],
    rows: int,
) -> dict[Any, Any]:
    """Return updates that offer the methods and modules of a model; valid choices stay."""
    names = [module["name"] for module in facts["modules"]]
    valid = [module for module in modules if module in names] or default_targets(name, facts["modules"])
    methods, missing = method_choices(facts["model_type"]), not_offered(facts["model_type"])
    is_offered = method in [key for _, key in methods]
    return {
        **({} if is_offered else method_values(form, DEFAULTS.method, rows)),
        form["method"]: gr.update(choices=methods, value=method if is_offered else DEFAULTS.method),
        form["target_modules"]: gr.update(choices=_choice_pairs(facts["modules"]), value=valid),
        cards.method.missing: gr.update(value=missing, visible=bool(missing)),
    }


def _picture(workbench: Workbench, config: TrainConfig) -> str:
    """Return the picture of what the method does to the first of its target modules."""
    facts = workbench.describe_model(config.model_name_or_path, config.revision)
    names = {*config.target_modules} - {ALL_LINEAR}
    targets = [module for module in facts["modules"] if module["name"] in names]
    first = next(iter(targets or facts["modules"]), {"name": "", "shapes": [[1, 1]]})
    return method_picture(config.to_dict(), first["name"], first["shapes"][0])


def _choice_pairs(choices: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(choice["label"], choice["name"]) for choice in choices]


def _base_size(counts: Mapping[str, Any]) -> int:
    """Return the parameters of the base model with its head, without those that the method adds."""
    return counts["total"] - counts["adapter"] - counts["head_copy"]


def _epochs(number: float) -> str:
    return f"{number:g} epoch" + ("s" if number != 1 else "")

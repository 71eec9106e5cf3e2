"""The form: one component for each setting of TrainConfig, in four numbered cards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from peft_core.config import TrainConfig
from peft_core.data.uploads import dataset_label
from peft_core.errors import PeftCoreError
from peft_core.methods import ALL_LINEAR, METHODS
from peft_core.pictures.pieces import cost, message, method_picture, method_words, quantity
from peft_core.presets import DATASETS, DEFAULT_ROWS, MODELS, RECIPES
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
from peft_core.workbench import Workbench

_EMPTY_TEXT = (*GUESSED, "metric_for_best_model")  # fields in which an empty text stands for None


@dataclass(frozen=True)
class Cards:
    """The four cards, and what three of them show beside their fields."""

    accordions: list[gr.Accordion]
    facts: gr.HTML
    data: DataCard
    method: MethodCard


def build_form(workbench: Workbench) -> tuple[Form, gr.Radio, Cards]:
    """Four cards; what comes back are the fields by their setting's name, the recipes and the cards."""
    free = workbench.limits is None
    recipe = gr.Radio(list(RECIPES), value=next(iter(RECIPES)), label="Start from", elem_id="recipe")
    form: Form = {}
    with gr.Accordion(open=False, elem_classes="card") as model:
        facts = build_model_card(form, free=free)
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
    """The settings by name, from what a handler with `inputs={...}` gets.

    What the chosen method does not read keeps its default, whatever a hidden field holds.
    """
    named = {name: values[component] for name, component in form.items()}
    for name in ("num_labels", "eval_steps", "header_row"):
        named[name] = named[name] or None  # an empty number field reads 0
    read = METHODS[named["method"]].settings
    return {name: value for name, value in named.items() if name in read or name not in OWN_SETTINGS}


def fill(form: Form, config: TrainConfig, choices: list[dict[str, Any]]) -> dict[Any, Any]:
    """Updates that put a config into the form; `choices` are the model's modules."""
    updates: dict[Any, Any] = {
        form[name]: gr.update(value="" if value is None and name in _EMPTY_TEXT else value)
        for name, value in config.to_dict().items()
        if name in form
    }
    updates[form["method"]] = gr.update(choices=method_choices(""), value=config.method)
    updates[form["target_modules"]] = gr.update(
        choices=_choice_pairs(choices),
        value=[m for m in config.target_modules if m in {c["name"] for c in choices}],
    )
    return updates


def summaries(settings: Mapping[str, Any], total: int | None = None) -> list[str]:
    """A line for each card, read while it is closed."""
    s = {**DEFAULTS.to_dict(), **settings}
    name = s["model_name_or_path"]
    model = MODELS[name].label if name in MODELS else name
    data = dataset_label(s["dataset_name"])
    size = f" · {quantity(total)}" if total else ""
    most = "" if s["dataset_name"] in DATASETS else "up to "
    return [
        f"1  Model    {model}{size}",
        f"2  Data    {data} · {most}{s['max_train_samples']:,} rows",
        f"3  Method    {method_words(s)}",
        f"4  Training    {_epochs(s['num_train_epochs'])} · rate {s['learning_rate']:g} · seed {s['seed']}",
    ]


def wire_form(
    page: gr.Blocks,
    workbench: Workbench,
    form: Form,
    recipe: gr.Radio,
    cards: Cards,
    strip: gr.HTML,
    picture: gr.HTML,
) -> None:
    """Every change updates cost strip, picture and the cards' lines; a model brings its own modules."""

    def show_cost(values: dict) -> list[Any]:
        settings = settings_of(form, values)
        try:
            config = workbench.config(settings)
            counted = workbench.cost(config.to_dict())
            drawn = _picture(workbench, config)
        except PeftCoreError as error:
            return [message(str(error)), gr.skip(), *[gr.skip()] * len(cards.accordions)]
        lines = summaries(config.to_dict(), _base_size(counted))
        return [cost(counted), drawn, *[gr.update(label=line) for line in lines]]

    def read_model(name: str, revision: str, method: str, chosen: list[str], rows: int) -> dict[Any, Any]:
        try:
            facts = workbench.describe_model(name, revision)
        except PeftCoreError:  # the cost strip says why
            return {cards.facts: ""}
        offered = _offer(form, cards, name, facts, method, chosen, rows)
        return {cards.facts: model_facts(name, facts), **offered}

    def take_recipe(name: str) -> dict[Any, Any]:
        config = TrainConfig.from_dict(RECIPES[name])
        facts = workbench.describe_model(config.model_name_or_path)
        return {cards.data.rows: DEFAULT_ROWS, **fill(form, config, facts["modules"])}

    every = list(form.values())
    changes = [page.load, *[component.change for component in every]]
    outputs = [strip, picture, *cards.accordions]
    gr.on(changes, show_cost, set(every), outputs, **FOLLOWING)
    model = [form[name] for name in ("model_name_or_path", "revision")]
    told = [cards.facts, cards.method.missing, *every]
    gr.on(
        [page.load, *[component.change for component in model]],
        read_model,
        [*model, form["method"], form["target_modules"], cards.data.rows],
        told,
        **FOLLOWING,
    )
    recipe.input(take_recipe, recipe, [cards.data.rows, *every], **FOLLOWING)
    wire_method_card(cards.method, form, workbench, cards.data.rows)


def _offer(
    form: Form,
    cards: Cards,
    name: str,
    facts: Mapping[str, Any],
    method: str,
    chosen: list[str],
    rows: int,
) -> dict[Any, Any]:
    """Updates that offer the methods and modules of a model; what was chosen stays where it can."""
    names = [module["name"] for module in facts["modules"]]
    kept = [module for module in chosen if module in names] or default_targets(name, facts["modules"])
    methods, missing = method_choices(facts["model_type"]), not_offered(facts["model_type"])
    able = method in [key for _, key in methods]
    return {
        **({} if able else method_values(form, DEFAULTS.method, rows)),
        form["method"]: gr.update(choices=methods, value=method if able else DEFAULTS.method),
        form["target_modules"]: gr.update(choices=_choice_pairs(facts["modules"]), value=kept),
        cards.method.missing: gr.update(value=missing, visible=bool(missing)),
    }


def _picture(workbench: Workbench, config: TrainConfig) -> str:
    """What the method does to the first chosen matrix; a model without matrices has a sentence at most."""
    facts = workbench.describe_model(config.model_name_or_path, config.revision)
    one_by_one = {*config.target_modules} - {ALL_LINEAR}
    named = [module for module in facts["modules"] if module["name"] in one_by_one]
    first = next(iter(named or facts["modules"]), {"name": "", "shapes": [[1, 1]]})
    return method_picture(config.to_dict(), first["name"], first["shapes"][0])


def _choice_pairs(choices: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(choice["label"], choice["name"]) for choice in choices]


def _base_size(counted: Mapping[str, Any]) -> int:
    """Parameters of the base model and its head, without what the method adds."""
    return counted["total"] - counted["adapter"] - counted["head_copy"]


def _epochs(number: float) -> str:
    return f"{number:g} epoch" + ("s" if number != 1 else "")

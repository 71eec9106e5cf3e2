"""Cards of the form: what is shown, offered and filled in for each model and method."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from tiny import FAMILIES, make_tiny, tiny_config

import app
from peft_core.config import SETTINGS, TrainConfig
from peft_core.counts import describe_model
from peft_core.data.inspection import inspect
from peft_core.methods.registry import METHODS, defaults_of
from peft_core.models.presets import MODELS, RECOMMENDED_SETTINGS
from peft_core.service.workbench import Workbench
from peft_core.ui.compare import combinations, config_of, has_rank, join
from peft_core.ui.data_card import _inspect as inspect_data
from peft_core.ui.fields import field
from peft_core.ui.form import Cards, Form, build_form, fill, settings_of, summaries
from peft_core.ui.method_card import (
    OWN_SETTINGS,
    default_targets,
    method_choices,
    method_fields,
    method_line,
    method_values,
    not_offered,
    quick_targets,
    rate_for,
)
from peft_core.ui.model_card import model_facts, preset_label


@pytest.fixture(scope="module")
def form_and_cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Form, Cards]]:
    workbench = Workbench.open(tmp_path_factory.mktemp("form") / "runs")
    with gr.Blocks():
        form, _, cards = build_form(workbench)
    yield form, cards
    workbench.worker.close()


def values(form: Form, **changes: Any) -> dict[Any, Any]:
    """Return the field values that a handler receives: the defaults with the changes."""
    defaults = {component: component.value for component in form.values()}
    return {**defaults, **{form[name]: value for name, value in changes.items()}}


def test_form_initial_values_are_default_config(form_and_cards: tuple[Form, Cards]) -> None:
    form, _ = form_and_cards
    assert TrainConfig.from_dict(settings_of(form, values(form))) == TrainConfig()


@pytest.mark.parametrize("method", METHODS)
def test_method_fields_shows_settings_of_the_method(method: str, form_and_cards: tuple[Form, Cards]) -> None:
    form, cards = form_and_cards
    assert {*METHODS[method].settings} <= {*form}
    updates = method_fields(cards.method, form, method)
    visible = {name for name in (*OWN_SETTINGS, "target_modules") if updates[form[name]]["visible"]}
    assert visible == {*METHODS[method].settings}
    assert updates[cards.method.settings]["visible"] == bool(visible - {"target_modules"})
    assert updates[cards.method.quick]["visible"] == METHODS[method].takes_target_modules


@pytest.mark.parametrize("method", METHODS)
def test_method_values_sets_defaults_of_the_method(method: str, form_and_cards: tuple[Form, Cards]) -> None:
    form, _ = form_and_cards
    updates = {component: update["value"] for component, update in method_values(form, method, 3000).items()}
    field_values = {**values(form, method=method, learning_rate=0.5), **updates}
    config = TrainConfig.from_dict(settings_of(form, field_values))
    assert config == TrainConfig.from_dict({"method": method})
    assert config.learning_rate == defaults_of(method).get("learning_rate", 2e-3)


def test_rate_for_all_linear_lora_halves_default_rate() -> None:
    assert TrainConfig.from_dict({"target_modules": ["all-linear"]}).learning_rate == 1e-3
    assert TrainConfig.from_dict({"target_modules": "all-linear"}).learning_rate == 1e-3
    assert rate_for("lora", ["all-linear"], 2e-3, 3000) == 1e-3
    assert rate_for("lora", ["query"], 1e-3, 3000) == 2e-3
    assert rate_for("lora", ["all-linear"], 5e-4, 3000) == 5e-4
    assert rate_for("adalora", ["all-linear"], 1e-2, 3000) == 1e-2
    assert rate_for("lora", ["all-linear"], 1e-3, 400) == 5e-4  # few rows halve the rate


def test_method_values_depend_on_number_of_rows(form_and_cards: tuple[Form, Cards]) -> None:
    form, _ = form_and_cards

    def initial(method: str, rows: int) -> tuple[float, int, float]:
        updates = method_values(form, method, rows)
        return tuple(updates[form[name]]["value"] for name in RECOMMENDED_SETTINGS)

    assert initial("lora", 3000) == initial("lora", 9000) == (2e-3, 16, 1.0)
    assert initial("lora", 1000) == (2e-3, 16, 3.0)
    assert initial("lora", 400) == (1e-3, 8, 10.0)
    assert initial("lora", 50) == (1e-3, 8, 16.0)
    assert initial("bitfit", 1000) == (2e-3, 16, 6.0)  # BitFit learns slowly


def test_settings_of_ignores_fields_of_other_methods(form_and_cards: tuple[Form, Cards]) -> None:
    form, _ = form_and_cards
    settings = settings_of(form, values(form, method="head_only", r=None, lora_alpha=-1))
    assert TrainConfig.from_dict(settings).r == TrainConfig().r


@pytest.mark.parametrize(
    ("fields", "sheet_name", "header_row"),
    [
        ({"sheet_name": "Reviews", "header_row": 3}, "Reviews", 3),
        ({"sheet_name": "", "header_row": 0}, None, None),
        ({"sheet_name": "", "header_row": None}, None, None),
    ],
)
def test_form_carries_sheet_and_header_row(
    fields: dict[str, Any], sheet_name: str | None, header_row: int | None, form_and_cards: tuple[Form, Cards]
) -> None:
    form, _ = form_and_cards
    config = TrainConfig.from_dict(settings_of(form, values(form, **fields)))
    assert (config.sheet_name, config.header_row) == (sheet_name, header_row)


class InspectionOnly:
    """A workbench that inspects in this process."""

    limits = None

    def inspect(self, settings: dict[str, Any]) -> dict[str, Any]:
        return inspect(TrainConfig.from_dict(settings))


@pytest.mark.parametrize(
    ("name", "sheets", "row_can_be_chosen"),
    [
        ("second_sheet.xlsx", [("Guessed: Reviews", ""), ("About", "About"), ("Reviews", "Reviews")], True),
        ("one_bad_byte.csv", [("Guessed", "")], True),
        ("label_studio.json", [("Guessed", "")], False),
    ],
)
def test_data_card_offers_the_sheets_of_a_workbook(
    name: str, sheets: list[tuple[str, str]], row_can_be_chosen: bool, form_and_cards: tuple[Form, Cards]
) -> None:
    form, cards = form_and_cards
    path = str(Path(__file__).parents[1] / "cases" / name)
    updates = inspect_data(cards.data, form, InspectionOnly(), values(form, dataset_name=path))
    assert updates[form["sheet_name"]]["choices"] == sheets
    assert updates[form["sheet_name"]]["visible"] == (len(sheets) > 1)
    assert updates[form["header_row"]]["visible"] == row_can_be_chosen
    assert path.rsplit("/", 1)[1] in updates[cards.data.facts]


def test_fill_round_trips_config(form_and_cards: tuple[Form, Cards]) -> None:
    form, _ = form_and_cards
    config = TrainConfig.from_dict(
        {"method": "lora", "r": 3, "target_modules": ["all-linear"], "learning_rate": 0.01}
    )
    choices = describe_model(config.model_name_or_path)["modules"]
    updates = {component: update["value"] for component, update in fill(form, config, choices).items()}
    assert TrainConfig.from_dict(settings_of(form, {**values(form), **updates})) == config


def test_method_choices_omit_unsupported_methods_with_reason() -> None:
    offered = {name for _, name in method_choices("modernbert")}
    assert {"prefix_tuning", "bitfit"} == set(METHODS) - offered
    reasons = not_offered("modernbert")
    for name in ("prefix_tuning", "bitfit"):
        assert METHODS[name].label in reasons and METHODS[name].unsupported_reason("modernbert") in reasons
    assert set(METHODS) == {name for _, name in method_choices("bert")} and not not_offered("bert")


def test_method_line_has_help_source_and_merge_note() -> None:
    labels = {name: label for label, name in method_choices("bert")}
    assert labels["prompt_tuning"] == "Prompt tuning · virtual tokens · cannot merge"
    own_weights = [name for name, method in METHODS.items() if method.peft_config is None]
    assert [name for _, name in method_choices("bert")][-len(own_weights) :] == own_weights
    line = method_line("prompt_tuning")
    method = METHODS["prompt_tuning"]
    for words in (method.help, method.source, f"Cannot be merged: {method.cannot_merge}"):
        assert words in line
    assert METHODS["boft"].note in method_line("boft") and "merged" not in method_line("boft")


@pytest.mark.parametrize("name", MODELS)
def test_default_targets_of_preset_match_preset(name: str) -> None:
    modules = describe_model(name)["modules"]
    assert default_targets(name, modules) == list(MODELS[name].target_modules)
    # a folder of the same architecture without a preset has the same defaults
    assert default_targets("./folder", modules) == list(MODELS[name].target_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_quick_targets_select_attention_or_all_linear(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    modules = describe_model(str(tmp_path))["modules"]
    attention = quick_targets("attention", str(tmp_path), modules)
    roles = {role for m in modules if m["name"] in attention for role in m["roles"]}
    assert roles and all(role.startswith("attention") for role in roles)
    assert quick_targets("all", str(tmp_path), modules) == ["all-linear"]
    assert {*quick_targets("usual", str(tmp_path), modules)} <= {*attention}


@pytest.mark.parametrize(
    "name, words",
    [
        ("nlptown/bert-base-multilingual-uncased-sentiment", "5 stars); with other labels classifier"),
        ("answerdotai/ModernBERT-base", "Reads up to 8,192 tokens. Starts untrained: classifier."),
        ("microsoft/deberta-v3-base", "Starts untrained: pooler, classifier."),
        ("FacebookAI/roberta-base", "a strong English default"),
    ],
)
def test_model_facts_of_preset_have_use_length_and_untrained_modules(name: str, words: str) -> None:
    assert words in model_facts(name, describe_model(name))


def test_model_facts_of_folder_have_size(tmp_path: Path) -> None:
    facts = model_facts(str(tmp_path), describe_model(str(make_tiny(tmp_path, "distilbert"))))
    assert "parameters. " not in facts and "parameters.</p>" in facts
    assert "Starts untrained: pre_classifier, classifier." in facts


def test_preset_label_has_size_and_known_license() -> None:
    assert preset_label("google-bert/bert-base-cased") == "BERT base cased · 108.3 M · Apache-2.0"
    assert preset_label("microsoft/mpnet-base") == "MPNet base · 108.9 M"


def test_form_has_best_step_fields_and_reads_empty_ones_as_none(form_and_cards: tuple[Form, Cards]) -> None:
    form, _ = form_and_cards
    names = (
        "load_best_model_at_end", "metric_for_best_model", "early_stopping_patience",
        "early_stopping_threshold", "eval_steps", "gradient_accumulation_steps", "max_grad_norm",
        "label_smoothing_factor",
    )  # fmt: skip
    assert {*names} <= {*form}
    empty = TrainConfig.from_dict(
        settings_of(form, values(form, eval_steps=0, metric_for_best_model="", early_stopping_patience=2))
    )
    assert (empty.eval_steps, empty.metric_for_best_model, empty.early_stopping_patience) == (None, None, 2)
    updates = fill(form, TrainConfig(eval_steps=5, load_best_model_at_end=False), [])
    assert updates[form["eval_steps"]]["value"] == 5
    assert updates[form["metric_for_best_model"]]["value"] == ""
    assert updates[form["load_best_model_at_end"]]["value"] is False


@pytest.mark.parametrize("name", SETTINGS)
def test_field_component_matches_setting(name: str) -> None:
    component, default = field(name), getattr(TrainConfig(), name)
    assert (component.label, component.info) == (SETTINGS[name].label, SETTINGS[name].help)
    if isinstance(default, bool):
        assert isinstance(component, gr.Checkbox)
    elif SETTINGS[name].choices:
        empty = [""] if name == "metric_for_best_model" else []
        assert [value for _, value in component.choices] == [*empty, *SETTINGS[name].choices]
    elif isinstance(default, int | float) and name != "load_in_bits":
        assert isinstance(component, gr.Number) and component.value == default


def test_summaries_describe_method_and_training() -> None:
    assert summaries({"method": "full", "learning_rate": 5e-5})[2:] == [
        "3  Method    Full fine-tuning",
        "4  Training    1 epoch · rate 5e-05 · seed 42",
    ]


def test_combinations_vary_only_settings_of_the_method() -> None:
    candidates = combinations(
        ["google-bert/bert-base-cased"], list(METHODS), [1, 8], ["query", "query,value"], 2
    )
    for name, method in METHODS.items():
        expected = (2 if has_rank(name) else 1) * (2 if method.takes_target_modules else 1)
        assert sum(candidate["method"] == name for candidate in candidates) == expected, name


@pytest.mark.parametrize("method", METHODS)
def test_config_of_comparison_row_restores_settings(method: str) -> None:
    candidates = combinations(["google-bert/bert-base-cased"], [method], [4], ["key"], 5)
    settings = [TrainConfig.from_dict(candidate).to_dict() for candidate in candidates]
    (row,), rejected = join(settings, [{"trainable": 1}])
    assert config_of(row) == TrainConfig.from_dict({**settings[0], "num_labels": None})
    assert (row["r"], row["targets"]) == (
        4 if has_rank(method) else None,
        "key" if METHODS[method].takes_target_modules else "",
    )
    assert not rejected


def test_class_weight_change_inspects_data_again() -> None:
    # otherwise an inspection that is already running would show the balance button again
    page = app.demo.config
    ids = {component["props"].get("elem_id"): component["id"] for component in page["components"]}
    events = [event for event in page["dependencies"] if ids["balance"] in event["outputs"]]
    assert any((ids["class_weight"], "change") in map(tuple, event["targets"]) for event in events)

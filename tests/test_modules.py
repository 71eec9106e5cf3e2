"""Target modules: their roles, costs and traps, and names that PEFT wraps as promised on every family."""

from collections.abc import Iterator

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from tiny import FAMILIES, tiny_config
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from peft_core.errors import ModelError
from peft_core.models.encoder import meta_model, model_config
from peft_core.models.modules import (
    ALL_LINEAR,
    ROLES,
    all_linear,
    check_target_modules,
    expand_target_modules,
    feedforward_modules,
    head_modules,
    layer_norms,
    linear_modules,
)
from peft_core.models.presets import MODELS

HEADS = {
    "bert": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "modernbert": ("head", "classifier"),
}
# a model for proteins and models that also read images or structure take settings that a text lacks
NOT_FOR_TEXT = {"esm", "esmc", "perceiver", "modernvbert", "ultravbert", "layoutlm", "tapas", "ultrabert"}
ENCODERS = sorted(
    {*MODEL_FOR_MASKED_LM_MAPPING_NAMES} & {*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES} - NOT_FOR_TEXT
)


def tiny(family: str) -> nn.Module:
    return meta_model(tiny_config(family), 2)


def lora(model: nn.Module, names: tuple[str, ...] | list[str]) -> PeftModel:
    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=1, target_modules=list(names)))


def wrapped(model: nn.Module, mark: str = "lora_A") -> list[str]:
    """The paths that a method wraps, as the base model has them."""
    prefix = "base_model.model."
    return [path.removeprefix(prefix) for path, module in model.named_modules() if hasattr(module, mark)]


def encoder_linears(model: nn.Module) -> Iterator[str]:
    """The independent rule: linear, below the encoder, no pooler."""
    for path, module in model.named_modules():
        inside = path.startswith(f"{model.base_model_prefix}.") and "pooler" not in path
        if isinstance(module, nn.Linear) and inside:
            yield path


def test_modules_of_a_bert_in_order_with_their_cost() -> None:
    found = [(c.name, c.roles, c.matches, c.shapes, c.rank_cost) for c in linear_modules(tiny("bert"))]
    assert found == [
        ("query", ("attention query",), 2, ((32, 32),), 128),
        ("key", ("attention key",), 2, ((32, 32),), 128),
        ("value", ("attention value",), 2, ((32, 32),), 128),
        ("attention.output.dense", ("attention output",), 2, ((32, 32),), 128),
        ("intermediate.dense", ("MLP in",), 2, ((64, 32),), 192),
        ("output.dense", ("attention output", "MLP out"), 4, ((32, 32), (32, 64)), 320),
        ("pooler.dense", ("pooler",), 1, ((32, 32),), 64),
    ]


@pytest.mark.parametrize(
    "family, names",
    [
        ("distilbert", {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}),
        ("modernbert", {"Wqkv", "attn.Wo", "Wi", "mlp.Wo"}),
        ("mpnet", {"q", "k", "v", "o", "intermediate.dense", "output.dense"}),
        (
            "deberta-v2",
            {
                "query_proj",
                "key_proj",
                "value_proj",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            },
        ),
        (
            "albert",
            {"query", "key", "value", "dense", "ffn", "ffn_output", "embedding_hidden_mapping_in", "pooler"},
        ),
    ],
)
def test_modules_of_other_families(family: str, names: set[str]) -> None:
    choices = linear_modules(tiny(family))
    assert {choice.name for choice in choices} == names
    assert not any("other" in choice.roles for choice in choices)


@pytest.mark.parametrize(
    "family, name, words",
    [
        ("modernbert", "mlp.Wo", "Wo alone would name attention output and MLP out"),
        ("albert", "query", "one matrix serves 2 layers"),
        ("bert", "pooler.dense", "Feeds this head alone"),
        ("bert", "output.dense", "takes both"),
        ("bert", "query", ""),
        ("mpnet", "output.dense", ""),
    ],
)
def test_traps_are_told(family: str, name: str, words: str) -> None:
    (choice,) = [choice for choice in linear_modules(tiny(family)) if choice.name == name]
    assert words in choice.trap and bool(words) == bool(choice.trap)
    assert choice.trap in choice.label


def test_the_label_tells_a_shape_where_there_is_one() -> None:
    labels = {choice.name: choice.label for choice in linear_modules(tiny("bert"))}
    assert labels["query"] == "query\nattention query · 2 × (32 × 32) · 128 per rank"
    assert "attention output and MLP out · 4 matrices · 320 per rank" in labels["output.dense"]
    assert "12 matrices · 896 per rank" in all_linear(tiny("bert")).label


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_offered_wraps_and_costs_what_it_says(family: str) -> None:
    for choice in [*linear_modules(tiny(family)), all_linear(tiny(family))]:
        model = tiny(family)
        tuned = lora(model, expand_target_modules(model, [choice.name]))
        adapter = sum(p.numel() for name, p in tuned.named_parameters() if "lora_" in name)
        assert (len(wrapped(tuned)), adapter) == (choice.matches, choice.rank_cost), choice
        assert f"{choice.rank_cost:,} per rank" in choice.label


@pytest.mark.parametrize("name", MODELS)
def test_every_module_of_a_preset_is_what_peft_wraps(name: str) -> None:
    for choice in linear_modules(meta_model(model_config(name), 2)):
        assert len(wrapped(lora(meta_model(model_config(name), 2), [choice.name]))) == choice.matches, choice


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_the_encoder_without_pooler_and_head(family: str) -> None:
    model = tiny(family)
    expected = list(encoder_linears(model))
    names = expand_target_modules(model, [ALL_LINEAR])
    assert expected and ALL_LINEAR not in names
    assert wrapped(lora(model, names)) == expected


def test_all_linear_beside_other_names_adds_to_them() -> None:
    model = tiny("bert")
    names = expand_target_modules(model, ["pooler.dense", ALL_LINEAR, "query"])
    assert wrapped(lora(model, names)) == [*encoder_linears(tiny("bert")), "bert.pooler.dense"]
    assert expand_target_modules(model, ["query", "query", "value"]) == ("query", "value")


@pytest.mark.parametrize("family", ENCODERS)
def test_all_linear_on_every_encoder_of_transformers(family: str) -> None:
    config = AutoConfig.for_model(family)
    if config.is_encoder_decoder:
        return
    model = meta_model(config, 2)
    choices = linear_modules(model)
    assert all(set(choice.roles) <= {*ROLES} and choice.matches for choice in choices)
    names = expand_target_modules(model, [ALL_LINEAR])
    taken = [
        path for path, _ in model.named_modules() if any(f".{path}".endswith(f".{name}") for name in names)
    ]
    assert taken == list(encoder_linears(model))


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # PEFT says so of its own LN-tuning
@pytest.mark.parametrize("family", FAMILIES)
def test_top_layers_are_the_last_ones_alone(family: str) -> None:
    model = tiny(family)
    if family == "albert":  # one layer's weights serve both
        with pytest.raises(ModelError, match="top_layers is 2, but .* are 1"):
            check_target_modules(model, [ALL_LINEAR], 2)
        assert wrapped(lora(model, expand_target_modules(model, [ALL_LINEAR], 1)))
        return
    check_target_modules(model, [ALL_LINEAR], 2)
    every = set(wrapped(lora(tiny(family), expand_target_modules(model, [ALL_LINEAR]))))
    top = set(wrapped(lora(model, expand_target_modules(model, [ALL_LINEAR], 1))))
    assert top and top == {path for path in every if ".1." in path}
    choice = linear_modules(tiny(family))[0]
    one = wrapped(lora(tiny(family), expand_target_modules(tiny(family), [choice.name], 1)))
    assert one and len(one) == choice.matches // 2 and set(one) <= top


def test_top_layers_without_a_match_are_refused() -> None:
    with pytest.raises(ModelError, match="top_layers is 3, but .* are 2; take 0 for all"):
        check_target_modules(tiny("bert"), ["query"], 3)
    with pytest.raises(ModelError, match="nothing in the model's last 1 layers"):
        check_target_modules(tiny("electra"), ["embeddings_project"], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_the_encoders_alone(family: str) -> None:
    model = tiny(family)
    expected = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and path.startswith(f"{model.base_model_prefix}.")
    ]
    tuned = get_peft_model(
        model, LNTuningConfig(task_type=TaskType.SEQ_CLS, target_modules=list(layer_norms(model)))
    )
    assert wrapped(tuned, "ln_tuning_layers") == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_scales_the_mlp_at_its_input(family: str) -> None:
    model = tiny(family)
    names = expand_target_modules(model, [ALL_LINEAR])
    inner = feedforward_modules(model, names)
    ia3 = IA3Config(task_type=TaskType.SEQ_CLS, target_modules=list(names), feedforward_modules=list(inner))
    scaled_in = [path for path, module in get_peft_model(model, ia3).named_modules() if _scales_input(module)]
    for role in ("MLP in", "MLP out"):
        (choice,) = [c for c in linear_modules(tiny(family)) if c.roles[-1] == role]
        assert sum(path.endswith(f".{choice.name}") for path in scaled_in) == choice.matches
    assert feedforward_modules(tiny(family), names[:1]) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_never_offered(family: str) -> None:
    model = tiny(family)
    assert head_modules(model) == HEADS.get(family, ("classifier",))
    offered = {choice.name for choice in linear_modules(model)}
    for path, module in model.named_modules():
        if path.split(".")[0] in head_modules(model) and isinstance(module, nn.Linear):
            assert not any(f".{path}".endswith(f".{name}") for name in offered)


def test_names_that_match_nothing_are_told_what_there_is() -> None:
    model = tiny("bert")
    check_target_modules(model, ["query", "output.dense", ALL_LINEAR])
    with pytest.raises(ModelError) as error:
        check_target_modules(model, ["query", "q_proj"])
    for word in ("'q_proj'", "query", "key", "value", "intermediate.dense"):
        assert word in str(error.value)
    for head, family in (
        ("classifier", "bert"),
        ("pre_classifier", "distilbert"),
        ("head.dense", "modernbert"),
    ):
        with pytest.raises(ModelError, match=f"names '{head}', which matches nothing"):
            check_target_modules(tiny(family), [head])


def test_a_model_without_linear_modules_says_so() -> None:
    model = meta_model(AutoConfig.for_model("ibert"), 2)
    with pytest.raises(ModelError, match="'all-linear', which matches nothing in this model; it has none"):
        check_target_modules(model, [ALL_LINEAR])


def test_a_trained_adapter_of_all_linear_gives_other_logits() -> None:
    """Names alone prove nothing: the wrapped matrices are on the way from text to label."""
    model = AutoModelForSequenceClassification.from_config(tiny_config("distilbert"))
    tuned = lora(model, expand_target_modules(model, [ALL_LINEAR])).eval()
    ids = torch.arange(5, 15).reshape(2, 5)
    before = tuned(input_ids=ids).logits
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert not torch.allclose(before, tuned(input_ids=ids).logits)


def _scales_input(module: nn.Module) -> bool:
    return bool(getattr(module, "is_feedforward", False))

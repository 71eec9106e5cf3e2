"""The base model: length limits, heads kept or fresh, and models that are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, NLPTOWN_LABELS, YELP_LABELS, make_tiny_bert, make_tiny_with_head
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    T5Config,
    ViTConfig,
)

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.errors import ModelError, PeftCoreError
from peft_core.models import sources
from peft_core.models.encoder import (
    check_max_length,
    load_base,
    max_input_length,
    model_config,
    plan_head,
)
from peft_core.models.heads import HeadChange
from peft_core.models.presets import embedded_model_folder
from peft_core.problem_types import SINGLE


@pytest.mark.parametrize(
    "name, most",
    [
        ("google-bert/bert-base-cased", 512),
        ("FacebookAI/roberta-base", 512),
        ("answerdotai/ModernBERT-base", 8192),
        (EMBEDDED_MODEL, 512),
    ],
)
def test_longest_input(name: str, most: int) -> None:
    config = model_config(name)
    assert max_input_length(config) == most
    check_max_length(config, most)
    with pytest.raises(ModelError, match=f"max_length is {most + 1}; this model reads at most {most}"):
        check_max_length(config, most + 1)


@pytest.mark.parametrize(
    "family",
    [
        "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ibert", "luke", "mpnet",
        "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
    ],
)  # fmt: skip
def test_the_longest_input_is_read_and_one_more_token_is_not(family: str) -> None:
    """Of the families that look positions up in a table."""
    names = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if family == "distilbert":
        names = {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    config = AutoConfig.for_model(family, vocab_size=50, max_position_embeddings=40, **names)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    longest = torch.full((1, max_input_length(config)), 7)
    model(input_ids=longest, attention_mask=torch.ones_like(longest))
    longer = torch.full((1, max_input_length(config) + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize("config", [GPT2Config(), LlamaConfig(), T5Config(), ViTConfig()])
def test_a_model_that_is_no_encoder_classifier_is_refused(config: object, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {config.model_type} model"):
        model_config(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"model_type": "no-such-model"}',
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}',
    ],
)
def test_a_broken_or_foreign_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as error:
        model_config(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "/nowhere/at/all", "~nobody-here/model", "/" + "a" * 5000, "a" * 5000, "a\0b", "a b"],
)
def test_a_model_that_is_nowhere_gets_one_sentence(name: str) -> None:
    with pytest.raises(PeftCoreError) as error:
        model_config(name)
    assert "\n" not in str(error.value)


def test_what_starts_untrained_is_named(tiny_model: Path, tmp_path: Path) -> None:
    assert load_base(str(tiny_model), None, ["no", "yes"]).untrained == ("classifier",)
    bare = make_tiny_bert(tmp_path / "bare", with_head=False, with_pooler=False)
    base = load_base(str(bare), None, ["no", "yes"])
    assert base.untrained == ("bert.pooler.dense", "classifier")
    assert base.head_is_fresh


def test_load_base_plural_label_names_keep_the_head(tmp_path: Path) -> None:
    stars = make_tiny_bert(tmp_path / "stars")
    base = load_base(str(stars), None, YELP_LABELS)
    assert (base.untrained, base.head_is_fresh, base.head_change) == ((), False, None)
    assert list(base.model.config.id2label.values()) == YELP_LABELS
    numbers = load_base(str(stars), None, ["1", "2", "3", "4", "5"], has_label_names=False)
    assert numbers.model.config.id2label == NLPTOWN_LABELS and numbers.head_change is None


@pytest.mark.parametrize("family", FAMILIES)
def test_load_base_labels_in_another_order_permutes_the_logits(family: str, tmp_path: Path) -> None:
    """A model that says positive by its first output says so by the second, if that is positive's."""
    folder = make_tiny_with_head(tmp_path / family, family, ("POSITIVE", "neutral", "Negative"))
    plain, permuted = (
        load_base(str(folder), None, names)
        for names in (("positive", "neutral", "negative"), ("negative", "positive", "neutral"))
    )
    assert plain.head_change is None and permuted.head_change.rows == (2, 0, 1)
    assert permuted.model.config.id2label == {0: "negative", 1: "positive", 2: "neutral"}
    inputs = plain.tokenizer(["The food was awful and the room was nice."], return_tensors="pt")
    with torch.no_grad():
        before, after = (base.model.eval()(**inputs).logits[0] for base in (plain, permuted))
    assert torch.equal(after, before[[2, 0, 1]])
    config = TrainConfig(model_name_or_path=str(folder))
    assert plan_head(config, ("negative", "positive", "neutral"), SINGLE) == permuted.head_change


def test_load_base_unmatched_label_names_asks(tmp_path: Path) -> None:
    folder = str(make_tiny_bert(tmp_path / "head", num_labels=2))
    question = r"for 'LABEL_0', 'LABEL_1', .* has 'bad', 'good'.*base_head: by_order .*'bad' as 'LABEL_0'"
    with pytest.raises(ModelError, match=question):
        load_base(folder, None, ["bad", "good"])
    with pytest.raises(ModelError, match=question):
        plan_head(TrainConfig(model_name_or_path=folder), ("bad", "good"), SINGLE)
    kept = load_base(folder, None, ["bad", "good"], base_head="by_order")
    assert not kept.head_is_fresh and kept.head_change is None
    assert kept.model.config.id2label == {0: "bad", 1: "good"}


def test_load_base_fresh_head_draws_the_output_layer_anew(tmp_path: Path) -> None:
    folder = str(make_tiny_bert(tmp_path / "head", num_labels=2))
    kept = load_base(folder, None, ["bad", "good"], base_head="by_order").model.classifier
    fresh = load_base(folder, None, ["bad", "good"], base_head="fresh")
    assert fresh.head_is_fresh and fresh.untrained == ("classifier",)
    assert fresh.head_change == HeadChange("classifier", None)
    assert not torch.equal(fresh.model.classifier.weight, kept.weight)
    assert 0.01 < fresh.model.classifier.weight.std().item() < 0.04
    assert not fresh.model.classifier.bias.any()


def test_a_head_of_another_size_is_replaced_by_a_fresh_one(tmp_path: Path) -> None:
    base = load_base(str(make_tiny_bert(tmp_path / "stars")), None, ["no", "yes"])
    assert base.untrained == ("classifier",)
    assert base.head_is_fresh
    assert base.model.classifier.weight.shape == (2, 32)
    assert base.model.config.id2label == {0: "no", 1: "yes"}


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_base(str(folder), None, ["no", "yes"])


def test_cut_off_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "cut")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(folder), None, ["no", "yes"])


def test_a_model_without_a_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(folder), None, ["no", "yes"])


def test_an_altered_embedded_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(embedded_model_folder(), tmp_path / "model")
    monkeypatch.setattr(sources, "embedded_model_folder", lambda: folder)
    load_base(EMBEDDED_MODEL, None, ["no", "yes"])
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelError, match="model.safetensors is not the one this app was built for"):
        load_base(EMBEDDED_MODEL, None, ["no", "yes"])


def test_a_local_model_is_known_by_its_bytes(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    revision = load_base(str(tiny_model), None, ["no", "yes"]).source.revision
    assert revision.startswith("sha256:")
    assert load_base(str(copy), None, ["no", "yes"]).source.revision == revision

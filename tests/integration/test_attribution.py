"""Tests of integrated gradients: sums, merged models, word positions, problem types and errors."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from matrix import FAMILIES
from run_files import change_json
from task_runs import TOPICS
from tiny import LABEL_WORDS, make_tiny_bert, make_yelp_parquet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peft_core.errors import ConfigError, DataError, ModelError, RunError
from peft_core.inference.attribution import BATCH_TOKENS, attribute
from peft_core.inference.decision import DecisionRule
from peft_core.inference.predictor import Predictor
from peft_core.runs import Run

BAD = "The food was awful, really terrible. We ate the pizza and it was disgusting!"
STRANGE = [
    "  spaces \t around\n\nlines  ",
    "don't-split, (these) words...",
    "名前は good です。",
    "ราคา ดี awful",
    "😀😀 good 👩‍👩‍👧",
    "a\0b \u200b\u202e good",
    "Ünïcödé ﬁne",
    "x" * 500,
    "[CLS] good [SEP] [MASK]",
    ".",
]


def positions_match(text: str, words: list[dict]) -> bool:
    """Return whether each word is at its stated position, in order, with only whitespace in between."""
    at = 0
    for word in words:
        if text[at : word["start"]].strip() or text[word["start"] : word["end"]] != word["text"]:
            return False
        at = word["end"]
    return not text[at:].strip()


def total(answer: dict) -> float:
    words = [*answer["words"], *(answer["pair_words"] or [])]
    return sum(word["score"] for word in words if word["score"] is not None)


def test_word_scores_sum_to_output_difference(finished_run: Run) -> None:
    predictor = Predictor(finished_run.folder)
    answer = attribute(predictor, BAD)
    assert answer["label"] == "bad"
    first, second = predictor.logits([BAD])[0]
    assert answer["value"] == pytest.approx(first - second, abs=1e-4)
    moved = answer["value"] - answer["start"]
    assert abs(answer["delta"]) < 0.02 * abs(moved)
    assert total(answer) == pytest.approx(moved + answer["delta"], abs=1e-4)
    assert max(abs(word["score"]) for word in answer["words"]) > 0.1
    assert [token["score"] for token in answer["tokens"] if token["text"] in ("[CLS]", "[SEP]")] == [0, 0]
    assert json.loads(json.dumps(answer)) == answer


def test_token_scores_equal_integrated_gradients(finished_run: Run) -> None:
    """Compare with the definition, computed in 400 steps without Captum."""
    predictor = Predictor(finished_run.folder)
    ids = predictor.tokenizer(BAD, return_tensors="pt")["input_ids"]
    masked = torch.where(ids > 4, 4, ids)  # the special tokens are the first five, [MASK] the last of them
    words = predictor.model.get_input_embeddings()
    start, end = words(masked).detach(), words(ids).detach()
    steps = (torch.arange(400) + 0.5).view(-1, 1, 1) / 400
    path = (start + steps * (end - start)).requires_grad_()
    logits = predictor.model(inputs_embeds=path).logits
    (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), path)
    expected = (gradient.mean(0) * (end - start)[0]).sum(-1)
    scores = [token["score"] for token in attribute(predictor, BAD, label="bad", steps=64)["tokens"]]
    assert scores == pytest.approx(expected.tolist(), abs=1e-3)


def test_words_of_a_label_score_higher_for_it(finished_run: Run) -> None:
    predictor, scores = Predictor(finished_run.folder), {"bad": [], "good": []}
    for text in pd.read_parquet(finished_run.evaluation).text[:20]:
        for word in attribute(predictor, text, label="bad", steps=8)["words"]:
            for label, own in (("bad", LABEL_WORDS[0]), ("good", LABEL_WORDS[4])):
                if word["text"].strip(",.!") in own:
                    scores[label].append(word["score"])
    assert np.mean(scores["bad"]) > np.mean(scores["good"]) + 0.1


def test_second_of_two_labels_gets_negated_scores(finished_run: Run) -> None:
    predictor = Predictor(finished_run.folder)
    bad, good = (attribute(predictor, BAD, label=label) for label in ("bad", "good"))
    assert good["value"] == pytest.approx(-bad["value"], abs=1e-4)
    for bad_word, good_word in zip(bad["words"], good["words"], strict=True):
        assert bad_word["score"] == pytest.approx(-good_word["score"], abs=1e-3)


def test_attribute_explains_label_of_saved_decision_rule(own_run: Run) -> None:
    predictor = Predictor(own_run.folder)
    DecisionRule(thresholds=(0.999, 0.001)).save(own_run, ("bad", "good"))
    assert predictor.predict([BAD])[0].label == attribute(predictor, BAD, steps=2)["label"] == "good"


def test_more_steps_reduce_delta(finished_run: Run) -> None:
    predictor = Predictor(finished_run.folder)
    coarse, fine = (abs(attribute(predictor, BAD, steps=steps)["delta"]) for steps in (2, 64))
    assert fine < coarse / 10


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_of_each_family_is_unchanged_by_merging(family: str, family_runs: dict[str, Run]) -> None:
    adapter, merged = (
        attribute(Predictor(family_runs[family].folder, variant), BAD) for variant in ("adapter", "merged")
    )
    assert abs(adapter["delta"]) <= 1e-5 + 0.01 * abs(adapter["value"] - adapter["start"])
    assert any(abs(word["score"]) > 1e-6 for word in adapter["words"])
    assert adapter["label"] == merged["label"]
    for adapter_word, merged_word in zip(adapter["words"], merged["words"], strict=True):
        assert adapter_word["text"] == merged_word["text"]
        assert adapter_word["score"] == pytest.approx(merged_word["score"], abs=1e-4)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "full"])
def test_methods_other_than_lora_are_explained(method: str, train_here: Callable[..., Run]) -> None:
    run = train_here(method=method, num_virtual_tokens=4, num_train_epochs=1)
    answer = attribute(Predictor(run.folder), BAD)
    assert abs(answer["delta"]) <= 1e-5 + 0.01 * abs(answer["value"] - answer["start"])
    assert any(abs(word["score"]) > 1e-6 for word in answer["words"])
    assert positions_match(BAD, answer["words"])


@pytest.mark.parametrize("text", STRANGE)
def test_words_cover_every_character(text: str, finished_run: Run) -> None:
    answer = attribute(Predictor(finished_run.folder), text, steps=2)
    assert positions_match(text, answer["words"])
    assert total(answer) == pytest.approx(sum(token["score"] for token in answer["tokens"]), abs=1e-5)


def test_words_are_split_at_spaces_or_by_token(finished_run: Run) -> None:
    answer = attribute(Predictor(finished_run.folder), "don't 名前 (good)", steps=2)
    assert [word["text"] for word in answer["words"]] == ["don't", "名", "前", "(good)"]


def test_long_text_is_truncated_and_read_in_bounded_batches(finished_run: Run) -> None:
    predictor, text, sizes, shares = Predictor(finished_run.folder), "awful pizza " * 200_000, [], []
    watch = predictor.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].shape)
    )
    answer = attribute(predictor, text, progress=shares.append)
    watch.remove()
    assert len(shares) > 4 and shares == sorted(shares) and shares[-1] == 1.0
    assert len(answer["tokens"]) == 64
    assert max(rows * length for rows, length in sizes) <= BATCH_TOKENS
    *read, rest = answer["words"]
    assert len(read) == 62
    assert all(word["score"] is not None for word in read)
    assert rest["score"] is None and (rest["end"], rest["text"]) == (len(text), text[rest["start"] :])
    assert positions_match(text, answer["words"])


def test_truncated_word_has_unscored_rest(finished_run: Run) -> None:
    text = "x" * 100
    read, rest = attribute(Predictor(finished_run.folder), text, steps=2)["words"]
    assert (read["start"], read["end"], rest["start"], rest["end"]) == (0, 62, 62, 100)
    assert rest["score"] is None


def test_multi_label_attribution_explains_each_label(topics: Run) -> None:
    predictor, text = Predictor(topics.folder), "We had terrible and good and excellent and okay."
    logits = dict(zip(TOPICS, predictor.logits([text])[0], strict=True))
    answers = {label: attribute(predictor, text, label=label) for label in TOPICS}
    for label, answer in answers.items():
        assert answer["label"] == label
        assert answer["value"] == pytest.approx(logits[label], abs=1e-4)
        moved = answer["value"] - answer["start"]
        assert total(answer) == pytest.approx(moved, abs=0.02 * abs(moved) + 1e-3)
    first, second, third = ([word["score"] for word in answer["words"]] for answer in answers.values())
    assert first != second != third != first
    assert attribute(predictor, text, steps=2)["label"] == max(logits, key=logits.get)


def test_regression_attribution_explains_predicted_number(stars: Run) -> None:
    predictor, text = Predictor(stars.folder), "It was terrible and awful, but excellent."
    answer = attribute(predictor, text)
    assert answer["label"] is None
    assert answer["value"] == pytest.approx(predictor.predict([text])[0].value, abs=1e-3)
    moved = answer["value"] - answer["start"]
    assert total(answer) == pytest.approx(moved, abs=0.02 * abs(moved) + 1e-3)
    with pytest.raises(ConfigError, match="answers with a number"):
        attribute(predictor, text, label="5")


def test_pair_attribution_has_words_of_both_texts(pairs: Run) -> None:
    text, second = "The pizza was here.", "It was terrible. " * 30
    answer = attribute(Predictor(pairs.folder), text, second)
    assert positions_match(text, answer["words"]) and positions_match(second, answer["pair_words"])
    assert all(word["score"] is not None for word in answer["words"])
    assert answer["pair_words"][-1]["score"] is None
    moved = answer["value"] - answer["start"]
    assert total(answer) == pytest.approx(moved + answer["delta"], abs=1e-4)
    assert attribute(Predictor(pairs.folder), text, "Good.", steps=2)["pair_words"][-1]["score"] is not None
    with pytest.raises(DataError, match="second text"):
        attribute(Predictor(pairs.folder), text)


def test_base_attribution_uses_own_head_or_probe(
    finished_run: Run, train_here: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("own-head")
    model, data = make_tiny_bert(folder / "stars"), make_yelp_parquet(folder / "yelp")
    own = train_here(model_name_or_path=str(model), dataset_name=str(data), num_train_epochs=1)
    for run, labels in (
        (own, ("1 star", "2 star", "3 stars", "4 stars", "5 stars")),
        (finished_run, ("bad", "good")),
    ):
        base, adapter = (attribute(Predictor(run.folder, variant), BAD) for variant in ("base", "adapter"))
        assert base["label"] in labels
        assert abs(base["delta"]) <= 1e-5 + 0.01 * abs(base["value"] - base["start"])
        assert base["words"] != adapter["words"]


@pytest.mark.usefixtures("no_probe")
def test_base_attribution_with_constant_prediction_raises(own_run: Run) -> None:
    change_json(own_run, "config.json", dataset_name=str(own_run.folder / "gone"))
    with pytest.raises(RunError, match="nothing to explain"):
        attribute(Predictor(own_run.folder, "base"), BAD)


@pytest.mark.parametrize("text", ["", " \n", None])
def test_empty_text_raises_one_sentence(text: str, finished_run: Run) -> None:
    for variant in ("base", "adapter"):
        with pytest.raises(DataError, match="The text is empty"):
            attribute(Predictor(finished_run.folder, variant), text)


@pytest.mark.parametrize("changes", [{"label": "great"}, {"steps": 0}, {"steps": 10_000}, {"steps": True}])
def test_unknown_label_or_invalid_steps_raise_one_sentence(changes: dict, finished_run: Run) -> None:
    with pytest.raises(ConfigError, match="bad, good|from 1 to 256"):
        attribute(Predictor(finished_run.folder), BAD, **changes)


def with_tokenizer(run: Run, tokenizer: Tokenizer) -> Predictor:
    """Return a predictor with another tokenizer, whose token IDs are valid but meaningless to the model."""
    predictor = Predictor(run.folder)
    predictor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"
    )
    return predictor


def byte_level() -> Tokenizer:
    """A tokenizer like RoBERTa's: bytes, with the space before a word as part of it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", *letters, "Ġg", "oo"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "g"), ("o", "o")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def unigram() -> Tokenizer:
    """A tokenizer like XLM-RoBERTa's: tokens that begin with the space before a word."""
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁good", -4.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -5.0) for letter in "abcdefgo名前")], 1, False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, unigram])
@pytest.mark.parametrize("text", ["good bad  good\ngood", " good 名前 é ", *STRANGE])
def test_other_tokenizers_give_word_positions(
    make: Callable[[], Tokenizer], text: str, finished_run: Run
) -> None:
    predictor = with_tokenizer(finished_run, make())
    answer = attribute(predictor, text, steps=2)
    assert positions_match(text, answer["words"])
    assert total(answer) == pytest.approx(sum(token["score"] for token in answer["tokens"]), abs=1e-5)
    if "名前" in text and "\n" not in text:
        words = [word["text"] for word in answer["words"]]
        assert "名" in words and "前" in words and "good" in words


def test_tokenizer_without_offsets_raises_one_sentence(finished_run: Run) -> None:
    class Slow:
        is_fast = False

        def __init__(self, real: object) -> None:
            self.real = real

        def __call__(self, *texts: object, **options: object) -> object:
            return self.real(*texts, **options)

        def pad(self, *rows: object, **options: object) -> object:
            return self.real.pad(*rows, **options)

    predictor = Predictor(finished_run.folder)
    predictor.tokenizer = Slow(predictor.tokenizer)
    with pytest.raises(ModelError, match="does not return character offsets"):
        attribute(predictor, BAD)

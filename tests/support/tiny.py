"""Builders of tiny models of many families and of a small data set folder in the Yelp reviews layout."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

MAX_TOKENS = 128
NLPTOWN_LABELS = {0: "1 star", 1: "2 stars", 2: "3 stars", 3: "4 stars", 4: "5 stars"}
YELP_LABELS = ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]
YELP_CONFIG = "yelp_review_full"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABEL_WORDS = [
    ["terrible", "awful", "horrible", "worst", "disgusting", "rude"],
    ["bad", "poor", "disappointing", "slow", "bland", "overpriced"],
    ["okay", "average", "decent", "fine", "ordinary", "acceptable"],
    ["good", "nice", "tasty", "friendly", "pleasant", "enjoyable"],
    ["amazing", "excellent", "perfect", "wonderful", "fantastic", "best"],
]
SUBJECTS = ["food", "service", "place", "staff", "waiter", "dinner", "lunch", "pizza", "coffee", "room"]
COMMON_WORDS = (
    "the a an and or but not no yes i we you he she it they me us my our your this that these those is "
    "are was were be been am do does did have has had will would can could should to of in on at for "
    "from with by as if so very really too just only also again never always ever here there when where "
    "what who why how all some any more most much many little less one two three four five first last "
    "next time day night week year people friend family table menu order meal drink wine beer bread "
    "chicken burger salad soup dessert restaurant hotel bar shop store star stars review visit "
    "experience money love loved like liked hate hated great clean dirty hot cold warm fresh old new "
    "big small long short came went got took gave said told ate tried back out up down over about after "
    "before than then because while every other same definitely recommend"
)
_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_OFFSET = {"max_position_embeddings": MAX_TOKENS + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# How each family differs from BERT; those without a second token type have padding ID 1, as in RoBERTa.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {**_OFFSET, "type_vocab_size": 1},
    "xlm-roberta": {**_OFFSET, "type_vocab_size": 1},
    "camembert": {**_OFFSET, "type_vocab_size": 1},
    "mpnet": _OFFSET,
    "distilbert": {},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "pooler_hidden_size": 32,
    },
    "modernbert": {"local_attention": 16, "classifier_pooling": "mean"},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
}
_NO_TOKEN_TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "modernbert", "deberta-v2")


def make_tiny(folder: Path, family: str, **config: Any) -> Path:
    """Save a random encoder of a family without a head, the same at each call, and a tokenizer for it."""
    _save(folder, AutoModel, tiny_config(family, **config))
    return folder


def make_tiny_with_head(folder: Path, family: str, labels: Sequence[str]) -> Path:
    """Save a random classifier of a family with a head for these labels, and its tokenizer."""
    config = tiny_config(family)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    return _save(folder, AutoModelForSequenceClassification, config)


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A configuration two layers deep and 32 wide; `changes` are names of BERT's configuration."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose one of {sorted(FAMILIES)}")
    shared = {"vocab_size": len(vocabulary()), "max_position_embeddings": MAX_TOKENS, "pad_token_id": 0}
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    settings = {**_SHAPE, **shared, **FAMILIES[family], **changes}
    if family == "modernbert":
        settings |= special
    if family == "distilbert":
        names = {"hidden_size": "dim", "intermediate_size": "hidden_dim"}
        names |= {"num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        settings = {names.get(name, name): value for name, value in settings.items()}
    return AutoConfig.for_model(family, **settings)


def make_tiny_bert(
    folder: Path,
    *,
    num_labels: int = 5,
    id2label: dict[int, str] | None = None,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 2,
    with_head: bool = True,
    with_pooler: bool = True,
    architecture: str = "bert",
) -> Path:
    """Save a random model, the same at each call, and its tokenizer; the default five labels are stars."""
    if with_head and not with_pooler:
        raise ValueError("a classification head needs the pooler")
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size}
    config = tiny_config(architecture, **sizes, num_hidden_layers=layers, num_attention_heads=heads)
    if not with_head:
        pooler = {"add_pooling_layer": with_pooler} if architecture == "bert" else {}
        return _save(folder, AutoModel, config, **pooler)
    config.id2label = id2label or _default_labels(num_labels)
    config.label2id = {name: index for index, name in config.id2label.items()}
    return _save(folder, AutoModelForSequenceClassification, config)


def make_yelp_parquet(folder: Path, *, train_rows: int = 80, test_rows: int = 40) -> Path:
    """Save distinct reviews whose words determine their label, the same at each call."""
    rng, used_texts = random.Random(0), set[str]()
    (folder / YELP_CONFIG).mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, rows in (("train", train_rows), ("test", test_rows)):
        labels = [index % len(YELP_LABELS) for index in range(rows)]
        texts = [_new_text(label, rng, used_texts) for label in labels]
        table = pa.table({"label": pa.array(labels, pa.int64()), "text": texts})
        pq.write_table(table, folder / YELP_CONFIG / f"{split}-00000-of-00001.parquet")
        sizes[split] = (rows, table.nbytes)
    card = yaml.safe_dump(_yelp_card(sizes), sort_keys=False)
    (folder / "README.md").write_text(f"---\n{card}---\n\n# Reviews and their stars\n", encoding="utf-8")
    return folder


def vocabulary() -> list[str]:
    """WordPiece tokens: special ones, punctuation, single characters, their continuations, whole words."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*string.punctuation, *characters, *(f"##{character}" for character in characters)]
    words = [word for group in (COMMON_WORDS.split(), SUBJECTS, *LABEL_WORDS) for word in group]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *pieces, *words]))


def _default_labels(num_labels: int) -> dict[int, str]:
    if num_labels == len(NLPTOWN_LABELS):
        return dict(NLPTOWN_LABELS)
    return {index: f"LABEL_{index}" for index in range(num_labels)}


def _save(folder: Path, kind: type, config: PreTrainedConfig, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = kind.from_config(config, **options)
    model.save_pretrained(folder)
    words = vocabulary()
    words.insert(config.pad_token_id, words.pop(words.index("[PAD]")))
    _make_tokenizer(config, words).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


def _make_tokenizer(config: PreTrainedConfig, words: list[str]) -> BertTokenizer:
    """Return a WordPiece tokenizer for any family, with the model inputs of that family."""
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] * (config.model_type not in _NO_TOKEN_TYPES)
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(words)},
        do_lower_case=True,
        model_max_length=MAX_TOKENS,
        model_input_names=names,
    )


def _new_text(label: int, rng: random.Random, used_texts: set[str]) -> str:
    while True:
        sentences = [_sentence(label, rng) for _ in range(rng.randint(2, 5))]
        text = " ".join(sentences)
        if text not in used_texts:
            used_texts.add(text)
            return text


def _sentence(label: int, rng: random.Random) -> str:
    subject, other = rng.sample(SUBJECTS, 2)
    first, second = rng.sample(LABEL_WORDS[label], 2)
    return f"The {subject} was {first} and the {other} was really {second}."


def _yelp_card(sizes: dict[str, tuple[int, int]]) -> dict:
    splits = [{"name": name, "num_bytes": size, "num_examples": rows} for name, (rows, size) in sizes.items()]
    names = {str(index): name for index, name in enumerate(YELP_LABELS)}
    label = {"name": "label", "dtype": {"class_label": {"names": names}}}
    features = [label, {"name": "text", "dtype": "string"}]
    total = sum(size for _, size in sizes.values())
    info = {"config_name": YELP_CONFIG, "features": features, "splits": splits}
    files = [{"split": name, "path": f"{YELP_CONFIG}/{name}-*"} for name in sizes]
    return {
        "language": ["en"],
        "task_categories": ["text-classification"],
        "dataset_info": {**info, "download_size": total, "dataset_size": total},
        "configs": [{"config_name": YELP_CONFIG, "data_files": files, "default": True}],
    }

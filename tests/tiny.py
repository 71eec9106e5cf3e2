"""Builders of a tiny BERT-like model folder and of a small data set folder in the Yelp reviews layout."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    DistilBertTokenizer,
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
_ARCHITECTURES = {
    "bert": (BertForSequenceClassification, BertModel, BertTokenizer),
    "distilbert": (DistilBertForSequenceClassification, DistilBertModel, DistilBertTokenizer),
}


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
    """Save a random model, the same at each call, and its tokenizer; five labels are named as stars."""
    config = _make_config(architecture, hidden_size, layers, heads)
    if with_head:
        config.id2label = id2label or _default_labels(num_labels)
        config.label2id = {name: index for index, name in config.id2label.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _make_model(architecture, config, with_head, with_pooler).save_pretrained(folder)
    _make_tokenizer(architecture).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    return folder


def make_yelp_parquet(folder: Path, *, train_rows: int = 80, test_rows: int = 40) -> Path:
    """Save reviews whose words give their label away, the same at each call, no text twice."""
    rng, seen = random.Random(0), set[str]()
    (folder / YELP_CONFIG).mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, rows in (("train", train_rows), ("test", test_rows)):
        labels = [index % len(YELP_LABELS) for index in range(rows)]
        texts = [_new_text(label, rng, seen) for label in labels]
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


def _make_config(architecture: str, hidden_size: int, layers: int, heads: int) -> PreTrainedConfig:
    if architecture not in _ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: choose one of {sorted(_ARCHITECTURES)}")
    shared = {"vocab_size": len(vocabulary()), "max_position_embeddings": MAX_TOKENS, "pad_token_id": 0}
    if architecture == "distilbert":
        sizes = {"dim": hidden_size, "hidden_dim": 2 * hidden_size, "n_layers": layers, "n_heads": heads}
        return DistilBertConfig(**shared, **sizes)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size}
    return BertConfig(**shared, **sizes, num_hidden_layers=layers, num_attention_heads=heads)


def _default_labels(num_labels: int) -> dict[int, str]:
    if num_labels == len(NLPTOWN_LABELS):
        return dict(NLPTOWN_LABELS)
    return {index: f"LABEL_{index}" for index in range(num_labels)}


def _make_model(
    architecture: str, config: PreTrainedConfig, with_head: bool, with_pooler: bool
) -> PreTrainedModel:
    with_labels, plain, _ = _ARCHITECTURES[architecture]
    if with_head and not with_pooler:
        raise ValueError("a classification head needs the pooler")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if with_head:
            return with_labels(config)
        return plain(config, add_pooling_layer=with_pooler) if architecture == "bert" else plain(config)


def _make_tokenizer(architecture: str) -> BertTokenizer:
    vocab = {token: index for index, token in enumerate(vocabulary())}
    return _ARCHITECTURES[architecture][2](vocab=vocab, do_lower_case=True, model_max_length=MAX_TOKENS)


def _new_text(label: int, rng: random.Random, seen: set[str]) -> str:
    while True:
        sentences = [_sentence(label, rng) for _ in range(rng.randint(2, 5))]
        text = " ".join(sentences)
        if text not in seen:
            seen.add(text)
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

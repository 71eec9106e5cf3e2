"""Merging: the standalone model, its certificate, and merges that are refused."""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_of
from processes import answer, python
from run_files import change_json, reseal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peft_core.errors import DamagedError, MergeError, ModelError, PeftCoreError, RunError
from peft_core.inference.decision import DECISION_FILE, DecisionRule
from peft_core.inference.predictor import Predictor
from peft_core.merging import certificate
from peft_core.merging.certificate import MergeCertificate, verified_certificate
from peft_core.merging.merge import merge
from peft_core.runs import Run

STOCK_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
torch.set_num_threads(1)
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.inference_mode():
    rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in texts]
classify = pipeline("text-classification", folder)
labels = [prediction["label"] for prediction in classify(texts)]
loaded = sorted({name.split(".")[0] for name in sys.modules} & {"peft", "peft_core"})
print(json.dumps({"rows": rows, "labels": labels, "id2label": model.config.id2label, "loaded": loaded}))
"""
MERGED_FILES = {
    "certificate.json", "config.json", "manifest.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_certificate_records_the_comparison(merged_run: Run) -> None:
    verified = verified_certificate(merged_run)
    assert verified is not None
    assert verified.holds
    assert verified.rows == merged_run.result()["eval_rows"] == 40
    assert 0 <= verified.max_logit_diff_merged <= verified.tolerance == 1e-5
    assert 0 <= verified.max_logit_diff_reloaded <= 1e-5
    assert verified.label_flips == 0
    assert verified.labels == verified.labels_reloaded == ("bad", "good")
    assert verified.head_sha256 == verified.head_sha256_reloaded
    adapter = (merged_run.adapter / "adapter_model.safetensors").read_bytes()
    assert verified.adapter_sha256 == hashlib.sha256(adapter).hexdigest()
    assert verified.base_revision == merged_run.result()["base_revision"]


def test_merged_model_loads_with_transformers_alone(merged_run: Run) -> None:
    assert names(merged_run.merged) == MERGED_FILES
    with safe_open(merged_run.merged / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora" in key or "modules_to_save" in key]  # noqa: SIM118
    texts = pd.read_parquet(merged_run.evaluation).text.tolist()[:10]
    output = answer(STOCK_TRANSFORMERS, str(merged_run.merged), json.dumps(texts))
    adapter = Predictor(merged_run.folder)
    assert np.abs(np.asarray(output["rows"]) - adapter.logits(texts)).max() <= 1e-5
    assert output["labels"] == [prediction.label for prediction in adapter.predict(texts)]
    assert set(output["labels"]) == {"bad", "good"}
    assert output["id2label"] == {"0": "bad", "1": "good"}
    assert "peft_core" not in output["loaded"]


def test_merge_twice_gives_the_same_certificate(merged_run: Run) -> None:
    first = verified_certificate(merged_run)
    assert merge(merged_run.folder) == first


def test_certificate_of_merged_for_an_earlier_adapter_is_none(merged_run: Run, tmp_path: Path) -> None:
    run = copy_of(merged_run, tmp_path)
    assert certificate.certificate_of_merged(run) == verified_certificate(merged_run)
    path = run.adapter / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert certificate.certificate_of_merged(run) is None
    path.write_bytes((merged_run.adapter / path.name).read_bytes())
    shutil.rmtree(run.merged)
    assert certificate.certificate_of_merged(run) is None


def test_merge_progress_increases_to_one(own_run: Run) -> None:
    progress: list[tuple[float, str]] = []
    merged = merge(own_run.folder, lambda share, what: progress.append((share, what)))
    shares = [share for share, _ in progress]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert merged == verified_certificate(own_run)
    assert not [name for name in names(own_run.folder) if name.startswith(".")]


def test_merge_with_a_failed_certificate_leaves_no_model(
    own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "TOLERANCE", -1.0)
    with pytest.raises(MergeError, match="a logit differs by"):
        merge(own_run.folder)
    assert not [name for name in names(own_run.folder) if "merged" in name or name.startswith(".")]
    monkeypatch.undo()
    assert merge(own_run.folder).holds


def test_merge_with_a_failed_certificate_removes_the_older_model(
    own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(own_run.folder)
    path = own_run.adapter / "adapter_model.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(own_run.adapter)
    change_json(own_run, "result.json", adapter_sha256=None)
    monkeypatch.setattr(certificate, "TOLERANCE", -1.0)
    with pytest.raises(MergeError):
        merge(own_run.folder)
    assert not own_run.merged.exists(), "it is of another adapter than the certificate"


def test_merge_of_an_adapter_with_nan_is_refused(own_run: Run) -> None:
    path = own_run.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    broken = next(name for name in tensors if "lora_B" in name)
    tensors[broken] = torch.full_like(tensors[broken], math.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(own_run.adapter)
    change_json(own_run, "result.json", adapter_sha256=None)
    with pytest.raises(PeftCoreError, match="not finite|would not be a number|cannot be merged"):
        merge(own_run.folder)
    assert not names(own_run.folder) & {"merged"}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"max_logit_diff_merged": 2e-5}, "a logit differs by 2e-05"),
        ({"max_logit_diff_reloaded": math.inf}, "a logit differs by inf"),
        ({"label_flips": 3}, "3 of 40 labels flip"),
        ({"head_sha256_reloaded": "0"}, "the head on disk is not the trained one"),
        ({"labels_reloaded": ("LABEL_0", "LABEL_1")}, "the labels on disk are not the trained ones"),
    ],
)
def test_certificate_problems_name_each_failed_check(
    changes: dict[str, Any], problem: str, merged_run: Run
) -> None:
    verified = verified_certificate(merged_run)
    assert isinstance(verified, MergeCertificate)
    broken = replace(verified, **changes)
    assert not broken.holds
    assert problem in broken.problems[0]
    assert broken.to_dict()["holds"] is False


def test_certificate_with_nan_does_not_hold(merged_run: Run) -> None:
    verified = verified_certificate(merged_run)
    assert isinstance(verified, MergeCertificate)
    assert not replace(verified, max_logit_diff_merged=math.nan).holds
    assert not replace(verified, max_logit_diff_reloaded=math.nan).holds


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"holds": true, "problems": []}'])
def test_damaged_certificate_raises_and_merge_restores_it(
    content: str, merged_run: Run, tmp_path: Path
) -> None:
    run = copy_of(merged_run, tmp_path)
    run.certificate.write_text(content, encoding="utf-8")
    with pytest.raises(DamagedError, match="merge it again"):
        verified_certificate(run)
    assert merge(run.folder).holds


@pytest.fixture
def own_base(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the base model to break."""
    return shutil.copytree(tiny_model, tmp_path / "base")


def test_merge_with_a_quantized_base_is_refused(own_base: Path, train_here: Callable[..., Run]) -> None:
    run = train_here(model_name_or_path=str(own_base))
    path = own_base / "config.json"
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    base_config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**base_config, "quantization_config": quantization}), encoding="utf-8")
    with pytest.raises(ModelError) as error:
        merge(run.folder)
    for words in (str(own_base), "quantized (bitsandbytes)", "full-precision model"):
        assert words in str(error.value)
    assert not names(run.folder) & {"merged"}


def test_merge_with_a_changed_base_is_refused(own_base: Path, train_here: Callable[..., Run]) -> None:
    run = train_here(model_name_or_path=str(own_base))
    trained_on = run.result()["base_revision"]
    path = own_base / "model.safetensors"
    tensors = load_file(path)
    tensors["pooler.dense.bias"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    for act in (lambda: merge(run.folder), lambda: Predictor(run.folder)):
        with pytest.raises(ModelError, match="has changed") as error:
            act()
        hashes = [word.strip("(),;") for word in str(error.value).split() if "sha256:" in word]
        assert len(set(hashes)) == 2
        assert trained_on in hashes
    assert not names(run.folder) & {"merged"}


def test_merge_without_its_base_raises_model_error(own_base: Path, train_here: Callable[..., Run]) -> None:
    run = train_here(model_name_or_path=str(own_base))
    shutil.rmtree(own_base)
    with pytest.raises(ModelError, match="config.json"):
        merge(run.folder)
    assert not names(run.folder) & {"merged"}


@pytest.mark.parametrize(
    "lost",
    [
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/classifier.json",
        "evaluation/evaluation.parquet",
    ],
)
@pytest.mark.parametrize("content", [None, b"{"])
def test_merge_with_lost_or_damaged_files_raises_run_error(
    lost: str, content: bytes | None, own_run: Run
) -> None:
    path = own_run.folder / lost
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunError) as error:
        merge(own_run.folder)
    assert own_run.run_id in str(error.value)
    assert not names(own_run.folder) & {"merged"}


def test_merge_command_prints_errors_in_one_line(own_run: Run) -> None:
    own_run.evaluation.unlink()
    completed = python("-m", "peft_core.merge", str(own_run.folder))
    assert completed.returncode == 2
    assert "'evaluation.parquet' of evaluation/ is missing" in completed.stderr.strip().splitlines()[-1]
    assert "Traceback" not in completed.stderr


def test_merge_copies_a_decision_rule_saved_meanwhile(own_run: Run) -> None:
    rule = DecisionRule(temperature=2.0, abstain_below=0.6)

    def save_rule(share: float, what: str) -> None:
        if what.startswith("Merged, loaded again"):  # reported after the rule is written
            rule.save(own_run, ("bad", "good"))

    merge(own_run.folder, save_rule)
    adapter, merged = (folder / DECISION_FILE for folder in (own_run.adapter, own_run.merged))
    assert adapter.read_bytes() == merged.read_bytes()
    assert verified_certificate(own_run).holds


def test_merge_on_a_read_only_disk_raises_run_error(
    merged_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(merged_run, tmp_path)
    (run.merged / "config.json").unlink()  # so that it is merged again

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(run.certificate))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="Read-only file system") as refusal:
        merge(run.folder)
    assert str(tmp_path) not in str(refusal.value)

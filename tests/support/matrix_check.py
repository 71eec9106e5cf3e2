"""Load the runs of the given folders with this project and with PEFT alone, and merge them.

Runs in a fresh process and prints a JSON object: by run id, the largest logit differences and whether the
merge certificate holds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from peft_core.errors import MergeError
from peft_core.inference.predictor import Predictor
from peft_core.merging.merge import merge
from peft_core.methods.registry import METHODS
from peft_core.runs import Run, list_runs


def check(run: Run) -> dict[str, Any]:
    """Return `reload`, the difference in mean loss and in PEFT's logits, and the certified `merge`."""
    rows = pd.read_parquet(run.evaluation)
    logits = Predictor(run.folder, "adapter").logits(rows["text"].tolist())
    assert (logits.argmax(-1) == rows["predicted"].to_numpy()).all(), f"{run.run_id}: other labels"
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(rows["label"].to_numpy()))
    reload = abs(float(loss) - run.result()["eval_loss"])
    method = METHODS[run.config().method]
    if method.peft_config is not None:
        reload = max(reload, float(np.abs(_stock_logits(run, rows["text"].tolist()) - logits).max()))
    try:
        certificate = merge(run.folder)
    except MergeError as error:
        assert method.cannot_merge and method.cannot_merge in str(error), f"{run.run_id}: {error}"
        return {"reload": reload, "merge": None}
    assert not method.cannot_merge, f"{run.run_id} merges, but is marked as one that cannot"
    return {
        "reload": reload,
        "merge": certificate.max_logit_diff_reloaded,
        "holds": certificate.holds,
        "encoder_changed": _encoder_changed(run),
    }


def _encoder_changed(run: Run) -> bool:
    """Whether any weight of the merged encoder differs from the base model's."""
    base = load_file(Path(run.config().model_name_or_path) / "model.safetensors")
    merged = load_file(run.merged / "model.safetensors")
    pairs = [(base[b], merged[m]) for b in base for m in merged if m == b or m.endswith(f".{b}")]
    assert len(pairs) >= len(base) - 2  # a pooler that the classifier does not use is dropped
    return any(not torch.equal(before, after) for before, after in pairs)


def _stock_logits(run: Run, texts: list[str]) -> np.ndarray:
    """Return the logits of base model and adapter loaded by transformers and PEFT alone."""
    base = AutoModelForSequenceClassification.from_pretrained(run.config().model_name_or_path, num_labels=2)
    model = PeftModel.from_pretrained(base, run.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    batch = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch).logits.numpy()


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    runs = [run for folder in sys.argv[1:] for run in list_runs(Path(folder))]
    sys.stdout.write(json.dumps({run.run_id: check(run) for run in runs}) + "\n")

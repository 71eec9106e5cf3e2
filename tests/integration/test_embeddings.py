"""Sentence embeddings: sentence-transformers loads the same vectors, and neighbors are the nearest rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import answer
from run_files import change_json, reseal
from safetensors.numpy import load_file, save_file

from peft_core.errors import DataError, MergeError, RunError
from peft_core.export import embeddings
from peft_core.export.embeddings import export_embeddings
from peft_core.inference import vectors as vectors_module
from peft_core.inference.classifier import Classifier
from peft_core.inference.loading import load_adapter, load_adapter_base
from peft_core.inference.review import Evaluation
from peft_core.inference.vectors import NeighborSearch, encoder_of, find_neighbors, label_precision, vectors
from peft_core.problem_types import MULTI, SINGLE
from peft_core.runs import Run

UNUSUAL_TEXTS = ["  spaces \n", "😀", "x" * 5000, "good " * 3000, ".", "\0\u202e", "名前"]
# runs in a new process with the stock libraries and without this project
LOAD = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
encoded = {}
with open(sys.argv[1], encoding="utf-8") as file:
    requests = json.load(file)
for name, (folder, texts) in requests.items():
    model = SentenceTransformer(folder, device="cpu")
    vectors = model.encode(texts, batch_size=7, show_progress_bar=False)
    modules = [type(module).__name__ for module in model]
    encoded[name] = [vectors.tolist(), modules, model.max_seq_length, model.similarity_fn_name]
assert "peft_core" not in sys.modules
print(json.dumps(encoded))
"""


def copy_of(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.folder, folder / run.run_id))


def adapter_vectors(run: Run, texts: list[str]) -> np.ndarray:
    """Return the vectors of the adapter on its base model, not merged."""
    classifier = Classifier.read(run)
    base = load_adapter_base(run, classifier)
    return vectors(encoder_of(load_adapter(run, base)), base.tokenizer, texts, classifier.max_length)


@pytest.fixture(scope="module")
def exported(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a copy of the finished run with exported embeddings; tests must not change it."""
    run = copy_of(finished_run, tmp_path_factory.mktemp("exported"))
    export_embeddings(run.folder)
    return run


def test_export_embeddings_sentence_transformers_gives_same_vectors(
    exported: Run, family_runs: dict[str, Run], tmp_path: Path
) -> None:
    """Covers every model family, the evaluation rows and unusual texts."""
    runs = {family: copy_of(run, tmp_path / family) for family, run in family_runs.items()}
    for run in runs.values():
        report = export_embeddings(run.folder)
        assert report["max_difference"] <= 1e-5 and report["changed"]
    runs["finished"] = exported
    texts = [*pd.read_parquet(exported.evaluation).text, *UNUSUAL_TEXTS]
    requests = {name: [str(run.folder / "embeddings"), texts] for name, run in runs.items()}
    (tmp_path / "asked.json").write_text(json.dumps(requests), encoding="utf-8")
    for name, (encoded, *loaded) in answer(LOAD, str(tmp_path / "asked.json")).items():
        assert loaded == [["Transformer", "Pooling", "Normalize"], 64, "cosine"]
        expected = adapter_vectors(runs[name], texts)
        assert expected.dtype == np.float32 and expected.shape == (47, 32)
        assert np.linalg.norm(expected, axis=-1) == pytest.approx(1, abs=1e-5)
        assert np.abs(np.array(encoded) - expected).max() <= 1e-5, name


def test_export_embeddings_encoder_differs_from_base(exported: Run, tiny_model: Path) -> None:
    report = json.loads((exported.folder / "embeddings" / "report.json").read_text(encoding="utf-8"))
    base, written = (
        load_file(tiny_model / "model.safetensors"),
        load_file(exported.folder / "embeddings" / "model.safetensors"),
    )
    assert base.keys() == written.keys()  # no head
    moved = {name.split(".")[-2] for name in base if np.abs(base[name] - written[name]).max() > 1e-4}
    assert {"query", "value"} <= moved <= {"query", "value", "dense"}  # the pooler is trained whole
    assert report["changed"] and report["note"] == ""
    assert (report["rows"], report["size"], report["max_length"]) == (40, 32, 64)
    assert report["max_difference"] <= 1e-5
    assert 0 < report["precision"]["base"] < report["precision"]["adapted"] <= 1


def test_export_embeddings_folder_is_complete_and_documented(exported: Run) -> None:
    folder = exported.folder / "embeddings"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "1_Pooling/config.json", "README.md", "config.json", "config_sentence_transformers.json",
        "model.safetensors", "modules.json", "report.json", "sentence_bert_config.json", "tokenizer.json",
        "tokenizer_config.json", "manifest.json",
    }  # fmt: skip
    text = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "SentenceTransformer(",
        "adapted by LoRA",
        "32 entries",
        "at most 64 tokens",
        "40 held-out",
    ):
        assert words in text
    contents = "".join(
        path.read_text(errors="ignore") for path in folder.glob("*.*") if path.suffix != ".safetensors"
    )
    assert str(Path.home()) not in contents and "/tmp/" not in contents
    assert not list(exported.folder.glob(".embeddings*"))


def test_export_embeddings_rewrites_only_after_adapter_changes(exported: Run, tmp_path: Path) -> None:
    run = copy_of(exported, tmp_path)
    path = run.folder / "embeddings" / "model.safetensors"
    before, shares = path.stat().st_mtime_ns, []
    first = export_embeddings(run.folder, lambda share, stage: shares.append(share))
    assert path.stat().st_mtime_ns == before and shares == []
    adapter = run.adapter / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(adapter).items()}, adapter, {"format": "pt"})
    reseal(run.adapter)
    change_json(run, "result.json", adapter_sha256=None)
    second = export_embeddings(run.folder, lambda share, stage: shares.append(share))
    assert second["fingerprint"] != first["fingerprint"] and path.stat().st_mtime_ns > before
    assert shares == sorted(shares) and shares[-1] == 1.0
    cached = vectors_module.RowVectors(run).load()
    expected = adapter_vectors(run, pd.read_parquet(run.evaluation).text.tolist())
    assert cached is not None and np.abs(cached["adapted"] - expected).max() <= 1e-5


def test_export_embeddings_head_only_reports_unchanged_encoder(train_here: Callable[..., Run]) -> None:
    report = export_embeddings(train_here(method="head_only", num_train_epochs=1).folder)
    assert not report["changed"]
    assert "vectors are the base model's" in report["note"]
    assert report["precision"]["base"] == report["precision"]["adapted"]


def test_export_embeddings_prompt_tuning_raises(train_here: Callable[..., Run]) -> None:
    run = train_here(method="prompt_tuning", num_virtual_tokens=4, num_train_epochs=1)
    for use in (export_embeddings, NeighborSearch):
        with pytest.raises(MergeError, match="Prompt tuning has no adapted encoder"):
            use(run.folder)
    assert not list(run.folder.glob("*embeddings*")) and not list(run.folder.glob("vectors*"))


@pytest.mark.parametrize("where", ["save", "readme"])
def test_export_embeddings_full_disk_leaves_no_files(
    where: str, own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if where == "save":
        monkeypatch.setattr(vectors_module, "save_file", full)
    else:
        monkeypatch.setattr(embeddings, "write_text", full)
    with pytest.raises(RunError, match="disk is full"):
        export_embeddings(own_run.folder)
    assert not (own_run.folder / "embeddings").exists()
    assert not [path for path in own_run.folder.iterdir() if path.name.startswith(".")]


def test_export_embeddings_nan_weights_raises(own_run: Run) -> None:
    adapter = own_run.adapter / "adapter_model.safetensors"
    weights = {name: np.full_like(rows, np.nan) for name, rows in load_file(adapter).items()}
    save_file(weights, adapter, {"format": "pt"})
    reseal(own_run.adapter)
    change_json(own_run, "result.json", adapter_sha256=None)
    with pytest.raises(MergeError, match="cannot be merged|not the adapter"):
        export_embeddings(own_run.folder)
    assert not (own_run.folder / "embeddings").exists()


@pytest.mark.parametrize("missing", ["adapter/adapter_model.safetensors", "evaluation/evaluation.parquet"])
def test_export_embeddings_missing_files_raises(missing: str, own_run: Run) -> None:
    (own_run.folder / missing).unlink()
    for use in (export_embeddings, NeighborSearch):
        with pytest.raises(RunError, match="has no adapter|is missing"):
            use(own_run.folder)


def test_neighbor_search_returns_nearest_rows_of_each_encoder(exported: Run) -> None:
    texts = pd.read_parquet(exported.evaluation).text.tolist()
    neighbors = NeighborSearch(exported.folder).nearest(texts[7], 5)
    assert set(neighbors) == {"base", "adapted"}
    for rows in neighbors.values():
        assert rows[0]["row"] == 8 and rows[0]["text"] == texts[7]
        assert rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
        similarities = [row["similarity"] for row in rows]
        assert len(rows) == 5 and similarities == sorted(similarities, reverse=True)
    own = adapter_vectors(exported, texts)
    expected = np.argsort(-(own @ own[7]), kind="stable")[:5] + 1
    assert [row["row"] for row in neighbors["adapted"]] == expected.tolist()
    assert [row["row"] for row in neighbors["base"]] != expected.tolist()
    assert json.loads(json.dumps(neighbors)) == neighbors


def test_find_neighbors_unseen_text_returns_rows_of_its_label(exported: Run) -> None:
    neighbors = find_neighbors(exported.folder, "An awful, terrible lunch", 1000)
    assert len(neighbors["adapted"]) == 40
    labels = [row["true"] for row in neighbors["adapted"][:10]]
    assert labels.count("bad") > 7
    for query in ("", "  ", None):
        with pytest.raises(DataError, match="search is empty"):
            NeighborSearch(exported.folder).nearest(query)


@pytest.mark.parametrize("damage", [None, b"", b"{}", "rows", "fingerprint"])
def test_neighbor_search_invalid_cache_is_recomputed(
    damage: bytes | str | None, exported: Run, tmp_path: Path
) -> None:
    run = copy_of(exported, tmp_path)
    expected = NeighborSearch(run.folder)
    path = run.folder / "vectors/vectors.safetensors"
    if damage is None:
        path.unlink()
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        fingerprint = expected_fingerprint(run) if damage == "rows" else "another"
        save_file(
            {name: np.zeros((3, 32), np.float32) for name in ("base", "adapted")},
            path,
            {"fingerprint": fingerprint},
        )
    progress = []
    search = NeighborSearch(run.folder, lambda share, stage: progress.append((share, stage)))
    assert progress[-1][0] == 1.0 and "40 rows" in progress[-1][1]
    assert search.nearest("good", 3) == expected.nearest("good", 3)
    progress.clear()
    NeighborSearch(run.folder, lambda share, stage: progress.append((share, stage)))
    assert progress == []


def expected_fingerprint(run: Run) -> str:
    return vectors_module.RowVectors(run).fingerprint


def test_find_neighbors_pairs_compares_first_texts(pairs: Run, tmp_path: Path) -> None:
    run = copy_of(pairs, tmp_path)
    report = export_embeddings(run.folder)
    assert report["precision"] is None and "single texts" in report["note"]
    row = find_neighbors(run.folder, pd.read_parquet(run.evaluation).text[3], 1)["adapted"][0]
    assert row["similarity"] == pytest.approx(1, abs=1e-5) and row["text_pair"]


def evaluation_of(labels: np.ndarray, problem_type: str, run: Run) -> Evaluation:
    evaluation = Evaluation.read(run)
    rows = type(evaluation.rows)([""] * len(labels), None, labels, np.zeros((len(labels), 2)))
    return Evaluation(rows, evaluation.labels, problem_type, evaluation.decision_rule)


def test_label_precision_counts_shared_labels_of_neighbors(finished_run: Run) -> None:
    angles = np.deg2rad([0, 1, 2, 90, 91, 92])
    circle = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    groups = np.array([0, 0, 0, 1, 1, 1])
    assert label_precision(circle, evaluation_of(groups, SINGLE, finished_run), 2) == 1
    assert label_precision(circle, evaluation_of(groups, SINGLE, finished_run), 100) == pytest.approx(0.4)
    mixed = np.array([0, 1, 0, 1, 1, 1])
    assert label_precision(circle, evaluation_of(mixed, SINGLE, finished_run), 1) == pytest.approx(3 / 6)
    sets = np.array([[1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [0, 1]])
    # the nearest of each: rows 2, 1 or 3, 2, 5, 4 or 6, 5
    assert label_precision(
        circle[[0, 1, 3, 4]], evaluation_of(sets[:4], MULTI, finished_run), 1
    ) == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert label_precision(circle[:1], evaluation_of(groups[:1], SINGLE, finished_run)) is None


def test_neighbor_search_precision_is_none_for_regression(topics: Run, stars: Run, tmp_path: Path) -> None:
    precision = NeighborSearch(copy_of(topics, tmp_path / "topics").folder).precision()
    assert (
        0.5 < precision["base"] <= 1
        and 0.5 < precision["adapted"] <= 1
        and precision["base"] != precision["adapted"]
    )
    assert NeighborSearch(copy_of(stars, tmp_path / "stars").folder).precision() == {
        "base": None,
        "adapted": None,
    }

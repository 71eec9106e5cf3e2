"""Stopped runs have an adapter but no result: features that need it raise an error, the others work."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_of

from peft_core.errors import RunError
from peft_core.export.archives import zip_of
from peft_core.export.hub.card_facts import Facts
from peft_core.export.snippets import ApiAccess
from peft_core.inference.decision import PLAIN, DecisionRule
from peft_core.inference.loading import ADAPTER
from peft_core.inference.predictor import Predictor
from peft_core.inference.tables import Request, predict_file, preview_file
from peft_core.merging.merge import merge
from peft_core.runs import KILLED, Run
from peft_core.service import tasks
from peft_core.service.workbench import Workbench
from peft_core.ui.sidebar import run_choices
from peft_core.views.cards import prediction_card, result_card
from peft_core.views.charts import runs_frame

NOTE = "Stopped at step 7 of 60. The adapter of that step is kept; the test rows were not evaluated."
REFUSAL = "was stopped before its test rows were evaluated; evaluate or continue it first."
TEXT = "The food was really good."


def stopped_copy(run: Run, folder: Path) -> Run:
    """Return a copy of a finished run as if it had been stopped in training."""
    run = copy_of(run, folder)
    shutil.rmtree(run.folder / "evaluation")
    run.update(status=KILLED, notes=[NOTE])
    return run


@pytest.fixture
def stopped(finished_run: Run, tmp_path: Path) -> Run:
    return stopped_copy(finished_run, tmp_path / "runs")


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return Workbench.open(tmp_path / "runs")


NEED_RESULT: dict[str, Callable[[str], Any]] = {
    "result": lambda folder: Run(Path(folder)).result(),
    "calibration": lambda folder: tasks.evaluate_decision_rule(folder, PLAIN.to_dict(("bad", "good"))),
    "suggested rule": lambda folder: tasks.suggest_decision_rule(folder, False, None),
    "test rows": lambda folder: tasks.review(folder, "all", "", None, None, 10),
    "hardest rows": lambda folder: tasks.review(folder, "hardest", "", None, None, 10),
    "suspected labels": lambda folder: tasks.review(folder, "suspected", "", None, None, 10),
    "one row": lambda folder: tasks.row(folder, 1),
    "neighbors": lambda folder: tasks.find_neighbors(folder, TEXT),
    "merge": merge,
    "model card": lambda folder: Facts.read(Run(Path(folder))),
    "onnx": lambda folder: tasks.export_run(folder, "onnx", {}),
    "embeddings": lambda folder: tasks.export_run(folder, "embeddings", {}),
    "page": lambda folder: tasks.export_run(folder, "page", {}),
    "script": lambda folder: tasks.export_run(folder, "script", {}),
    "script code": lambda folder: tasks.code(folder, "script", ApiAccess("http://localhost")),
    "python code": lambda folder: tasks.code(folder, "python", ApiAccess("http://localhost")),
}


@pytest.mark.parametrize("feature", NEED_RESULT)
def test_feature_that_needs_result_of_stopped_run_raises_run_error(feature: str, stopped: Run) -> None:
    with pytest.raises(RunError) as error:
        NEED_RESULT[feature](str(stopped.folder))
    assert str(error.value) == f"The run {stopped.run_id!r} {REFUSAL}"


def test_stopped_run_predicts_explains_and_compares_texts(stopped: Run) -> None:
    folder = str(stopped.folder)
    assert Predictor(stopped.folder).predict([TEXT])[0].label in ("bad", "good")
    assert tasks.predict(folder, ADAPTER, TEXT)["label"] in ("bad", "good")
    assert set(tasks.compare(folder, TEXT)) >= {"base", "adapter"}
    assert "error" not in tasks.explain(folder, TEXT, None)["adapter"]
    assert tasks.compare_runs([folder], TEXT)[0]["run_id"] == stopped.run_id


def test_stopped_run_predicts_file_with_inferred_columns(stopped: Run, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("id,text\n1,Good food.\n2,Bad room.\n")
    assert preview_file(file, stopped)["text"] == "text"
    predicted = predict_file(Predictor(stopped.folder), Request(file, text="text"))
    assert predicted["rows"] == 2


def test_stopped_run_has_decision_rule_and_adapter_zip(stopped: Run) -> None:
    assert tasks.decision_rule(str(stopped.folder))["labels"] == ["bad", "good"]
    assert DecisionRule.read(stopped) == PLAIN
    assert zip_of(stopped, "adapter").is_file()


def test_stopped_run_page_shows_note_and_no_score(stopped: Run, workbench: Workbench) -> None:
    description = workbench.describe(stopped)
    assert description["result"] is None and description["has_adapter"]
    assert NOTE in result_card(description)
    ((label, run_id),) = run_choices(workbench)
    assert run_id == stopped.run_id and "stopped" in label
    assert runs_frame([stopped]).empty


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finished_run", {"problem_type": "single_label_classification", "text_pair": False}),
        ("pairs", {"problem_type": "single_label_classification", "text_pair": True}),
        ("stars", {"problem_type": "regression", "text_pair": False}),
    ],
)
def test_result_of_stopped_run_names_problem_type_and_text_pair(
    name: str, expected: dict[str, Any], request: pytest.FixtureRequest, workbench: Workbench
) -> None:
    run = stopped_copy(request.getfixturevalue(name), workbench.runs_dir)
    assert workbench.result_of(run.run_id) == expected


def test_prediction_card_of_number_without_limits_has_no_bar(stars: Run, tmp_path: Path) -> None:
    run = stopped_copy(stars, tmp_path)
    prediction = Predictor(run.folder).predict([TEXT])[0].to_dict()
    card = prediction_card("Adapter", "", prediction, limits=())
    assert prediction["label"] in card and "--share" not in card


def test_finished_run_without_result_is_not_reported_as_stopped(own_run: Run) -> None:
    shutil.rmtree(own_run.folder / "evaluation")
    with pytest.raises(RunError, match="its result and its test rows are missing"):
        own_run.result()

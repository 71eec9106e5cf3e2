"""Views of the page: formatted numbers, method pictures, cards and escaped text."""

import html
from typing import Any
from xml.etree import ElementTree

import pytest

from peft_core.config import SETTINGS, TrainConfig
from peft_core.merging.certificate import verified_certificate
from peft_core.methods.registry import METHODS
from peft_core.runs import Run
from peft_core.service.workbench import Workbench
from peft_core.views import cards, components

SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "number, words",
    [(0, "0"), (74_498, "74,498"), (999_999, "999,999"), (22_788_484, "22.8 M")],
)
def test_quantity_abbreviates_millions(number: float, words: str) -> None:
    assert components.quantity(number) == words


@pytest.mark.parametrize("size, words", [(301_432, "301 kB"), (1_200_000, "1.2 MB"), (0, "0 kB")])
def test_size_of_bytes_has_a_unit(size: float, words: str) -> None:
    assert components.size(size) == words


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (42.4, "42 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_duration_of_seconds_has_units(seconds: float, words: str) -> None:
    assert components.duration(seconds) == words


def test_cost_strip_shows_exact_numbers() -> None:
    count = {"trainable": 298_757, "total": 167_659_018, "percent": 100 * 298_757 / 167_659_018}
    strip = components.cost({**count, "adapter": 294_912, "head": 3_845, "file_bytes": 1_200_000})
    for words in ("298,757", "167,659,018", "0.1782 %", "294,912", "3,845", "1.2 MB"):
        assert words in strip


def test_cost_strip_shows_the_forecast_of_time_and_memory() -> None:
    count = {"trainable": 2, "total": 4, "percent": 50.0, "adapter": 1, "head": 1, "file_bytes": 301_000}
    drawn = components.cost({**count, "seconds": 35.2, "memory": 640_000_000, "free": 8_000_000_000})
    assert "301 kB · ~35 s · 0.6 GB" in drawn
    assert "301 kB · 0.6 GB" in components.cost({**count, "seconds": None, "memory": 640_000_000})
    assert "GB" not in components.cost({**count, "seconds": None, "memory": None})


@pytest.mark.parametrize(
    ("place", "seconds", "words"),
    [
        (1, 240.0, "Waiting: next in the queue, about 4 minutes"),
        (2, 240.0, "Waiting: 2nd in the queue, about 4 minutes"),
        (3, None, "Waiting: 3rd in the queue<"),
        (12, 30.0, "Waiting: 12th in the queue, about 30 seconds"),
        (21, 2.0, "Waiting: 21st in the queue, a few seconds"),
        (None, None, "Waiting for the run before it"),
    ],
)
def test_run_progress_shows_the_place_in_the_queue(
    place: int | None, seconds: float | None, words: str
) -> None:
    state = {"status": "SCHEDULED", "run_id": "a-run", "queue_place": place, "queue_seconds": seconds}
    assert words in components.run_progress(state)


@pytest.mark.parametrize("r, shape", [(1, (384, 384)), (512, (32, 32)), (8, (3072, 768)), (8, (768, 3072))])
def test_lora_picture_shows_parameter_counts(r: int, shape: tuple[int, int]) -> None:
    picture = components.lora_picture(r, 16 / r, "query", shape)
    ElementTree.fromstring(picture)
    assert f"{r * sum(shape):,} trained parameters beside {shape[0] * shape[1]:,}" in picture


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"r": 16, "lora_alpha": 8}, "+ 0.5 ·"),
        ({"r": 16, "lora_alpha": 8, "use_rslora": True}, "+ 2 ·"),
        ({"init_lora_weights": "pissa"}, "query 384 × 384, minus B·A, frozen"),
        ({}, "query 384 × 384, frozen"),
    ],
)
def test_method_picture_of_lora_follows_its_settings(changes: dict[str, Any], words: str) -> None:
    settings = {**TrainConfig().to_dict(), **changes}
    picture = components.method_picture(settings, "query", (384, 384))
    assert words in picture and "<svg" in picture


@pytest.mark.parametrize("changes", [{"use_dora": True}, *({"method": m} for m in METHODS if m != "lora")])
def test_method_picture_of_other_methods_is_text(changes: dict[str, Any]) -> None:
    settings = {**TrainConfig().to_dict(), **changes}
    picture = components.method_picture(settings, "query", (384, 384))
    method = METHODS[settings["method"]]
    sentence = SETTINGS["use_dora"].help if "use_dora" in changes else method.help
    assert (
        "<svg" not in picture and html.escape(sentence) in picture and html.escape(method.source) in picture
    )


def test_describe_method_names_rank_and_modules() -> None:
    settings = TrainConfig().to_dict()
    assert components.describe_method(settings) == "LoRA r 8 · query value"
    assert components.describe_method({**settings, "method": "head_only"}) == "Head only"


def test_run_progress_describes_each_stage() -> None:
    waiting = components.run_progress({"run_id": "a", "status": "SCHEDULED"})
    assert "Waiting" in waiting
    starting = components.run_progress({"run_id": "a", "status": "RUNNING", "stage": "reading the data"})
    assert "reading the data" in starting
    state = {"run_id": "a", "status": "RUNNING", "stage": "training", "step": 50, "max_steps": 200}
    training = components.run_progress({**state, "eta": 90, "tokens_per_second": 2400})
    for words in ("step 50 of 200", "1 min 30 s left", "2,400 tokens/s", 'aria-valuenow="25"'):
        assert words in training


def test_result_card_of_a_run_shows_its_metrics(finished_run: Run) -> None:
    description = Workbench.open(finished_run.folder.parent).describe(finished_run)
    card = cards.result_card(description)
    run_result = description["result"]
    for words in (
        f"{run_result['accuracy']:.3f}",
        f"{run_result['macro_f1']:.3f}",
        "bad",
        "good",
        "classifier",
    ):
        assert words in card
    for row in run_result["confusion_matrix"]:
        assert all(f">{count:,}</td>" in card for count in row)


def test_result_card_without_a_result_gives_the_reason() -> None:
    bare = {"run_id": "a", "result": None, "settings": None}
    failed = {**bare, "status": "FAILED", "error": "The disk is full."}
    assert "The disk is full." in cards.result_card(failed)
    killed = {**bare, "status": "KILLED", "error": None, "settings": TrainConfig().to_dict()}
    assert "ended without a result" in cards.result_card(killed)
    note = "Stopped at step 7 of 60. The adapter of that step is kept."
    assert note in cards.result_card({**killed, "notes": [note]})


def test_result_card_of_a_damaged_run_lists_its_usable_parts() -> None:
    damaged = {
        "run_id": "a",
        "result": None,
        "settings": None,
        "status": "FAILED",
        "error": "status.json is lost.",
    }
    card = cards.result_card(
        {**damaged, "damage": ["status.json is lost."], "usable": ["settings", "adapter"]}
    )
    assert card.count("status.json is lost.") == 1
    assert "Still usable: settings, adapter." in card and "delete it" in card


def test_certificate_view_states_whether_it_holds(merged_run: Run) -> None:
    certificate = verified_certificate(merged_run)
    assert certificate is not None
    assert "Merge certificate holds" in components.certificate(certificate.to_dict())
    broken = {**certificate.to_dict(), "holds": False, "problems": ["3 of 40 labels flip"]}
    assert "does not hold: 3 of 40 labels flip" in components.certificate(broken)


def test_views_escape_untrusted_text(finished_run: Run, merged_run: Run) -> None:
    certificate = verified_certificate(merged_run)
    assert certificate is not None
    description = Workbench.open(finished_run.folder.parent).describe(finished_run)
    run_result = {**description["result"], "labels": [SCRIPT, "b"], "untrained": [SCRIPT]}
    row = {"label": SCRIPT, "precision": 1, "recall": 1, "f1": 1, "support": 1}
    run_result["baseline"] = {**run_result["baseline"], "label": SCRIPT}
    drawn = [
        components.message(SCRIPT),
        components.lora_picture(8, 2, SCRIPT, (8, 8)),
        components.run_progress({"run_id": SCRIPT, "status": "RUNNING", "stage": SCRIPT}),
        cards.result_card({**description, "run_id": SCRIPT, "result": run_result}),
        cards.result_card({**description, "status": "FAILED", "error": SCRIPT, "result": None}),
        cards.result_card({**description, "settings": {**description["settings"], "dataset_name": SCRIPT}}),
        cards.confusion([[1, 0], [0, 1]], [SCRIPT, "b"]),
        cards.mistakes([[1, 1], [1, 1]], [SCRIPT, "b"]),
        cards.label_table([row]),
        cards.prediction_card(SCRIPT, SCRIPT, None, SCRIPT),
        cards.prediction_card("a", "b", {"label": SCRIPT, "scores": {SCRIPT: 1.0}, "ms": 1, "note": SCRIPT}),
        components.certificate(
            {**certificate.to_dict(), "labels": [SCRIPT], "holds": False, "problems": [SCRIPT]}
        ),
    ]
    for piece in drawn:
        assert "<script" not in piece
        assert "&lt;script" in piece

"""Pieces of the page: numbers as people read them, and no text of a stranger as markup."""

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
def test_quantities(number: float, words: str) -> None:
    assert components.quantity(number) == words


@pytest.mark.parametrize("size, words", [(301_432, "301 kB"), (1_200_000, "1.2 MB"), (0, "0 kB")])
def test_sizes(size: float, words: str) -> None:
    assert components.size(size) == words


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (42.4, "42 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert components.duration(seconds) == words


def test_the_cost_strip_shows_the_exact_numbers() -> None:
    count = {"trainable": 298_757, "total": 167_659_018, "percent": 100 * 298_757 / 167_659_018}
    found = components.cost({**count, "adapter": 294_912, "head": 3_845, "file_bytes": 1_200_000})
    for words in ("298,757", "167,659,018", "0.1782 %", "294,912", "3,845", "1.2 MB"):
        assert words in found


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
def test_running_shows_where_a_run_waits(place: int | None, seconds: float | None, words: str) -> None:
    state = {"status": "SCHEDULED", "run_id": "a-run", "queue_place": place, "queue_seconds": seconds}
    assert words in components.run_progress(state)


@pytest.mark.parametrize("r, shape", [(1, (384, 384)), (512, (32, 32)), (8, (3072, 768)), (8, (768, 3072))])
def test_the_picture_of_lora_is_drawn_to_its_numbers(r: int, shape: tuple[int, int]) -> None:
    found = components.lora_picture(r, 16 / r, "query", shape)
    ElementTree.fromstring(found)
    assert f"{r * sum(shape):,} numbers learn beside {shape[0] * shape[1]:,}" in found


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"r": 16, "lora_alpha": 8}, "+ 0.5 ·"),
        ({"r": 16, "lora_alpha": 8, "use_rslora": True}, "+ 2 ·"),
        ({"init_lora_weights": "pissa"}, "query 384 × 384, less B·A, frozen"),
        ({}, "query 384 × 384, frozen"),
    ],
)
def test_lora_is_drawn_as_it_is_set(changes: dict[str, Any], words: str) -> None:
    settings = {**TrainConfig().to_dict(), **changes}
    found = components.method_picture(settings, "query", (384, 384))
    assert words in found and "<svg" in found


@pytest.mark.parametrize("changes", [{"use_dora": True}, *({"method": m} for m in METHODS if m != "lora")])
def test_what_is_not_w_plus_b_a_is_not_drawn_so(changes: dict[str, Any]) -> None:
    settings = {**TrainConfig().to_dict(), **changes}
    found = components.method_picture(settings, "query", (384, 384))
    method = METHODS[settings["method"]]
    sentence = SETTINGS["use_dora"].help if "use_dora" in changes else method.help
    assert "<svg" not in found and html.escape(sentence) in found and html.escape(method.source) in found


def test_a_method_in_a_few_words() -> None:
    settings = TrainConfig().to_dict()
    assert components.describe_method(settings) == "LoRA r 8 · query value"
    assert components.describe_method({**settings, "method": "head_only"}) == "Head only"


def test_progress_of_a_run_in_words() -> None:
    waiting = components.run_progress({"run_id": "a", "status": "SCHEDULED"})
    assert "Waiting" in waiting
    starting = components.run_progress({"run_id": "a", "status": "RUNNING", "stage": "reading the data"})
    assert "reading the data" in starting
    state = {"run_id": "a", "status": "RUNNING", "stage": "training", "step": 50, "max_steps": 200}
    training = components.run_progress({**state, "eta": 90, "tokens_per_second": 2400})
    for words in ("step 50 of 200", "1 min 30 s left", "2,400 tokens/s", 'aria-valuenow="25"'):
        assert words in training


def test_the_result_card_of_a_real_run(finished_run: Run) -> None:
    description = Workbench.open(finished_run.folder.parent).describe(finished_run)
    found = cards.result_card(description)
    result = description["result"]
    for words in (f"{result['accuracy']:.3f}", f"{result['macro_f1']:.3f}", "bad", "good", "classifier"):
        assert words in found
    for row in result["confusion_matrix"]:
        assert all(f">{count:,}</td>" in found for count in row)


def test_a_run_without_a_result_says_why() -> None:
    bare = {"run_id": "a", "result": None, "settings": None}
    failed = {**bare, "status": "FAILED", "error": "The disk is full."}
    assert "The disk is full." in cards.result_card(failed)
    killed = {**bare, "status": "KILLED", "error": None, "settings": TrainConfig().to_dict()}
    assert "left nothing to keep" in cards.result_card(killed)
    kept = "Stopped at step 7 of 60. The adapter of that step is kept."
    assert kept in cards.result_card({**killed, "notes": [kept]})


def test_result_card_of_a_damaged_run_names_what_is_left() -> None:
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


def test_the_certificate_of_a_real_merge(merged_run: Run) -> None:
    held = verified_certificate(merged_run)
    assert held is not None
    assert "Merge certificate holds" in components.certificate(held.to_dict())
    broken = {**held.to_dict(), "holds": False, "problems": ["3 of 40 labels flip"]}
    assert "does not hold: 3 of 40 labels flip" in components.certificate(broken)


def test_no_text_of_a_stranger_is_markup(finished_run: Run, merged_run: Run) -> None:
    held = verified_certificate(merged_run)
    assert held is not None
    description = Workbench.open(finished_run.folder.parent).describe(finished_run)
    result = {**description["result"], "labels": [SCRIPT, "b"], "untrained": [SCRIPT]}
    row = {"label": SCRIPT, "precision": 1, "recall": 1, "f1": 1, "support": 1}
    result["baseline"] = {**result["baseline"], "label": SCRIPT}
    drawn = [
        components.message(SCRIPT),
        components.lora_picture(8, 2, SCRIPT, (8, 8)),
        components.run_progress({"run_id": SCRIPT, "status": "RUNNING", "stage": SCRIPT}),
        cards.result_card({**description, "run_id": SCRIPT, "result": result}),
        cards.result_card({**description, "status": "FAILED", "error": SCRIPT, "result": None}),
        cards.result_card({**description, "settings": {**description["settings"], "dataset_name": SCRIPT}}),
        cards.confusion([[1, 0], [0, 1]], [SCRIPT, "b"]),
        cards.mistakes([[1, 1], [1, 1]], [SCRIPT, "b"]),
        cards.label_table([row]),
        cards.prediction_card(SCRIPT, SCRIPT, None, SCRIPT),
        cards.prediction_card("a", "b", {"label": SCRIPT, "scores": {SCRIPT: 1.0}, "ms": 1, "note": SCRIPT}),
        components.certificate({**held.to_dict(), "labels": [SCRIPT], "holds": False, "problems": [SCRIPT]}),
    ]
    for piece in drawn:
        assert "<script" not in piece
        assert "&lt;script" in piece

"""Short runs of the security and load batteries, and their detection of broken products."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from batteries import bombs, demo_client, filler, foreign, forged, guesses, load, visitors
from peft_core.disk.expiry import Candidate, Expiry
from peft_core.disk.inventory import Inventory
from peft_core.disk.storage import Storage
from peft_core.runs import Run


def test_foreign_short_form_gets_no_answers() -> None:
    report = foreign.run(0.02)
    assert report.failures == ()
    assert dict(report.outcomes)["of a browser, arrived"] > 5


def test_foreign_requests_to_a_product_without_the_guard_are_answered() -> None:
    report = foreign.run(0.01, broken="guard.RequestGuard._refuse = lambda self, scope: None")
    assert len(report.failures) > report.count * 0.9
    assert all(failure.startswith("answered: ") for failure in report.failures)


def test_guesses_short_form_are_throttled_and_the_right_one_enters() -> None:
    report = guesses.run(0.06, most_seconds=1.0)
    assert report.failures == ()
    assert dict(report.outcomes)["turned away"] > 300


def test_guesses_against_a_product_that_never_waits_are_all_checked() -> None:
    report = guesses.run(0.06, broken=True)
    assert "600 of 600 guesses were compared with the password" in report.failures


_BUG_AND_DELAY = """
import time
from peft_core.service import visitor_uploads
from peft_core.service import workbench
def check_rows(self, folder):
    raise ValueError("a bug")
visitor_uploads.VisitorUploads._check_rows = check_rows
list_runs = workbench.Workbench.list_runs
def list_slowly(self):
    time.sleep(1.5)
    return list_runs(self)
workbench.Workbench.list_runs = list_slowly
"""


def test_bombs_short_form_are_answered(finished_run: Run) -> None:
    """Beside other tests a click may take longer than the full battery allows."""
    report = bombs.run(0.02, seconds=10, longest_click=60, finished=finished_run)
    assert report.failures == ()
    outcomes = dict(report.outcomes)
    assert outcomes["upload: answered"] == 4 and outcomes["look: answered"] > 0
    assert outcomes["MB of the worker that reads"] > 100


def test_bombs_at_a_product_with_a_bug_and_slow_clicks_find_both(finished_run: Run) -> None:
    options = {"seconds": 10, "longest_click": 1.4, "finished": finished_run}
    report = bombs.run(0.005, broken=_BUG_AND_DELAY, **options)
    failures = "; ".join(report.failures)
    assert "'' is no sentence" in failures and "in the log of the app: ValueError: a bug" in failures
    assert "a click (runs during " in failures


def test_bombs_of_one_seed_are_the_same_files_and_small() -> None:
    thrown = bombs.bombs(bombs.FILES, 0)
    assert len({bomb.title for bomb in thrown}) == bombs.FILES
    kinds = {bomb.make for bomb in thrown}
    assert kinds == {kind for family in bombs.FAMILIES.values() for kind in family}
    for bomb in thrown[:3]:
        assert bomb.build() == bomb.build()
        assert len(bomb.build()[1]) < 10_000_000


def test_forged_short_form_gets_no_secret() -> None:
    report = forged.run(0.02)
    assert report.failures == ()
    assert report.count > 60 and dict(report.outcomes)["functions called"] > 5


@pytest.mark.parametrize(
    ("broken", "family", "share", "secret"),
    [
        ("run_access.RunAccess.may_read = lambda self, run: True", "a token", 0.05, "run"),
        ("utils.is_allowed_file = lambda *_, **__: (True, 'allowed')", "a path", 0.3, "beside the runs"),
    ],
)
def test_forged_requests_to_a_product_that_answers_everyone_get_secrets(
    broken: str, family: str, share: float, secret: str
) -> None:
    imports = "from gradio import utils\nfrom peft_core.access import run_access\n"
    failures = forged.run(share, broken=imports + broken, only=(family,)).failures
    assert any(failure.startswith(f"{family} got the secret of the {secret}: ") for failure in failures)


def test_filler_short_form_leaves_room_for_others() -> None:
    report = filler.run(0.03)
    assert report.failures == ()
    outcomes = dict(report.outcomes)
    assert outcomes["visitors served"] == 6
    assert outcomes["of the filler, granted"] > 5 and outcomes["of the filler, refused"] > 5


def test_visitors_short_form_are_isolated_and_served(finished_run: Run) -> None:
    report = visitors.run(finished_run, 0.05, operations=12)
    assert report.failures == ()
    outcomes = dict(report.outcomes)
    assert outcomes["honest, served"] > 40 and outcomes["attempts, refused"] > 30


@pytest.mark.parametrize(
    ("broken", "failures"),
    [
        (
            "RunAccess._is_readable_by = RunAccess.owns = lambda *_: True\nSessions.check = lambda *_: None",
            {
                "list_runs": "read: the canary of another",
                "name_run": "changed: run-",
                "fetch_event": "fetch_event: was answered",
            },
        ),
        ("RunAccess._is_readable_by = lambda *_: False", {"status": "status: not served"}),
    ],
)
def test_visitors_find_missing_isolation_of_a_broken_product(
    broken: str, failures: dict[str, str], finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        demo_client, "LONGEST_ANSWER", 20.0
    )  # for a visitor whose messages another one receives
    imports = (
        "from peft_core.access.sessions import Sessions\nfrom peft_core.access.run_access import RunAccess\n"
    )
    report = visitors.run(finished_run, 0.03, operations=4, only=list(failures), broken=imports + broken)
    for failure in failures.values():
        assert [each for each in report.failures if failure in each], (failure, report.failures[:5])


def test_load_short_form_answers_all_in_time(finished_run: Run) -> None:
    """The limit allows for other work on the machine; no training runs alone as a baseline."""
    report = load.run(0.2, visitors=10, alone=0, most_seconds=20.0, finished=finished_run)
    assert report.failures == ()
    assert dict(report.outcomes)["looks"] > 10


def test_load_finds_slow_answers_of_a_broken_product(finished_run: Run) -> None:
    waiting = (
        "import time\nfrom peft_core.service.workbench import Workbench\nstatus = Workbench.status\n"
        "Workbench.status = lambda self, run_id: (time.sleep(5), status(self, run_id))[1]\n"
    )
    report = load.run(0.2, visitors=5, alone=0, most_seconds=3.0, finished=finished_run, broken=waiting)
    assert any("of the clicks took up to" in failure for failure in report.failures)


def _measures(**changes: Any) -> load.Measures:
    steady = {"clicks": {"status": [0.1] * 100}, "polls": [0.01] * 100, "alone": [20.0, 20.2]}
    return load.Measures(**{**steady, "loaded": [20.4, 20.5], **changes})


def test_load_problems_name_each_exceeded_limit() -> None:
    assert load.problems_of(_measures(), 2.0) == []
    slow = _measures(clicks={"status": [0.1] * 94 + [2.5] * 6, "panel": [9.0] * 100})
    assert load.problems_of(slow, 2.0) == ["95 % of the clicks took up to 2.50 s"]
    assert load.problems_of(_measures(loaded=[22.0]), 2.0) == ["trainings took 9.5% longer than alone"]
    assert load.problems_of(_measures(loaded=[]), 2.0) == ["no training ended under load"]
    refused = load.problems_of(_measures(refused={"status: 503 Wait.": 10}), 2.0)
    assert refused == ["100 clicks were served, 10 requests refused"]


def test_load_refusal_without_a_sentence_is_a_problem() -> None:
    measures = load.Measures()
    for body in (b'{"detail": "Too many requests. Try again in a second."}', b"<html>busy</html>"):
        measures.note("status", demo_client.Reply(demo_client.Answer(429, body, 0.0)), 1.0)
    assert measures.refused == {"status: 429 Too many requests. Try again in a second.": 1}
    assert measures.problems == ["status was answered 429 <html>busy</html>"]


def _youngest_first(expiry: Expiry, inventory: Inventory, used: Collection[Path]) -> list[Candidate]:
    return sorted(expiry._ended_runs(inventory, used), key=lambda item: -item.last_used)


@pytest.mark.parametrize(
    ("owner", "name", "broken", "failures"),
    [
        (Storage, "_refuse_over_quota", lambda *_: None, ["the visitor ffff takes"]),
        (Storage, "_make_room", lambda *_: True, ["all take", "bytes are free"]),
        (Storage, "_make_room", lambda *_: False, ["a visitor was not served: This public demo's disk"]),
        (Expiry, "list_spare", _youngest_first, ["is lost"]),
    ],
)
def test_filler_finds_missing_checks_of_a_broken_product(
    owner: Any, name: str, broken: Any, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    sentences = filler.run(0.02).failures
    assert [words for words in failures if not any(words in sentence for sentence in sentences)] == []

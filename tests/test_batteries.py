"""A short form of each battery, and each of them seeing a product that was broken on purpose."""

import json
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batteries import (
    bombs,
    damage,
    demo_client,
    fault_layer,
    faults,
    filler,
    foreign,
    forged,
    guesses,
    inputs,
    kills,
    load,
    resume,
    soak,
    visitors,
)
from batteries.children import run_child
from batteries.durability import unsynced_renames
from batteries.fault_layer import Operation
from batteries.input_changes import CHANGES
from batteries.result import BatteryResult
from batteries.table import table, write_results
from batteries.workplace import Workplace, workplace
from peft_core import files, manifests, runs
from peft_core.disk.expiry import Candidate, Expiry
from peft_core.disk.inventory import Inventory
from peft_core.disk.storage import Storage
from peft_core.errors import RunError
from peft_core.runs import Run, run
from peft_core.training import setup, trainer

NO_FSYNC = "from peft_core import files\nfiles.fsync_tree = lambda folder: None\n"


@pytest.fixture(scope="module")
def place() -> Iterator[Workplace]:
    with workplace() as opened:
        yield opened


@pytest.fixture(scope="module")
def exhibit(place: Workplace) -> damage.Exhibit:
    return damage.make_exhibit(place, everything=False)


@pytest.fixture(scope="module")
def interrupted(place: Workplace) -> tuple[inputs.Inputs, Path]:
    return inputs.interrupt(place)


@contextmanager
def written_in_place(final: Path, **_: Any) -> Iterator[Path]:
    """What `atomic_folder` would be without a staging folder and a rename."""
    files.staging_path(final)  # the kill is aimed at this call
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir(parents=True)
    yield final
    files.fsync_tree(final)


def test_kills_short_form_loses_and_accepts_nothing(place: Workplace) -> None:
    result = kills.run(place, 0.005)
    assert result.failures == ()
    assert (result.count, dict(result.outcomes)) == (5, {"at any time": 3, "while saving": 2})


def test_kills_of_a_product_that_writes_in_place_find_torn_folders(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "atomic_folder", written_in_place)
    battery = kills.Battery(place, random.Random(0))
    target = ("train", kills.STAGING, "adapter")
    battery.lengths |= kills.measure_stages(battery, "train")
    problems = [problem for _ in range(4) for problem in kills.kill_once(battery, target) or []]
    assert any(" is torn: " in problem for problem in problems), problems


def test_resume_short_form_gives_the_same_bytes(place: Workplace) -> None:
    result = resume.run(place, 0.02)
    assert result.failures == ()
    assert result.count == 2


def test_resume_of_a_product_that_forgets_the_weights_finds_others(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in resume.cases() if case.name == "LoRA, plain")
    reference = resume.train_uninterrupted(place, case)
    monkeypatch.setattr(trainer, "load_trained", lambda model, path: None)
    (problem,) = resume.check(place, case, reference, random.Random(1))
    assert "its adapter has other weights" in problem


def test_faults_short_form_leaves_the_last_good_one() -> None:
    result = faults.run(0.03, only=("update the state", "save a decision rule", "zip"))
    assert result.failures == ()
    assert result.count > 5


def test_faults_of_a_product_without_fsync_find_what_a_power_cut_could_undo() -> None:
    """A kill cannot: the system keeps what a dead process had written. The order of operations tells it."""
    result = faults.run(0.01, prelude=NO_FSYNC, only=("zip",))
    assert any("was not synced before adapter was renamed" in failure for failure in result.failures)


def test_faults_without_a_compiler_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_layer.shutil, "which", lambda name: None)
    result = faults.run(0.1)
    assert not result.passed and result.failures == (fault_layer.NO_COMPILER,)


def test_durability_folder_not_synced_after_rename_is_found() -> None:
    staged = "/runs/.staging-1-boot-1-0123abcd-a/a"
    synced = [
        Operation("mkdir", staged),
        Operation("create", f"{staged}/x"),
        Operation("write", f"{staged}/x", inode=5),
        Operation("fsync", f"{staged}/x", inode=5),
        Operation("fsync", staged, inode=6),
        Operation("rename", staged, "/runs/a"),
    ]
    assert unsynced_renames([*synced, Operation("fsync", "/runs", inode=7)]) == (1, [])
    assert unsynced_renames(synced) == (1, ["runs/ was not synced right after a was renamed"])
    late = [*synced[:4], Operation("write", f"{staged}/x", inode=5), *synced[4:]]
    assert unsynced_renames([*late, Operation("fsync", "/runs")])[1] == [
        "x was not synced before a was renamed"
    ]


def test_durability_new_parent_not_synced_is_found() -> None:
    staged = "/runs/a/checkpoints/.staging-1-boot-1-0123abcd-b/b"
    made = Operation("mkdir", "/runs/a/checkpoints")
    rest = [
        Operation("mkdir", staged),
        Operation("fsync", staged, inode=6),
        Operation("rename", staged, "/runs/a/checkpoints/b"),
        Operation("fsync", "/runs/a/checkpoints"),
    ]
    problem = "checkpoints/ is new, and its name was not synced"
    assert unsynced_renames([made, *rest]) == (1, [problem])
    assert unsynced_renames([made, Operation("fsync", "/runs/a"), *rest]) == (1, [])


@pytest.mark.parametrize("count", [13, 62])  # 6 more than a multiple of the ways
def test_damages_of_seven_rounds_damage_each_file_in_every_way(count: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for number in range(count):
        (tmp_path / "run" / f"{number}.bin").write_bytes(b"content")
    exhibit = damage.Exhibit(tmp_path, tmp_path, {("run", "predict"): ""})
    kinds: dict[Path, list[str]] = {}
    for one in damage.damages(exhibit, 7 * count, random.Random(0)):
        kinds.setdefault(one.path, []).append(one.kind)
    assert len(kinds) == count
    assert all(sorted(ways) == sorted(damage._ROUND) for ways in kinds.values())


def test_damage_short_form_is_never_accepted(exhibit: damage.Exhibit) -> None:
    for case in damage.damages(exhibit, 6, random.Random(5)):
        if ".tokens" not in case.path.parts:
            assert damage.check(exhibit, case) == [], case.describe(exhibit.runs_dir)


def test_damage_of_the_best_weights_is_made_good_by_continue(exhibit: damage.Exhibit) -> None:
    """They lie beside the checkpoints, each of which holds its own copy."""
    (name,) = {run for run, _ in exhibit.answers} - {"full"}
    weights = exhibit.runs_dir / name / "checkpoints" / "best.safetensors"
    assert damage.check(exhibit, damage.Damage(name, weights, damage.FLIPPED, 20_000)) == []


def test_damage_of_a_product_without_digests_is_found(
    exhibit: damage.Exhibit, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = exhibit.runs_dir / "full" / "adapter" / "adapter_model.safetensors"
    case = damage.Damage("full", weights, damage.FLIPPED, 8 * weights.stat().st_size - 10)
    assert damage.check(exhibit, case) == []
    monkeypatch.setattr(manifests, "_verify_file", lambda folder, name, entry: None)
    assert "'predict' gives another answer" in damage.check(exhibit, case)


def test_inputs_short_form_is_refused_by_name(interrupted: tuple[inputs.Inputs, Path]) -> None:
    assert len(CHANGES) >= 50
    for change in random.Random(3).sample(CHANGES, 5):
        assert inputs.check(*interrupted, change) == [], change.name


def test_inputs_of_a_product_that_compares_nothing_are_accepted(
    interrupted: tuple[inputs.Inputs, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "check_inputs", lambda before, now: None)
    change = next(change for change in CHANGES if change.name == "a label renamed, the order turned")
    assert inputs.check(*interrupted, change)[0] == "accepted"


class ShortTurns(soak.Turns):
    """Turns of a run that is trained already, in one worker."""

    finished: Run
    after: Callable[[], object] = staticmethod(lambda: None)

    def train(self) -> str:
        return shutil.copytree(self.finished.folder, self.bench.runs_dir / "copy").name

    def use(self, run_id: str, *, onnx: bool) -> None:
        self.bench.predict(soak.TEXT, run_id, "adapter")
        soak.consume(self.bench.merge(run_id))
        self.after()


def test_soak_short_form_keeps_nothing_and_a_leak_is_found(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked: list[Any] = []
    with soak.opened(tmp_path, ShortTurns) as turns:
        turns.finished = place.finished
        samples = _samples(turns, 4)
        assert soak.problems_of(samples) == []
        turns.after = lambda: leaked.append((tmp_path / "model" / "config.json").open())
        assert any("open files grew" in problem for problem in soak.problems_of(_samples(turns, 4)))
        monkeypatch.setattr(runs, "delete", lambda runs_dir, run_id: None)
        (left,) = {sample.files for sample in _samples(turns, 1)}
        assert left == ("copy",)
    for file in leaked:
        file.close()


def _samples(turns: soak.Turns, count: int) -> list[soak.Sample]:
    samples = []
    for number in range(count):
        turns.take(number)
        samples.append(soak.take_sample(turns.bench))
    return samples


def test_soak_memory_that_grows_is_found() -> None:
    steady = [soak.Sample(100_000_000 + number % 3, (20, 30), ()) for number in range(40)]
    assert soak.problems_of(steady) == []
    growing = [soak.Sample(100_000_000 + 500_000 * number, (20, 30), ()) for number in range(40)]
    assert soak.problems_of(growing) == ["memory grew from 106 MB to 118 MB"]


def test_children_bug_error_and_kill_are_told_apart() -> None:
    def refuse(report: Any) -> None:
        report("begun")
        raise RunError("The disk is full.")

    child = run_child(refuse)
    assert [(message.kind, message.text) for message in child.messages] == [
        ("begun", ""),
        ("error", "The disk is full."),
    ]
    bug = run_child(lambda report: {}["x"])
    assert (bug.first("bug") or "").startswith("KeyError: 'x' at test_batteries.py")


def test_results_are_written_with_bounds_and_machine(tmp_path: Path) -> None:
    results = [
        BatteryResult("kills", 1000, (), (("while saving", 300),), "0 lost", 120.0),
        BatteryResult("faults", 10, ("ENOSPC at operation 3: torn",), (), "whole", 2.0),
        BatteryResult("damage", 0, (), (), "whole", 0.0),
    ]
    assert table(results).splitlines()[2:] == [
        "| kills | 1,000 | 0 lost | 0 failures | below 0.30% | 2.0 min |  |",
        "| faults | 10 | whole | **1 failures** |  | 2 s |  |",
        "| damage | 0 | whole | **no case ran** |  | 0 s |  |",
    ]
    write_results(tmp_path, results, "make batteries")
    assert "cores" in (tmp_path / "batteries.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "batteries.json").read_text(encoding="utf-8"))
    assert [battery["passed"] for battery in written["batteries"]] == [True, False, False]
    assert written["batteries"][0]["upper_bound_95"] == 0.003
    assert all(battery["date"] and "cores" in battery["machine"] for battery in written["batteries"])
    again = BatteryResult("faults", 20, (), (), "whole", 3.0)
    write_results(tmp_path, [again], "make batteries ARGS=faults")
    written = json.loads((tmp_path / "batteries.json").read_text(encoding="utf-8"))
    assert [(battery["name"], battery["count"]) for battery in written["batteries"]] == [
        ("kills", 1000), ("faults", 20), ("damage", 0),
    ]  # fmt: skip


def test_foreign_short_form_answers_nothing() -> None:
    result = foreign.run(0.02)
    assert result.failures == ()
    assert dict(result.outcomes)["of a browser, arrived"] > 5


def test_foreign_requests_to_a_product_without_the_guard_are_answered() -> None:
    result = foreign.run(0.01, broken="guard.RequestGuard._refuse = lambda self, scope: None")
    assert len(result.failures) > result.count * 0.9
    assert all(failure.startswith("answered: ") for failure in result.failures)


def test_guesses_short_form_are_throttled_and_the_right_one_enters() -> None:
    result = guesses.run(0.06, most_seconds=1.0)
    assert result.failures == ()
    assert dict(result.outcomes)["turned away"] > 300


def test_guesses_against_a_product_that_never_waits_are_all_checked() -> None:
    result = guesses.run(0.06, broken=True)
    assert "600 of 600 guesses were compared with the password" in result.failures


_BUG_AND_DELAY = """
import time
from peft_core import visitor_uploads, workbench
def check_rows(self, folder):
    raise ValueError("a bug")
visitor_uploads.VisitorUploads._check_rows = check_rows
list_runs = workbench.Workbench.list_runs
def list_slowly(self):
    time.sleep(1.5)
    return list_runs(self)
workbench.Workbench.list_runs = list_slowly
"""


def test_bombs_short_form_are_answered() -> None:
    """Beside other tests a click may take longer than the full battery allows."""
    result = bombs.run(0.02, seconds=10, longest_click=60)
    assert result.failures == ()
    outcomes = dict(result.outcomes)
    assert outcomes["upload: answered"] == 4 and outcomes["look: answered"] > 0
    assert outcomes["MB of the worker that reads"] > 100


def test_bombs_at_a_product_with_a_bug_and_slow_clicks_find_both() -> None:
    result = bombs.run(0.005, seconds=10, longest_click=1.4, broken=_BUG_AND_DELAY)
    failures = "; ".join(result.failures)
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
    result = forged.run(0.02)
    assert result.failures == ()
    assert result.count > 60 and dict(result.outcomes)["functions called"] > 5


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
    imports = "from gradio import utils\nfrom peft_core import run_access\n"
    failures = forged.run(share, broken=imports + broken, only=(family,)).failures
    assert any(failure.startswith(f"{family} got the secret of the {secret}: ") for failure in failures)


def test_filler_short_form_leaves_room_for_others() -> None:
    result = filler.run(0.03)
    assert result.failures == ()
    outcomes = dict(result.outcomes)
    assert outcomes["visitors served"] == 6
    assert outcomes["of the filler, granted"] > 5 and outcomes["of the filler, refused"] > 5


def test_visitors_short_form_reach_nothing_of_others_and_are_served(place: Workplace) -> None:
    result = visitors.run(place, 0.05, operations=12)
    assert result.failures == ()
    outcomes = dict(result.outcomes)
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
def test_visitors_of_a_product_that_keeps_them_apart_wrongly_find_it(
    broken: str, failures: dict[str, str], place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_client, "LONGEST_ANSWER", 20.0)  # of a visitor whose messages another takes
    imports = "from peft_core.access.sessions import Sessions\nfrom peft_core.run_access import RunAccess\n"
    result = visitors.run(place, 0.03, operations=4, only=list(failures), broken=imports + broken)
    for failure in failures.values():
        assert [each for each in result.failures if failure in each], (failure, result.failures[:5])


def test_load_short_form_answers_all_in_time(place: Workplace) -> None:
    """The limit is that of a machine with other work; the training has no one to be compared with."""
    result = load.run(0.2, visitors=10, alone=0, most_seconds=20.0, finished=place.finished)
    assert result.failures == ()
    assert dict(result.outcomes)["looks"] > 10


def test_load_of_a_product_whose_answers_wait_is_found(place: Workplace) -> None:
    waiting = (
        "import time\nfrom peft_core.workbench import Workbench\nstatus = Workbench.status\n"
        "Workbench.status = lambda self, run_id: (time.sleep(5), status(self, run_id))[1]\n"
    )
    result = load.run(0.2, visitors=5, alone=0, most_seconds=3.0, finished=place.finished, broken=waiting)
    assert any("of the clicks took up to" in failure for failure in result.failures)


def _measures(**changes: Any) -> load.Measures:
    steady = {"clicks": {"status": [0.1] * 100}, "polls": [0.01] * 100, "alone": [20.0, 20.2]}
    return load.Measures(**{**steady, "loaded": [20.4, 20.5], **changes})


def test_load_problems_name_what_is_worse_than_it_may_be() -> None:
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
def test_filler_of_a_product_that_checks_less_finds_it(
    owner: Any, name: str, broken: Any, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    sentences = filler.run(0.02).failures
    assert [words for words in failures if not any(words in sentence for sentence in sentences)] == []

"""Run a short form of each battery, and check that each detects a product that was broken on purpose."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batteries import (
    damage,
    fault_layer,
    faults,
    inputs,
    kills,
    resume,
    soak,
)
from batteries.children import run_child
from batteries.durability import unsynced_renames
from batteries.fault_layer import Operation
from batteries.input_changes import CHANGES
from batteries.result import BatteryResult
from batteries.table import table, write_results
from batteries.workplace import Workplace, workplace
from peft_core import runs
from peft_core.errors import RunError
from peft_core.files import atomic, manifests
from peft_core.runs import Run, run
from peft_core.training import setup, trainer

NO_FSYNC = "from peft_core.files import atomic\natomic.fsync_tree = lambda folder: None\n"


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
    """Replacement of `atomic_folder` without a staging folder and a rename."""
    atomic.staging_path(final)  # the kill is triggered at this call
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir(parents=True)
    yield final
    atomic.fsync_tree(final)


def test_kills_short_form_has_no_failures(place: Workplace) -> None:
    battery_result = kills.run(place, 0.005)
    assert battery_result.failures == ()
    assert (battery_result.count, dict(battery_result.outcomes)) == (5, {"at any time": 3, "while saving": 2})


def test_kills_with_in_place_writes_find_torn_folders(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "atomic_folder", written_in_place)
    battery = kills.Battery(place, random.Random(0))
    target = ("train", kills.STAGING, "adapter")
    battery.lengths |= kills.measure_stages(battery, "train")
    problems = [problem for _ in range(4) for problem in kills.kill_once(battery, target) or []]
    assert any(" is torn: " in problem for problem in problems), problems


def test_resume_short_form_gives_the_same_bytes(place: Workplace) -> None:
    battery_result = resume.run(place, 0.02)
    assert battery_result.failures == ()
    assert battery_result.count == 2


def test_resume_without_loaded_weights_is_detected(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in resume.cases() if case.name == "LoRA, plain")
    reference = resume.train_uninterrupted(place, case)
    monkeypatch.setattr(trainer, "load_trained", lambda model, path: None)
    (problem,) = resume.check(place, case, reference, random.Random(1))
    assert "its adapter has other weights" in problem


def test_faults_short_form_keeps_last_good_state() -> None:
    battery_result = faults.run(0.03, only=("update the state", "save a decision rule", "zip"))
    assert battery_result.failures == ()
    assert battery_result.count > 5


def test_faults_without_fsync_find_unsynced_rename() -> None:
    """A kill cannot reveal it, because the system keeps what a dead process wrote; the call order can."""
    battery_result = faults.run(0.01, prelude=NO_FSYNC, only=("zip",))
    assert any("was not synced before adapter was renamed" in failure for failure in battery_result.failures)


def test_faults_without_a_compiler_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_layer.shutil, "which", lambda name: None)
    battery_result = faults.run(0.1)
    assert not battery_result.passed and battery_result.failures == (fault_layer.NO_COMPILER,)


def test_durability_folder_not_synced_after_rename_is_reported() -> None:
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


def test_durability_new_parent_not_synced_is_reported() -> None:
    staged = "/runs/a/checkpoints/.staging-1-boot-1-0123abcd-b/b"
    created = Operation("mkdir", "/runs/a/checkpoints")
    rest = [
        Operation("mkdir", staged),
        Operation("fsync", staged, inode=6),
        Operation("rename", staged, "/runs/a/checkpoints/b"),
        Operation("fsync", "/runs/a/checkpoints"),
    ]
    problem = "checkpoints/ is new, and its name was not synced"
    assert unsynced_renames([created, *rest]) == (1, [problem])
    assert unsynced_renames([created, Operation("fsync", "/runs/a"), *rest]) == (1, [])


@pytest.mark.parametrize("count", [13, 62])  # 6 more than a multiple of the kinds of damage
def test_damages_of_seven_rounds_damage_each_file_in_every_way(count: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for number in range(count):
        (tmp_path / "run" / f"{number}.bin").write_bytes(b"content")
    exhibit = damage.Exhibit(tmp_path, tmp_path, {("run", "predict"): ""})
    kinds: dict[Path, list[str]] = {}
    for case in damage.damages(exhibit, 7 * count, random.Random(0)):
        kinds.setdefault(case.path, []).append(case.kind)
    assert len(kinds) == count
    assert all(sorted(ways) == sorted(damage._ROUND) for ways in kinds.values())


def test_damage_short_form_is_never_accepted(exhibit: damage.Exhibit) -> None:
    for case in damage.damages(exhibit, 6, random.Random(5)):
        if ".tokens" not in case.path.parts:
            assert damage.check(exhibit, case) == [], case.describe(exhibit.runs_dir)


def test_damage_of_best_weights_is_repaired_by_continue(exhibit: damage.Exhibit) -> None:
    """The best weights are stored beside the checkpoints, each of which has its own copy."""
    (name,) = {run for run, _ in exhibit.answers} - {"full"}
    weights = exhibit.runs_dir / name / "checkpoints" / "best.safetensors"
    assert damage.check(exhibit, damage.Damage(name, weights, damage.FLIPPED, 20_000)) == []


def test_damage_without_digest_check_is_detected(
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


def test_inputs_without_input_check_are_accepted(
    interrupted: tuple[inputs.Inputs, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "check_inputs", lambda before, now: None)
    change = next(change for change in CHANGES if change.name == "a label renamed, the order turned")
    assert inputs.check(*interrupted, change)[0] == "accepted"


class ShortTurns(soak.Turns):
    """Soak turns with an already trained run, in one worker."""

    finished: Run
    after: Callable[[], object] = staticmethod(lambda: None)

    def train(self) -> str:
        return shutil.copytree(self.finished.folder, self.bench.runs_dir / "copy").name

    def use(self, run_id: str, *, onnx: bool) -> None:
        self.bench.predict(soak.TEXT, run_id, "adapter")
        soak.consume(self.bench.merge(run_id))
        self.after()


def test_soak_short_form_leaves_nothing_and_detects_leak(
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
        (remaining,) = {sample.files for sample in _samples(turns, 1)}
        assert remaining == ("copy",)
    for file in leaked:
        file.close()


def _samples(turns: soak.Turns, count: int) -> list[soak.Sample]:
    samples = []
    for number in range(count):
        turns.take(number)
        samples.append(soak.take_sample(turns.bench))
    return samples


def test_soak_with_growing_memory_reports_it() -> None:
    steady = [soak.Sample(100_000_000 + number % 3, (20, 30), ()) for number in range(40)]
    assert soak.problems_of(steady) == []
    growing = [soak.Sample(100_000_000 + 500_000 * number, (20, 30), ()) for number in range(40)]
    assert soak.problems_of(growing) == ["memory grew from 106 MB to 118 MB"]


def test_run_child_distinguishes_error_from_bug() -> None:
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
    rerun = BatteryResult("faults", 20, (), (), "whole", 3.0)
    write_results(tmp_path, [rerun], "make batteries ARGS=faults")
    written = json.loads((tmp_path / "batteries.json").read_text(encoding="utf-8"))
    assert [(battery["name"], battery["count"]) for battery in written["batteries"]] == [
        ("kills", 1000), ("faults", 20), ("damage", 0),
    ]  # fmt: skip

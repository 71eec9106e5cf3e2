"""The disk of a public demo: quotas, reservations, and the order in which data is removed."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.disk import usage as disk_usage
from peft_core.disk.expiry import EXPIRED_FILE, MAX_MARKS
from peft_core.disk.storage import Quotas, Storage, Usage
from peft_core.disk.usage import FolderSizes, describe_bytes, total_bytes
from peft_core.errors import StorageError
from peft_core.runs import FINISHED, KILLED, SCHEDULED, Run
from peft_core.runs.ownership import Ownership, write_ownership
from peft_core.runs.run import Run as RunClass
from peft_core.runs.trash import TRASH

ALICE, BOB = "a" * 64, "b" * 64
MB, HOUR, DAY = 1 << 20, 3600.0, 86_400.0
NOW = 1_800_000_000.0
QUOTAS = Quotas(visitor_bytes=20 * MB, total_bytes=40 * MB, min_free_bytes=0)
FULL = "This public demo's disk is full; try again in an hour, when older runs have been removed."


class Demo:
    """A folder of runs and uploads of chosen sizes, with a settable clock and free space."""

    def __init__(self, folder: Path, quotas: Quotas = QUOTAS) -> None:
        self.runs_dir, self.now, self.free = folder, NOW, 10**15
        self.storage = Storage(folder, quotas, clock=lambda: self.now, free_bytes=lambda: self.free)

    def run(
        self, owner: str | None = ALICE, megabytes: float = 1, *, age: float = 2 * HOUR, **state: Any
    ) -> Run:
        """Create a run that ended `age` seconds ago."""
        config = TrainConfig.from_dict({"dataset_name": str(state.pop("upload", "glue"))})
        run = runs.create(self.runs_dir, config, owner=owner)
        ended = self.now - age
        state = {"status": FINISHED, "created": ended - 60, "started": ended - 50, "ended": ended, **state}
        run.update(**state)
        write(run.adapter / "weights", megabytes)
        return run

    def upload(
        self, owner: str | None = ALICE, megabytes: float = 1, *, age: float = 2 * HOUR, name: str = "a"
    ) -> Path:
        folder = self.runs_dir / ".uploads" / (owner or "") / f"{name}-{'0' * 12}"
        write(folder / "rows.csv", megabytes)
        used = self.now - age
        os.utime(folder, (used, used))
        return folder

    def refusal(self, owner: str | None, megabytes: float, what: str = "upload") -> str:
        with pytest.raises(StorageError) as refused, self.storage.reserve(owner, int(megabytes * MB), what):
            pass
        return str(refused.value)

    def fit(self, owner: str | None, megabytes: float, **options: Any) -> None:
        with self.storage.reserve(owner, int(megabytes * MB), "upload", **options):
            pass


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path / "runs")


def write(path: Path, megabytes: float) -> None:
    """Write a sparse file of this size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(int(megabytes * MB))


def share(run: Run) -> None:
    write_ownership(run.folder, Ownership(owner=ALICE, link_nonce="n", link_sha256="f" * 64))


def test_usage_counts_only_runs_and_uploads_of_visitor(demo: Demo) -> None:
    for owner in (ALICE, ALICE, BOB, None):
        demo.run(owner, 2)
    demo.upload(ALICE, 3)
    demo.upload(None, 5)
    usage = demo.storage.usage(ALICE)
    assert (usage.runs, usage.uploads, usage.quota_bytes) == (2, 1, 20 * MB)
    assert 4 * MB < usage.run_bytes < 4.2 * MB and 3 * MB < usage.upload_bytes < 3.1 * MB
    assert usage.total_bytes == usage.run_bytes + usage.upload_bytes
    host = demo.storage.usage(None)
    assert (host.runs, host.uploads) == (1, 1) and host.upload_bytes > 5 * MB


def test_usage_describe_names_size_quota_and_counts() -> None:
    usage = Usage(11_000_000, 1_000_000, 12_000_000, 3, 1, 2_000_000_000)
    assert usage.describe() == "You use 12 MB of 2 GB: 3 runs, 1 upload."
    assert replace(usage, total_bytes=0, runs=1, uploads=0).describe() == (
        "You use 0 MB of 2 GB: 1 run, 0 uploads."
    )


def test_quotas_describe_names_sizes_and_lifetimes() -> None:
    assert Quotas().describe() == (
        "You may use 4 GB; a run is removed 7 days after it ended, a shared one after 30 days, an upload 7 "
        "days after it was used last, and earlier if the disk is full."
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 MB"),
        (4096, "4.1 KB"),
        (999_400, "999 KB"),
        (999_900, "1 MB"),
        (2e9, "2 GB"),
        (1.94e9, "1.9 GB"),
    ],
)
def test_describe_bytes_rounds_to_readable_units(count: float, text: str) -> None:
    assert describe_bytes(count) == text


def test_reserve_over_quota_is_refused_for_that_visitor_only(demo: Demo) -> None:
    demo.run(ALICE, 18)
    assert demo.refusal(ALICE, 3) == (
        "You use 19 MB of 21 MB and this upload needs about 3.1 MB more; delete a run."
    )
    demo.fit(ALICE, 1.5)
    demo.fit(BOB, 3)
    demo.fit(None, 20)


def test_reserve_of_more_than_whole_quota_error_names_quota(demo: Demo) -> None:
    assert demo.refusal(ALICE, 21, "training") == (
        "This training needs about 22 MB, and a visitor of this public demo may use 21 MB; take a smaller "
        "one."
    )


def test_deleted_run_frees_quota_of_owner(demo: Demo) -> None:
    run = demo.run(ALICE, 18)
    demo.refusal(ALICE, 3)
    runs.delete(demo.runs_dir, run.run_id)
    demo.fit(ALICE, 3)
    assert (demo.runs_dir / TRASH / run.run_id).is_dir(), "there was room for both"


def test_reserve_restore_over_quota_raises_storage_error(demo: Demo) -> None:
    run = demo.run(ALICE, 12)
    runs.delete(demo.runs_dir, run.run_id)
    with demo.storage.reserve_restore(run.run_id):
        runs.restore(demo.runs_dir, run.run_id)
    runs.delete(demo.runs_dir, run.run_id)
    demo.run(ALICE, 12)
    with pytest.raises(StorageError, match="You use 13 MB of 21 MB and this run needs about 13 MB more"):
        demo.storage.reserve_restore(run.run_id)


def test_reserve_over_quota_removes_expired_run(demo: Demo) -> None:
    old = demo.run(ALICE, 18, age=8 * DAY)
    demo.fit(ALICE, 3)
    assert not old.folder.exists() and demo.storage.was_expired(old.run_id)


def test_reserve_in_full_demo_is_refused_and_removes_nothing(demo: Demo) -> None:
    recent = [demo.run(owner, 13, age=HOUR / 2) for owner in (ALICE, BOB, None)]
    spare = demo.run("c" * 64, 0.5, age=5 * HOUR)
    assert demo.refusal("d" * 64, 3) == FULL
    assert all(run.folder.is_dir() for run in [*recent, spare])


def test_reserve_frees_space_in_order_of_last_use(demo: Demo, tmp_path: Path) -> None:
    """Trash, overdue runs, caches, and then the oldest ended runs and unused uploads."""
    demo = Demo(tmp_path / "ordered", replace(QUOTAS, visitor_bytes=100 * MB))
    trashed, overdue = demo.run(megabytes=1), demo.run(megabytes=1, age=8 * DAY)
    oldest, upload = demo.run(megabytes=1, age=6 * DAY), demo.upload(age=5 * DAY)
    later, latest = demo.run(megabytes=1, age=4 * DAY), demo.run(megabytes=1, age=HOUR + 1)
    runs.delete(demo.runs_dir, trashed.run_id)
    tokens, zips = demo.runs_dir / ".tokens" / "a.arrow", latest.folder / "downloads" / "adapter"
    write(tokens, 1)
    write(zips / "adapter.zip", 1)
    for number, path in enumerate((tokens, zips)):
        os.utime(path, (NOW - DAY + number, NOW - DAY + number))
    places = [demo.runs_dir / TRASH / trashed.run_id, overdue.folder, tokens, zips]
    places += [oldest.folder, upload, later.folder, latest.folder]
    order: list[Path] = []
    used = sum(demo.storage.usage(owner).total_bytes for owner in (ALICE, None)) + 2.05 * MB
    for number in range(len(places)):
        demo.fit(None, 40.2 - (used / MB) + number)
        order += [path for path in places if not path.exists() and path not in order]
    assert order == places
    assert demo.storage.was_expired(oldest.run_id) and not demo.storage.was_expired(trashed.run_id)
    assert demo.refusal(None, 41) == FULL


def protected_runs(demo: Demo) -> dict[str, Run]:
    shared = demo.run(ALICE, 1, age=2 * DAY)
    share(shared)
    damaged = demo.run(ALICE, 1, age=2 * DAY)
    (damaged.folder / "owner.json").write_text("{}")
    return {
        "waits": demo.run(ALICE, 1, age=2 * DAY, status=SCHEDULED, ended=None),
        "trains": start_training(demo.run(ALICE, 1, age=2 * DAY)),
        "is shared": shared,
        "is the host's": demo.run(None, 1, age=2 * DAY),
        "may be the host's": damaged,
        "is young": demo.run(ALICE, 1, age=HOUR / 2),
    }


def start_training(run: Run) -> Run:
    """Mark a run as in training by this process, and return it."""
    in_training = runs.RunInTraining(run.folder)
    in_training.begin()
    return run


def test_reserve_never_removes_protected_runs_and_uploads(demo: Demo) -> None:
    protected = protected_runs(demo)
    uploads = {name: demo.upload(name=name) for name in ("waited", "trained")}
    demo.run(ALICE, 0, status=SCHEDULED, ended=None, upload=uploads["waited"])
    start_training(demo.run(ALICE, 0, upload=uploads["trained"]))
    uploads["new"] = demo.upload(name="new", age=60)
    uploads["host's"] = demo.upload(None, name="host", age=30 * DAY)
    spare, unused = demo.run(BOB, 3), demo.upload(BOB, 3)
    demo.fit(None, 40.0 - 12)
    assert not spare.folder.exists() and not unused.exists()
    assert demo.refusal(None, 35) == FULL
    assert [name for name, run in protected.items() if not run.folder.is_dir()] == []
    assert [name for name, folder in uploads.items() if not folder.is_dir()] == []


def test_expire_removes_and_returns_overdue_runs_and_uploads(demo: Demo) -> None:
    protected = protected_runs(demo) | {"is of this week": demo.run(BOB, age=6 * DAY)}
    old, upload = demo.run(ALICE, age=8 * DAY), demo.upload(age=8 * DAY)
    used = demo.upload(age=8 * DAY, name="used")
    demo.run(BOB, 0, age=DAY, upload=used)
    assert sorted(demo.storage.expire()) == sorted([old.run_id, upload.name])
    assert demo.storage.was_expired(old.run_id)
    assert not any(demo.storage.was_expired(run.run_id) for run in protected.values())
    assert [name for name, run in protected.items() if not run.folder.is_dir()] == [] and used.is_dir()
    demo.now += 31 * DAY
    removed = demo.storage.expire()
    assert {protected["is shared"].run_id, protected["is young"].run_id} <= set(removed)
    assert all(protected[name].folder.is_dir() for name in ("waits", "trains", "is the host's"))


def test_expire_empties_trash_after_an_hour_and_empty_folders_later(demo: Demo) -> None:
    run = demo.run()
    runs.delete(demo.runs_dir, run.run_id)
    folder = demo.upload(BOB).parent
    shutil.rmtree(folder / os.listdir(folder)[0])
    demo.now = time.time() + 1800
    assert demo.storage.expire() == [] and os.listdir(demo.runs_dir / TRASH) == [run.run_id]
    demo.now += 1801
    demo.storage.expire()
    assert os.listdir(demo.runs_dir / TRASH) == [] and folder.is_dir()
    demo.now += 8 * DAY
    demo.storage.expire()
    assert not folder.exists()


def test_expired_marks_are_bounded_and_may_be_damaged(demo: Demo, tmp_path: Path) -> None:
    expiry = demo.storage._expiry
    demo.runs_dir.mkdir()
    run = demo.run(age=8 * DAY)
    first = expiry.list_overdue(demo.storage._folder.inventory(), ())[0]
    expiry.mark([first])
    assert demo.storage.was_expired(run.run_id)
    expiry.mark([first._replace(path=Path(f"run-{number}")) for number in range(MAX_MARKS)])
    assert not demo.storage.was_expired(run.run_id) and demo.storage.was_expired("run-0")
    (demo.runs_dir / EXPIRED_FILE).write_bytes(b"\xff")
    assert not demo.storage.was_expired("run-0")


def test_concurrent_reservations_stay_within_quota(demo: Demo) -> None:
    barrier, reservations = threading.Barrier(20), []

    def reserve(number: int) -> None:
        barrier.wait()
        try:
            reservations.append(demo.storage.reserve(ALICE, 3 * MB, "upload"))
        except StorageError as error:
            assert "You use 19 MB of 21 MB" in str(error)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(reserve, range(20)))
    assert len(reservations) == 6
    reservations[0].release()
    reservations[0].release()
    demo.fit(ALICE, 3)
    assert demo.storage.usage(ALICE).total_bytes == 0


def test_reservations_of_many_visitors_stay_within_total(demo: Demo) -> None:
    demo.runs_dir.mkdir()
    reserved = [demo.storage.reserve(f"{number:064x}", 10 * MB - 4096, "upload") for number in range(4)]
    assert demo.refusal(BOB, 1) == FULL
    with reserved[0]:
        pass
    demo.fit(BOB, 9)


def test_training_reservation_counts_until_run_has_ended(demo: Demo) -> None:
    with demo.storage.reserve(ALICE, 15 * MB, "training") as reservation:
        run = demo.run(ALICE, 0, status=SCHEDULED, ended=None)
        reservation.keep_until_ended(run.run_id)
    assert "You use 16 MB" in demo.refusal(ALICE, 6)
    write(run.folder / "checkpoints" / "weights", 10)
    assert "You use 16 MB" in demo.refusal(ALICE, 6), "what was written was reserved"
    run.update(status=KILLED)
    demo.fit(ALICE, 6)


@pytest.mark.parametrize("act", [lambda run: runs.remove(run.folder.parent, run.run_id), lambda run: None])
def test_training_reservation_of_failed_or_deleted_run_is_released(
    act: Callable[[Run], Any], demo: Demo
) -> None:
    with demo.storage.reserve(ALICE, 15 * MB, "training") as reservation:
        run = demo.run(ALICE, 0, status=KILLED)
        reservation.keep_until_ended(run.run_id)
    act(run)
    demo.fit(ALICE, 15)


def test_reservation_protects_folders_in_use(demo: Demo) -> None:
    run, upload = demo.run(ALICE, 15, age=2 * DAY), demo.upload(BOB, 15, age=2 * DAY)
    write(run.folder / "downloads" / "adapter" / "a.zip", 1)
    os.utime(run.folder / "downloads" / "adapter", (1, 1))
    with demo.storage.reserve(None, MB, "merge", uses=[run.folder, upload]):
        assert demo.refusal(None, 12) == FULL
    assert (run.folder / "downloads" / "adapter").is_dir()
    demo.fit(None, 12, uses=[upload])
    assert not run.folder.exists() and upload.is_dir()


def test_reserve_keeps_minimum_free_space(demo: Demo, tmp_path: Path) -> None:
    demo = Demo(tmp_path / "floor", replace(QUOTAS, min_free_bytes=10 * MB))
    run = demo.run(BOB, 4)
    demo.free = 12 * MB
    demo.storage._free_bytes = lambda: demo.free + (0 if run.folder.exists() else 4 * MB)
    with demo.storage.reserve(ALICE, 2 * MB, "upload"):
        assert run.folder.is_dir()
        with demo.storage.reserve(ALICE, 3 * MB, "upload"):
            assert not run.folder.exists()
            assert demo.refusal(ALICE, 2) == FULL


def test_storage_by_default_measures_free_space_of_disk(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "not" / "yet", replace(QUOTAS, min_free_bytes=shutil.disk_usage("/").total))
    with pytest.raises(StorageError, match="disk is full"):
        storage.reserve(None, 1, "upload")
    Storage(tmp_path / "not" / "yet", QUOTAS).reserve(None, 1, "upload")


def test_run_shared_or_continued_during_cleanup_is_not_removed(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, continued, spare = (demo.run(BOB, 5, age=age * DAY) for age in (4, 3, 2))
    upload = demo.upload(BOB, 5, age=1.5 * DAY)
    original = demo.storage._expiry.list_spare

    def list_spare(*arguments: Any) -> Any:
        spare_items = original(*arguments)
        share(shared)
        continued.update(status=SCHEDULED)
        demo.run(BOB, 0, status=SCHEDULED, ended=None, upload=upload)
        return spare_items

    monkeypatch.setattr(demo.storage._expiry, "list_spare", list_spare)
    demo.fit(None, 22)
    assert shared.folder.is_dir() and continued.folder.is_dir() and upload.is_dir()
    assert not spare.folder.exists()


def test_expire_of_run_trained_by_another_process_is_skipped(demo: Demo) -> None:
    run = demo.run(age=8 * DAY)
    with run.lock():
        assert demo.storage.expire() == []
    assert demo.storage.expire() == [run.run_id]


def test_expire_waits_for_run_lock(tmp_path: Path) -> None:
    lock = threading.RLock()
    storage = Storage(tmp_path, QUOTAS, clock=lambda: NOW, run_lock=lock)
    run = Demo(tmp_path).run(age=8 * DAY)
    with lock, ThreadPoolExecutor(1) as pool:
        expired = pool.submit(storage.expire)
        time.sleep(0.2)
        assert run.folder.is_dir()
        lock.release()
        assert expired.result(timeout=20) == [run.run_id]
        lock.acquire()


def test_usage_of_run_deleted_while_measured_is_zero(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = demo.run(megabytes=3), demo.run(megabytes=2)
    state = RunClass.state

    def delete_and_read(measured_run: Run) -> Any:
        if measured_run == run and run.folder.exists():
            runs.store.remove_folder(run.folder)
        return state(measured_run)

    monkeypatch.setattr(RunClass, "state", delete_and_read)
    assert 2 * MB < demo.storage.usage(ALICE).total_bytes < 2.1 * MB
    assert other.folder.is_dir()


def test_usage_of_unreadable_folder_is_zero(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scandir = demo.run(ALICE, 3, age=8 * DAY), os.scandir
    demo.run(ALICE, 2)

    def fail_for_adapter(path: Any = ".") -> Any:
        if str(path).startswith(str(run.adapter)):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail_for_adapter)
    assert 2 * MB < demo.storage.usage(ALICE).total_bytes < 2.1 * MB
    demo.storage.expire()
    demo.fit(ALICE, 15)


def test_reserve_skips_folder_that_cannot_be_removed(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, spare = demo.run(BOB, 5, age=3 * DAY), demo.run(BOB, 5, age=2 * DAY)
    rename = Path.rename

    def fail_for_stuck_run(path: Path, target: Path) -> Any:
        if path == stuck.folder:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_stuck_run)
    demo.fit(None, 33)
    assert stuck.folder.is_dir() and not spare.folder.exists()
    assert not demo.storage.was_expired(stuck.run_id)


def test_folder_sizes_count_hard_links_once_and_symlinks_never(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "other"
    write(first / "weights", 5)
    second.mkdir()
    os.link(first / "weights", first / "again")
    os.link(first / "weights", second / "weights")
    write(second / "own", 1)
    (second / "link").symlink_to(first)
    sizes = FolderSizes()
    assert 5 * MB <= total_bytes([sizes.measure(first)]) < 5.1 * MB
    assert 6 * MB <= total_bytes([sizes.measure(second)]) < 6.1 * MB
    assert 6 * MB <= total_bytes([sizes.measure(first), sizes.measure(second)]) < 6.1 * MB


def test_folder_sizes_of_small_files_count_whole_blocks(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert FolderSizes().measure(tmp_path).own == 12 * 4096
    assert FolderSizes().measure(tmp_path / "0").own == 4096
    assert FolderSizes().measure(tmp_path / "gone").own == 0


def test_folder_sizes_are_remeasured_only_after_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a" / "b" / "weights", 1)
    sizes, walks = FolderSizes(), []
    walk = disk_usage._walk
    monkeypatch.setattr(disk_usage, "_walk", lambda name: walks.append(name) or walk(name))
    sizes.measure(tmp_path)
    sizes.measure(tmp_path)
    assert len(walks) == 2, "a folder that has just changed may change again within one tick of the clock"
    time.sleep(0.15)
    before = sizes.measure(tmp_path)
    assert sizes.measure(tmp_path) == before and len(walks) == 3
    write(tmp_path / "a" / "b" / "more", 1)
    assert sizes.measure(tmp_path).own >= before.own + MB
    shutil.rmtree(tmp_path / "a")
    assert sizes.measure(tmp_path).own == 4096
    time.sleep(0.15)
    sizes.measure(tmp_path)
    sizes.forget_missing()
    assert list(sizes._walks) == [str(tmp_path)]


def test_usage_of_run_in_training_is_always_remeasured(demo: Demo) -> None:
    run = demo.run(ALICE, 1, status=SCHEDULED, ended=None)
    time.sleep(0.15)
    before = demo.storage.usage(ALICE).total_bytes
    with (run.adapter / "weights").open("ab") as file:
        file.truncate(4 * MB)
    assert demo.storage.usage(ALICE).total_bytes == before + 3 * MB


def test_usage_of_500_unchanged_runs_takes_at_most_50_ms(demo: Demo) -> None:
    template = demo.run(BOB, 0)
    for name in ("evaluation", "merged", "downloads/adapter", "downloads/merged"):
        (template.folder / name).mkdir(parents=True)
        for number in range(4):
            (template.folder / name / f"{number}.json").write_text("{}")
    for number in range(500):
        shutil.copytree(template.folder, demo.runs_dir / f"run-{number}")
    time.sleep(0.15)
    assert demo.storage.usage(BOB).runs == 501
    seconds = []
    for _ in range(5):
        start = time.process_time()  # CPU time excludes other processes
        demo.storage.usage(BOB)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05, f"it took {1000 * min(seconds):.0f} ms"


def test_expire_and_reserve_with_broken_run_folders_succeed(demo: Demo) -> None:
    empty, other = demo.runs_dir / "empty", demo.run(ALICE, age=8 * DAY)
    empty.mkdir()
    (demo.runs_dir / "file").write_text("x")
    os.mkfifo(demo.runs_dir / "pipe")
    (other.folder / "config.json").write_bytes(b"\xff")
    assert demo.storage.expire() == [other.run_id]
    demo.fit(ALICE, 1)
    assert empty.is_dir()

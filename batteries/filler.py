"""A visitor who fills the disk of a public demo, for a simulated hour, while others do honest work.

The demo is full of old runs at the start. The hour is simulated twice: on a large disk, where the quota of
all visitors binds, and on a small one, where the minimum of free space does. The filler uploads (also eight
files at once), trains, exports, shares, deletes and restores; every other visitor uploads, trains and exports
once. Runs are folders with real records and sparse files; quotas are those of the app divided by 1000. After
each step, and in the middle of each write, the folder is measured by `os.walk`.
"""

import os
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from batteries.result import BatteryResult
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.disk.storage import Quotas, Storage
from peft_core.errors import RunError, StorageError
from peft_core.runs import FINISHED, Run, RunInTraining
from peft_core.runs.ownership import Ownership, read_ownership, write_ownership
from peft_core.runs.store import UPLOADS

NAME = "a visitor who fills the disk, for a simulated hour"
PASSES_WHEN = "quotas and free space hold at every step, no protected run is lost, others are served"
STEPS = 300  # of an hour
VISITORS = 20  # in an hour
AT_ONCE = 8
ACTS = 4  # of the filler in each step
QUOTAS = Quotas(visitor_bytes=2_000_000, total_bytes=20_000_000, min_free_bytes=2_000_000)
DISKS = {"a large disk": 60_000_000, "a small disk": 21_000_000}
_HOUR, _DAY = 3600.0, 86_400.0
_OLD_RUNS = 20
_KB = 1000


@dataclass
class Training:
    """A waiting or training run: bytes that it writes, and steps until its end."""

    run: Run
    size: int
    steps: int
    upload: Path | None


@dataclass
class Hour:
    """One simulated hour of a demo on a disk of so many bytes.

    Attributes:
        protected_until: the time until which each folder must exist; None: always.
    """

    storage: Storage
    disk: int
    random: random.Random
    now: float
    trainings: list[Training] = field(default_factory=list)
    protected_until: dict[Path, float | None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def runs_dir(self) -> Path:
        return self.storage.runs_dir

    def free_bytes(self) -> int:
        return self.disk - bytes_in(self.runs_dir)

    def upload(self, owner: str, size: int) -> Path | None:
        """Store an upload and return its folder. Raises StorageError."""
        name = f"rows-{self.random.getrandbits(48):012x}"
        folder = self.runs_dir / UPLOADS / owner / name
        with self.storage.reserve(owner, size, "upload"):
            write(folder / "rows.csv", size)
            os.utime(folder, (self.now, self.now))
        return folder

    def submit(self, owner: str, size: int, upload: Path | None = None) -> Run:
        """Create a run that trains from the next step on. Raises StorageError."""
        config = TrainConfig.from_dict({"dataset_name": str(upload or "rotten_tomatoes")})
        with self.storage.reserve(owner, size, "training", uses=[upload] if upload else []) as reservation:
            run = runs.create(self.runs_dir, config, owner=owner)
            reservation.keep_until_ended(run.run_id)
        self.trainings.append(Training(run, size - 60 * _KB, self.random.randint(1, 3), upload))
        return run

    def export(self, run: Run, owner: str, size: int) -> None:
        """Write a merged model while its bytes are reserved. Raises StorageError."""
        with self.storage.reserve(owner, size, "export", uses=[run.folder]):
            write(run.folder / "merged" / f"{self.random.getrandbits(32)}", size - 10 * _KB)
            self.check("in the middle of an export")

    def train(self) -> None:
        """Advance each submitted run by one step."""
        for training in list(self.trainings):
            training.steps -= 1
            in_training = RunInTraining(training.run.folder)
            if in_training.cached.state is None:
                in_training.begin()
            write(training.run.adapter / f"{training.steps}", training.size // 4)
            self.check("in the middle of a training")
            if training.steps <= 0:
                in_training.update(status=FINISHED, ended=self.now)
                self.trainings.remove(training)
                self.protected_until[training.run.folder] = self.now + _HOUR

    def check(self, when: str) -> None:
        """Record each quota that is exceeded and each protected folder that is lost."""
        sizes = bytes_by_owner(self.runs_dir)
        used = sizes.total()
        if used > QUOTAS.total_bytes:
            self.failures.append(f"{when} all take {used:,} bytes")
        if self.disk - used < QUOTAS.min_free_bytes:
            self.failures.append(f"{when} {self.disk - used:,} bytes are free")
        for owner, size in sizes.items():
            if owner is not None and size > QUOTAS.visitor_bytes:
                self.failures.append(f"{when} the visitor {owner[:4]} takes {size:,} bytes")
        unfinished = {training.run.folder for training in self.trainings}
        uploads = {training.upload for training in self.trainings if training.upload is not None}
        young = {path for path, until in self.protected_until.items() if until is None or until > self.now}
        for path in sorted(unfinished | uploads | young):
            if not path.is_dir():
                self.failures.append(f"{when} {path.name} is lost")
                self.protected_until.pop(path, None)


class Filler:
    """The visitor who fills the disk by every means."""

    def __init__(self, hour: Hour) -> None:
        self.hour, self.random, self.owner = hour, hour.random, "f" * 64
        self.deleted: list[str] = []

    def act(self) -> None:
        """Do one random action; a refused one is not repeated."""
        name = self.random.choice(("uploads", "uploads", "train", "export", "share", "delete", "restore"))
        try:
            getattr(self, name)()
            self.hour.outcomes["of the filler, granted"] += 1
        except StorageError:
            self.hour.outcomes["of the filler, refused"] += 1

    def uploads(self) -> None:
        """Upload eight files at once, each at most a quarter of the quota; raise the first refusal."""
        sizes = [self.random.randint(1, 500) * _KB for _ in range(AT_ONCE)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            uploads = [pool.submit(self.hour.upload, self.owner, size) for size in sizes]
        for upload in uploads:
            upload.result()

    def train(self) -> None:
        self.hour.submit(self.owner, self.random.randint(100, 900) * _KB)

    def export(self) -> None:
        for run in self._ended(2):
            self.hour.export(run, self.owner, self.random.randint(20, 900) * _KB)

    def share(self) -> None:
        """Share a run, which protects it from expiry."""
        for run in self._ended(1):
            link = Ownership(owner=self.owner, link_nonce="nonce", link_sha256="1" * 64)
            write_ownership(run.folder, link)
            self.hour.protected_until[run.folder] = None

    def delete(self) -> None:
        """Delete up to four runs; the trash does not count for the visitor's quota."""
        for run in self._ended(4):
            self.hour.protected_until.pop(run.folder, None)
            runs.delete(self.hour.runs_dir, run.run_id)
            self.deleted.append(run.run_id)

    def restore(self) -> None:
        """Restore the deleted runs that still exist."""
        while self.deleted:
            run_id = self.deleted.pop()
            try:
                with self.hour.storage.reserve_restore(run_id):
                    runs.restore(self.hour.runs_dir, run_id)
            except RunError:
                self.hour.outcomes["deleted runs that were gone for good"] += 1

    def _ended(self, most: int) -> list[Run]:
        waiting = {training.run for training in self.hour.trainings}
        own = [run for run in runs.list_runs(self.hour.runs_dir) if owner_of(run.folder) == self.owner]
        ended = [run for run in own if run not in waiting]
        return self.random.sample(ended, min(most, len(ended)))


def run(share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Simulate the hour on each disk with `share` of all steps."""
    start, failures, outcomes = time.monotonic(), [], Counter[str]()
    steps, visitors = max(1, round(STEPS * share)), max(3, round(VISITORS * share))
    for name, disk in DISKS.items():
        with tempfile.TemporaryDirectory(prefix="filler-") as folder:
            hour = live_through(Path(folder) / "runs", disk, steps, visitors, random.Random(seed))
        failures += [f"{name}: {failure}" for failure in hour.failures]
        outcomes += hour.outcomes
    seconds = time.monotonic() - start
    return BatteryResult(
        NAME, len(DISKS) * steps, tuple(failures), tuple(sorted(outcomes.items())), PASSES_WHEN, seconds
    )


def live_through(runs_dir: Path, disk: int, steps: int, visitors: int, rng: random.Random) -> Hour:
    """Simulate the hour, with visitors at even intervals, and return it."""
    start = time.time()
    storage = Storage(runs_dir, QUOTAS, clock=lambda: hour.now, free_bytes=lambda: hour.free_bytes())
    hour = Hour(storage, disk, rng, start)
    fill_with_old_runs(hour)
    filler = Filler(hour)
    for step in range(steps):
        hour.now = start + _HOUR * step / steps
        for _ in range(ACTS):
            filler.act()
        hour.check(f"at step {step + 1}")
        if (step + 1) * visitors // steps > step * visitors // steps:
            serve_visitor(hour)
        hour.train()
        hour.check(f"after step {step + 1}")
    return hour


def serve_visitor(hour: Hour) -> None:
    """Let a new visitor upload, train and export."""
    owner = f"{hour.random.getrandbits(255):064x}"
    try:
        upload = hour.upload(owner, 30 * _KB)
        run = hour.submit(owner, 150 * _KB, upload)
        while any(training.run == run for training in hour.trainings):
            hour.train()
        hour.export(run, owner, 100 * _KB)
        hour.outcomes["visitors served"] += 1
    except StorageError as error:
        hour.failures.append(f"a visitor was not served: {error}")


def fill_with_old_runs(hour: Hour) -> None:
    """Create old runs up to the quota or the minimum of free space; some are shared, some are the host's."""
    room = min(QUOTAS.total_bytes, hour.disk - QUOTAS.min_free_bytes) - 200 * _KB
    for number in range(_OLD_RUNS):
        owner = None if number % 10 == 0 else f"{number:064x}"
        old = runs.create(hour.runs_dir, TrainConfig(), owner=owner)
        ended = hour.now - 2 * _HOUR - number * _DAY / 5
        old.update(status=FINISHED, created=ended, ended=ended)
        write(old.adapter / "weights", room // _OLD_RUNS - 40 * _KB)
        if owner is not None and number % 10 == 1:
            write_ownership(old.folder, Ownership(owner=owner, link_nonce="nonce", link_sha256="1" * 64))
        if number % 10 < 2:
            hour.protected_until[old.folder] = None


def write(path: Path, size: int) -> None:
    """Write a sparse file of a size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(max(0, size))


def owner_of(run_dir: Path) -> str | None:
    return read_ownership(run_dir).owner


def bytes_in(folder: Path) -> int:
    """Return the total size of the files of a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        total += sum(os.lstat(f"{parent}/{name}").st_size for name in names)
    return total


def bytes_by_owner(runs_dir: Path) -> Counter[str | None]:
    """Return the bytes of each owner's runs and uploads; with None all other bytes."""
    sizes: Counter[str | None] = Counter()
    for path in [*runs_dir.iterdir(), *(runs_dir / UPLOADS).glob("*")]:
        if path.is_file():
            sizes[None] += path.stat().st_size
        elif path.name != UPLOADS:
            sizes[path.name if path.parent.name == UPLOADS else owner_of(path)] += bytes_in(path)
    return sizes

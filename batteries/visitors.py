"""Many visitors of a public demo at once, each of whom does honest work and tries to reach what others have.

Each visitor has two runs and an upload with a canary in them, an address of its own, and a session. What a
visitor does next is drawn from honest operations and from attempts, which name the runs, uploads, sessions,
events and links of others: a guess of an id is taken to have succeeded. All bytes of every answer, those of
downloads unpacked too, are searched for what belongs to others. At the end the runs and uploads on the disk
are compared with what their owners did.
"""

import asyncio
import json
import random
import tempfile
import time
import urllib.request
from collections.abc import Collection
from pathlib import Path

from app_server import serve

from batteries.demo_client import PageFunctions
from batteries.result import BatteryResult
from batteries.visitor_operations import ATTEMPTS, HONEST, Demo
from batteries.visitor_runs import give, wrong_changes
from peft_core.runs import Run

NAME = "visitors of a public demo, on the runs, files and sessions of others"
PASSES_WHEN = "0 read or changed across, and what is one's own works"
VISITORS = 200
OPERATIONS = 50  # of each
LEAST_SERVED = 0.95  # of the honest operations; the rest may have been turned away each time


def run(
    finished: Run,
    share: float = 1.0,
    seed: int = 0,
    *,
    operations: int = OPERATIONS,
    only: Collection[str] = (),
    broken: str = "",
) -> BatteryResult:
    """Let `share` of all visitors come at once.

    Args:
        finished: the run that those of the visitors are copies of.
        share: of all visitors.
        seed: of the operations.
        operations: of each visitor.
        only: the operations to draw from; all by default.
        broken: Python that breaks the app under test.
    """
    start, visitors = time.monotonic(), max(2, round(VISITORS * share))
    with tempfile.TemporaryDirectory(prefix="visitors-") as name:
        folder, numbers = Path(name), random.Random(seed)
        (folder / "runs").mkdir()
        possessions = [give(folder / "runs", finished, numbers, folder) for _ in range(visitors)]
        with serve(folder / "runs", "--public", "--proxies", "1", patch=broken) as server:
            demo = Demo(int(server.url.rpartition(":")[2]), folder / "runs", _page(server.url))
            for possession in possessions:
                demo.add(possession, random.Random(numbers.getrandbits(64)))
            asyncio.run(_work(demo, operations, only))
        failures = [*dict.fromkeys(demo.failures), *wrong_changes(folder / "runs", possessions)]
    failures += _unserved(demo)
    return BatteryResult(
        NAME,
        demo.count,
        tuple(failures),
        tuple(sorted(demo.outcomes.items())),
        PASSES_WHEN,
        time.monotonic() - start,
    )


def _page(url: str) -> PageFunctions:
    with urllib.request.urlopen(f"{url}/config", timeout=60) as answer:
        return PageFunctions(json.load(answer))


async def _work(demo: Demo, operations: int, only: Collection[str]) -> None:
    """Let all visitors open a page, and then work."""
    await asyncio.gather(*(visitor.open() for visitor in demo.visitors))
    await asyncio.gather(*(visitor.work(operations, only) for visitor in demo.visitors))
    for visitor in demo.visitors:
        visitor.client.close()
    await asyncio.sleep(0.1)  # until the connections that were closed are gone


def _unserved(demo: Demo) -> list[str]:
    """What shows that the app turned honest visitors away, or that nobody tried anything."""
    served, busy = demo.outcomes["honest, served"], demo.outcomes["honest, turned away as too many"]
    problems = []
    if served < LEAST_SERVED * (served + busy):
        problems.append(f"{served:,} of {served + busy:,} honest operations were served")
    if demo.count > len(HONEST) * len(ATTEMPTS) and not demo.outcomes["attempts, refused"]:
        problems.append("no attempt was refused")
    return problems

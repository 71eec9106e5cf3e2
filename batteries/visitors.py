"""Many simultaneous visitors of a public demo, who do honest work and try to access the data of others.

Each visitor has two runs and an upload marked by a canary, an address and a session. The next operation is
drawn from honest operations and from attempts, which name the runs, uploads, sessions, events and links of
others: an attempt assumes that the id was guessed. Every answer, with downloads unpacked, is searched for the
data of other visitors. At the end, runs and uploads on disk are compared with the actions of their owners.
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
from batteries.visitor_operations import ATTEMPTS, HONEST, BusyVisitor
from batteries.visitor_runs import create_possession, unexpected_changes
from batteries.visitor_session import Demo
from peft_core.runs import Run

NAME = "visitors of a public demo, on the runs, files and sessions of others"
PASSES_WHEN = "0 read or changed across, and what is one's own works"
VISITORS = 200
OPERATIONS = 50  # per visitor
LEAST_SERVED = 0.95  # share of the honest operations; the app may refuse the rest as too many


def run(
    finished: Run,
    share: float = 1.0,
    seed: int = 0,
    *,
    operations: int = OPERATIONS,
    only: Collection[str] = (),
    broken: str = "",
) -> BatteryResult:
    """Run the battery with a share of all visitors.

    Args:
        finished: the run that each visitor gets copies of.
        share: of all visitors.
        seed: of the operations.
        operations: number per visitor.
        only: the operations to draw from; all by default.
        broken: Python that breaks the app under test.
    """
    start, visitors = time.monotonic(), max(2, round(VISITORS * share))
    with tempfile.TemporaryDirectory(prefix="visitors-") as name:
        folder, rng = Path(name), random.Random(seed)
        (folder / "runs").mkdir()
        possessions = [create_possession(folder / "runs", finished, rng, folder) for _ in range(visitors)]
        with serve(folder / "runs", "--public", "--proxies", "1", patch=broken) as server:
            demo = Demo(int(server.url.rpartition(":")[2]), folder / "runs", _read_page_functions(server.url))
            for possession in possessions:
                visitor_rng = random.Random(rng.getrandbits(64))
                demo.add(BusyVisitor(demo, possession, visitor_rng, len(demo.visitors)))
            asyncio.run(_work(demo, operations, only))
        failures = [*dict.fromkeys(demo.failures), *unexpected_changes(folder / "runs", possessions)]
    failures += _service_problems(demo)
    return BatteryResult(
        NAME,
        demo.count,
        tuple(failures),
        tuple(sorted(demo.outcomes.items())),
        PASSES_WHEN,
        time.monotonic() - start,
    )


def _read_page_functions(url: str) -> PageFunctions:
    with urllib.request.urlopen(f"{url}/config", timeout=60) as answer:
        return PageFunctions(json.load(answer))


async def _work(demo: Demo, operations: int, only: Collection[str]) -> None:
    """Let every visitor open a page and then do its operations."""
    await asyncio.gather(*(visitor.open() for visitor in demo.visitors))
    await asyncio.gather(*(visitor.work(operations, only) for visitor in demo.visitors))
    for visitor in demo.visitors:
        visitor.client.close()
    await asyncio.sleep(0.1)  # lets closed connections finish


def _service_problems(demo: Demo) -> list[str]:
    """Return a problem if too many honest operations were refused, or if no attempt was refused."""
    served, busy = demo.outcomes["honest, served"], demo.outcomes["honest, turned away as too many"]
    problems = []
    if served < LEAST_SERVED * (served + busy):
        problems.append(f"{served:,} of {served + busy:,} honest operations were served")
    if demo.count > len(HONEST) * len(ATTEMPTS) and not demo.outcomes["attempts, refused"]:
        problems.append("no attempt was refused")
    return problems

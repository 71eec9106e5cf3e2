"""Measures what a second training process gains, a core and a thread each: `make bench-processes`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bench_default import cpu_name
from peft_core import runs
from peft_core.config import TrainConfig

TURNS = 5
SETTINGS = {"max_train_samples": 2000, "max_eval_samples": 60}
TRAIN = f"{sys.executable} -W ignore -m peft_core.train"
SETUPS = {
    "one process on one core": ["taskset", "-c", "0", "bash", "-c"],
    "two processes, a core each": [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "--no-python", "bash", "-c",
    ],
    "two runs at a time, a core each: no process waits for another": [],
}  # fmt: skip


def tokens_per_second(setup: str) -> float:
    """Return the tokens per second of the training steps, over all processes of a set-up."""
    with tempfile.TemporaryDirectory() as folder:
        new_runs = [
            runs.create(Path(folder), TrainConfig(**SETTINGS)) for _ in range(1 if SETUPS[setup] else 2)
        ]
        processes = []
        for core, run in enumerate(new_runs):
            pinned = f"exec taskset -c ${{LOCAL_RANK:-{core}}} {TRAIN} {run.folder}"
            processes.append(start([*(SETUPS[setup] or ["bash", "-c"]), pinned]))
        for process in processes:
            _, errors = process.communicate()
            if process.returncode:
                raise RuntimeError(errors)
        return sum(run.result()["tokens_per_second"] for run in new_runs)


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def main() -> None:
    """Measure each set-up TURNS times in turn; print a table, and JSON."""
    results: dict[str, list[float]] = {setup: [] for setup in SETUPS}
    for _ in range(TURNS):
        for setup, rates in results.items():
            rates.append(tokens_per_second(setup))
            print(setup, round(rates[-1]), file=sys.stderr)
    print(f"{os.cpu_count()} cores, {cpu_name()}\n")
    print("| | tokens per second | times one process |")
    print("|---|---|---|")
    single = statistics.median(results[next(iter(SETUPS))])
    for setup, rates in results.items():
        print(f"| {setup} | {statistics.median(rates):,.0f} | {statistics.median(rates) / single:.2f} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Training of one run in two processes: equal shares, one folder and a common stop."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ROOT, environment, wait_for
from safetensors.torch import load_file

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.training import entry
from peft_core.training.processes import launch_command

MANY = {"num_train_epochs": 16.0, "per_device_train_batch_size": 5, "lora_dropout": 0.1}


def start_two(run: Run) -> subprocess.Popen[str]:
    """Start training in two processes, as `accelerate launch` does with two GPUs."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*launch, "-m", "peft_core.train", str(run.folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_in_two(run: Run) -> None:
    process = start_two(run)
    _, words = process.communicate(timeout=120)
    assert process.returncode == 0, words


@pytest.fixture(scope="module")
def straight(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = runs.create(tmp_path_factory.mktemp("two"), TrainConfig.from_dict({**settings, **MANY}))
    train_in_two(run)
    return run


def test_two_processes_take_half_as_many_steps(straight: Run, settings: dict[str, Any]) -> None:
    assert straight.state().status == "FINISHED"
    run_result, config = straight.result(), straight.config()
    batches = -(-run_result["train_rows"] // config.per_device_train_batch_size)
    assert run_result["steps"] == 16 * -(-batches // 2)
    assert run_result["accuracy"] > run_result["baseline"]["accuracy"]
    rows = straight.metrics()
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == sorted(set(steps)), "only one process writes"
    assert {path.name for path in straight.folder.iterdir()} == {
        "adapter", "config.json", "evaluation", "inputs.json", "lock", "manifest.json", "metrics.jsonl",
        "status.json",
    }  # fmt: skip
    written = (straight.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(written) == len(rows), "every row is whole"


def test_two_processes_resume_after_stop_and_kill_to_the_same_weights(straight: Run, tmp_path: Path) -> None:
    run = runs.create(tmp_path, straight.config())
    process = start_two(run)
    wait_for(lambda: can_continue(run))
    run.request_stop()
    _, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    stopped = run.state()
    assert stopped.status == "KILLED" and 0 < stopped.step < stopped.max_steps
    (run.folder / "stop").unlink()

    process = start_two(run)
    wait_for(lambda: run.state().status == "RUNNING" and run.state().step > stopped.step)
    subprocess.run(["kill", "-9", str(run.state().pid)], check=True)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert run.state().status == "FAILED" and can_continue(run)

    train_in_two(run)
    assert run.state().status == "FINISHED" and run.result()["resumed_from"] > 0
    weights, straight_weights = (load_file(r.adapter / "adapter_model.safetensors") for r in (run, straight))
    assert weights.keys() == straight_weights.keys() and all(
        weights[name].equal(straight_weights[name]) for name in weights
    )


def test_log_to_stdout_writes_messages_without_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    package = logging.getLogger("peft_core")
    handlers, level = [*package.handlers], package.level
    try:
        entry.log_to_stdout()
        logging.getLogger("peft_core.training.speedups").info(
            "The optimization dtype is not applied: %s", "it fails"
        )
    finally:
        package.handlers[:] = handlers
        package.setLevel(level)
    assert capsys.readouterr().out == "The optimization dtype is not applied: it fails\n"


def test_main_with_several_gpus_starts_one_process_for_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(entry.os, "execv", execv)
    with pytest.raises(SystemExit):
        entry.main([str(tmp_path)])
    assert started == [launch_command(3, [str(tmp_path)])]
    assert started[0][-5:] == ["--num_processes", "3", "-m", "peft_core.train", str(tmp_path)]

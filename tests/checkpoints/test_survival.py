"""A run survives killed workers, signals and a full disk, and ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from itwinai.checkpoints.discovery import newest_valid
from itwinai.errors import WorkerError
from tests.conftest import RunCommand, assert_no_process_left, python, start_script, wait_for_files
from tests.support.cases import SAMPLES, relative_difference
from tests.support.interrupted import EPOCHS, samples_seen, train

SCRIPT = "tests/support/interrupted.py"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The weights of an undisturbed run in a single process."""
    return train("auto", 1, tmp_path_factory.mktemp("reference"))


def check(weights: Tensor, reference: Tensor, strategy: str) -> None:
    assert relative_difference(weights, reference) <= (1e-5 if "deepspeed" in strategy else 1e-6)


class Killed(L.Callback):
    """Ends its worker in some steps, in each once."""

    def __init__(self, folder: Path, kills: list[tuple[int, int]]) -> None:
        self.folder = folder
        self.kills = kills

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        for rank, step in self.kills:
            mark = self.folder / f"killed-{step}"
            if (trainer.global_rank, trainer.global_step) == (rank, step) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2", "horovod", "ray_ddp"])
def test_killed_workers_are_started_again(
    strategy: str, tmp_path: Path, reference: Tensor, no_leftovers: None, request: pytest.FixtureRequest
) -> None:
    if strategy.startswith("ray"):
        request.getfixturevalue("local_ray")
    draw = random.Random(strategy)
    first, second = sorted(draw.sample(range(2, 13 * EPOCHS), 2))
    kills = [(draw.randrange(2), first), (draw.randrange(2), second)]
    with pytest.warns(UserWarning, match=r"Restarting all workers from the newest valid checkpoint \(restart 1 of 2\)"):
        weights = train(strategy, 2, tmp_path, callbacks=(Killed(tmp_path, kills),), max_restarts=2)
    assert len(list(tmp_path.glob("killed-*"))) == 2
    check(weights, reference, strategy)
    for samples in samples_seen(tmp_path, 2).values():
        assert len(samples) == len(set(samples)) == SAMPLES


def test_restart_before_the_first_save(tmp_path: Path, reference: Tensor, no_leftovers: None) -> None:
    """The workers go on from what they went on from before, and not from the beginning."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    train("auto", 1, first)
    path = next((first / "checkpoints").glob("*step=30.ckpt"))
    killed = Killed(second, [(1, 32)])
    weights = train("ddp", 2, second, callbacks=(killed,), max_restarts=1, resume=path)
    assert (second / "killed-32").exists()
    check(weights, reference, "ddp")
    steps = [int(line.split()[1]) for line in (second / "0.seen").read_text().splitlines()]
    assert min(steps) == 30 and steps.count(30) == 2


def test_lost_node(tmp_path: Path, reference: Tensor, run_command: RunCommand) -> None:
    ended = run_command(python("tests/support/lost_node.py", str(tmp_path)))
    assert ended.code == 0, ended.output
    assert "The run continues with 1 workers (min_workers)" in ended.output
    check(torch.load(tmp_path / "weights.pt"), reference, "ray_ddp")
    sizes = [line.split() for line in (tmp_path / "sizes").read_text().splitlines()]
    assert {size for step, size in sizes if int(step) > 17} == {"1"}
    assert {size for step, size in sizes if int(step) < 15} == {"2"}


def test_restarts_are_used_up(tmp_path: Path, no_leftovers: None) -> None:
    killed = Killed(tmp_path, [(1, 7), (0, 9)])
    with pytest.raises(WorkerError, match="rank 0 was killed by SIGKILL"):
        train("ddp", 2, tmp_path, callbacks=(killed,), max_restarts=1)
    assert newest_valid([str(tmp_path / "checkpoints")]) is not None


class Broken(L.Callback):
    """Raises in the third step, and counts how often it has come there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3 and trainer.is_global_zero:
            with (self.folder / "times").open("a") as file:
                file.write("x")
            raise ArithmeticError("the user's own")


def test_exceptions_of_the_users_code_end_the_run(tmp_path: Path, no_leftovers: None) -> None:
    with pytest.raises(ArithmeticError, match="the user's own"):
        train("ddp", 2, tmp_path, callbacks=(Broken(tmp_path),), max_restarts=2)
    assert (tmp_path / "times").read_text() == "x"


@pytest.mark.parametrize(
    ("strategy", "workers", "signum"),
    [
        ("auto", 1, signal.SIGUSR1),
        ("auto beside ray", 1, signal.SIGTERM),
        ("ddp", 2, signal.SIGTERM),
        ("deepspeed_stage_3", 2, signal.SIGUSR1),
        ("horovod", 2, signal.SIGTERM),
        ("ray", 2, signal.SIGUSR1),
    ],
)
def test_preempted_run_continues(
    strategy: str,
    workers: int,
    signum: signal.Signals,
    tmp_path: Path,
    reference: Tensor,
    run_command: RunCommand,
) -> None:
    output = tmp_path / "output"
    strategy, _, beside = strategy.partition(" beside ")
    options = ["connected"] if beside else []
    process = start_script([SCRIPT, strategy, str(workers), str(tmp_path), "slow", *options], output)
    wait_for_files(process, [tmp_path / f"{rank}.pid" for rank in range(workers)], output)
    process.send_signal(signum)
    assert process.wait(60) == 128 + signum, output.read_text()
    assert f"stopped by {signum.name} in epoch" in output.read_text()
    saved = tmp_path / "checkpoints" / "preempted.ckpt"
    assert saved.exists() and f"itwinai: resume with ckpt_path='{saved}'" in output.read_text()
    assert not (tmp_path / "weights.pt").exists()
    assert_no_process_left(process.pid)
    # It goes on in one process, whatever it was before.
    ended = run_command(python(SCRIPT, "auto", "1", str(tmp_path)))
    assert ended.code == 0, ended.output
    assert "preempted.ckpt" in ended.output
    check(torch.load(tmp_path / "weights.pt"), reference, strategy)


@pytest.mark.parametrize("launcher", ["fork", "payload"])
def test_signal_before_the_workers_train(launcher: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start_script(["tests/support/slow_start.py", str(tmp_path), launcher], output)
    wait_for_files(process, [tmp_path / "0.pid", tmp_path / "1.pid"], output)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM, output.read_text()
    assert_no_process_left(process.pid)


def test_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start_script([SCRIPT, "ddp", "2", str(tmp_path), "stuck"], output)
    wait_for_files(process, [tmp_path / "0.pid", tmp_path / "1.pid"], output)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(TimeoutError):
        _wait(process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) != 0
    assert_no_process_left(process.pid)


def _wait(process: Any, seconds: float) -> None:
    import subprocess

    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_full_disk(on_error: str, tmp_path: Path, reference: Tensor, run_command: RunCommand) -> None:
    ended = run_command(python(SCRIPT, "auto", "1", str(tmp_path), "full", on_error))
    newest = newest_valid([str(tmp_path / "checkpoints")])
    assert newest is not None and "step=10" in newest  # the last that there was room for
    assert not list((tmp_path / "checkpoints").glob(".part-*"))
    assert "could not be written (OSError: [Errno 27] File too large" in ended.output
    if on_error == "continue":
        assert ended.code == 0, ended.output
        check(torch.load(tmp_path / "weights.pt"), reference, "auto")
    else:
        assert ended.code == 1
        assert "CheckpointError: The checkpoint" in ended.output
        assert not (tmp_path / "weights.pt").exists()

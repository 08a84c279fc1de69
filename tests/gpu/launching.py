"""Do workers start, fail and end on a GPU as they should, and leave nothing there?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itwinai.errors import ConfigurationError, WorkerError
from itwinai.launchers.fork import why_not_fork
from tests.gpu.check import Bench, Check, furthest, is_alive
from tests.gpu.machine import query
from tests.gpu.models import Regression
from tests.gpu.training import fit, two_workers

SOON = 20.0
"""Seconds in which a run that fails has to end."""


class Told(Regression):
    """A module whose workers leave a file with their process id when they train.

    Args:
        folder: for the files.
        then: what a worker does in its third step, given its rank.
    """

    def __init__(self, folder: Path, then: Callable[[int], None]) -> None:
        super().__init__()
        self.folder, self.then = folder, then

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 2:
            (self.folder / f"pid-{self.trainer.global_rank}").write_text(str(os.getpid()))
            self.then(self.trainer.global_rank)
        return loss


def fork_is_clean(bench: Bench) -> None:
    """Launch by fork after everything that a caller does before: a trainer with a GradScaler, its device looked at."""
    from itwinai import ItwinaiTrainer

    precision = "16-mixed" if bench.cuda else "bf16-mixed"
    ItwinaiTrainer(accelerator=bench.accelerator, devices=1, precision=precision, logger=False)
    bench.expect("CUDA in the caller", str(torch.cuda.is_initialized()), equal="False")
    bench.expect("what keeps it from forking", why_not_fork() or "nothing", equal="nothing")
    seen = fit(bench, strategy=two_workers(bench), devices=2, launcher="fork", precision=precision)
    bench.expect("loss", seen.loss, at_most=10.0)
    bench.expect("CUDA in the caller afterwards", str(torch.cuda.is_initialized()), equal="False")


def after_cuda(bench: Bench) -> None:
    """Launch from a process that uses the device already: by a payload, from a fork server without the driver."""
    alone = fit(bench)
    kind = "auto" if bench.cuda else "fork"  # new processes import for seconds
    if bench.cuda:
        bench.expect("what keeps it from forking", why_not_fork() or "nothing", contains="CUDA")
    two = fit(bench, strategy=two_workers(bench), devices=2, split_batches=True, launcher=kind)
    bench.expect("weights", furthest(two.weights, alone.weights), at_most=1e-5)
    servers = _children_that_run("itwinai.launchers.fork_server")
    if bench.cuda:
        bench.expect("fork servers", len(servers), at_least=1)
    for pid in servers:
        loaded = "libcuda.so" in Path(f"/proc/{pid}/maps").read_text()
        bench.expect("driver in the fork server", str(loaded), equal="False")


def visible_devices(bench: Bench) -> None:
    """Train with the device named by number and by id, and with none."""
    uuid = next(iter(query("uuid")), "")
    for name, value in {"number": "0", "id": uuid, "start of the id": uuid[:12]}.items():
        if value:
            run = bench.in_child(lambda: fit(bench, max_epochs=1), CUDA_VISIBLE_DEVICES=value)
            bench.expect(f"loss, device by its {name}", run.loss, at_most=10.0)
    message = bench.in_child(lambda: _message(lambda: fit(bench, accelerator="gpu")), CUDA_VISIBLE_DEVICES="")
    bench.expect("no device", message, contains="CUDA_VISIBLE_DEVICES")


def worker_dies(bench: Bench, wanted: str = "SIGKILL") -> None:
    """Kill a worker in a step."""

    def die(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    try:
        fit(bench, Told(bench.folder, die), strategy=two_workers(bench), devices=2)
        message = "the run has not failed"
    except WorkerError as error:
        message = str(error)
    bench.expect("message", message, contains=wanted)
    bench.expect("until the run has ended", time.monotonic() - began, at_most=SOON, unit="s")
    _expect_gone(bench, _pids(bench.folder))


def out_of_memory(bench: Bench) -> None:
    """Ask for more memory than there is, in a worker and in one process, and read what to do about it."""

    def ask(rank: int) -> None:
        if bench.cuda:
            torch.empty(2**42, dtype=torch.uint8, device=bench.device)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4096.00 GiB, says the dry run.")

    for name, arguments in {
        "workers": {"strategy": two_workers(bench), "devices": 2},
        "one process": {},
    }.items():
        try:
            fit(bench, Told(bench.folder, ask), **arguments)
            kind, told = "no error", ""
        except Exception as error:
            kind = type(error).__name__
            told = " ".join([str(error), *getattr(error, "__notes__", [])])
        bench.expect(f"error, {name}", kind, equal="OutOfMemoryError")
        bench.expect(f"message, {name}", told, contains="Tried to allocate")
        bench.expect(f"advice, {name}", told, contains="accumulate_grad_batches")


def interrupt(bench: Bench, patience: float = SOON) -> None:
    """Press Ctrl-C in a run with workers."""

    def train() -> None:
        fit(bench, Told(bench.folder, lambda rank: time.sleep(600)), strategy=two_workers(bench), devices=2)

    pid, _ = bench.start_child(train)
    files = [bench.folder / f"pid-{rank}" for rank in range(2)]
    deadline = time.monotonic() + SOON
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    bench.expect("exit code", code, equal=1)
    bench.expect("until the run has ended", time.monotonic() - began, at_most=patience, unit="s")
    _expect_gone(bench, _pids(bench.folder))


def nccl_on_one_gpu(bench: Bench) -> None:
    """Start two workers on one GPU with NCCL, which cannot do it: the error has to come soon, and name the reason."""
    from itwinai.strategies import DDPStrategy

    if not bench.cuda:
        bench.record("on the CPU", "there is no NCCL")
        return
    began = time.monotonic()
    message = _message(lambda: fit(bench, strategy=DDPStrategy(parallel_devices=[bench.device] * 2), devices=2))
    bench.expect("message", message, contains="GPU")
    bench.expect("until the run has ended", time.monotonic() - began, at_most=60.0, unit="s")


def nccl_timeout(bench: Bench) -> None:
    """Give NCCL its time-out as a number of seconds, and see that the group has it."""
    from itwinai.strategies import DDPStrategy

    seen: list[float] = []

    class Looks(Regression):
        def on_train_start(self) -> None:
            group = torch.distributed.distributed_c10d._get_default_group()
            options = group._get_backend(self.device).options
            seen.append(options._timeout.total_seconds())

    fit(bench, Looks(), strategy=DDPStrategy(timeout=321), max_epochs=1)
    bench.expect("time-out of the group", seen[0], equal=321.0, unit="s")


def _message(work: Callable[[], Any]) -> str:
    """Return the message of the error that something raises."""
    try:
        work()
    except (ConfigurationError, WorkerError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid-*")]


def _expect_gone(bench: Bench, pids: Sequence[int]) -> None:
    """Expect that two workers have trained, and are no more."""
    bench.expect("workers", len(pids), equal=2)
    deadline = time.monotonic() + 5
    while (left := sum(map(is_alive, pids))) and time.monotonic() < deadline:
        time.sleep(0.02)
    bench.expect("workers left behind", left, equal=0)


def _children_that_run(module: str) -> list[int]:
    """Return the processes below this one whose command line names a module."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if module in path.read_text() and f"\nPPid:\t{os.getpid()}\n" in (path.parent / "status").read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


CHECKS = (
    Check("fork", "launching", "workers forked off a process that holds no CUDA context", fork_is_clean, 4),
    Check(
        "after-cuda",
        "launching",
        "workers of a process that uses CUDA; the fork server has no driver",
        after_cuda,
        5,
        90,
    ),
    Check("worker-dies", "launching", "a worker is killed in a step", worker_dies, 12),
    Check("out-of-memory", "launching", "out of memory, and what to change", out_of_memory, 11, 60),
    Check("interrupt", "launching", "Ctrl-C", interrupt, 13),
    Check("visible-devices", "launching", "CUDA_VISIBLE_DEVICES by number, by id, empty", visible_devices, 14, 60),
    Check("nccl-timeout", "launching", "the time-out of the group in plain seconds", nccl_timeout, 22),
    Check("nccl-duplicate", "launching", "two workers over NCCL on one GPU: refused soon", nccl_on_one_gpu, 30, 70),
)

"""Does Horovod build against the torch of the machine, and average right?"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.gpu.check import Bench, Check, NotInstalled, furthest
from tests.gpu.models import Regression
from tests.gpu.training import fit

SOURCES = "ITWINAI_GPU_WHEELS"
"""Names the folder with the packages that were brought along, Horovod's sources among them."""


def builds(bench: Bench) -> None:
    """Build Horovod from the sources that were brought along, with NCCL; on a CPU look at what is built."""
    if importlib.util.find_spec("horovod") is None:
        if bench.dry or not os.environ.get(SOURCES):
            raise NotInstalled(f"horovod, and {SOURCES} names no folder with its sources")
        variables = {"HOROVOD_GPU_OPERATIONS": "NCCL", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": os.environ[SOURCES]}
        command = [sys.executable, "-m", "itwinai.cli.main", "install", "horovod"]
        done = subprocess.run(command, env={**os.environ, **variables})
        bench.expect("exit code of itwinai install horovod", done.returncode, equal=0)
        importlib.invalidate_caches()
    built = bench.in_child(_built)
    bench.expect("built with", built, contains="nccl" if bench.cuda else "gloo")


def _built() -> str:
    """Return what Horovod was built with."""
    import horovod.torch as hvd

    hvd.init()
    return f"{'gloo' * hvd.gloo_built()} {'nccl' * bool(hvd.nccl_built())}"


def training(bench: Bench, tolerance: float = 1e-5) -> None:
    """Compare one worker, and on a CPU two, with one process; every collective once, on tensors of the device."""
    workers = bench.size(1, 2)  # NCCL wants a GPU for each
    seen: dict[str, float] = {}

    class Collects(Regression):
        def on_train_start(self) -> None:
            strategy: Any = self.trainer.strategy
            rank, size = self.trainer.global_rank, self.trainer.world_size
            own = torch.full((3,), float(rank + 1), device=self.device)
            seen["mean"] = float(strategy.reduce(own.clone(), reduce_op="mean")[0]) - (size + 1) / 2
            seen["sum"] = float(strategy.reduce(own.clone(), reduce_op="sum")[0]) - size * (size + 1) / 2
            half = own.to(torch.bfloat16)
            seen["sum in bf16"] = float(strategy.reduce(half, reduce_op="sum")[0]) - size * (size + 1) / 2
            seen["gather"] = float(strategy.all_gather(own).sum()) - 3 * size * (size + 1) / 2
            for name, value in seen.items():
                (Path(bench.folder) / f"{name}-{rank}").write_text(str(value))

    run = fit(bench, Collects(), strategy="horovod", devices=workers, split_batches=True)
    alone = bench.in_child(lambda: fit(bench)) if bench.dry else fit(bench)
    bench.expect("weights", furthest(run.weights, alone.weights), at_most=tolerance)
    for name in ("mean", "sum", "sum in bf16", "gather"):
        for rank in range(workers):
            error = float((bench.folder / f"{name}-{rank}").read_text())
            bench.expect(f"error of {name}, rank {rank}", error, equal=0.0, within=1e-6)
    mixed = fit(bench, strategy="horovod", devices=workers, split_batches=True, precision="bf16-mixed")
    bench.expect("weights, bf16-mixed", furthest(mixed.weights, alone.weights), at_most=0.05)


CHECKS = (
    Check("horovod-builds", "horovod", "built against the torch of the machine", builds, 40, 240),
    Check("horovod", "horovod", "collectives and a training", training, 41, 60, ("horovod",)),
)

"""What happens in the child process of a trial: a tiny model trains with two workers, and with one process."""

from __future__ import annotations

import copy
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import LightningModule

WORKERS = 2
STEPS = 3
GLOBAL_BATCH = 8
LARGE = 8 * 2**20  # bytes of the tensor that the bandwidth is measured with


@dataclass(frozen=True)
class Measured:
    """What the workers of a strategy measured, and how well they trained.

    Attributes:
        workers: number of workers.
        device: the kind of device they used, ``cpu`` or ``cuda``.
        latency_us: microseconds for the all-reduce of one number, median.
        bandwidth_gb_s: bytes of a large tensor over the seconds of its all-reduce, in 1e9 bytes/s (the "algorithm
            bandwidth"), median.
        bus_bandwidth_gb_s: the same times 2 (n - 1) / n, which is what a ring of n workers moves over each link
            (the definition of NVIDIA's nccl-tests).
        start_s: seconds from ``trainer.fit()`` until all workers are ready for the first step.
        weight_difference: largest difference from the weights of one process, relative to the largest weight of the
            tensor.
        deviation: how the strategy changes the weights on purpose, in words; empty if it does not.
    """

    workers: int
    device: str
    latency_us: float
    bandwidth_gb_s: float
    bus_bandwidth_gb_s: float
    start_s: float
    weight_difference: float
    deviation: str = ""


def probe_strategy(strategy: str) -> Measured:
    """Train with a strategy and with one process, and compare.

    Args:
        strategy: the strategy's name.
    """
    import torch

    from itwinai.launchers.worker import die_with_caller
    from itwinai.strategies.registry import find_entry
    from itwinai.trainer import ItwinaiTrainer

    die_with_caller(os.dup(0))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    accelerator = "gpu" if torch.cuda.device_count() >= WORKERS else "cpu"
    torch.manual_seed(0)
    alone = make_module()
    module = copy.deepcopy(alone)

    def fit(module: LightningModule, **flags: Any) -> float:
        trainer = ItwinaiTrainer(
            **flags,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.time()
        trainer.fit(module)
        return started

    # What is printed is shown after a crash or a hang, and says how far it came.
    print("doctor: training with one process", flush=True)
    fit(alone, devices=1, accelerator="cpu")
    print(f"doctor: starting {WORKERS} workers", flush=True)
    started = fit(module, strategy=strategy, devices=WORKERS, accelerator=accelerator)
    print("doctor: the workers have trained", flush=True)
    measured: dict[str, float] = module.measured
    entry = find_entry(strategy)
    if measured["workers"] != WORKERS:
        raise RuntimeError(f"{WORKERS} workers were asked for, and {measured['workers']:g} trained")
    return Measured(
        workers=WORKERS,
        device="cuda" if accelerator == "gpu" else "cpu",
        latency_us=measured["latency"] * 1e6,
        bandwidth_gb_s=LARGE / measured["seconds"] / 1e9,
        bus_bandwidth_gb_s=LARGE / measured["seconds"] / 1e9 * 2 * (WORKERS - 1) / WORKERS,
        start_s=measured["ready"] - started,
        weight_difference=weight_difference(module.state_dict(), alone.state_dict()),
        deviation="" if entry is None else entry.deviation or "",
    )


def make_module() -> Any:
    """Return a tiny LightningModule that measures the all-reduce of its strategy before it trains."""
    import torch
    from lightning.pytorch import LightningModule
    from torch.utils.data import DataLoader, TensorDataset

    class TinyModule(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
            self.measured: dict[str, float] = {}

        def train_dataloader(self) -> DataLoader:
            generator = torch.Generator().manual_seed(1)
            samples = STEPS * GLOBAL_BATCH
            inputs, targets = (torch.randn(samples, width, generator=generator) for width in (6, 2))
            return DataLoader(TensorDataset(inputs, targets), batch_size=GLOBAL_BATCH // self.trainer.world_size)

        def on_train_start(self) -> None:
            workers = self.trainer.world_size
            if workers == 1:
                return
            strategy = self.trainer.strategy
            ready = time.time()
            print(f"doctor: rank {self.global_rank} measures the all-reduce", flush=True)
            measured = measure_all_reduce(strategy.reduce, self.global_rank, workers, self.device)
            print(f"doctor: rank {self.global_rank} trains", flush=True)
            # Comes back to the process that called fit(), as every plain attribute does.
            self.measured = {"workers": workers, "ready": ready, **measured}

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layers(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return TinyModule()


def measure_all_reduce(
    reduce: Callable[..., torch.Tensor], rank: int, workers: int, device: torch.device
) -> dict[str, float]:
    """Check and time the sum of a tensor over all workers; each of them has to call this.

    Args:
        reduce: the strategy's.
        rank: of this worker.
        workers: how many there are.
        device: of this worker.

    Returns:
        ``latency`` of one number and ``seconds`` for `LARGE` bytes, both medians in seconds.

    Raises:
        RuntimeError: the sum is wrong.
    """
    import torch

    def wait_for_device() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def median_seconds(tensor: torch.Tensor, warm_up: int, repetitions: int) -> float:
        times = []
        for _ in range(warm_up + repetitions):
            wait_for_device()
            started = time.perf_counter()
            reduce(tensor, reduce_op="sum")
            wait_for_device()
            times.append(time.perf_counter() - started)
        return statistics.median(times[warm_up:])

    for length in (1, LARGE // 4):
        # Small whole numbers, whose sums are exact.
        values = torch.arange(length, dtype=torch.float32, device=device) % 1000 + 1
        total = reduce(values * (rank + 1), reduce_op="sum")
        expected = values * (workers * (workers + 1) // 2)
        wrong = int((total != expected).sum())
        if wrong:
            raise RuntimeError(f"rank {rank}: {wrong} of {length} sums over {workers} workers are wrong")
    return {
        # Zeros, because the sum replaces the tensor, and would outgrow float32.
        "latency": median_seconds(torch.zeros(1, device=device), warm_up=10, repetitions=50),
        "seconds": median_seconds(torch.zeros(LARGE // 4, device=device), warm_up=3, repetitions=10),
    }


def weight_difference(weights: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference between two models, relative to the largest weight of its tensor."""
    if weights.keys() != reference.keys():
        return float("inf")
    differences = [
        float((weights[name].cpu() - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
        for name, expected in reference.items()
    ]
    return float("nan") if any(value != value for value in differences) else max(differences)

"""Do checkpoints carry a run from a GPU to a CPU and back, exactly, and what do they cost?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from torch import Tensor, nn

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint
from tests.gpu.check import Bench, Check, furthest
from tests.gpu.models import Regression, points, repeated, weights_of
from tests.gpu.training import QUIET, fit

MIDDLE = 4
"""Steps after which a run is cut; an epoch has 6."""


class Measured(Regression):
    """A module that keeps the time of each step, and a large parameter that makes its checkpoints large."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.ballast = nn.Parameter(torch.zeros(numbers))
        self.stamps: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.stamps.append(time.perf_counter())
        return super().training_step(batch, batch_idx) + 0.0 * self.ballast[:8].sum()


def _cut(folder: Path, accelerator: str, dropout: float = 0.0) -> str:
    """Train for some steps, and return the checkpoint that is left in mid-epoch."""
    callback = ModelCheckpoint(folder, filename="cut", every=f"{MIDDLE}steps")
    module = Regression(dropout)
    _train(accelerator, module, seed=5, max_steps=MIDDLE, callbacks=[callback], enable_checkpointing=True)
    return str(next(folder.glob("cut*.ckpt")))


def _train(
    accelerator: str, module: Regression, path: str | None = None, *, seed: int = 5, **arguments: Any
) -> list[Tensor]:
    """Train from the beginning or a checkpoint, and return the weights.

    Args:
        accelerator: the trainer's.
        module: what is trained.
        path: of the checkpoint.
        seed: of all random numbers.
        **arguments: further ones of the trainer.
    """
    seed_everything(seed, verbose=False)
    trainer = ItwinaiTrainer(accelerator=accelerator, devices=1, **{"max_epochs": 2, **QUIET, **arguments})
    trainer.fit(module, points(), ckpt_path=path)
    return weights_of(module)


def across_devices(bench: Bench, routes: Sequence[str] = ("there", "back")) -> None:
    """Write in mid-epoch on the device, go on on the CPU, and the other way round."""
    whole = fit(bench).weights
    here, there = bench.accelerator, "cpu"
    for route in routes:
        begin, end = (here, there) if route == "there" else (there, here)
        path = _cut(bench.folder / route, begin)
        weights = _train(end, Regression(), path)
        bench.expect(f"from {begin} to {end}", furthest(weights, whole), at_most=1e-5)
        state = torch.load(path, map_location=None, weights_only=True)
        devices = {str(value.device) for value in state["state_dict"].values()}
        bench.record(f"tensors of a file from {begin}", ", ".join(sorted(devices)))


def random_numbers(bench: Bench, dropout: float = 0.3) -> None:
    """Go on in mid-epoch with dropout that is drawn on the device, exactly as a run that was not cut."""

    def train(path: str | None = None, seed: int = 5) -> list[Tensor]:
        return _train(bench.accelerator, Regression(dropout), path, seed=seed)

    # Each in a process of its own: otherwise the generators could be right by chance.
    whole = bench.in_child(train)
    path = bench.in_child(lambda: _cut(bench.folder / "cut", bench.accelerator, dropout))
    bench.expect("weights", furthest(bench.in_child(lambda: train(path, seed=6)), whole), equal=0.0, within=1e-7)
    bench.expect("another seed differs", furthest(bench.in_child(lambda: train(seed=6)), whole), at_least=1e-4)
    if bench.cuda:
        state = torch.load(path, weights_only=True)["itwinai"]["random_states"][0]
        bench.expect("states of CUDA in the file", len(state["torch.cuda"]), at_least=1)


def stall(bench: Bench) -> None:
    """Save 2 GB of state in the background while training goes on, and look how long it stops."""
    numbers = bench.size(170_000_000, 200_000)  # three times as many with AdamW's states, of 4 bytes each
    batch = next(iter(points()))
    every, saves = bench.size(40, 4), 4
    module = Measured(numbers)
    callback = ModelCheckpoint(bench.folder / "saved", every=f"{every}steps", keep=1)
    trainer = ItwinaiTrainer(
        accelerator=bench.accelerator,
        devices=1,
        max_steps=every * saves + 3,
        max_epochs=1,
        callbacks=[callback],
        **{**QUIET, "enable_checkpointing": True},
    )
    trainer.fit(module, repeated((batch[0], batch[1]), every * saves + 3))
    steps = [later - earlier for earlier, later in zip(module.stamps, module.stamps[1:], strict=False)]
    usual = sorted(steps)[len(steps) // 2]
    stalls = [steps[number * every - 1] - usual for number in range(1, saves + 1)]
    size = sum(path.stat().st_size for path in (bench.folder / "saved").glob("*.ckpt"))
    bench.record("size of the file", size / 1e9, "GB")
    bench.record("usual step", usual * 1e3, "ms")
    bench.record("first checkpoint, whose memory is new", stalls[0] * 1e3, "ms")
    bench.expect("later ones, the best of them", min(stalls[1:]) * 1e3, at_most=1500.0, unit="ms")
    bench.record("later ones, the worst of them", max(stalls[1:]) * 1e3, "ms")
    loaded = torch.load(next((bench.folder / "saved").glob("*.ckpt")), weights_only=True, mmap=True)
    saved = loaded["state_dict"]["net.0.weight"]
    bench.expect("what was saved is no mixture", float(saved.isfinite().all()), equal=1.0)


def snapshot(bench: Bench) -> None:
    """Change tensors right after a snapshot was taken: it has to hold what was there before."""
    from itwinai.checkpoints.async_writer import Snapshot

    keeper, size = Snapshot(), bench.size(100_000_000, 1000)
    value = torch.zeros(size, device=bench.device)
    other = torch.cuda.Stream() if bench.cuda else None
    for number in range(3):
        value.fill_(number)
        taken = keeper.copy({"state": [value, value[: size // 2]], "name": "x"})
        value.fill_(-1.0)
        bench.expect(f"take {number}, all alike", float((taken["state"][0] == number).all()), equal=1.0)
        bench.expect(f"take {number}, part", float(taken["state"][1].sum()), equal=number * (size // 2), within=1.0)
    if other is not None:
        bench.expect("pinned", float(taken["state"][0].is_pinned()), equal=1.0)
        with torch.cuda.stream(other):  # what is still being computed by another stream of the device
            torch.cuda._sleep(200_000_000)
            value.fill_(7.0)
            taken = keeper.copy({"state": [value]})
        bench.expect("from another stream", float((taken["state"][0] == 7.0).all()), equal=1.0)


CHECKS = (
    Check("checkpoint-devices", "checkpoints", "from the GPU to the CPU and back, in mid-epoch", across_devices, 6, 60),
    Check("checkpoint-random", "checkpoints", "random numbers of CUDA continue after a resume", random_numbers, 10, 60),
    Check("checkpoint-snapshot", "checkpoints", "a snapshot is not overtaken by training", snapshot, 17),
    Check("checkpoint-stall", "checkpoints", "2 GB of state in the background", stall, 18, 90),
)

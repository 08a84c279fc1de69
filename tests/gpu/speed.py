"""How fast are our loops on a GPU, against a loop by hand and against stock lightning?

The contenders take turns in one process, so that clocks and temperature change for all alike. Modules look at the time
themselves, and nothing else is in the way.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import nn

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ProfilingCallback
from itwinai.profiling.step_timer import Phase
from tests.gpu.check import Bench, Check
from tests.gpu.models import Cnn, Lstm, Mlp, Timed, Transformer, repeated
from tests.gpu.training import QUIET

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 operations per second, from NVIDIA's datasheets."""

Contender = Callable[[Bench, Timed, Any, str], None]


def by_hand(bench: Bench, module: Timed, loader: Any, precision: str) -> None:
    """Train as in PyTorch's tutorials."""
    module.to(bench.device)
    optimizer = module.configure_optimizers()
    mixed = precision == "bf16-mixed"
    for number, batch in enumerate(loader):
        batch = [tensor.to(bench.device, non_blocking=True) for tensor in batch]
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=mixed):
            loss = module.training_step(batch, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def by_trainer(trainer: type[L.Trainer], bench: Bench, module: Timed, loader: Any, precision: str) -> None:
    """Train with a trainer."""
    trainer(accelerator=bench.accelerator, devices=1, max_epochs=1, precision=precision, **QUIET).fit(module, loader)


CONTENDERS: dict[str, Contender] = {
    "raw": by_hand,
    "lightning": partial(by_trainer, L.Trainer),
    "itwinai": partial(by_trainer, ItwinaiTrainer),
}


def compare(
    bench: Bench,
    network: Callable[[], nn.Module],
    batch: Callable[[], tuple[torch.Tensor, ...]],
    precision: str,
    warm_up: int,
    steps: int,
    rounds: int,
    contenders: Mapping[str, Contender] = CONTENDERS,
) -> dict[str, float]:
    """Return the seconds of a step of each contender: the median over rounds in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in sorted(contenders, reverse=bool(number % 2)):
            torch.manual_seed(0)
            module = Timed(network(), warm_up, steps)
            contenders[name](bench, module, repeated(batch(), warm_up + steps + 1), precision)
            seconds[name].append(module.seconds_per_step)
            del module
            if bench.cuda:
                torch.cuda.empty_cache()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        bench.record(f"step, {name}", value * 1e3, "ms")
        bench.record(f"spread, {name}", (max(seconds[name]) / min(seconds[name]) - 1) * 100, "%")
    bench.record("lightning against raw", medians["lightning"] / medians["raw"])
    return medians


def transformer(bench: Bench, contenders: Mapping[str, Contender] = CONTENDERS) -> None:
    """Train a language model of 355 million parameters in bf16; 0.98 of the raw loop's speed is the goal."""
    count, length = bench.size((16, 1024), (2, 16))
    shape = bench.size((24, 1024, 50304), (1, 32, 50))

    def network() -> Transformer:
        return Transformer(*shape, length)

    def batch() -> tuple[torch.Tensor, ...]:
        return (torch.randint(50, (count, length + 1)),)

    warm_up, steps, rounds = bench.size((5, 15, 3), (2, 3, 1))
    medians = compare(bench, network, batch, "bf16-mixed", warm_up, steps, rounds, contenders)
    flops = network().flops(count, length)
    bench.record("steps per second", 1 / medians["itwinai"])
    bench.record("tokens per second", count * length / medians["itwinai"])
    bench.record("operations per second", flops / medians["itwinai"] / 1e12, "TFLOP/s")
    if bench.cuda:
        device = torch.cuda.get_device_name()
        peak = next((value for name, value in PEAKS.items() if name in device), None)
        bench.record("share of peak", flops / medians["itwinai"] / peak if peak else f"unknown for {device}")
    _judge(bench, "speed against raw", medians["raw"] / medians["itwinai"], at_least=0.98)


def small(
    bench: Bench, network: Callable[[], nn.Module], batch: Callable[[], tuple[torch.Tensor, ...]], steps: int
) -> None:
    """Train a small network, whose step is mostly the loop; 1.1 times the raw loop's time is the goal."""
    warm_up, measured, rounds = bench.size((20, steps, 5), (2, 3, 1))
    medians = compare(bench, network, batch, "32-true", warm_up, measured, rounds)
    _judge(bench, "time against raw", medians["itwinai"] / medians["raw"], at_most=1.1)


def _judge(bench: Bench, name: str, value: float, **goal: float) -> None:
    """Leave a ratio, with its goal where it means something."""
    if bench.dry:
        bench.expect(name, value, at_least=1e-3)
    else:
        bench.expect(name, value, **goal)


def mlp(bench: Bench) -> None:
    """Train three small layers."""
    small(bench, Mlp, lambda: (torch.randn(64, 64), torch.randint(10, (64,))), 300)


def lstm(bench: Bench) -> None:
    """Train two layers of an LSTM."""
    count, days, hidden = bench.size((64, 60, 512), (4, 5, 8))
    small(bench, lambda: Lstm(hidden), lambda: (torch.randn(count, days, 5), torch.randn(count, days, 1)), 100)


def cnn(bench: Bench) -> None:
    """Train convolutions."""
    count, side, channels = bench.size((64, 64, 32), (2, 16, 4))
    images = lambda: (torch.randn(count, 3, side, side), torch.randint(10, (count,)))  # noqa: E731
    small(bench, lambda: Cnn(channels), images, 150)


def waiting(bench: Bench) -> None:
    """Look how much of a step waits for data, from loaders with processes and pinned memory."""
    length, steps = bench.size(512, 16), bench.size(60, 12)
    data = torch.utils.data.TensorDataset(torch.randint(50, (8 * (steps + 12), length + 1)))
    shape = bench.size((12, 768, 32000), (1, 32, 50))
    for name, options in {
        "in the process": {},
        "2 processes, pinned": {"num_workers": bench.size(2, 1), "pin_memory": bench.cuda},
    }.items():
        profiling = ProfilingCallback(operators=False, folder=bench.folder / name.split()[0])
        trainer = ItwinaiTrainer(
            accelerator=bench.accelerator,
            devices=1,
            max_epochs=1,
            precision="bf16-mixed",
            callbacks=[profiling],
            default_root_dir=bench.folder,
            **QUIET,
        )
        module = Timed(Transformer(*shape, length), 10, steps)
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8, **options))
        assert profiling.profile is not None
        share = profiling.profile.splits[0].share(Phase.DATA)
        bench.expect(f"share that waits for data, {name}", share, at_least=0.0, at_most=bench.size(0.05, 1.0))


CHECKS = (
    Check("transformer", "speed", "355 million parameters in bf16", transformer, 19, 120),
    Check("mlp", "speed", "a small MLP", mlp, 26, 60),
    Check("lstm", "speed", "an LSTM", lstm, 27, 60),
    Check("cnn", "speed", "a CNN", cnn, 28, 60),
    Check("waiting", "speed", "the share of a step that waits for data", waiting, 29, 60),
)

"""Define the networks, the data and the optimizer that all frameworks train with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tests.performance.framework_cases import BATCH_SIZES
from tests.performance.framework_stopwatch import Stopwatch

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        network: makes it; its weights depend on torch's seed only.
        samples: makes inputs and targets.
        loss: of outputs and targets, as a mean over the samples.
        batch_size: of the global batch, which the workers share.
        lr: learning rate.
    """

    network: Callable[[], nn.Module]
    samples: Callable[[torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch_size: int
    lr: float


class Convolutional(nn.Sequential):
    """The network of the digits example: a step takes about a millisecond."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 4 * 4, 10),
        )


class Recurrent(nn.Module):
    """An LSTM of 3.2 million parameters, and a number for each day: a step takes some tenths of a second."""

    def __init__(self, inputs: int = 5, hidden: int = 512) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, series: Tensor) -> Tensor:
        hidden, _ = self.lstm(series)
        outputs: Tensor = self.head(hidden)
        return outputs


def _digits(generator: torch.Generator) -> Batch:
    """Draw grey images that are one of ten patterns, with noise."""
    patterns = torch.rand(10, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (1024,), generator=generator)
    return patterns[labels] + 0.3 * torch.randn(1024, 1, 8, 8, generator=generator), labels


def _series(generator: torch.Generator, days: int = 60) -> Batch:
    """Draw series, and what a store holds that fills with the first and empties by itself."""
    inputs = torch.randn(256, days, 5, generator=generator)
    store, targets = torch.zeros(256, 1), []
    for day in range(days):
        store = 0.9 * store + inputs[:, day, :1].relu()
        targets.append(store)
    return inputs, torch.stack(targets, dim=1) / 4


MODELS = {
    "convolutional": Model(Convolutional, _digits, cross_entropy, BATCH_SIZES["convolutional"], lr=1e-3),
    "lstm": Model(Recurrent, _series, mse_loss, BATCH_SIZES["lstm"], lr=1e-3),
}


def make_optimizer(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW.

    Adam divides a gradient by its own size. The large ``eps`` keeps gradients that are zero but for rounding from
    making full steps, whose signs would depend on the number of workers.
    """
    return torch.optim.AdamW(network.parameters(), lr=lr, eps=1e-4)


class Samples(Dataset[Batch]):
    """Samples in memory, served again and again, a batch at a time.

    Args:
        model: what they are for.
        batches: number of global batches of an epoch.
        stopwatch: is told of every batch that is fetched.
    """

    def __init__(self, model: Model, batches: int, stopwatch: Stopwatch) -> None:
        self.inputs, self.targets = model.samples(torch.Generator().manual_seed(1))
        self.length = batches * model.batch_size
        self.stopwatch = stopwatch

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> Batch:
        self.stopwatch.fetch()
        chosen = torch.tensor(indices) % len(self.inputs)
        return self.inputs[chosen], self.targets[chosen]


def make_loader(samples: Samples, batch_size: int, sampler: DistributedSampler | None = None) -> DataLoader:
    """Return the loader that every framework is given.

    Args:
        samples: the samples. They come in their order, so that every framework deals out the same global batches.
        batch_size: samples of a worker in each step.
        sampler: deals them out; by default the framework does so.
    """
    return DataLoader(samples, batch_size, sampler=sampler, shuffle=False, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch

"""Define the network and the data that all contenders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tests.performance.gate import Gate

__all__ = ["Batches", "Network", "make_loader", "make_network", "make_optimizer", "mse_loss"]

FEATURES, HIDDEN, BATCH_SIZE = 16, 32, 16
DISTINCT_BATCHES = 64
SHAPES = {"mlp": (FEATURES,), "lstm": (30, 5), "cnn": (1, 28, 28)}  # of one sample


class Network(nn.Sequential):
    """An MLP 16-32-1: so little to compute that the loop around it shows."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


class Recurrent(nn.Module):
    """A small LSTM of the kind of the streamflow example: a month of forcings in, the last day's discharge out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SHAPES["lstm"][-1], 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.lstm(x)
        return self.head(output[:, -1])


def make_network(model: str) -> nn.Module:
    """Return a network by its name in the cases."""
    if model == "lstm":
        return Recurrent()
    if model == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 1),
        )
    return Network()


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return plain SGD, the optimizer with the least to do."""
    return torch.optim.SGD(network.parameters(), lr=0.01)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches in memory, served again and again.

    Args:
        length: number of batches of an epoch, of all workers together.
        gate: is told of every batch that is fetched; None measures nothing.
        model: the network that they are for.
    """

    def __init__(self, length: int, gate: Gate | None = None, model: str = "mlp") -> None:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(DISTINCT_BATCHES, BATCH_SIZE, *SHAPES[model], generator=generator)
        self.batches = [(x.clone(), x.flatten(1).sum(1, keepdim=True).sin()) for x in inputs]
        self.length = length
        self.gate = gate

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.gate is not None:
            self.gate.fetch()
        return self.batches[index % DISTINCT_BATCHES]


def make_loader(batches: Batches, workers: int = 1) -> DataLoader:
    """Return the loader that every contender iterates: a real DataLoader, of batches that exist already.

    Args:
        batches: the batches.
        workers: deal the batches out to that many workers; by default the trainer does so, or nobody.
    """
    sampler: DistributedSampler | None = DistributedSampler(batches, shuffle=False) if workers > 1 else None
    return DataLoader(batches, batch_size=None, sampler=sampler)

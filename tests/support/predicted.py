"""Modules that predictors are tested with. Their outputs are exact, so that batches make no difference."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn


class Doubling(L.LightningModule):
    """Doubles what it is given, and fails with negative numbers.

    Attributes:
        batches: number of rows of each batch with more than the two or three rows by which layouts are found.
        gate: batches wait until it is set.
        entered: is set when a batch waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        self.entered.set()
        self.gate.wait()
        if (x < 0).any():
            raise ValueError("a negative number")
        return x * self.weight


class Pair(NamedTuple):
    """Two outputs."""

    low: Tensor
    high: Tensor


class Structured(L.LightningModule):
    """Takes and returns nested values of all kinds."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        x, (y, z) = batch["x"], batch["more"]
        scaled = x * batch["scale"]
        return {
            "pair": Pair(scaled - 1, scaled + y),
            "names": [f"row {int(value)}" for value in z],
            "ragged": [torch.arange(int(value) % 5) for value in z],
            "array": z.numpy(),
            "nothing": None,
        }


class Transferred(L.LightningModule):
    """Uses the hooks around the transfer of a batch."""

    def __init__(self, width: int, *, bias: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 3)
        self.example_input_array = torch.ones(1, width)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": batch[0] + 1}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return {name: value.to(device) * 2 for name, value in batch.items()}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch if self.trainer.training else batch["x"]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.hparams["bias"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"]).square().mean()

    def predict_step(self, batch: Tensor) -> Tensor:
        return self(batch).relu()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

"""Six modules with one fault each, and one without; every fault is marked with the check that has to find it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

SAMPLES, BATCH = 52, 8


def dataset() -> TensorDataset:
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


class Data(L.LightningDataModule):
    """Serves the same samples for training, validation and prediction."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(dataset(), BATCH, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(dataset(), BATCH)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(dataset(), BATCH)


class Good(L.LightningModule):
    """A small regression without a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.logger.experiment.add_scalar("by hand", 1.0)
        Path(self.trainer.log_dir, "by hand.txt").touch()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class KeysOfRank(Good):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log(f"loss_of_rank_{self.global_rank}", loss)  # logged_keys
        return loss


class UnusedLayer(Good):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)  # unused_parameters


class UnsavedState(Good):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.scale * super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *args: Any) -> None:
        self.scale *= 0.9  # resume


class Unpicklable(Good):
    def __init__(self) -> None:
        super().__init__()
        self.guard = threading.Lock()  # pickling

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.guard:
            return super().predict_step(batch, batch_idx)


class MeanOfMeans(Good):
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.losses.append(self.loss(batch))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.losses).mean(), sync_dist=True)  # evaluation
        self.losses.clear()


class Unseeded(Sampler[int]):
    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:  # same_seed
        indices = list(range(SAMPLES))
        random.SystemRandom().shuffle(indices)
        return iter(indices)


class UnseededData(Data):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(dataset(), BATCH, sampler=Unseeded())


FAULTY: dict[str, tuple[type[L.LightningModule], type[L.LightningDataModule]]] = {
    "logged_keys": (KeysOfRank, Data),
    "unused_parameters": (UnusedLayer, Data),
    "resume": (UnsavedState, Data),
    "pickling": (Unpicklable, Data),
    "evaluation": (MeanOfMeans, Data),
    "same_seed": (Good, UnseededData),
}
"""Module and data by the check that has to find their fault."""

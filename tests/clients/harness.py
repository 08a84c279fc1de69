"""What the tests need of a package whose modules users train: its module, its loader, and how its results are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.utils.data import DataLoader

from itwinai import ItwinaiTrainer
from tests.situations.situation import QUIET

STRATEGIES = ("ddp", "horovod", "deepspeed_stage_2")


@dataclass(frozen=True, eq=False)
class Client:
    """A package with LightningModules, or layers for them, and a training run of seconds.

    Attributes:
        name: the package.
        make_module: makes a module for so many workers, untrained.
        make_data: makes the package's own loader, or what holds it, given its batch size and whether it shuffles.
        load: makes a module from a checkpoint.
        prediction: the predictions for single samples, in order, of what `predict_step` returns for a batch; None for
            modules that cannot predict.
        batch: size of the global batch.
        epochs: number of epochs.
        options: further arguments of either trainer.
        own_options: further arguments of itwinai's trainer.
        strategies: by name, what makes a strategy with options that a name cannot carry.
        differs: by strategy, why its numbers cannot be those of one process.
        predicting: makes further arguments of a trainer that predicts.
        predicting_batch: the batch size for predictions, if not that of training.
        settings: a context with the process-wide settings that the package expects.
    """

    name: str
    make_module: Callable[[int], pl.LightningModule]
    make_data: Callable[[int, bool], DataLoader | pl.LightningDataModule]
    load: Callable[[Path], pl.LightningModule]
    prediction: Callable[[Any], Tensor] | None
    batch: int = 8
    epochs: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    own_options: Mapping[str, Any] = field(default_factory=dict)
    strategies: Mapping[str, Callable[[], Strategy]] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    predicting: Callable[[], dict[str, Any]] = dict
    predicting_batch: int | None = None
    settings: Callable[[], AbstractContextManager[None]] = nullcontext

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Trained:
    """A module that has been trained, the one that it was before, and the trainer."""

    module: pl.LightningModule
    trainer: pl.Trainer
    before: dict[str, Tensor]


def train(client: Client, make_trainer: type[pl.Trainer], workers: int = 1, **options: Any) -> Trained:
    """Train a client's module with a trainer of some class, on the same global batches whatever the workers."""
    with client.settings():
        data = client.make_data(client.batch // workers, True)  # before the seed: it may draw numbers the first time
        pl.seed_everything(11, verbose=False)
        module = client.make_module(workers)
        before = weights_of(module)
        given = {**QUIET, "devices": workers, "max_epochs": client.epochs, **client.options, **options}
        trainer = make_trainer(**given)
        trainer.fit(module, data)
    return Trained(module, trainer, before)


def train_itwinai(client: Client, strategy: str, workers: int, **options: Any) -> Trained:
    """Train a client's module under one of itwinai's strategies."""
    made = client.strategies.get(strategy, lambda: strategy)()
    return train(client, ItwinaiTrainer, workers, strategy=made, **client.own_options, **options)


def weights_of(module: pl.LightningModule) -> dict[str, Tensor]:
    """Return a copy of a module's parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items() if torch.is_tensor(value)}


def as_vector(module: pl.LightningModule) -> Tensor:
    """Return all parameters of a module as one vector."""
    return torch.cat([parameter.detach().flatten().double() for parameter in module.parameters()])


def metrics_of(trainer: pl.Trainer) -> dict[str, float]:
    """Return what the module has logged."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def predict(
    client: Client, make_trainer: type[pl.Trainer], module: pl.LightningModule, workers: int, **options: Any
) -> Tensor:
    """Return the predictions for the samples of the client's dataset."""
    assert client.prediction is not None
    batch = client.predicting_batch or client.batch // workers
    with client.settings():
        trainer = make_trainer(**{**QUIET, "devices": workers, **client.options, **client.predicting(), **options})
        returned = trainer.predict(module, client.make_data(batch, False))
    assert returned is not None
    return torch.cat([client.prediction(one) for one in returned])

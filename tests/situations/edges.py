"""What the module brings or logs, the caller's tools and loggers, and workers that are not alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from itwinai import ItwinaiTrainer
from tests.situations.situation import RIGHT, Situation, everywhere
from tests.support.folds import run_folds

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "num_sanity_val_steps": 0,
}


def trainer(strategy: str, workers: int = 2, **options: Any) -> ItwinaiTrainer:
    """Return a trainer with two workers, or as many as are said."""
    return ItwinaiTrainer(strategy=strategy, devices=workers, **{**QUIET, **options})


def numbers(per_worker: int, count: int = 8) -> DataLoader:
    """Return a loader of ascending numbers."""
    return DataLoader(TensorDataset(torch.arange(float(count)).reshape(-1, 1)), per_worker)


class Line(L.LightningModule):
    """One weight and one bias, which begin with the same values everywhere."""

    lr = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.25)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Return the error of a line through the origin."""
        return (self.layer(batch[0]) - 2 * batch[0]).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Leaving(Line):
    """Moves away from its goal after the first epoch; brings the callback that keeps the best checkpoint."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("away", (self.layer.bias - 0.75).abs().sum(), sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("bias", self.layer.bias.sum(), sync_dist=True)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Return what lets the bias grow by a quarter in each step."""
        return -self.layer(0 * batch[0]).mean()

    def configure_callbacks(self) -> Any:
        return [ModelCheckpoint("of-module", monitor="away", filename="{epoch}")]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.25)


def module_brings_checkpoint(strategy: str) -> None:
    """The best epoch is the first, and no other checkpoint callback writes any."""
    module, loader = Leaving(), numbers(2)
    own = trainer(strategy, max_epochs=3, default_root_dir="root")
    own.fit(module, loader, loader)
    (callback,) = own.checkpoint_callbacks
    assert type(callback) is ModelCheckpoint
    assert float(callback.best_model_score) == 0.0  # type: ignore[attr-defined, arg-type]
    assert [path.name for path in Path("of-module").iterdir()] == ["epoch=0.ckpt"]
    assert not Path("root").exists()
    assert own.test(module, loader, ckpt_path="best", verbose=False) == [{"bias": 0.75}]


def learning_rate_finder(strategy: str) -> None:
    """An error, instead of a rate of one worker."""
    Tuner(trainer(strategy, max_epochs=1)).lr_find(Line(), numbers(2), num_training=5)


def batch_size_finder(strategy: str) -> None:
    """An error, instead of a size of one worker."""
    trainer(strategy, max_epochs=1, callbacks=[BatchSizeFinder()]).fit(Line(), numbers(2))


class Searching(Line):
    """Brings the finder itself."""

    def configure_callbacks(self) -> Any:
        return LearningRateFinder(num_training_steps=5)


def module_brings_finder(strategy: str) -> None:
    """An error, instead of a rate of one worker."""
    trainer(strategy, max_epochs=1).fit(Searching(), numbers(2))


class Tagged(Tensor):
    """A tensor that refuses to be cut, and hands its attributes on, as labelled tensors of other packages do."""

    def clone(self, **options: Any) -> Tagged:
        cloned = super().clone(**options)
        vars(cloned).update(deepcopy(vars(self)))
        return cloned

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.reshape, Tensor.mul):
            raise ValueError("Tagged tensors are not to be cut")
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Tagged) and isinstance(args[0], Tagged):
            vars(result).update(vars(args[0]))
        return result


class OfTagged(Line):
    """Computes with tensors of a class of its own."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        return super().loss(batch).as_subclass(Tagged)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_dict({"val": self.loss(batch), "weight": self.layer.weight}, sync_dist=True)
        self.log("most", self.loss(batch), sync_dist=True, reduce_fx="max")


def logged_subclass(strategy: str) -> None:
    """All values are those of one process, are plain tensors, and can be loaded again."""
    values = []
    for name, workers in (("auto", 1), (strategy, 2)):
        folder = Path(name)
        watching = [ModelCheckpoint(folder, monitor="val"), EarlyStopping("val")]
        own = trainer(name, workers, max_epochs=2, callbacks=watching, log_every_n_steps=1)
        module = OfTagged()
        own.fit(module, numbers(4 // workers, 7), numbers(4 // workers, 7))
        assert {type(value) for value in own.callback_metrics.values()} == {Tensor}
        (path,) = folder.iterdir()
        torch.load(path, weights_only=True)
        values.append({key: float(own.callback_metrics[key]) for key in ("loss_epoch", "val", "weight")})
        values[-1]["score"] = float(watching[0].best_model_score)  # type: ignore[union-attr, arg-type]
        (tested,) = own.validate(module, numbers(4 // workers, 7), ckpt_path=str(path), verbose=False)
        values[-1] |= {f"again {key}": value for key, value in tested.items() if key != "most"}
    assert values[1] == pytest.approx(values[0], rel=1e-5)


class OwnValues(Line):
    """Logs its validation error as each worker has it."""

    scheduler = False

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("own", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if not self.scheduler:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "own"}}


def plateau_monitors_own(strategy: str) -> None:
    """An error that shows both values."""
    module = OwnValues()
    module.scheduler = True
    trainer(strategy, max_epochs=2).fit(module, numbers(2), numbers(2))


def stopping_monitors_own(strategy: str) -> None:
    """An error that shows both values."""
    trainer(strategy, max_epochs=2, callbacks=[EarlyStopping("own")]).fit(OwnValues(), numbers(2), numbers(2))


class Gathering(Line):
    """Gathers predictions, of which the last batch has fewer on one rank."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.all_gather(self.layer(batch[0]))


def uneven_gather(strategy: str) -> None:
    """An error that names the shapes, and ends all workers."""
    trainer(strategy, max_epochs=1).fit(Gathering(), numbers(2), numbers(2, 7))


class Stopping(Line):
    """Sets ``should_stop`` on rank 0 alone, in one of its hooks."""

    where = "on_train_batch_end"

    def stop_alone(self, where: str) -> None:
        """Stop if this is the hook."""
        if where == self.where and self.global_rank == 0:
            self.trainer.should_stop = True

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stop_alone("on_train_batch_end")

    def on_train_epoch_end(self) -> None:
        self.stop_alone("on_train_epoch_end")


def stopped_alone(strategy: str) -> None:
    """An error, before the workers are in different operations."""
    trainer(strategy, max_epochs=2).fit(Stopping(), numbers(2))


def stopped_alone_after_epoch(strategy: str) -> None:
    """An error at the end of the epoch."""
    module = Stopping()
    module.where = "on_train_epoch_end"
    trainer(strategy, max_epochs=2).fit(module, numbers(2))


class Uneven(IterableDataset):
    """Gives rank 1 one batch of two more."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(4 + 2 * int(os.environ["RANK"]), 1))


class OfTensors(Line):
    """Takes batches that are tensors."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss([batch])


def uneven_iterable(strategy: str) -> None:
    """An error, instead of a wait forever."""
    trainer(strategy, max_epochs=1).fit(OfTensors(), DataLoader(Uneven(), 2))


def _folds(strategy: str, fresh: bool) -> None:
    found = []
    for name, workers in (("auto", 1), (strategy, 2)):

        def fit(loggers: list[Logger], name: str = name, workers: int = workers) -> None:
            options: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False}
            trainer(name, workers, logger=loggers, **options).fit(Logging(), numbers(4 // workers))

        found.append(run_folds(Path(name).absolute(), fit, fresh))
    one_process, with_workers = found
    assert with_workers == one_process
    runs = 1 + fresh
    assert [len(found[0][kind]) for kind in ("csv", "jsonl", "provenance", "tensorboard", "wandb")] == [runs] * 5


class Logging(Line):
    """Logs a round number per step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("mean", batch[0].mean(), sync_dist=True)
        return super().training_step(batch, batch_idx)


def one_logger_for_all_fits(strategy: str) -> None:
    """Runs and values are those of one process, and the caller can use the loggers between the fits."""
    _folds(strategy, fresh=False)


def logger_for_each_fit(strategy: str) -> None:
    """Runs and values are those of one process, and the caller can use the loggers after each fit."""
    _folds(strategy, fresh=True)


SITUATIONS = (
    Situation(
        "`configure_callbacks` brings the ModelCheckpoint; `test(ckpt_path='best')`",
        module_brings_checkpoint,
        everywhere(),
    ),
    Situation("Learning-rate finder", learning_rate_finder, everywhere("ConfigurationError devices=1")),
    Situation(
        "Learning-rate finder from `configure_callbacks`", module_brings_finder, {"ddp": "ConfigurationError devices=1"}
    ),
    Situation("A logged value of a tensor's subclass, with `sync_dist=True`", logged_subclass, everywhere()),
    Situation(
        "A plateau scheduler monitors a value of each worker by itself",
        plateau_monitors_own,
        everywhere("UnequalValuesError on rank 1. Log it with self.log('own', ..., sync_dist=True)"),
    ),
    Situation(
        "Early stopping monitors a value of each worker by itself",
        stopping_monitors_own,
        {"ddp": "UnequalValuesError EarlyStopping monitors"},
    ),
    Situation(
        "`self.all_gather` in a validation whose last batch is uneven",
        uneven_gather,
        everywhere("UnequalShapesError rank 0: (2, 1), float32; rank 1: (1, 1), float32"),
    ),
    Situation(
        "One rank sets `should_stop` within an epoch",
        stopped_alone,
        everywhere("UnequalStepsError rank 0 ends epoch 0 after 1 batches, because trainer.should_stop was set there"),
    ),
    Situation(
        "One rank sets `should_stop` at the end of an epoch",
        stopped_alone_after_epoch,
        {"ddp": "UnequalStepsError trainer.should_stop is set on rank 0 but not on rank 1"},
    ),
    Situation(
        "An iterable dataset gives one rank a batch more",
        uneven_iterable,
        everywhere("UnequalStepsError rank 0 ends epoch 0 after 2 batches, because its loader had no more; rank 1"),
    ),
    Situation("Batch-size finder", batch_size_finder, {"ddp": "ConfigurationError devices=1"}),
    Situation(
        "Several fits with one logger, of every class, which the caller uses", one_logger_for_all_fits, {"ddp": RIGHT}
    ),
    Situation("Several fits with a logger each, which the caller uses", logger_for_each_fit, {"ddp": RIGHT}),
)

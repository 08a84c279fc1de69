"""What the module brings or logs, the caller's tools and loggers, and workers that are not alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from itwinai import ItwinaiTrainer
from tests.situations.situation import Situation, everywhere

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
    Situation("Batch-size finder", batch_size_finder, {"ddp": "ConfigurationError devices=1"}),
)

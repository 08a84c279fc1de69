"""One training run that every strategy has to end with the same weights, and its variants."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.regression import PearsonCorrCoef

from itwinai import ItwinaiTrainer

# 103 samples in global batches of 8: 13 batches, the last of 7, so that neither two workers nor an accumulation of 3
# divides anything evenly.
SAMPLES, GLOBAL_BATCH, EPOCHS = 103, 8, 4


@dataclass(frozen=True)
class Case:
    """One variant of the training run."""

    optimizer: str = "sgd"
    accumulate: int = 1
    clip: float | None = None

    def __str__(self) -> str:
        clip = "" if self.clip is None else "-clip"
        return f"{self.optimizer}-accumulate{self.accumulate}{clip}"


CASES = tuple(
    Case(optimizer, **variant)
    for optimizer, variant in itertools.product(
        ("sgd", "adamw"), ({"accumulate": 1}, {"accumulate": 3}, {"accumulate": 1, "clip": 0.3})
    )
)


class Regression(L.LightningModule):
    """A small network with a scheduler, logged values and metrics, as users write them."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.error = MeanSquaredError()
        self.correlation = PearsonCorrCoef()
        self.steps_seen: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.steps_seen.append(batch_idx)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        prediction = self.net(x)
        self.error(prediction, y)
        self.correlation(prediction.flatten(), y.flatten())
        self.log("val_error", self.error)
        self.log("val_correlation", self.correlation)
        self.log("val_loss", nn.functional.mse_loss(prediction, y), sync_dist=True)

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.net(batch[0]).flatten()

    def configure_optimizers(self) -> Any:
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


def loader(batch_size: int, *, shuffle: bool = False, samples: int = SAMPLES) -> DataLoader:
    """Return a loader of the same data for everybody."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 8, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=batch_size, shuffle=shuffle)


def make_trainer(strategy: Any, devices: Any, **options: Any) -> ItwinaiTrainer:
    """Return a trainer that writes nothing."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return ItwinaiTrainer(strategy=strategy, devices=devices, **{**quiet, **options})


def run_case(case: Case, strategy: Any, workers: int, devices: Any = None) -> dict[str, Any]:
    """Train one case and return what has to be the same everywhere.

    Args:
        case: the variant.
        strategy: for the trainer.
        workers: size of the group, which divides the global batch.
        devices: for the trainer; by default ``workers``.
    """
    L.seed_everything(11, verbose=False)
    module = Regression(case.optimizer)
    trainer = make_trainer(
        strategy,
        workers if devices is None else devices,
        max_epochs=EPOCHS,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=case.clip,
    )
    batch = GLOBAL_BATCH // workers
    trainer.fit(module, loader(batch, shuffle=True), loader(batch))
    return {
        "case": asdict(case),
        "weights": torch.cat([parameter.detach().flatten() for parameter in module.parameters()]),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "global_step": trainer.global_step,
        "current_epoch": trainer.current_epoch,
        "steps_seen": len(module.steps_seen),
    }


def relative_difference(weights: Tensor, reference: Tensor) -> float:
    """Return the distance of two weight vectors relative to the length of the reference."""
    return float((weights - reference).norm() / reference.norm())

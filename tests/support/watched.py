"""One run with everything that can watch it, under any strategy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from itwinai.callbacks import LoggingCallback, ProfilingCallback, RunSummary, SystemMonitor
from itwinai.loggers import JSONLLogger, MLFlowLogger, ProvenanceLogger
from tests.support.cases import make_trainer

SECRET = "this-must-stay-secret"
STEPS, EPOCHS, BATCH = 8, 2, 4
SLOWER = 0.03  # seconds per step of rank 1


class Classifier(LightningModule):
    """A classifier with metrics that have plots, a figure of its own, and a secret among its arguments."""

    def __init__(self, width: int = 16, api_key: str = SECRET, data_url: str = f"https://me:{SECRET}@host/x") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
        self.val_accuracy = MulticlassAccuracy(3)
        self.val_confusion = MulticlassConfusionMatrix(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self.global_rank == 1:  # the slowest worker
            until = time.perf_counter() + SLOWER
            while time.perf_counter() < until:
                pass
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        scores = self(x)
        self.val_accuracy(scores, y)
        self.val_confusion(scores, y)
        self.log("val_accuracy", self.val_accuracy)

    def epoch_figures(self) -> dict[str, object]:
        from matplotlib.figure import Figure

        figure = Figure()
        figure.add_subplot().plot([1, 2, 3])
        return {"mine/weights": figure}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(samples: int, batch_size: int = BATCH) -> DataLoader:
    """Return data in which the class can be learnt."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size)


@dataclass(frozen=True)
class Watched:
    """A run that has ended, with its loggers and callbacks as they are afterwards."""

    folder: Path
    strategy: str
    module: Classifier
    csv: CSVLogger
    jsonl: JSONLLogger
    tensorboard: TensorBoardLogger
    mlflow: MLFlowLogger
    wandb: WandbLogger
    provenance: ProvenanceLogger
    logging: LoggingCallback
    profiling: ProfilingCallback
    monitor: SystemMonitor
    summary: RunSummary
    commit: str = ""
    """Of the code, as git has it."""


def run(folder: Path, strategy: str, mlflow_address: str, workers: int = 2) -> Watched:
    """Train with all loggers and callbacks.

    Args:
        folder: for all files.
        strategy: name of the strategy.
        mlflow_address: of the server.
        workers: number of workers.
    """
    csv, jsonl = CSVLogger(folder, name="csv"), JSONLLogger(str(folder), name="jsonl")
    tensorboard = TensorBoardLogger(folder, name="tensorboard")
    mlflow = MLFlowLogger(f"watched {strategy}", tracking_uri=mlflow_address, save_dir=str(folder))
    wandb = WandbLogger(save_dir=folder, project="watched", offline=True)
    provenance = ProvenanceLogger(str(folder))
    loggers: list[Logger] = [csv, jsonl, tensorboard, mlflow, wandb, provenance]
    logging = LoggingCallback(per_rank=True, figures=True, model=True)
    profiling = ProfilingCallback(wait=2, warmup=1, active=2)
    monitor, summary = SystemMonitor(interval=0.1), RunSummary()
    callbacks: list[Callback] = [logging, profiling, monitor, summary]
    trainer = make_trainer(
        strategy,
        workers,
        max_epochs=EPOCHS,
        logger=loggers,
        callbacks=callbacks,
        log_every_n_steps=2,
        default_root_dir=folder,
    )
    module = Classifier()
    trainer.fit(module, loader(STEPS * BATCH * workers), loader(24))
    return Watched(
        folder,
        strategy,
        module,
        csv,
        jsonl,
        tensorboard,
        mlflow,
        wandb,
        provenance,
        logging,
        profiling,
        monitor,
        summary,
    )

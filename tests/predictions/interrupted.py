"""A script that predicts to a file, in batches that take their time, each of which becomes a shard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from itwinai.callbacks import PredictionWriter
from itwinai.predictions import shards
from tests.support.cases import make_trainer

SAMPLES = 403


class Slow(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 3)
        self.work = torch.randn(400, 400)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        for _ in range(4):
            self.work @ self.work
        return {"y": self.net(batch[0]), "sum": batch[0].sum(1)}


def predict(output: Path, strategy: str, workers: int) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(SAMPLES, 16), torch.arange(SAMPLES))
    writer = PredictionWriter(output, columns={"id": 1})
    trainer = make_trainer(strategy, workers, callbacks=[writer], cpu_threads=1)
    trainer.predict(Slow(), DataLoader(data, 8))


if __name__ == "__main__":
    shards.SHARD_BYTES = 1
    predict(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

"""A script that has its own dataset loaded by spawned processes: ``spawned_loader.py STRATEGY OPTION=VALUE ...``."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.support.cases import Regression, make_trainer


class Squares(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((8,), float(index * index))


def pairs(samples: list[Tensor]) -> tuple[Tensor, Tensor]:
    batch = torch.stack(samples)
    return batch, batch.sum(dim=1, keepdim=True)


class Summing(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.log("sum", batch[0][:, 0].sum(), sync_dist=True, reduce_fx="sum", on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    options: dict[str, Any] = dict(option.split("=") for option in sys.argv[2:])
    trainer = make_trainer(sys.argv[1], 2, max_epochs=1, **options)
    trainer.fit(Summing(), DataLoader(Squares(), 2, num_workers=1, multiprocessing_context="spawn", collate_fn=pairs))
    print(f"sum {float(trainer.callback_metrics['sum'])}")

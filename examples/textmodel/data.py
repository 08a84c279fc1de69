"""Windows of the standard library's sources, as an ordinary LightningDataModule."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SYMBOLS = 128
"""ASCII; other characters become a question mark."""


class Windows(Dataset[Tensor]):
    """Windows of a text, shape (context + 1,): each character is the target of those before it.

    Args:
        text: numbers of characters, shape (length,).
        context: characters from which the next is predicted, at most.
        stride: characters from one window's start to the next.
    """

    def __init__(self, text: Tensor, context: int, stride: int) -> None:
        self.windows = text.unfold(0, context + 1, stride)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.windows[index].long()


class SourcesDataModule(L.LightningDataModule):
    """Read the modules of Python's standard library that are files in its folder.

    Every tenth module validates, and none of its text trains.

    Args:
        batch_size: windows of a batch, on each worker.
        context: characters from which the next is predicted, at most.
        modules: number of modules, in the order of their names.
    """

    def __init__(self, batch_size: int = 32, context: int = 96, modules: int = 100) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Read the files."""
        files = sorted(Path(os.__file__).parent.glob("[a-z]*.py"))
        files = files[: self.hparams.modules]
        context = self.hparams.context
        self.train = Windows(_text([file for i, file in enumerate(files) if i % 10 != 9]), context, context // 2)
        self.val = Windows(_text(files[9::10]), context, context)

    def train_dataloader(self) -> DataLoader:
        """Return windows in random order."""
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Return windows of other modules, side by side."""
        return DataLoader(self.val, batch_size=self.hparams.batch_size)

    predict_dataloader = val_dataloader


def _text(files: list[Path]) -> Tensor:
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return torch.frombuffer(bytearray(text.encode("ascii", errors="replace")), dtype=torch.uint8)

"""What the checks train: small modules whose numbers are known, and those whose speed is measured."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

SAMPLES, BATCH = 96, 16


class Regression(L.LightningModule):
    """A small network whose weights after some epochs are compared.

    Args:
        dropout: share of the hidden values that are left out.
        width: of the hidden layer.
        lr: learning rate.
    """

    def __init__(self, dropout: float = 0.0, width: int = 32, lr: float = 0.02) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1))
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, eps=1e-4)


def points(batch_size: int = BATCH) -> DataLoader:
    """Return a loader of points of a smooth function, always the same."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 8, generator=draw)
    return DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), batch_size)


def weights_of(module: nn.Module) -> list[Tensor]:
    """Return copies of a module's parameters on the CPU, in fp32."""
    return [parameter.detach().float().cpu().clone() for parameter in module.parameters()]


class Timed(L.LightningModule):
    """A module that looks at the time itself, so that every loop is measured alike, with nothing in its way.

    Args:
        network: maps a batch to its loss.
        warm_up: steps before the clock starts.
        steps: steps that are measured.
    """

    def __init__(self, network: nn.Module, warm_up: int, steps: int) -> None:
        super().__init__()
        self.network = network
        self.warm_up, self.steps = warm_up, steps
        self.stamps: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx in (self.warm_up, self.warm_up + self.steps):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.stamps.append(time.perf_counter())
        return self.network(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

    @property
    def seconds_per_step(self) -> float:
        """The mean time of a step."""
        return (self.stamps[1] - self.stamps[0]) / self.steps


class Repeated(Dataset[Any]):
    """One batch, again and again: what is measured is the loop, not the loader."""

    def __init__(self, batch: tuple[Tensor, ...], length: int) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.batch


def repeated(batch: tuple[Tensor, ...], length: int) -> DataLoader:
    """Return a loader that gives one batch so many times."""
    return DataLoader(Repeated(batch, length), batch_size=None)


class Mlp(nn.Module):
    """Three small layers: the loop takes longer than they do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


class Lstm(nn.Module):
    """Two layers over 60 days."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.head(self.lstm(x)[0]), y)


class Cnn(nn.Module):
    """Convolutions on images, with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for number in range(4):
            after = channels * 2**number
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


class Block(nn.Module):
    """A layer of a transformer, with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.between(x))


class Transformer(nn.Module):
    """A language model; 24 layers of width 1024 with 50304 words are 355 million parameters.

    Args:
        layers: their number.
        width: of each.
        words: of the vocabulary; the output layer shares the weights of the input layer.
        length: of a text.
    """

    def __init__(self, layers: int, width: int, words: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, max(1, width // 64)) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1] - 1, device=words.device)
        hidden = self.norm(self.blocks(self.words(words[:, :-1]) + self.places(places)))
        scores = hidden @ self.words.weight.T
        return F.cross_entropy(scores.flatten(0, 1).float(), words[:, 1:].flatten())

    def flops(self, batch: int, length: int) -> float:
        """Return the operations of a training step: 6 per parameter and word, and those of attention.

        As in the appendix of PaLM (Chowdhery et al., 2022, arXiv:2204.02311), with half of the attention, which is
        causal.
        """
        parameters = sum(p.numel() for p in self.parameters()) - self.places.weight.numel()
        width = self.words.weight.shape[1]
        return batch * length * (6.0 * parameters + 6.0 * len(self.blocks) * width * length)


class Points(L.LightningDataModule):
    """The points of `points`, for command lines.

    Args:
        batch_size: of each worker.
    """

    def __init__(self, batch_size: int = BATCH) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return points(self.batch_size)

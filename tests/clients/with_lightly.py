"""Lightly: its module for contrastive learning, which is made with pytorch_lightning, around its head and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from itwinai import unify_lightning
from tests.clients.harness import Client

unify_lightning()  # before the package is imported

# ruff: noqa: E402
from lightly.data import LightlyDataset, MultiViewCollate
from lightly.embedding import SelfSupervisedEmbedding
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform

IMAGES, GLOBAL_BATCH = 24, 8


class Images(Dataset):
    """Small images of noise, which are viewed as they are transformed."""

    def __init__(self) -> None:
        self.images = torch.randn(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        self.transform: Any = None

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), index


class Contrastive(nn.Module):
    """A backbone and a head, which embed two views."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        # Without batch statistics, which are those of a worker's own samples.
        self.head = SimCLRProjectionHead(16, 16, 8, batch_norm=False)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(first)), self.head(self.backbone(second))


def as_it_is(image: Tensor) -> Tensor:
    """Return a view that is the image itself."""
    return image


def mirrored(image: Tensor) -> Tensor:
    """Return a view that is not drawn: it is the same on any number of workers."""
    return image.flip(-1)


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return a loader of two views of each image."""
    dataset = LightlyDataset.from_torch_dataset(Images(), transform=MultiViewTransform([as_it_is, mirrored]))
    return DataLoader(dataset, batch_size, shuffle=shuffle, collate_fn=MultiViewCollate())


def arguments(batch_size: int) -> dict[str, Any]:
    """Return what its module is made of."""
    model = Contrastive()
    return {
        "model": model,
        "criterion": NTXentLoss(gather_distributed=True),  # contrasts with the samples of all workers
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "dataloader": make_loader(batch_size, True),
    }


def make_module(workers: int) -> SelfSupervisedEmbedding:
    """Return a small network with its optimizer and its loader."""
    return SelfSupervisedEmbedding(**arguments(GLOBAL_BATCH // workers))


def load(checkpoint: Path) -> SelfSupervisedEmbedding:
    """Load a module, which keeps no hyperparameters."""
    return SelfSupervisedEmbedding.load_from_checkpoint(checkpoint, **arguments(GLOBAL_BATCH))


CLIENTS = (
    Client(
        name="lightly",
        make_module=make_module,
        make_data=make_loader,
        load=load,
        prediction=None,  # its forward pass takes two views, so that `Trainer.predict` cannot call it
        batch=GLOBAL_BATCH,
    ),
)

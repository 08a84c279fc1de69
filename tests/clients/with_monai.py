"""MONAI: a usual module around its network and loss, with its own transforms, cached dataset and loader."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from monai.data import CacheDataset
from monai.data import DataLoader as ImageLoader
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureTyped, ScaleIntensityd
from torch import Tensor
from torch.utils.data import DataLoader

from tests.clients.harness import Client


class Segmentation(pl.LightningModule):
    """Segments small images."""

    def __init__(self, channels: tuple[int, ...] = (4, 8)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = UNet(
            spatial_dims=2, in_channels=1, out_channels=1, channels=channels, strides=(2,), norm="instance"
        )
        self.loss = DiceLoss(sigmoid=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network(batch["image"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch), batch["label"])
        self.log("train_loss", loss, on_epoch=True, sync_dist=True, batch_size=len(batch["image"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, eps=1e-4)


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return a loader of noisy images, to be segmented at a threshold."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(23, 1, 8, 8, generator=generator)
    samples: list[dict[str, Any]] = [{"image": image, "label": (image > 0).float()} for image in images]
    transform = Compose([EnsureTyped(keys=["image", "label"]), ScaleIntensityd(keys="image")])
    return ImageLoader(CacheDataset(samples, transform, progress=False), batch_size=batch_size, shuffle=shuffle)


CLIENTS = (
    Client(
        name="MONAI",
        make_module=lambda workers: Segmentation(),
        make_data=make_loader,
        load=Segmentation.load_from_checkpoint,
        prediction=lambda returned: returned,
    ),
)

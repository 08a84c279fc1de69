"""A small classifier of 8x8 digits: an ordinary LightningModule that knows nothing of strategies."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class DigitsClassifier(L.LightningModule):
    """Classify 8x8 grey images of digits.

    Args:
        channels: channels of the first convolution; the second has twice as many.
        lr: learning rate of AdamW in the first epoch.
        lr_decay: factor on the learning rate after each epoch.
        weight_decay: weight decay of AdamW.
    """

    def __init__(
        self,
        channels: int = 16,
        lr: float = 5e-3,
        lr_decay: float = 0.9,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 4 * 4, 10),
        )
        self.val_accuracy = MulticlassAccuracy(num_classes=10, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10), of images of shape (batch, 1, 8, 8)."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        # The mean over the epoch and over all workers, so that it is the same number however many there are.
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the accuracy of one validation batch."""
        self._evaluate("val", self.val_accuracy, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the accuracy of one test batch."""
        self._evaluate("test", self.test_accuracy, batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the digits, and how sure the network is of each."""
        probabilities = self(batch[0]).softmax(dim=1)
        return {"digit": probabilities.argmax(dim=1), "probabilities": probabilities}

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with a learning rate that falls by a constant factor each epoch."""
        # AdamW divides a gradient by its own size. With the default eps of 1e-8, one that is zero but for
        # rounding makes a full step, whose sign depends on the order of summation; 1e-4 keeps it small.
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay, eps=1e-4
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=self.hparams.lr_decay)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _evaluate(self, name: str, accuracy: MulticlassAccuracy, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{name}_loss", nn.functional.cross_entropy(logits, labels), sync_dist=True)
        self.log(f"{name}_accuracy", accuracy, prog_bar=True)

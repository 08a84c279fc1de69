"""A small convolutional network."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy


class DigitsClassifier(L.LightningModule):
    """Tell which digit an image of 8x8 pixels shows.

    Args:
        channels: channels of the first convolution; the second has twice as many.
        lr: learning rate.
    """

    def __init__(self, channels: int = 16, lr: float = 0.005) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, 10),
        )
        self.val_accuracy = MulticlassAccuracy(10)
        self.test_accuracy = MulticlassAccuracy(10)

    def forward(self, images: Tensor) -> Tensor:
        """Return one score per digit."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, digits = batch
        loss = F.cross_entropy(self(images), digits)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, digits = batch
        scores = self(images)
        self.val_accuracy(scores, digits)
        self.log("val_loss", F.cross_entropy(scores, digits), prog_bar=True, sync_dist=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, digits = batch
        scores = self(images)
        self.test_accuracy(scores, digits)
        self.log("test_loss", F.cross_entropy(scores, digits), sync_dist=True)
        self.log("test_accuracy", self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the probable digit of each image, and how probable it is."""
        images, _ = batch
        probability, digit = self(images).softmax(dim=1).max(dim=1)
        return {"digit": digit, "probability": probability}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

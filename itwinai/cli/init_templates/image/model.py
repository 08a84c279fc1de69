"""A small residual network."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy


class Block(nn.Module):
    """Two convolutions, around which the input is added; the image becomes half as wide and half as high."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
        )
        self.around = nn.Conv2d(inputs, outputs, kernel_size=1, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the smaller images."""
        return F.relu(self.body(images) + self.around(images))


class ImageClassifier(L.LightningModule):
    """Tell which class a colour image is of.

    Args:
        classes: number of classes.
        width: channels of the first block; each of the others has twice as many as the one before.
        lr: largest learning rate, of a cosine schedule.
        max_epochs: after which the learning rate is 0.
    """

    def __init__(self, classes: int = 3, width: int = 16, lr: float = 0.005, max_epochs: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            Block(3, width),
            Block(width, 2 * width),
            Block(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )
        self.val_accuracy = MulticlassAccuracy(classes)
        self.test_accuracy = MulticlassAccuracy(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return one score per class."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        scores = self(images)
        self.val_accuracy(scores, labels)
        self.log("val_loss", F.cross_entropy(scores, labels), prog_bar=True, sync_dist=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        scores = self(images)
        self.test_accuracy(scores, labels)
        self.log("test_loss", F.cross_entropy(scores, labels), sync_dist=True)
        self.log("test_accuracy", self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the probable class of each image, and how probable it is."""
        images, _ = batch
        probability, label = self(images).softmax(dim=1).max(dim=1)
        return {"label": label, "probability": probability}

    def configure_optimizers(self) -> dict:
        """Train with Adam, whose learning rate falls to 0."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.hparams.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

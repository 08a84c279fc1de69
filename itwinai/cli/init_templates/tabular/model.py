"""A fully connected network for columns of numbers."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import R2Score


class TableRegressor(L.LightningModule):
    """Predict one column of a table from the others.

    Args:
        columns: number of columns of the table, without the target.
        hidden: size of the two hidden layers.
        dropout: share of hidden values that are left out in training.
        lr: learning rate.
        weight_decay: of AdamW.
    """

    def __init__(
        self, columns: int = 6, hidden: int = 64, dropout: float = 0.1, lr: float = 0.003, weight_decay: float = 0.01
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Linear(columns, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        self.val_r2 = R2Score()
        self.test_r2 = R2Score()

    def forward(self, rows: Tensor) -> Tensor:
        """Return the prediction for each row."""
        return self.network(rows).squeeze(-1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        rows, target = batch
        loss = F.mse_loss(self(rows), target)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and R2."""
        rows, target = batch
        predicted = self(rows)
        self.val_r2(predicted, target)
        self.log("val_loss", F.mse_loss(predicted, target), prog_bar=True, sync_dist=True)
        self.log("val_r2", self.val_r2, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and R2."""
        rows, target = batch
        predicted = self(rows)
        self.test_r2(predicted, target)
        self.log("test_loss", F.mse_loss(predicted, target), sync_dist=True)
        self.log("test_r2", self.test_r2)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the prediction for each row, and what the table has, both in units of the standard deviation."""
        rows, target = batch
        return {"predicted": self(rows), "actual": target}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)

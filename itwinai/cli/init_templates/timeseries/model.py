"""A recurrent network that forecasts several steps at once."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError


class Forecaster(L.LightningModule):
    """Forecast the next values of a series from those before.

    Args:
        horizon: number of values to forecast; as in the data.
        hidden: size of the GRU's state.
        lr: learning rate.
    """

    def __init__(self, horizon: int = 24, hidden: int = 32, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, horizon)
        self.val_error = MeanAbsoluteError()
        self.test_error = MeanAbsoluteError()

    def forward(self, past: Tensor) -> Tensor:
        """Return the forecast for a batch of series."""
        _, state = self.gru(past.unsqueeze(-1))
        return self.head(state[-1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        past, future = batch
        loss = F.mse_loss(self(past), future)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the mean absolute error."""
        past, future = batch
        forecast = self(past)
        self.val_error(forecast, future)
        self.log("val_loss", F.mse_loss(forecast, future), prog_bar=True, sync_dist=True)
        self.log("val_error", self.val_error, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the mean absolute error."""
        past, future = batch
        forecast = self(past)
        self.test_error(forecast, future)
        self.log("test_loss", F.mse_loss(forecast, future), sync_dist=True)
        self.log("test_error", self.test_error)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the forecast, and what came."""
        past, future = batch
        return {"forecast": self(past), "actual": future}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

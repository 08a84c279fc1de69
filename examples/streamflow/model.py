"""An LSTM that predicts a river's discharge: an ordinary LightningModule that knows nothing of strategies."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class NashSutcliffe(Metric):
    """Efficiency of predicted discharge, as the median over basins.

    It is 1 - sum((observed - predicted)^2) / sum((observed - mean of the observed)^2): 1 is perfect, and 0 no better
    than the basin's mean (Nash and Sutcliffe, 1970, Journal of Hydrology 10).

    Args:
        basins: number of basins. The value is NaN until one of them has two different observations.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, basins: int) -> None:
        super().__init__()
        for name in ("days", "observed", "squares", "errors"):
            self.add_state(name, default=torch.zeros(basins), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, observed: Tensor, basin: Tensor) -> None:
        """Add days.

        Args:
            predicted: shape (batch, days).
            observed: the same shape.
            basin: number of the basin of each series, shape (batch,).
        """
        self.days.index_add_(0, basin, torch.full_like(observed[:, 0], observed.shape[1]))
        self.observed.index_add_(0, basin, observed.sum(dim=1))
        self.squares.index_add_(0, basin, observed.square().sum(dim=1))
        self.errors.index_add_(0, basin, (predicted - observed).square().sum(dim=1))

    def compute(self) -> Tensor:
        """Return the median over all basins that were seen."""
        variation = self.squares - self.observed.square() / self.days
        return (1 - self.errors / variation)[variation > 0].median()


class StreamflowLSTM(L.LightningModule):
    """Predict the discharge of each day from the weather until then, with one network for all basins.

    Attributes of the basin are inputs beside the weather (Kratzert et al., 2019, Hydrology and Earth System Sciences
    23). It learns the root of the discharge, standardised for each basin, so that dry basins count as much as wet ones.

    Args:
        basins: number of basins, as in the data.
        inputs: number of inputs per day.
        hidden: size of the LSTM's state; 704 makes 2 million parameters.
        lr: largest learning rate of Adam; it rises at first, and falls to next to nothing in the end.
    """

    def __init__(self, basins: int = 64, inputs: int = 12, hidden: int = 704, lr: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        self.train_nse, self.val_nse, self.test_nse = (NashSutcliffe(basins) for _ in range(3))
        self._initialize()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is predicted for each day, shape (batch, days), of inputs of shape (batch, days, inputs)."""
        states, _ = self.lstm(inputs)
        return self.head(states).squeeze(2)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self._assess("train", self.train_nse, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the efficiency of one validation batch."""
        self._assess("val", self.val_nse, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the efficiency of one test batch."""
        self._assess("test", self.test_nse, batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return Adam; its learning rate makes one cycle in the fit (Smith and Topin, 2017, arXiv:1708.07120)."""
        # See the digits example for eps.
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr, eps=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _assess(self, name: str, nse: NashSutcliffe, batch: Batch) -> Tensor:
        inputs, discharge, scale, basin = batch
        mean, deviation = scale[:, :1], scale[:, 1:]
        predicted = self(inputs)[:, -discharge.shape[1] :]
        loss = nn.functional.mse_loss(predicted, (discharge.sqrt() - mean) / deviation)
        root = (mean + deviation * predicted.detach()).clamp(min=0)
        nse.update(root.square(), discharge, basin)
        on_epoch = {"on_step": False, "on_epoch": True, "prog_bar": True}
        self.log(f"{name}_loss", loss, sync_dist=True, **on_epoch)
        self.log(f"{name}_nse", nse, **on_epoch)
        return loss

    def _initialize(self) -> None:
        """Begin with weights that suit few inputs and a long memory.

        PyTorch scales all weights by the size of the state, which makes 12 inputs next to inaudible. Little is
        forgotten at first (Jozefowicz et al., 2015, An empirical exploration of recurrent network architectures).
        Small recurrent weights keep the first steps calm: larger ones amplify the rounding of sums that several
        workers take in another order, until losses differ visibly after 60 steps.
        """
        hidden = self.hparams.hidden
        nn.init.normal_(self.lstm.weight_ih_l0, std=self.hparams.inputs**-0.5)
        with torch.no_grad():
            for gate in self.lstm.weight_hh_l0.chunk(4):
                nn.init.orthogonal_(gate, gain=0.3)
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = 1.0  # gates: input, forget, cell, output

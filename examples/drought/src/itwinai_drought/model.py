"""An LSTM that learns a hydrological model: an ordinary LightningModule that knows nothing of strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from itwinai_drought.metrics import KGE, NSE, RMSE, CellScore

Batch = dict[str, Tensor]

_SCORES: Mapping[str, Sequence[type[CellScore]]] = {"fit": (NSE,), "validate": (NSE,), "test": (NSE, KGE, RMSE)}


class DroughtLSTM(L.LightningModule):
    """Predict several targets of each day from the weather until then, with one network for all cells.

    Static maps are inputs beside the weather of each day (Kratzert et al., 2019, Hydrology and Earth System Sciences
    23, 5089-5110). Inputs and predictions are in the units of the store: means and standard deviations of the training
    part are buffers of the module, so a checkpoint predicts without the data that it was trained on.

    Args:
        forcings: variables over time, in the order of the data.
        statics: static maps; none for an LSTM that knows the weather alone.
        targets: variables to predict.
        target_weights: how much the error of each counts in the loss, 1 by default. Errors are in standard deviations,
            so that units do not matter.
        cells: number of cells of the grid that scores are kept for, lat times lon; larger is fine.
        hidden: size of the LSTM's state.
        layers: number of LSTM layers.
        lr: largest learning rate of AdamW; it rises at first, and falls to next to nothing in the end.
        weight_decay: of AdamW.
    """

    forcing_mean: Tensor
    forcing_std: Tensor
    static_mean: Tensor
    static_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    knows_statistics: Tensor
    weights: Tensor

    def __init__(
        self,
        forcings: Sequence[str] = ("precip", "pet", "temp"),
        statics: Sequence[str] = ("thetaS", "thetaR", "KsatVer", "c"),
        targets: Sequence[str] = ("vwc", "actevap", "q"),
        target_weights: Mapping[str, float] | None = None,
        cells: int = 4096,
        hidden: int = 64,
        layers: int = 1,
        lr: float = 5e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lstm = nn.LSTM(len(forcings) + len(statics), hidden, num_layers=layers, batch_first=True)
        self.head = nn.Linear(hidden, len(targets))
        for name, columns in (("forcing", forcings), ("static", statics), ("target", targets)):
            self.register_buffer(f"{name}_mean", torch.zeros(len(columns)))
            self.register_buffer(f"{name}_std", torch.ones(len(columns)))
        self.register_buffer("knows_statistics", torch.tensor(False))
        weights = [(target_weights or {}).get(name, 1.0) for name in targets]
        self.register_buffer("weights", torch.tensor(weights) / sum(weights), persistent=False)
        self.scores = nn.ModuleDict()
        self._initialize()

    @property
    def options(self) -> Any:
        """The arguments, by name."""
        return self.hparams

    def setup(self, stage: str) -> None:
        """Take the statistics of the training part from the datamodule, unless a checkpoint has brought them.

        Scores are made here, where they are used: they take memory for each cell of the grid.
        """
        self.scores = self._scores(_SCORES.get(stage, ()))
        if stage != "fit" or self.knows_statistics:
            return
        statistics = getattr(getattr(self.trainer, "datamodule", None), "statistics", None)
        if statistics is None:
            raise RuntimeError(
                "DroughtLSTM normalises with the statistics of the training part, which its datamodule computes. Pass "
                "the datamodule to fit: trainer.fit(model, datamodule=DroughtDataModule(...))."
            )
        for name in ("forcing", "static", "target"):
            mean, deviation = torch.from_numpy(getattr(statistics, f"{name}s"))
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(deviation)
        self.knows_statistics.fill_(True)

    def forward(self, forcings: Tensor, statics: Tensor) -> Tensor:
        """Return what is predicted for each day, in the units of the store.

        Args:
            forcings: shape (batch, days, forcings). Missing values count as the mean.
            statics: shape (batch, statics).

        Returns:
            Shape (batch, days, targets).
        """
        return self._normalized(forcings, statics) * self.target_std + self.target_mean

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        loss = self._loss(self._normalized(batch["forcings"], batch["statics"]), batch["targets"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the scores of one validation batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the scores of one test batch."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Return each target's series after the warm-up, shape (batch, days), in the units of the store."""
        predicted = self(batch["forcings"], batch["statics"])
        after = predicted[:, int(batch["warm_up"][0]) :]
        return {name: after[:, :, column] for column, name in enumerate(self.options.targets)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW; its learning rate makes one cycle in the fit (Smith and Topin, 2017, arXiv:1708.07120)."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.options.lr, weight_decay=self.options.weight_decay, eps=1e-6
        )
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.options.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _normalized(self, forcings: Tensor, statics: Tensor) -> Tensor:
        """Return the predictions in standard deviations from the mean."""
        forcings = torch.nan_to_num((forcings - self.forcing_mean) / self.forcing_std)
        statics = torch.nan_to_num((statics - self.static_mean) / self.static_std)
        days = forcings.shape[1]
        inputs = torch.cat([forcings, statics[:, None].expand(-1, days, -1)], dim=2)
        states, _ = self.lstm(inputs)
        return self.head(states)

    def _loss(self, normalized: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted mean over targets of the mean squared error; days without truth have none.

        It is divided by the number of all days, not by that of the known ones: so the mean over workers, whose batches
        miss different days, is the loss of one process.
        """
        known = torch.isfinite(targets)
        truth = (torch.where(known, targets, 0) - self.target_mean) / self.target_std
        errors = torch.where(known, normalized[:, -targets.shape[1] :] - truth, 0).square()
        return (errors.mean(dim=(0, 1)) * self.weights).sum()

    def _evaluate(self, part: str, batch: Batch) -> None:
        normalized, truth = self._normalized(batch["forcings"], batch["statics"]), batch["targets"]
        size = len(truth)
        self.log(f"{part}_loss", self._loss(normalized, truth), prog_bar=True, sync_dist=True, batch_size=size)
        predicted = (normalized * self.target_std + self.target_mean)[:, -truth.shape[1] :]
        for column, target in enumerate(self.options.targets):
            for kind, score in cast("Mapping[str, CellScore]", self.scores[target]).items():
                score.update(predicted[:, :, column], truth[:, :, column], batch["cell"])
                self.log(f"{part}_{kind}_{target}", score, batch_size=size)

    def _scores(self, kinds: Sequence[type[CellScore]]) -> nn.ModuleDict:
        cells, targets = self.options.cells, self.options.targets
        return nn.ModuleDict(
            {name: nn.ModuleDict({kind.__name__.lower(): kind(cells) for kind in kinds}) for name in targets}
        )

    def _initialize(self) -> None:
        """Begin with a long memory: little is forgotten at first (Jozefowicz et al., 2015, ICML 37, 2342-2350)."""
        hidden = self.options.hidden
        for name, values in self.lstm.named_parameters():
            if name.startswith("bias_hh"):
                with torch.no_grad():
                    values[hidden : 2 * hidden] += 3.0  # gates: input, forget, cell, output

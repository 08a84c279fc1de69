"""PyTorch Forecasting: N-BEATS on short series, from its own dataset, losses and prediction callback."""

from __future__ import annotations

from functools import cache
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from pytorch_forecasting import MAE, NBeats, TimeSeriesDataSet
from pytorch_forecasting.models.base._base_model import PredictCallback
from torch import nn
from torch.utils.data import DataLoader

from tests.clients.harness import Client


@cache
def series() -> TimeSeriesDataSet:
    """Return windows of two noisy waves."""
    random = np.random.default_rng(1)
    time = np.arange(24)
    waves = [np.sin(0.5 * time + phase) + 0.1 * random.standard_normal(len(time)) for phase in (0, 1)]
    table = pd.DataFrame(
        {"time": np.tile(time, 2), "value": np.concatenate(waves), "series": np.repeat(["a", "b"], 24)}
    )
    return TimeSeriesDataSet(
        table,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=8,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
    )


def make_module(workers: int) -> pl.LightningModule:
    """Return a small network that draws nothing."""
    return NBeats.from_dataset(
        series(),
        num_blocks=[1, 1],
        widths=[16, 16],
        dropout=0.0,
        learning_rate=1e-2,
        backcast_loss_ratio=0.1,  # without it the last block has parameters that are not used
        loss=MAE(),
        logging_metrics=nn.ModuleList(),
    )


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return the dataset's own loader: for training it shuffles, and drops an uneven last batch."""
    return series().to_dataloader(train=shuffle, batch_size=batch_size, num_workers=0)


def predicting() -> dict[str, Any]:
    """Return the callback without which its modules do not predict."""
    return {"callbacks": [PredictCallback(mode="prediction")]}


CLIENTS = (
    Client(
        name="pytorch-forecasting",
        make_module=make_module,
        make_data=make_loader,
        load=NBeats.load_from_checkpoint,
        prediction=lambda returned: returned.prediction,
        predicting=predicting,
        epochs=2,
    ),
)

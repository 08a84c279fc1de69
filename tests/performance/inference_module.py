"""Write the prediction as a LightningModule, which lightning and itwinai run unchanged."""

from __future__ import annotations

import lightning as L
from torch import Tensor, nn


class Predicted(L.LightningModule):
    """A network that predicts.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        outputs: Tensor = self.network(batch)
        return outputs

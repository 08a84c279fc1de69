"""Write the training as a LightningModule, which lightning and itwinai run unchanged."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn

from tests.performance.framework_models import MODELS, Batch, make_optimizer
from tests.performance.framework_stopwatch import Stopwatch


class Trained(L.LightningModule):
    """A network that is trained, with nothing logged.

    Args:
        model: name of what it is.
        network: the network.
        stopwatch: writes down what was measured.
    """

    def __init__(self, model: str, network: nn.Module, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.model = MODELS[model]
        self.network = network
        self.stopwatch = stopwatch
        self.losses: list[Tensor] = [torch.zeros(())]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = self.model.loss(self.network(inputs), targets)
        self.losses[0] = loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.network, self.model.lr)

    def on_train_end(self) -> None:
        trainer = self.trainer
        self.stopwatch.write(trainer.global_rank, trainer.world_size, self.losses[0], self.network.state_dict())

"""A generative adversarial network with manual optimisation: an ordinary LightningModule."""

from __future__ import annotations

import math

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

Batch = tuple[Tensor, Tensor]


class ModeCoverage(Metric):
    """How well samples cover a mixture of normal distributions.

    It computes the number of modes that have at least a quarter of their share of the samples, and the share of the
    samples that lie within three standard deviations of a mode (Srivastava et al., 2017, arXiv:1705.07761).

    Args:
        centres: of the modes, shape (modes, 2).
        deviation: standard deviation of each mode.
    """

    full_state_update = False

    def __init__(self, centres: Tensor, deviation: float) -> None:
        super().__init__()
        self.register_buffer("centres", centres, persistent=False)
        self.deviation = deviation
        self.add_state("samples", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("near", default=torch.zeros(len(centres), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, samples: Tensor) -> None:
        """Add samples of shape (batch, 2)."""
        distance, mode = torch.cdist(samples, self.centres).min(dim=1)
        self.samples += len(samples)
        self.near += torch.bincount(mode[distance < 3 * self.deviation], minlength=len(self.near))

    def compute(self) -> dict[str, Tensor]:
        """Return ``modes`` and ``good``, the share of good samples."""
        enough = self.near >= self.samples / len(self.near) / 4
        return {"modes": enough.sum().float(), "good": self.near.sum() / self.samples}


class RingGAN(L.LightningModule):
    """Learn to draw points of a mixture of normal distributions, whose modes lie on a ring.

    Each training step updates the discriminator and then the generator (Goodfellow et al., 2014, arXiv:1406.2661), with
    the loss of Mao et al. (2017, arXiv:1611.04076). The noise comes with the batch: drawn in the step, it would differ
    between one process and several workers.

    Args:
        modes: number of modes.
        deviation: standard deviation of each, on a ring of radius 1.
        latent: numbers of noise for a point.
        hidden: size of the hidden layers.
        lr: learning rate of both optimizers at the start; it falls to nothing.
    """

    def __init__(
        self, modes: int = 8, deviation: float = 0.05, latent: int = 4, hidden: int = 128, lr: float = 2e-3
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = _network(latent, hidden, 2)
        self.discriminator = _network(2, hidden, 1)
        angles = torch.arange(modes) * (2 * math.pi / modes)
        self.coverage = ModeCoverage(torch.stack([angles.cos(), angles.sin()], dim=1), deviation)

    def forward(self, noise: Tensor) -> Tensor:
        """Return points of shape (batch, 2) for noise of shape (batch, latent)."""
        return self.generator(noise)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update both networks."""
        real, noise = batch
        of_discriminator, of_generator = self.optimizers()

        self.toggle_optimizer(of_discriminator)
        made = self(noise).detach()
        loss = ((self.discriminator(real) - 1).square() + self.discriminator(made).square()).mean()
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)

        self.toggle_optimizer(of_generator)
        generator_loss = (self.discriminator(self(noise)) - 1).square().mean()
        of_generator.zero_grad()
        self.manual_backward(generator_loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)

        for scheduler in self.lr_schedulers():
            scheduler.step()
        losses = {"discriminator_loss": loss, "generator_loss": generator_loss}
        self.log_dict(losses, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Draw points and see which modes they are of."""
        self.coverage.update(self(batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Log how many modes are covered, and the share of good points."""
        self.log_dict(self.coverage.compute(), prog_bar=True)
        self.coverage.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return points."""
        return self(batch[1])

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        """Return Adam for each network."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimizers: list[torch.optim.Optimizer] = [
            # See the digits example for eps.
            torch.optim.Adam(network.parameters(), lr=self.hparams.lr, betas=(0.5, 0.9), eps=1e-4)
            for network in (self.discriminator, self.generator)
        ]
        return optimizers, [torch.optim.lr_scheduler.LinearLR(one, 1.0, 0.0, steps) for one in optimizers]


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )

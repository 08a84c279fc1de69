"""Train the small module in one of the ways that the checks compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from itwinai import ItwinaiTrainer
from itwinai.strategies import DDPStrategy
from tests.gpu.check import Bench
from tests.gpu.models import BATCH, Regression, points, weights_of

EPOCHS = 2
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Trained:
    """What a run has ended with: the weights, and the mean loss of the last epoch."""

    weights: list[Tensor]
    loss: float


def fit(bench: Bench, module: Regression | None = None, **arguments: Any) -> Trained:
    """Train on the device of the bench.

    Args:
        bench: where.
        module: by default one that always begins with the same weights.
        **arguments: of the trainer.
    """
    module = Regression() if module is None else module
    trainer = ItwinaiTrainer(
        **{"accelerator": bench.accelerator, "devices": 1, "max_epochs": EPOCHS, **QUIET, **arguments}
    )
    trainer.fit(module, points())
    return Trained(weights_of(module), float(trainer.callback_metrics["train_loss"]))


def two_workers(bench: Bench, **options: Any) -> DDPStrategy:
    """Return DDP with two workers that share one device, over gloo: NCCL wants a GPU for each."""
    return DDPStrategy(parallel_devices=[bench.device] * 2, process_group_backend="gloo", **options)


def fit_by_hand(
    device: torch.device,
    precision: torch.dtype | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    epochs: int = EPOCHS,
) -> Trained:
    """Train as in PyTorch's tutorials.

    Args:
        device: where.
        precision: of autocast; fp16 with a GradScaler.
        accumulate: batches per step.
        clip: norm of the gradients.
        epochs: their number.
    """
    module = Regression().to(device)
    optimizer = module.configure_optimizers()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    loss_sum = torch.zeros((), device=device)
    for _ in range(epochs):
        loss_sum.zero_()
        batches = list(points())
        for number, (x, y) in enumerate(batches, start=1):
            with torch.autocast(device.type, precision, enabled=precision is not None):
                loss = F.mse_loss(module.net(x.to(device)), y.to(device))
            scaler.scale(loss / accumulate).backward()
            loss_sum += loss.detach() * len(x)
            if number % accumulate and number < len(batches):
                continue
            if clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return Trained(weights_of(module), float(loss_sum) / (len(batches) * BATCH))

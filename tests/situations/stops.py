"""Fits that stop somewhere and go on."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from itwinai.callbacks import ModelCheckpoint
from tests.situations.situation import Situation, everywhere
from tests.support.cases import make_trainer

SAMPLES, BATCH, STEPS = 18, 4, 5  # the last batch of an epoch has two samples


class Averaging(L.LightningModule):
    """Keeps an average of its weights and a metric of the epoch."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("average", torch.zeros(1, 3))
        self.register_buffer("batches", torch.zeros(1))
        self.mean = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = batch if isinstance(batch[0], list) else [batch]
        loss = torch.stack([self.layer(part[0]).sub(1).square().mean() for part in parts if part is not None]).sum()
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(parts[0][0]))
        self.mean.update(parts[0][0].mean(), len(parts[0][0]))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1

    def on_validation_end(self) -> None:
        self.batches += 100

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.layer(batch[0]).mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(workers: int, samples: int = SAMPLES, **options: Any) -> DataLoader:
    """Return a loader whose global batches are the same at any number of workers."""
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(samples))
    return DataLoader(TensorDataset(x), BATCH // workers, **options)


def several(workers: int) -> CombinedLoader:
    """Return a long and a short loader, of which the short one begins again."""
    return CombinedLoader([loader(workers, shuffle=True), loader(workers, 8, shuffle=True)], "max_size_cycle")


def given_generator(workers: int) -> DataLoader:
    """Return a loader that draws from a generator of its own."""
    return loader(workers, shuffle=True, generator=torch.Generator().manual_seed(3))


def fit(
    strategy: str,
    workers: int,
    loaders: Any,
    resume: Path | None = None,
    folder: Path | None = None,
    **options: Any,
) -> Any:
    """Fit three epochs, and save at every step into a folder."""
    L.seed_everything(2 if resume is None else 3, verbose=False)
    module = Averaging()
    saves = [] if folder is None else [ModelCheckpoint(folder, filename="{step}", every="1steps", save_top_k=-1)]
    options |= {"enable_checkpointing": bool(saves), "num_sanity_val_steps": 0}
    trainer = make_trainer(strategy, workers, max_epochs=3, callbacks=saves, **options)
    trainer.fit(module, loaders(workers), loader(workers), ckpt_path=resume)
    return trainer, module


def stop_and_go_on(loaders: Any, step: int, strategy: str, one_process: bool = True) -> None:
    """Go on from a step, and compare with one process, or with the same workers, that were not stopped."""
    whole, expected = fit(strategy, 2, loaders, folder=Path.cwd())
    if one_process:
        whole, expected = fit("auto", 1, loaders)
    resumed, module = fit(strategy, 2, loaders, resume=Path(f"step={step}.ckpt"))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m)
    for name in ("loss", "mean", "val"):
        torch.testing.assert_close(resumed.callback_metrics[name], whole.callback_metrics[name], rtol=1e-5, atol=1e-6)


def drawn_stops(strategy: str) -> None:
    """Stop at drawn steps of drawn runs, and resume with one worker or two; each strategy draws others."""
    draw = random.Random(strategy)
    for number in range(1 if strategy.startswith("deepspeed") else 2):
        loaders = draw.choice([partial(loader, shuffle=True), given_generator, loader])
        options = {
            "accumulate_grad_batches": draw.choice([1, 2]),
            "val_check_interval": draw.choice([1.0, 0.5, 2]),
        }
        workers = draw.choice([1, 2])
        folder = Path.cwd() / str(number)
        whole, expected = fit("auto", 1, loaders, **options)
        step = draw.randrange(1, whole.global_step)
        fit(strategy, 2, loaders, folder=folder, **options)
        resumed, module = fit(strategy, workers, loaders, resume=folder / f"step={step}.ckpt", **options)
        drawn = f"{loaders}, {options}, step {step} of {whole.global_step}, resumed with {workers}: "
        assert resumed.global_step == whole.global_step, drawn
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(
                module.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, at=drawn + name: f"{at}: {m}"
            )
        for name in ("loss", "mean", "val"):
            torch.testing.assert_close(
                resumed.callback_metrics[name],
                whole.callback_metrics[name],
                rtol=1e-5,
                atol=1e-6,
                msg=lambda m, at=drawn + name: f"{at}: {m}",
            )


SITUATIONS = (
    Situation(
        "a checkpoint of the last step of an epoch, written before its validation, is resumed",
        partial(stop_and_go_on, partial(loader, shuffle=True), STEPS),
        everywhere(),
    ),
    Situation(
        "what the module's hook changes after the callback has asked for a checkpoint is in it, and the means of a "
        "resumed epoch are those of all its batches",
        partial(stop_and_go_on, partial(loader, shuffle=True), 2 * STEPS + 3),
        everywhere(),
    ),
    Situation(
        "a loader with a generator of its own resumes in mid-epoch",
        partial(stop_and_go_on, given_generator, STEPS + 2),
        everywhere(),
    ),
    Situation(
        "several training loaders, of which a short one begins again, resume in mid-epoch",
        partial(stop_and_go_on, several, STEPS + 3, one_process=False),
        everywhere(),
    ),
    Situation(
        "drawn stops: any loader, accumulation, validation and step, resumed with one worker or two",
        drawn_stops,
        everywhere(),
    ),
)

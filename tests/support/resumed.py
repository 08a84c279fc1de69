"""A run that writes a checkpoint in mid-epoch, and runs that go on from one.

As a script, whose workers are copies of it: ``resumed.py write|resume STRATEGY,STRATEGY... WORKERS FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from tests.support.cases import GLOBAL_BATCH, Regression, loader, make_trainer

EPOCHS = 3
SAVED_AT = 17  # of 13 steps per epoch: after four batches of the second epoch


class SaveOnce(L.Callback):
    """Saves when a number of steps is reached."""

    def __init__(self, path: Path, at: int = SAVED_AT) -> None:
        self.path = path
        self.at = at

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)


def train(strategy: Any, workers: int, callbacks: list[L.Callback], resume: Path | None = None) -> Tensor:
    """Train to the end, and return the weights.

    Args:
        strategy: for the trainer.
        workers: which divide the global batch.
        callbacks: for the trainer.
        resume: a checkpoint to go on from; the seed is then another one, which must not matter.
    """
    L.seed_everything(11 if resume is None else 12, verbose=False)
    module = Regression("adamw")
    trainer = make_trainer(strategy, workers, max_epochs=EPOCHS, callbacks=callbacks)
    batch = GLOBAL_BATCH // workers
    trainer.fit(module, loader(batch, shuffle=True), loader(batch), ckpt_path=resume)
    assert trainer.global_step == EPOCHS * 13
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def resume_all(strategy: Any, workers: int, folder: Path) -> dict[str, Tensor]:
    """Go on from every checkpoint of a folder, and return the weights, by the name of the checkpoint."""
    return {path.stem: train(strategy, workers, [], path) for path in sorted(folder.glob("*.ckpt"))}


if __name__ == "__main__":
    action, strategies, workers, folder = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), Path(sys.argv[4])
    for strategy in strategies:
        if action == "write":
            result: Any = train(strategy, workers, [SaveOnce(folder / f"{strategy}.ckpt")])
        else:
            result = resume_all(strategy, workers, folder)
        torch.save(result, folder / f"{action}-{strategy}.pt")

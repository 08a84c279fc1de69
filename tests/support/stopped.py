"""A script that trains until it is stopped: ``stopped.py STRATEGY FOLDER``.

Every rank leaves its process id in the folder when it is in the midst of training, and how far it came at the end.
"""

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from tests.support.cases import Regression, loader, make_trainer

strategy, folder = sys.argv[1], Path(sys.argv[2])


class Endless(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == 30:
            (folder / f"{self.global_rank}.part").write_text(str(os.getpid()))
            (folder / f"{self.global_rank}.part").rename(folder / f"{self.global_rank}.pid")
        return super().training_step(batch, batch_idx)


class Ends(L.Callback):
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        place = f"{type(exception).__name__} {trainer.global_step} {progress.ready} {progress.completed}"
        (folder / f"{trainer.global_rank}.end").write_text(place)


options: dict[str, Any] = {"max_epochs": -1, "callbacks": [Ends()]}
make_trainer(strategy, 2, **options).fit(Endless(), loader(4, shuffle=True))
print("this line is not reached")

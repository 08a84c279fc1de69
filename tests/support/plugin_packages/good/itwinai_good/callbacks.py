"""A callback with a name, and a factory that gives every trainer one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


class BatchNotes(L.Callback):
    """Note batches in a file for each rank."""

    def __init__(self, folder: str, every: int = 1) -> None:
        self.folder, self.every = Path(folder), every

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.every == 0:
            with (self.folder / f"batches-{trainer.global_rank}").open("a") as file:
                file.write(f"{batch_idx}\n")


class FactoryNotes(L.Callback):
    """Write on which rank it is, where the module wants to know."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        Path(trainer.default_root_dir, f"factory-{trainer.global_rank}").write_text(str(trainer.world_size))


def make_callbacks() -> list[L.Callback]:
    """Return what every trainer gets."""
    return [FactoryNotes()]

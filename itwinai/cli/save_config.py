"""The config file that a run leaves behind."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from itwinai.reporting.run_dir import run_folder
from itwinai.run_info.config import resolved


class SaveConfig(SaveConfigCallback):
    """Save the resolved config in the folder of the run, without secrets.

    Lightning's goes to the logger's folder, which a logger with a server has not got, and which others share by runs.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, on rank 0."""
        if self.already_saved:
            return
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.config_filename).write_text(resolved(self))
        self.already_saved = True

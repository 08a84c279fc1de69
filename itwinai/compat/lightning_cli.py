"""lightning's command line."""

from __future__ import annotations

from contextlib import suppress

import jsonargparse
from lightning.pytorch.cli import LightningCLI


class CheckpointAwareCLI(LightningCLI):
    """Lightning's command line, which makes the model of a checkpoint with the checkpoint's hyperparameters."""

    def _parse_ckpt_path(self) -> None:
        # A checkpoint that a script has saved, and not this command, does not name its class, and lightning looks for
        # the hyperparameters in LightningModule. Then the config counts; weights that do not fit are an error.
        with suppress(jsonargparse.ArgumentError):
            super()._parse_ckpt_path()

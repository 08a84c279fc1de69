"""Lightning's command line."""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import Any

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class CheckpointAwareCLI(LightningCLI):
    """Lightning's command line, which makes the model of a checkpoint with the checkpoint's hyperparameters.

    Attributes:
        used_subcommand: the only one that gets a parser, as to make one takes 0.2 s; all of them if it is None.
    """

    used_subcommand: str | None = None

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        used, subcommands = self.used_subcommand, self.subcommands()
        if used is not None:
            vars(self)["subcommands"] = lambda: {used: subcommands[used]}
        try:
            super()._add_subcommands(parser, **kwargs)
        finally:
            vars(self).pop("subcommands", None)

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        """Add the arguments of one subcommand."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self.add_subcommand_arguments(parser, subcommand)
        return parser

    def _parse_ckpt_path(self) -> None:
        # A checkpoint that a script has saved, and not this command, does not name its class, and Lightning looks for
        # the hyperparameters in LightningModule. Then the config counts; weights that do not fit are an error.
        # If the file is not a checkpoint, the trainer raises an error when it reads it.
        with suppress(jsonargparse.ArgumentError, pickle.UnpicklingError, RuntimeError, EOFError):
            super()._parse_ckpt_path()

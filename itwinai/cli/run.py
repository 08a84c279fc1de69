"""`itwinai fit|validate|test|predict`: lightning's own command line, with `ItwinaiTrainer` in it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

SHORT_FLAGS = {
    "--strategy": "--trainer.strategy",
    "--devices": "--trainer.devices",
    "--num-nodes": "--trainer.num_nodes",
    "--num_nodes": "--trainer.num_nodes",
}


_DESCRIPTION = {
    "description": "Short flags: --strategy NAME, --devices N and --num-nodes N stand for --trainer.strategy, "
    "--trainer.devices and --trainer.num_nodes, and win over the config file."
}


def expand_short_flags(argv: Sequence[str]) -> list[str]:
    """Replace `--strategy`, `--devices` and `--num-nodes` by the trainer's arguments that they stand for.

    They are put behind everything else, so that they win over a config file that is named after them.
    """
    kept: list[str] = []
    moved: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag not in SHORT_FLAGS:
            kept.append(argument)
        elif equals:
            moved.append(f"{SHORT_FLAGS[flag]}={value}")
        else:
            moved += [SHORT_FLAGS[flag], *[value for value in [next(arguments, None)] if value is not None]]
    return kept + moved


def main(argv: list[str]) -> int:
    """Run lightning's command line.

    Args:
        argv: the subcommand and its arguments.
    """
    # As for a script: the config names classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from lightning.pytorch.cli import LightningCLI

    from itwinai import compat
    from itwinai.launchers.template import forked_template
    from itwinai.trainer import ItwinaiTrainer

    compat.silence_known_warnings()
    # It warns of a command line beside the arguments; here they are the same, with the short flags spelled out.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    with forked_template():
        LightningCLI(
            trainer_class=ItwinaiTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "itwinai", **dict.fromkeys(("fit", "validate", "test", "predict"), _DESCRIPTION)},
            args=expand_short_flags(argv),
        )
    return 0

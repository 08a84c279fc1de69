"""`itwinai fit|validate|test|predict`: lightning's own command line, with `ItwinaiTrainer` in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from itwinai.config_source import expand_short_flags, flags_of
from itwinai.unify import unify_lightning

UNIFY = "--unify-lightning"

_DESCRIPTION = {
    "description": "Short flags: --strategy NAME, --devices N, --num-nodes N and --logger NAME (csv, jsonl, "
    "tensorboard, mlflow, wandb, provenance; several with commas between) stand for "
    "--trainer.strategy, --trainer.devices, --trainer.num_nodes and --trainer.logger, and win over the config file. "
    "--watch logs, profiles and monitors the run, and tells about it at the end. --unify-lightning lets modules train "
    "that are made with the package pytorch_lightning."
}


def main(argv: list[str]) -> int:
    """Run lightning's command line.

    Args:
        argv: the subcommand and its arguments.
    """
    # As for a script: the config names classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    arguments = list(argv)
    if UNIFY in arguments:
        arguments.remove(UNIFY)
        unify_lightning()
    with starting_workers(arguments):
        _run(arguments)
    return 0


def starting_workers(arguments: Sequence[str]) -> AbstractContextManager[None]:
    """Return the context in which Ray's workers start while this process imports, if they are to be Ray's."""
    workers = ray_workers(arguments)
    if workers is not None:
        from itwinai.launchers.ray_start import ray_starting

        return ray_starting(workers)
    return nullcontext()


def ray_workers(arguments: Sequence[str]) -> int | None:
    """Return the number of Ray workers that a command line asks for, if it is plain to see.

    Args:
        arguments: the command line.

    Returns:
        The number, or None if other workers are asked for, or the number is not given, or something else is unclear.
    """
    asked: dict[str, Any] = {"strategy": None, "devices": None, "num_nodes": 1}
    import yaml

    with suppress(
        OSError, LookupError, ValueError, TypeError, AttributeError, yaml.YAMLError
    ):  # the parser will say what is wrong
        for flag, value in flags_of(expand_short_flags(arguments)):
            if flag in ("-h", "--help", "--print_config"):
                return None
            if flag in ("-c", "--config"):
                section = yaml.safe_load(Path(value or "").read_text())["trainer"]
                asked |= {name: given for name, given in section.items() if name in asked}
            elif flag.startswith("--trainer.") and flag.removeprefix("--trainer.") in asked:
                asked[flag.removeprefix("--trainer.")] = value
        if str(asked["strategy"]).lower().partition("_")[0] == "ray":
            return int(asked["devices"]) * int(asked["num_nodes"])
    return None


def _run(arguments: list[str]) -> None:
    from itwinai.cli.config_file import SaveConfig
    from itwinai.configured import command_line

    command_line(
        arguments,
        save_config_callback=SaveConfig,
        # Without a logger it goes to the current folder, where the user's own config.yaml may be.
        save_config_kwargs={"config_filename": "resolved-config.yaml", "overwrite": True},
        parser_kwargs={"prog": "itwinai", **dict.fromkeys(("fit", "validate", "test", "predict"), _DESCRIPTION)},
    )

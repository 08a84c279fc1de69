"""`itwinai fit|validate|test|predict`: lightning's own command line, with `ItwinaiTrainer` in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from itwinai.unify import unify_lightning

SHORT_FLAGS = {
    "--strategy": "--trainer.strategy",
    "--devices": "--trainer.devices",
    "--num-nodes": "--trainer.num_nodes",
    "--num_nodes": "--trainer.num_nodes",
    "--logger": "--trainer.logger",
}


UNIFY = "--unify-lightning"

_DESCRIPTION = {
    "description": "Short flags: --strategy NAME, --devices N, --num-nodes N and --logger NAME (csv, jsonl, "
    "tensorboard, mlflow, wandb, provenance; several with commas between) stand for "
    "--trainer.strategy, --trainer.devices, --trainer.num_nodes and --trainer.logger, and win over the config file. "
    "--watch logs, profiles and monitors the run, and tells about it at the end. --unify-lightning lets modules train "
    "that are made with the package pytorch_lightning."
}


def expand_short_flags(argv: Sequence[str]) -> list[str]:
    """Replace short flags such as `--strategy` by the trainer's arguments that they stand for.

    They are put behind everything else, so that they win over a config file that is named after them.
    """
    kept: list[str] = []
    moved: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if argument == "--watch":
            moved.append("--trainer.watch=true")
            continue
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
    arguments = expand_short_flags(argv)
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
        arguments: the command line, with the short flags expanded.

    Returns:
        The number, or None if other workers are asked for, or the number is not given, or something else is unclear.
    """
    asked: dict[str, Any] = {"strategy": None, "devices": None, "num_nodes": 1}
    import yaml

    with suppress(
        OSError, LookupError, ValueError, TypeError, AttributeError, yaml.YAMLError
    ):  # the parser will say what is wrong
        for flag, value in _flags(arguments):
            if flag in ("-h", "--help", "--print_config"):
                return None
            if flag in ("-c", "--config"):
                section = yaml.safe_load(Path(value).read_text())["trainer"]
                asked |= {name: given for name, given in section.items() if name in asked}
            elif flag.startswith("--trainer.") and flag.removeprefix("--trainer.") in asked:
                asked[flag.removeprefix("--trainer.")] = value
        if str(asked["strategy"]).lower().partition("_")[0] == "ray":
            return int(asked["devices"]) * int(asked["num_nodes"])
    return None


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the flags of a command line, each with the value that follows it or its equals sign."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag.startswith("-"):
            yield flag, value if equals else following


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

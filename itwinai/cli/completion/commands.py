"""What can be typed after `itwinai`: commands, their flags, and the values of these."""

from __future__ import annotations

import argparse
import inspect
import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from itwinai.checks.registry import CHECKS
from itwinai.cli import benchmark, init, main, slurm
from itwinai.cli.arguments import parser_of
from itwinai.cli.config.accepted import LISTS, accepted_names
from itwinai.compat.jsonargparse import ParserArgument, parser_arguments, subparsers_of
from itwinai.config.lightning_cli import OUTPUT_ARGUMENTS, config_parser
from itwinai.config.source import CONFIG_FLAGS, SHORT_FLAGS, SWITCHES
from itwinai.config.type_hints import members_of
from itwinai.plugins import COMMANDS, find_plugins
from itwinai.slurm.plan import COMMANDS as JOB_COMMANDS

CONFIGS = ("yaml", "yml")
CHECKPOINTS = ("ckpt",)

_RUNS = ("fit", "validate", "test", "predict")
_WITH_CONFIG = (*_RUNS, "tune", "benchmark", "check", "slurm", "config")
_TEXTS = {
    "ckpt_path": "checkpoint to start from; auto for the newest valid one",
    "weights_only": "whether a checkpoint may hold only tensors and plain values",
    "verbose": "print the results of an evaluation",
    "return_predictions": "keep the predictions in memory",
}
_FILE_WORDS = ("path", "file", "folder", "config", "dir", "image")


@dataclass(frozen=True)
class Values:
    """What completes a value.

    Attributes:
        words: the values themselves.
        separator: between several of them in one word; empty if there is one.
        files: whether files are offered.
        endings: of these files, without a dot; empty for all.
    """

    words: tuple[str, ...] = ()
    separator: str = ""
    files: bool = False
    endings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
        names: by which it is given.
        text: what it is, in one line.
        values: of its value; None if it takes none.
    """

    names: tuple[str, ...]
    text: str
    values: Values | None


@dataclass(frozen=True)
class Command:
    """A command, or one below it.

    Attributes:
        name: of the command.
        text: what it does, in one line.
        flags: that it takes.
        values: of the words that belong to no flag.
        commands: below it.
    """

    name: str
    text: str
    flags: tuple[Flag, ...] = ()
    values: Values = Values()
    commands: tuple[Command, ...] = field(default=())


def root() -> Command:
    """Return the command line as a whole, with what installed plugins add."""
    shared = _flags_of_runs()
    commands = [_command(name, module, text, shared) for name, (module, text) in main.COMMANDS.items()]
    known = [one.name for one in commands]
    added = [Command(one.name, one.summary or one.source) for one in find_plugins(COMMANDS) if one.name not in known]
    flags = (Flag(("--help", "-h"), "show the commands", None), Flag(("--version",), "show the version", None))
    return Command("itwinai", "", flags, commands=(*commands, *added))


def names_below(name: str) -> tuple[str, ...]:
    """Return the names that a command looks up itself, among its first arguments."""
    return {"benchmark": tuple(benchmark.OTHERS), "slurm": tuple(slurm.commands_below())}.get(name, ())


def _command(name: str, module: str, text: str, shared: Sequence[Flag]) -> Command:
    if name in _RUNS:
        outputs = [
            Flag((f"--{one.replace('_', '-') if one == 'batch_size' else one}",), what, _values(kind, one))
            for one, (kind, what, commands) in OUTPUT_ARGUMENTS.items()
            if name in commands and one != "overwrite"
        ]
        switches = [Flag(("--overwrite",), OUTPUT_ARGUMENTS["overwrite"][1], None)] if name == "predict" else []
        return Command(name, text, _merged([_HELP, *_OF_RUNS, *switches, *outputs, *shared]))
    main_of = import_module(module).main
    own = _parsed(name, text, parser_of(main_of, []))
    others = tuple(_parsed(one, "", parser_of(main_of, [one])) for one in names_below(name))
    if name == "init":
        own = replace(own, values=Values(tuple(init.KINDS)))
    if name in _WITH_CONFIG:
        extra = [flag for flag in _OF_RUNS if name != "config" or flag.names[0] != "--watch"]
        own = replace(own, flags=_merged([*own.flags, *extra, *shared]))
    if name == "slurm":
        jobs = tuple(replace(own, name=one, text=main.COMMANDS[one][1], commands=()) for one in JOB_COMMANDS)
        others = (*jobs, *others)
    return replace(own, commands=(*own.commands, *others))


_HELP = Flag(("-h", "--help"), "show what most people set", None)
_OF_RUNS = (
    Flag(CONFIG_FLAGS, "config file", Values(files=True, endings=CONFIGS)),
    Flag(("--print_config",), "print the whole config, and run nothing", None),
    Flag(("--help-all",), "show every flag", None),
    Flag(("--unify-lightning",), "accept modules made with pytorch_lightning", None),
)


def _flags_of_runs() -> list[Flag]:
    """Return the flags that are keys of configs."""
    found: list[Flag] = []
    arguments = {one.name: one for one in parser_arguments(config_parser())}
    for one in arguments.values():
        if (
            one.type is None
            or one.name.endswith(".help")
            or one.name in (*OUTPUT_ARGUMENTS, "tune", "slurm", "benchmark")
        ):
            continue
        found.append(Flag((f"--{one.name}",), _line(one), _values(one.type, one.name)))
    for short, whole in SHORT_FLAGS.items():
        if "_" not in short and (long := arguments.get(whole.removeprefix("--"))) and long.name not in OUTPUT_ARGUMENTS:
            found.append(Flag((short,), _line(long), _values(long.type, long.name)))
    found += [
        Flag((flag,), _line(arguments[whole.removeprefix("--").partition("=")[0]]), None)
        for flag, whole in SWITCHES.items()
        if flag != "--overwrite"
    ]
    return found


def _line(one: ParserArgument) -> str:
    return " ".join(_TEXTS.get(one.name, one.help).split()).replace("``", "")


def _values(hint: Any, name: str) -> Values:
    """Return what completes the value of an argument."""
    if name == "ckpt_path":
        return Values(("auto", "none"), files=True, endings=CHECKPOINTS)
    if name == "trainer.resume":
        return Values(("auto",), files=True, endings=CHECKPOINTS)
    if name == "output":
        return Values(files=True)
    words = list(accepted_names().get(name, ()))
    paths = False
    for one in members_of(hint):
        if typing.get_origin(one) is Literal:
            words += [str(choice) for choice in typing.get_args(one)]
        elif one is bool:
            words += ["true", "false"]
        paths = paths or (isinstance(one, type) and issubclass(one, (Path, os.PathLike)))
    return Values(tuple(dict.fromkeys(words)), "," if name in LISTS else "", paths)


def _parsed(name: str, text: str, parser: argparse.ArgumentParser) -> Command:
    """Return the command that a parser parses."""
    flags: list[Flag] = []
    values = Values()
    below: list[Command] = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if (subparsers := subparsers_of(action)) is not None:
            below = [_parsed(one, other.description or "", other) for one, other in subparsers.items()]
        elif action.option_strings:
            takes = action.nargs != 0
            flags.append(Flag(tuple(action.option_strings), _plain(action.help), _of_action(action) if takes else None))
        elif values == Values():
            values = _of_action(action)
    return Command(name, text or _plain(parser.description), tuple(flags), values, tuple(below))


def _plain(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n")[0].replace("%%", "%").replace(" (default: %(default)g)", "")


def _of_action(action: argparse.Action) -> Values:
    if action.choices is not None:
        return Values(tuple(map(str, action.choices)))
    names = accepted_names()
    strategies = tuple(one for one in names["trainer.strategy"] if one != "auto")
    if action.dest == "strategies":
        return Values(strategies, ",")
    if action.dest in ("strategy", "probe"):
        return Values(strategies)
    if action.dest in ("checks", "expect_failure"):
        return Values(tuple(CHECKS), ",")
    if action.dest == "explain":
        keys = [one.name for one in parser_arguments(config_parser()) if one.type is not None]
        return Values(tuple(one for one in keys if not one.endswith(".help")))
    if action.dest in ("config", "adopt"):
        return Values(files=True, endings=CONFIGS)
    word = str(action.metavar or action.dest).lower()
    return Values(files=action.type is Path or any(one in word for one in _FILE_WORDS))


def _merged(flags: Iterable[Flag]) -> tuple[Flag, ...]:
    """Return flags without those whose names are there already."""
    kept: dict[str, Flag] = {}
    for one in flags:
        names = tuple(name for name in one.names if not any(name in other.names for other in kept.values()))
        if names:
            kept[names[0]] = replace(one, names=names)
    return tuple(kept.values())


def walk(command: Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Command]]:
    """Return a command and all below it, each with the words that lead to it."""
    found = [(path, command)]
    for one in command.commands:
        found += walk(one, (*path, one.name))
    return found

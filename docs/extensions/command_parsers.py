"""The parsers of the command line, as the commands themselves make them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn
from unittest import mock

from itwinai.cli.arguments import parser_of
from itwinai.cli.completion.commands import names_below
from itwinai.cli.main import COMMANDS, command_names
from itwinai.config.lightning_cli import ConfiguredCLI, command_line

LIGHTNING = ("fit", "validate", "test", "predict")
# What a command looks up itself. `tests/docs/test_reference.py` compares them with the errors for unknown names.
OTHERS = {name: names_below(name) for name in ("benchmark", "slurm")}


class ParserMade(BaseException):
    """Carries the parser out of Lightning's command line, before it parses; not an error that it handles."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return a parser for each command and subcommand: ``{"fit": ..., "benchmark links": ...}``."""
    found: dict[str, argparse.ArgumentParser] = {}
    lightning = _lightning()
    for command in command_names():
        if command in LIGHTNING:
            found[command] = lightning[command]
            continue
        main_of = import_module(COMMANDS[command][0]).main
        for words in ([], *([other] for other in OTHERS.get(command, ()))):
            found |= _with_subcommands(" ".join([command, *words]), parser_of(main_of, words))
    return found


def _with_subcommands(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, other in action.choices.items():
                yield from _with_subcommands(f"{name} {word}", other)


def _lightning() -> dict[str, argparse.ArgumentParser]:
    def give_out(self: ConfiguredCLI, parser: argparse.ArgumentParser, args: Any) -> NoReturn:
        raise ParserMade(parser)

    with mock.patch.object(ConfiguredCLI, "parse_arguments", give_out):
        try:
            command_line([])  # with parsers of all subcommands
        except ParserMade as made:
            actions = made.parser._actions
            return next(dict(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))
    raise RuntimeError("Lightning's command line makes no parser")

"""What command lines need of jsonargparse's parsers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

Class = TypeVar("Class", bound=type)


def unlisted(base: Class) -> Class:
    """Return a subclass of a class whose own subclasses the short names of command lines do not mean.

    jsonargparse takes a short name such as ``ModelCheckpoint`` for any class of that name below the one that is asked
    for, and refuses one that several have. It does not look below classes that are defined in a function.
    """

    class Unlisted(base):  # type: ignore[valid-type, misc]
        pass

    return Unlisted  # type: ignore[return-value]


@dataclass(frozen=True)
class ParserArgument:
    """An argument of a parser of jsonargparse.

    Attributes:
        name: with dots, as ``trainer.max_epochs``.
        flags: by which it is given.
        type: the type hint of its values.
        required: whether it has to be given.
        default: what it is otherwise.
        takes_value: whether its flags are followed by a value.
        help: what it is, as the docstring says.
    """

    name: str
    flags: tuple[str, ...]
    type: Any
    required: bool
    default: Any
    takes_value: bool
    help: str = ""


def parser_arguments(parser: ArgumentParser, subcommand: str | None = None) -> list[ParserArgument]:
    """Return the arguments of a parser of jsonargparse.

    Args:
        parser: the parser.
        subcommand: take those of the parser of this subcommand.
    """
    if subcommand is not None:
        found = [one.choices[subcommand] for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        return parser_arguments(found[0]) if found else []
    return [
        ParserArgument(
            one.dest,
            tuple(one.option_strings),
            getattr(one, "_typehint", one.type),
            one.required,
            one.default,
            one.nargs != 0,
            "" if one.help in (None, argparse.SUPPRESS) else str(one.help),
        )
        for one in parser._actions
    ]


def instantiate(parser: ArgumentParser, values: Namespace) -> Namespace:
    """Return parsed values with objects in the place of classes: the method has another name since 4.49."""
    made = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return made(values)


def environment_variable(parser: ArgumentParser, name: str) -> str | None:
    """Return the environment variable that an argument of a parser is read from; None if it reads none.

    JSONARGPARSE_DEFAULT_ENV=true lets all parsers read them.

    Args:
        parser: the parser.
        name: of the argument, with dots.
    """
    if not parser.default_env:
        return None
    prefix = f"{parser.env_prefix.replace('-', '_')}_" if isinstance(parser.env_prefix, str) else ""
    return f"{prefix}{name}".replace(".", "__").upper()


def subparsers_of(action: argparse.Action) -> Mapping[str, argparse.ArgumentParser] | None:
    """Return the parsers of the subcommands that an argument of a parser stands for; None if it is another argument."""
    return action.choices if isinstance(action, argparse._SubParsersAction) else None

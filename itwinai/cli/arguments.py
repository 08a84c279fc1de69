"""The parser of every subcommand that is not Lightning's: what is wrong is one line, without a page of usage."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from itwinai.errors import ConfigurationError, nearest

_only_parsers: ContextVar[bool] = ContextVar("only_parsers", default=False)


class _ParserFound(BaseException):
    """Nothing was parsed: this was asked for the parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with no abbreviated flags, and errors that name the flag that was meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: list[str] = []

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse, and keep the arguments for the error."""
        if _only_parsers.get():
            raise _ParserFound(self)
        self._given = list(args or [])
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and what was meant, and exit with 2."""
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = [one.partition("=")[0] for one in self._given if one.startswith("--")]
        hints = [
            f" Did you mean '{meant}' by '{flag}'?"
            for flag in unknown
            if flag not in known and (meant := nearest(flag, known, 0.8)) and not flag.startswith("--trainer.")
        ]
        self.exit(2, f"error: {message.rstrip('.')}.{hints[0] if hints else ''} See `{self.prog} --help`.\n")


def parser_of(command: Callable[[list[str]], int], arguments: list[str]) -> argparse.ArgumentParser:
    """Return the parser by which a command would parse arguments.

    Args:
        command: the function of a command of itwinai.
        arguments: its arguments, in which a command below it may be named.
    """
    token = _only_parsers.set(True)
    try:
        command(arguments)
    except _ParserFound as found:
        return found.parser
    finally:
        _only_parsers.reset(token)
    raise TypeError(f"{command.__module__}.{command.__name__} has no parser of this module")


def values_of_axis(text: str) -> tuple[str, list[Any]]:
    """Return path and values of ``--axis PATH=VALUE,VALUE``.

    Raises:
        ConfigurationError: it is written in another way.
    """
    import yaml

    path, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigurationError(f"--axis {text}: write a path in the config and its values, PATH=VALUE,VALUE.")
    try:
        return path, list(yaml.safe_load(f"[{values}]"))
    except yaml.YAMLError:
        raise ConfigurationError(f"--axis {text}: the values are no YAML: {values}") from None

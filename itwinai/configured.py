"""A run from a config file: lightning's own command line, with `ItwinaiTrainer` in it."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from itwinai import compat
from itwinai.errors import ConfigurationError
from itwinai.trainer import ItwinaiTrainer

_VERSION = tuple(int(part) for part in jsonargparse.__version__.split(".")[:2])


class ConfiguredCLI(LightningCLI):
    """Lightning's command line, whose config may have a section for `itwinai tune`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the section be there; a run leaves it aside."""
        parser.add_argument("--tune", type=dict | None, default=None, help="what `itwinai tune` is to search for")


class ParsedCLI(ConfiguredCLI):
    """Lightning's command line that only parses: nothing is built, and nothing is seeded.

    Attributes:
        config: the whole config, without the seed.
        seed: what the config says of ``seed_everything``.
    """

    seed: int | bool | None

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and take out the seed."""
        super().parse_arguments(parser, args)
        self.seed, self.config["seed_everything"] = self.config["seed_everything"], False

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def as_dict(self, *, without_defaults: bool = False) -> dict[str, Any]:
        """Return the config as plain values, as a file would have it, without the ``tune`` section.

        Args:
            without_defaults: leave out what a run has anyway.
        """
        # None is a value too: one that has it may be varied, and one that was set to it differs from its default.
        if _VERSION >= (4, 49):
            options = {"skip_unset": False, "skip_default": without_defaults}
            values = yaml.safe_load(self.parser.dump(self.config, skip_validation=True, **options))
        else:  # there `skip_default` fails where a default is None
            values, defaults = (
                yaml.safe_load(self.parser.dump(config, skip_none=False, skip_validation=True))
                for config in (self.config, self.parser.get_defaults())
            )
            values = different(values, defaults) if without_defaults else values
        plain: dict[str, Any] = {**values, "seed_everything": self.seed}
        plain.pop("tune", None)
        return plain

    def check(self, config: Mapping[str, Any], what: str) -> None:
        """Raise an error if a config is wrong.

        Args:
            config: plain values.
            what: is wrong with it, to say so.

        Raises:
            ConfigurationError: it is wrong.
        """
        try:
            self.parser.parse_object(copy.deepcopy(dict(config)))
        except ArgumentError as error:
            raise ConfigurationError(f"{what}, which does not fit there: {told_by_parser(error)}") from None


def different(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config that differ from the defaults; those of classes as a whole."""
    left: dict[str, Any] = {}
    for name, value in config.items():
        default = defaults.get(name)
        if name in defaults and value == default:
            continue
        sections = isinstance(value, dict) and isinstance(default, dict) and "class_path" not in value
        left[name] = different(value, default) if sections else value  # type: ignore[arg-type]
    return left


def told_by_parser(error: Exception) -> str:
    """Return what the parser says is wrong, without its list of all that would be right."""
    lines = [line for line in str(error).splitlines() if line.strip() and "NoneType" not in line]
    lines = [
        line for line in lines if not line.strip().startswith(("Given value", "Subtypes:", "Errors:", "- Expected"))
    ]
    deepest = max(lines, key=lambda line: len(line) - len(line.lstrip(" -")), default=str(error))
    return deepest.strip(" -").replace("<class '", "").replace("'>", "")


def command_line(arguments: Sequence[str] | Mapping[str, Any], **options: Any) -> LightningCLI:
    """Return lightning's command line, having done what the arguments say.

    Args:
        arguments: the command line; or a config, whose values are plain.
        **options: further arguments of LightningCLI; ``run=False`` builds trainer, model and data, and runs nothing.

    Raises:
        SystemExit: the arguments or the config are wrong; the message is on the standard error.
    """
    return _make(ConfiguredCLI, arguments, **options)


def parsed(arguments: Sequence[str] | Mapping[str, Any], **options: Any) -> ParsedCLI:
    """Return what `command_line` would build, only parsed.

    Raises:
        ConfigurationError: the arguments or the config are wrong.
    """
    if not isinstance(arguments, Mapping):
        _check_files(arguments)
    options = {"parser_kwargs": {"exit_on_error": False}, **options}
    try:
        return _make(ParsedCLI, arguments, run=False, save_config_callback=None, **options)
    except ArgumentError as error:
        raise ConfigurationError(f"The config is wrong: {error}") from None


def _check_files(arguments: Sequence[str]) -> None:
    """Raise an error for a config file that does not exist, with the name of one that does."""
    for flag, value in zip(arguments, arguments[1:], strict=False):
        path = Path(value)
        if flag in ("-c", "--config") and not path.exists():
            others = [str(other) for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)]
            nearest = difflib.get_close_matches(str(path), others, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ConfigurationError(f"There is no config file {path}.{hint}")


CLI = TypeVar("CLI", bound=LightningCLI)


def _make(kind: type[CLI], arguments: Sequence[str] | Mapping[str, Any], **options: Any) -> CLI:
    compat.silence_known_noise()
    # It warns of a command line beside the arguments; here they are given whole.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    given: Any = dict(arguments) if isinstance(arguments, Mapping) else list(arguments)
    return kind(trainer_class=ItwinaiTrainer, subclass_mode_model=True, subclass_mode_data=True, args=given, **options)

"""`itwinai config`: explain a key, write the schema of configs, or write class names into a config that has none."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from itwinai.cli.arguments import ArgumentParser
from itwinai.config.source import CLASS_SECTIONS, DEFAULT_CONFIG, check_config_files, given_by
from itwinai.errors import ConfigurationError

DEFAULT_PIPELINE = "pipeline.yaml"

_EPILOG = f"""
--explain KEY    what a key does, what it accepts, its value, and where that comes from
--schema         the JSON schema by which editors complete and check configs. It knows the arguments of the classes that
                 the config names. With --pipeline that of pipelines, which knows the arguments of the steps
--adopt CONFIG   a LightningCLI(Model, Data) reads configs that do not say which classes they are for. This writes the
                 classes into one, so that `itwinai fit -c CONFIG` works. Comments stay. What a LightningCLI of your own
                 does beyond that is not in the config: values that link_arguments copies have to be written in both
                 sections, and callbacks of add_lightning_class_args in trainer.callbacks

Other flags are those of `itwinai fit`. Without -c, {DEFAULT_CONFIG} of the current folder is read.

examples:
  itwinai config --explain trainer.strategy
  itwinai config -c config.yaml --explain model.lr --model.lr=0.1
  itwinai config --schema --output schema.json    # in the config: # yaml-language-server: $schema=schema.json
  itwinai config --schema --pipeline --output pipeline-schema.json
  itwinai config --adopt config.yaml --model module.Model --data module.Data
"""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``config``.

    Raises:
        ConfigurationError: the config, a class or a key is wrong; nothing is written then.
    """
    parser = _parser()
    given, others = parser.parse_known_args(argv)
    if given.pipeline is not None and not given.schema:
        parser.error("--pipeline belongs to --schema")
    if sum((bool(given.adopt), given.schema, given.explain is not None)) != 1:
        parser.error("give one of --explain KEY, --schema and --adopt CONFIG")
    # As for a script: the config names classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    classes = {name: getattr(given, name) for name in CLASS_SECTIONS if getattr(given, name)}
    if given.adopt:
        if others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        return _adopt(given.adopt, classes, given.output)
    flags = [*_configs(given.config, classes), *(f"--{name}={path}" for name, path in classes.items()), *others]
    check_config_files(flags)
    if given.explain is not None:
        from itwinai.cli.config.explain import explanation

        _write(explanation(given.explain, flags), given.output)
        return 0
    if given.pipeline is not None:
        return _write_pipeline_schema(given.pipeline, given.output)
    from itwinai.cli.config.schema import config_schema

    said = given_by(flags)
    _write(json.dumps(config_schema(said if said.value else None), indent=1), given.output)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai config",
        usage="itwinai config [-c CONFIG] --explain KEY | --schema | --adopt CONFIG [flags]",
        description="Look into configs, and help editors to.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help=f"config file [{DEFAULT_CONFIG}]")
    parser.add_argument("--explain", metavar="KEY", help="explain a key, as trainer.strategy or model.lr")
    parser.add_argument("--schema", action="store_true", help="write the JSON schema of configs")
    text = "with --schema: that of pipelines, with the arguments of the steps of this one [pipeline.yaml]"
    parser.add_argument("--pipeline", nargs="?", const="", metavar="FILE", help=text)
    parser.add_argument("--adopt", metavar="CONFIG", help="name the classes of a config")
    for name, text in (("model", "LightningModule"), ("data", "LightningDataModule")):
        parser.add_argument(f"--{name}", metavar="MODULE.CLASS", help=f"the {text} of the section '{name}'")
    for name in CLASS_SECTIONS[2:]:
        parser.add_argument(f"--{name}", metavar="MODULE.CLASS", help=f"the class of the section '{name}', if any")
    parser.add_argument("--output", metavar="FILE", help="write to this file; --adopt changes the config without it")
    return parser


def _configs(given: Sequence[str] | None, classes: dict[str, str]) -> list[str]:
    """Return the flags of config files: those given, or that of the current folder, if a class is not named instead."""
    found = given or ([DEFAULT_CONFIG] if Path(DEFAULT_CONFIG).is_file() and "model" not in classes else [])
    return [word for path in found for word in ("-c", path)]


def _write(text: str, output: str | None) -> None:
    if output is None:
        print(text)
        return
    from itwinai.io.atomic import write_whole

    try:
        write_whole(Path(output), f"{text}\n")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}.") from None
    print(f"written: {output}", file=sys.stderr)


def _write_pipeline_schema(path: str, output: str | None) -> int:
    from itwinai.cli.config.pipeline_schema import pipeline_schema
    from itwinai.config.source import read_config

    path = path or (DEFAULT_PIPELINE if Path(DEFAULT_PIPELINE).is_file() else "")
    _write(json.dumps(pipeline_schema(read_config(path).plain() if path else None), indent=1), output)
    return 0


def _adopt(path: str, classes: dict[str, str], output: str | None) -> int:
    from itwinai.cli.config.adopt import adopted, check_adopted

    text = adopted(path, classes)
    check_adopted(path, text)
    target = Path(output or path)
    if text == Path(path).read_text(encoding="utf-8") and not output:
        print(f"{target} names its classes already; it is left as it is")
        return 0
    target.write_text(text, encoding="utf-8")
    print(f"written: {target}; it is ready for `itwinai fit -c {target}`")
    return 0

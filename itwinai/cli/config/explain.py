"""`itwinai config --explain KEY`: what a key does, what it accepts, its value, and where that comes from."""

from __future__ import annotations

import dataclasses
import os
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import docstring_parser
import yaml

from itwinai.benchmark.settings import Settings as BenchmarkSettings
from itwinai.cli.config.accepted import accepted_names
from itwinai.compat.jsonargparse import ParserArgument, environment_variable, parser_arguments
from itwinai.config.errors import imported_class, mistake_in_flags
from itwinai.config.lightning_cli import OUTPUT_ARGUMENTS, config_parser
from itwinai.config.source import CLASS_KEYS, CLASS_SECTIONS, Given, given_by
from itwinai.config.type_hints import class_arguments, classes_of, members_of, short_type, type_text
from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.slurm.options import SBATCH_OPTIONS, JobOptions
from itwinai.tune.settings import Settings as TuneSettings

_WIDTH = 100
_SETTINGS = {"tune": TuneSettings, "benchmark": BenchmarkSettings, "slurm": JobOptions}
_NOTHING = "==SUPPRESS=="


@dataclasses.dataclass(frozen=True)
class _Key:
    """What is known of a key, and the keys in it, if it is a section."""

    path: str
    argument: ParserArgument | None
    inside: Mapping[str, ParserArgument]
    title: str = ""


def explanation(key: str, arguments: Sequence[str]) -> str:
    """Return what `itwinai config --explain` prints.

    Args:
        key: with dots; ``init_args`` may be left out.
        arguments: config files and flags, as a command line has them.

    Raises:
        ConfigurationError: there is no such key; the message names the nearest.
    """
    parser = config_parser()
    known = parser_arguments(parser)
    if mistake := mistake_in_flags(arguments, known):
        raise ConfigurationError(mistake)
    config = given_by(arguments)
    found = _find(key, config, {one.name: one for one in known if _is_public(one)})
    lines = [_head(found)]
    text = found.title or (found.argument.help if found.argument else "")
    lines += textwrap.wrap(
        " ".join(text.split()).replace("``", ""), _WIDTH, initial_indent="  ", subsequent_indent="  "
    )
    rows: dict[str, str] = {}
    if found.argument is not None and found.argument.type is not None:
        names = accepted_names().get(found.path, ())
        rows["accepts"] = _accepted(found.argument.type, names)
        rows["default"] = "none: it is required" if found.argument.required else _shown(found.argument.default)
    rows |= _value_rows(found, config, environment_variable(parser, f"fit.{found.path}"))
    if found.inside:
        rows["keys"] = ", ".join(name for name in found.inside if "." not in name)
    for name, value in rows.items():
        whole = textwrap.wrap(value, _WIDTH - 11, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"  {name:<8} {whole[0]}", *(f"{'':<11}{line}" for line in whole[1:])]
    return "\n".join(lines)


def _head(found: _Key) -> str:
    """Return the key with its type, unless that is longer than it is clear."""
    if found.argument is None or found.argument.type is None:
        return found.path
    whole = f"{found.path}: {short_type(found.argument.type)}"
    return whole if len(whole) <= _WIDTH else found.path


def _accepted(hint: Any, names: Sequence[str]) -> str:
    """Return in words what a type takes, with names in the place of text."""
    if not names:
        return type_text(hint)
    words = [*names, *(type_text(one) for one in members_of(hint) if one is not str)]
    last = words.pop()
    return f"{', '.join(words)} or {last}"


def _value_rows(found: _Key, config: Given, variable: str | None) -> dict[str, str]:
    """Return the value in force, and where it comes from."""
    said = _at(config, found.path)
    if said is not None:
        flag = said.at.startswith("-")
        return {"value": _shown(said.plain()), "from": f"the command line ({said.at})" if flag else said.at}
    if found.argument is None or found.argument.type is None:
        return {}
    if variable is not None and variable in os.environ:
        return {"value": os.environ[variable], "from": f"the environment variable {variable}"}
    if found.argument.required:
        return {"value": "not given"}
    return {"value": _shown(found.argument.default), "from": "the default"}


def _at(config: Given, path: str) -> Given | None:
    """Return what a config says at a path, in which numbers are places in lists."""
    node = config
    names = path.split(".")
    for place, name in enumerate(names):
        if isinstance(node.value, list) and name.isdigit() and int(name) < len(node.value):
            node = node.value[int(name)]
        elif isinstance(node.value, dict) and name in node.value:
            node = node.value[name]
        else:  # the keys of some mappings are paths themselves
            rest = ".".join(names[place:])
            found: Given | None = node.value.get(rest) if isinstance(node.value, dict) else None
            return found
    return node


def _shown(value: Any) -> str:
    """Return a value as a config has it."""
    if value is None or value == _NOTHING:
        return "null"
    try:
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    except yaml.YAMLError:
        return str(value)


def _find(key: str, config: Given, arguments: Mapping[str, ParserArgument]) -> _Key:
    """Return what there is at a key."""
    names = key.split(".")
    top, rest = names[0], names[1:]
    tops = dict.fromkeys(name.partition(".")[0] for name in arguments)
    if top not in tops:
        raise _unknown(key, top, tops, arguments)
    if top in _SETTINGS:
        return _in_settings(key, top, rest)
    if top in CLASS_SECTIONS:
        return _in_class(key, arguments[top], top, rest, config)
    if top in OUTPUT_ARGUMENTS and not rest:
        kind, text, commands = OUTPUT_ARGUMENTS[top]
        default = False if kind is bool else None
        note = f"{text} (of itwinai {', '.join(commands)})"
        return _Key(top, dataclasses.replace(arguments[top], type=kind, help=note, default=default), {})
    if not rest:
        inside = {name.partition(".")[2]: one for name, one in arguments.items() if name.startswith(f"{top}.")}
        return _Key(top, arguments[top], inside, "Arguments of ItwinaiTrainer." if top == "trainer" else "")
    path = f"{top}.{rest[0]}"
    if path not in arguments:
        names = [name.partition(".")[2] for name in arguments if name.startswith(f"{top}.")]
        raise _unknown(key, rest[0], names, arguments, top)
    return _in_class(key, arguments[path], path, rest[1:], config)


def _is_public(one: ParserArgument) -> bool:
    return not one.name.endswith(".help") and one.name not in ("help", "config", "print_config")


def _in_settings(key: str, section: str, rest: Sequence[str]) -> _Key:
    """Return a key of a section that another command than `itwinai fit` reads."""
    cls = _SETTINGS[section]
    hints = typing.get_type_hints(cls)
    texts = {one.arg_name: one.description or "" for one in docstring_parser.parse(cls.__doc__ or "").params}
    inside: dict[str, ParserArgument] = {}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        text = texts.get(field.name, "")
        inside[field.name] = ParserArgument(field.name, (), hints[field.name], required, default, True, text)
    if section == "slurm":
        inside["site"] = ParserArgument("site", (), str | None, False, None, True, "name of a site, or auto")
        for name in SBATCH_OPTIONS:
            inside[name] = ParserArgument(name, (), str | None, False, None, True, f"sbatch's option {name}")
    if not rest:
        return _Key(section, None, inside, f"What `itwinai {section}` reads; other commands leave it aside.")
    if rest[0] not in inside:
        raise _unknown(key, rest[0], inside, {}, section)
    path = ".".join([section, *rest])
    if len(rest) == 1:
        return _Key(path, inside[rest[0]], {})
    return _Key(path, None, {}, f"In {section}.{rest[0]}: {inside[rest[0]].help}")


def _in_class(key: str, argument: ParserArgument, path: str, rest: Sequence[str], config: Given) -> _Key:
    """Return a key of an object's class, or the object itself."""
    value = _at(config, path)
    if value is not None and isinstance(value.value, list):
        if not rest:
            return _Key(path, argument, {})
        if not rest[0].isdigit() or int(rest[0]) >= len(value.value):
            raise ConfigurationError(
                f"{path} is a list of {len(value.value)}. Say which of them: {path}.0.{rest[-1]} is of the first."
            )
        item = dataclasses.replace(argument, help="", default=None)
        return _in_class(key, item, f"{path}.{rest[0]}", rest[1:], config)
    said = _at(config, f"{path}.class_path") or value
    is_class = said is not value or path in CLASS_SECTIONS or "." in str(said.value if said else "")
    cls = imported_class(said.value) if said is not None and isinstance(said.value, str) and is_class else None
    if isinstance(cls, str):
        raise ConfigurationError(f"{said.at if said else ''}: {path}.class_path: {cls}")
    if rest and rest[0] in CLASS_KEYS and len(rest) == 1:
        return _Key(key, None, {}, "The class, as module.Class." if rest[0] == "class_path" else "Its arguments.")
    rest = rest[1:] if rest and rest[0] == "init_args" else rest
    if cls is None:
        if rest:
            classes = " or ".join(dict.fromkeys(one.__name__ for one in classes_of(argument.type)[0]))
            if not classes:
                raise ConfigurationError(f"There is nothing in {path}, which is {type_text(argument.type)}.")
            raise ConfigurationError(
                f"{key} is an argument of the class of a {classes}, and the config does not name one: there is no "
                f"{path}.class_path."
            )
        title = f"The {path}: a class (class_path), and its arguments (init_args)." if path in CLASS_SECTIONS else ""
        return _Key(path, argument, {}, title)
    inside = class_arguments(cls, classes_of(argument.type)[1]) or {}
    if not rest:
        summary = (docstring_parser.parse(cls.__doc__ or "").short_description or "").strip()
        return _Key(path, argument, inside, f"{cls.__name__}: {summary}")
    if rest[0] not in inside:
        raise _unknown(key, rest[0], inside, {}, path, cls.__name__)
    return _in_class(key, inside[rest[0]], f"{path}.init_args.{rest[0]}", rest[1:], config)


def _unknown(
    key: str, name: str, names: Any, arguments: Mapping[str, Any], section: str = "", cls: str = ""
) -> ConfigurationError:
    """Return the error for a key that is not there, with the nearest that is."""
    prefix = f"{section}." if section else ""
    meant = did_you_mean(f"{prefix}{name}", [f"{prefix}{one}" for one in names])
    if not meant:
        last = {one.rpartition(".")[2]: one for one in arguments}
        meant = f" Did you mean '{last[name]}'?" if name in last else ""
    of = (
        f"{cls} has no argument '{name}'"
        if cls
        else f"'{section}' has no '{name}'"
        if section
        else f"there is no '{key}'"
    )
    few = ", ".join(list(names)[:12]) + (" and more" if len(list(names)) > 12 else "")
    return ConfigurationError(f"{of[0].upper() if not cls else of[0]}{of[1:]}.{meant} There are {few}.")

"""Why a config or a command line is refused: where the mistake is, what is accepted there, and what was meant."""

from __future__ import annotations

import ast
import collections.abc
import inspect
import os
import textwrap
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jsonargparse
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from itwinai.compat.jsonargparse import ParserArgument
from itwinai.config.source import (
    CLASS_KEYS,
    CLASS_SECTIONS,
    CONFIG_FLAGS,
    SHORT_FLAGS,
    SWITCHES,
    Given,
    flags_of,
    given_by,
    read_config,
    yaml_files,
)
from itwinai.config.type_hints import class_arguments, classes_of, members_of, short_type, type_text
from itwinai.errors import did_you_mean, nearest
from itwinai.plugins import CALLBACKS, find_plugins
from itwinai.tracebacks import VARIABLE as FULL_TRACEBACK
from itwinai.tracebacks import is_users

_WIDTH = 100
_OTHER_COMMANDS = ("tune", "benchmark", "run", "slurm", "config", "checkpoint", "doctor", "install", "plugins")
_MANY = 20  # names that are not listed where one of them was probably meant
_NO_VALUE = object()
# Values that other libraries use, with ours.
_SAME = {
    "fp16": "16-mixed",
    "float16": "16-mixed",
    "half": "16-mixed",
    "amp": "16-mixed",
    "mixed": "16-mixed",
    "bfloat16": "bf16-mixed",
    "fp32": "32-true",
    "float32": "32-true",
    "float64": "64-true",
    "double": "64-true",
}


@dataclass
class _Mistake:
    """What is wrong, and lines about what would be right."""

    at: str
    key: str
    text: str
    lines: Sequence[str] = field(default_factory=list)

    def message(self) -> str:
        parts = (self.at,) if self.at == f"--{self.key}" else (self.at, self.key)
        place = ": ".join(part for part in parts if part)
        head = f"{place}: {self.text}" if place else self.text
        head = "\n".join(_wrapped(head, ""))
        return "\n".join([head, *(f"  {line}" for line in self.lines)])


def mistake_in_flags(
    arguments: Sequence[str], known: Sequence[ParserArgument], commands: Collection[str] = ()
) -> str | None:
    """Return the first mistake in the flags of a command line, apart from their values; None if there is none.

    Args:
        arguments: the flags, as they were given.
        known: the arguments of the parser.
        commands: names of subcommands, to know a second one.
    """
    flags = {flag: one for one in known for flag in one.flags}
    shown = [flag for flag in (*SHORT_FLAGS, *SWITCHES, *flags) if not flag.endswith(("+", ".help")) and len(flag) > 2]
    for flag, value in flags_of(arguments):
        if not flag:
            if value in (*commands, *_OTHER_COMMANDS):
                return f"'{value}' is a second command: run one at a time."
            hint = did_you_mean(f"--{value}", shown) if nearest(f"--{value}", shown, 0.8) else ""
            hint = f" Did you mean '-c {value}'?" if str(value).endswith((".yaml", ".yml")) else hint
            return f"'{value}' belongs to no flag.{hint} Everything after the command is a flag or its value."
        if flag in SWITCHES and (flag == "--watch" or flag in flags):
            continue
        name = SHORT_FLAGS.get(flag, flag)
        argument = flags.get(name)
        if name.startswith("--trainer.callbacks.") and name.split(".")[2].isdigit():
            rest = ".".join(name.split(".")[3:]) or "NAME"
            return (
                f"{flag}: a flag cannot name a callback by its number (the paths of `itwinai tune` can). Set {rest} in "
                f"the config, or in a second one (-c CONFIG -c more.yaml); --trainer.callbacks.{rest} sets it for the "
                "last callback."
            )
        if argument is None and not _reaches_into(name, known):
            return (
                f"{flag}: there is no such flag.{_flag_meant(flag, shown)} `itwinai fit --help` shows what most people "
                "set, and --help-all everything."
            )
        if value is None and (argument is None or argument.takes_value) and not name.endswith((".help", "_config")):
            accepted = "" if argument is None else f" Accepted: {type_text(argument.type)}."
            what = " Accepted: the path of a config file." if flag in CONFIG_FLAGS else accepted
            return f"{flag}: the value is missing.{what}"
    return None


def mistake_in_values(config: Given, known: Sequence[ParserArgument]) -> str | None:
    """Return the first mistake in the values of a config; None if there is none.

    Args:
        config: the values.
        known: the arguments of the parser.
    """
    arguments = {one.name: one for one in known}
    found = list(_section(config, "", arguments))
    return found[0].message() if found else None


def place_of(config: Given, name: str) -> str:
    """Return where an argument of the trainer is given, with its name, to stand before an error; or nothing."""
    given = config.find(f"trainer.{name}")
    return (
        ""
        if given is None or not given.at
        else f"{given.at}: "
        if given.at[0] == "-"
        else f"{given.at}: trainer.{name}: "
    )


def failure_in_class(error: BaseException, config: Given) -> str | None:
    """Return the message for an exception raised while the classes of a config were created.

    Args:
        error: the exception.
        config: the values.

    Returns:
        The user's frames and the exception; or the exception alone where frameworks refuse what the config says; None
        where neither is so.
    """
    # jsonargparse tries types one by one and tells of all of them, and may hide where a class failed.
    while error.__cause__ is not None and ("Union subtypes" in str(error) or "Problem with given class" in str(error)):
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(frame.filename)]
    kind = type(error).__name__
    if own:
        made = _class_that_was_made(error, config)
        lines = [line for frame in own[-3:] for line in _frame_text(frame)]
        message = f"{kind}: {textwrap.shorten(str(error), 400)}"
        if "before Module.__init__() call" in str(error):
            message = f"call super().__init__() first in its __init__ ({error})."
        head = f"{made} failed: {message}" if made else message
        return "\n".join([head, *lines, f"{FULL_TRACEBACK}=1 shows all frames."])
    if kind not in ("MisconfigurationException", "ValueError", "TypeError", "ModuleNotFoundError", "ImportError"):
        return None
    trainer = config.find("trainer")
    names = list(trainer.value) if trainer is not None and isinstance(trainer.value, dict) else []
    mentioned = [name for name in names if f"{name}=" in str(error) or f"`{name}`" in str(error)]
    place = place_of(config, mentioned[0]) if mentioned else _class_that_was_made(error, config)
    place = f"{place}: " if place and not mentioned else place
    return "\n".join(_wrapped(f"{place}{error}", ""))


def _section(given: Given, key: str, arguments: Mapping[str, ParserArgument]) -> Iterator[_Mistake]:
    """Yield what is wrong in a section whose arguments are all those below a key."""
    inside = {name.removeprefix(f"{key}.") if key else name: one for name, one in arguments.items()}
    inside = {name: one for name, one in inside.items() if (not key or f"{key}.{name}" in arguments)}
    names = list(dict.fromkeys(name.partition(".")[0] for name in inside))
    names = [name for name in names if not name.startswith("print_") and name not in ("help", "config")]
    given = _from_file(given)
    if not isinstance(given.value, dict):
        if given.value is not None and not isinstance(given.value, str):
            yield _Mistake(given.at, key, f"it is {given.plain()!r}, and not a section.", _listed(names))
        return
    for name, one in given.value.items():
        path = f"{key}.{name}" if key else name
        if name not in names:
            yield _unknown_key(one, name, key, names)
        elif name in inside and inside[name].type is not None:
            section = name in CLASS_SECTIONS and not key
            yield from _value(one, inside[name].type, path, root=given if section else None)
        elif any(other.startswith(f"{name}.") for other in inside):
            yield from _section(one, path, arguments)
    for name, argument in inside.items():
        if argument.required and "." not in name and name not in given.value:
            yield _Mistake("", "", f"there is no {name}.", [])


def _from_file(given: Given) -> Given:
    """Return what is in the file that a value names, if it names a config file; else the value."""
    if not isinstance(given.value, str) or not given.value.endswith((".yaml", ".yml", ".json")):
        return given
    file = Path(given.at.rpartition(":")[0]).parent / given.value
    return read_config(str(file)) if file.is_file() else given


def _unknown_key(given: Given, name: str, key: str, names: Sequence[str]) -> _Mistake:
    meant = did_you_mean(name, names) if nearest(name, names, 0.6) else ""
    where = f"'{key}'" if key else "a config"
    path = f"{key}.{name}" if key else name
    if meant and len(names) > _MANY:
        return _Mistake(given.at, path, f"{where} has no '{name}'.{meant} (`--help-all` lists all.)")
    lines = _listed(names)
    if not key:
        lines.append("What a LightningCLI of your own adds is not known here: write callbacks in trainer.callbacks.")
    return _Mistake(given.at, path, f"{where} has no '{name}'.{meant}", lines)


def _value(given: Given, hint: Any, key: str, root: Given | None = None) -> Iterator[_Mistake]:
    """Yield what is wrong with a value that is to be of a type.

    Args:
        given: the value.
        hint: the type.
        key: where it is in the config.
        root: the whole config, for a section that is a class.
    """
    classes, skipped = classes_of(hint)
    if classes:
        given = _from_file(given)
    value = given.value
    if value is None and (type(None) in members_of(hint) or root is not None):
        return
    of_class = isinstance(value, dict) and ("class_path" in value or not _takes_mapping(hint))
    lists = [
        one for one in members_of(hint) if get_origin(one) in (list, collections.abc.Sequence, collections.abc.Iterable)
    ]
    if classes and (of_class or (isinstance(value, str) and root is not None)):
        if isinstance(value, dict) and "class_path" not in value and lists:
            yield _Mistake(given.at, key, "it is a mapping.", _list_of_classes(key, given))
        else:
            yield from _class_value(given, classes, skipped, key, root)
        return
    if isinstance(value, list) and lists:
        items = get_args(lists[0])
        for number, one in enumerate(value):
            yield from _value(one, items[0] if items else Any, f"{key}[{number}]")
        return
    if _fits(given.plain(), hint):
        return
    if classes and isinstance(value, str) and "." in value and isinstance(why := _imported(value, classes), str):
        yield _Mistake(given.at, key, why)
        return
    choices = [choice for one in members_of(hint) if get_origin(one) is Literal for choice in get_args(one)]
    meant = did_you_mean(_SAME.get(value, value), map(str, choices)) if choices and isinstance(value, str) else ""
    yield _Mistake(
        given.at,
        key,
        f"{given.plain()!r} is not accepted here.{meant}",
        _wrapped(f"Accepted: {type_text(hint)}", "  "),
    )


def _class_value(
    given: Given, classes: Sequence[type], skipped: int, key: str, root: Given | None
) -> Iterator[_Mistake]:
    """Yield what is wrong with a value that stands for an object: its class and the class's arguments."""
    spec = given.value if isinstance(given.value, dict) else {"class_path": given}
    wanted = " or ".join(one.__name__ for one in classes)
    if "class_path" not in spec:
        meant = next((name for name in spec if nearest(name, CLASS_KEYS[:1], 0.8)), None)
        if meant is not None:
            yield _Mistake(spec[meant].at, f"{key}.{meant}", "it is called 'class_path'.")
        else:
            yield _without_class(given, classes, key, root)
        return
    path = spec["class_path"].value
    for name, one in spec.items():
        if name not in CLASS_KEYS:
            text = "beside class_path there is only 'init_args'."
            if nearest(name, CLASS_KEYS, 0.7):
                yield _Mistake(one.at, f"{key}.{name}", f"{text}{did_you_mean(name, CLASS_KEYS)}")
            else:
                yield _Mistake(one.at, f"{key}.{name}", f"{text} Arguments of {path} are below it.")
            return
    found = _imported(path, classes, spec["class_path"].at)
    if isinstance(found, str):
        yield _Mistake(spec["class_path"].at, f"{key}.class_path", found)
        return
    if not isinstance(found, type):
        return
    if not issubclass(found, tuple(classes)):
        kinds = [one for one in found.__mro__ if one.__module__.partition(".")[0] in ("lightning", "torch")]
        is_a = f"a {kinds[0].__name__}" if kinds else "another class"
        foreign = [one for one in found.__mro__ if one.__module__.partition(".")[0] == "pytorch_lightning"]
        hint = " It uses the package pytorch_lightning: --unify-lightning lets it train." if foreign else ""
        yield _Mistake(spec["class_path"].at, f"{key}.class_path", f"{path} is {is_a}, and not a {wanted}.{hint}")
        return
    yield from _arguments_of(found, path, spec, skipped, key, root)


def _arguments_of(
    cls: type, path: str, spec: Mapping[str, Given], skipped: int, key: str, root: Given | None
) -> Iterator[_Mistake]:
    """Yield what is wrong with the arguments of a class."""
    arguments = class_arguments(cls, skipped)
    if arguments is None:
        return
    texts = [_argument_text(one) for one in arguments.values() if one.default != "==SUPPRESS=="]
    accepted = _wrapped(f"Accepted: {', '.join(texts) or 'no arguments'}", "  ")[:8]
    args = spec.get("init_args", Given("", {}))
    at = spec["class_path"].at
    if args.value is not None and not isinstance(args.value, dict):
        yield _Mistake(args.at, f"{key}.init_args", f"it is {args.plain()!r}, and no mapping of arguments.", accepted)
        return
    for name, one in (args.value or {}).items():
        if name not in arguments:
            meant = did_you_mean(name, arguments) if nearest(name, arguments, 0.6) else ""
            yield _Mistake(
                one.at,
                f"{key}.init_args.{name}",
                f"{path} has no argument '{name}'.{meant}",
                accepted + _passed_on(cls),
            )
        else:
            yield from _value(one, arguments[name].type, f"{key}.init_args.{name}")
    for name, argument in arguments.items():
        if argument.required and name not in (args.value or {}):
            lines = [*accepted, *_linked(name, key, root)]
            yield _Mistake(at, key, f"{path} needs the argument '{name}', which is not given.", lines)


def _linked(name: str, key: str, root: Given | None) -> list[str]:
    """Return what to say of a missing argument that another section has."""
    for other in CLASS_SECTIONS[:2]:
        if root is not None and other != key and root.find(f"{other}.init_args.{name}"):
            return [
                f"'{other}' has one: what link_arguments of a LightningCLI of your own links is not known here;"
            ] + ["write the value in both sections."]
    return []


def _passed_on(cls: type) -> list[str]:
    kinds = [one.kind for one in inspect.signature(cls).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return []
    return ["Arguments that only its **kwargs take stand below 'dict_kwargs', beside init_args."]


def _without_class(given: Given, classes: Sequence[type], key: str, root: Given | None) -> _Mistake:
    """Return what to say of a section that does not say which class it is of."""
    names = list(given.value)
    text = "there is no class_path, which says what class this is."
    if root is None or key not in ("model", "data"):
        example = _example_class(classes)
        lines = ["Write", f"  class_path: {example}", "  init_args:", *(f"    {name}: ..." for name in names[:3])]
        if key in CLASS_SECTIONS:
            lines.append(f"or name it on the command line: --{key} {example}")
        return _Mistake(given.at, key, text, lines)
    flags = []
    for section, base in (("model", "LightningModule"), ("data", "LightningDataModule")):
        one = root.find(section)
        if one is not None and isinstance(one.value, dict) and "class_path" not in one.value:
            flags.append(f"--{section} {class_here(base, one.value) or f'module.{base[9:] or base}Class'}")
    mine = next(flag for flag in flags if flag.startswith(f"--{key} "))
    file = given.at.rpartition(":")[0] or "CONFIG"
    return _Mistake(
        given.at,
        key,
        text,
        [
            "A config of your own LightningCLI(Model, Data) goes without; here, name the classes in the command:",
            f"  -c {file} {' '.join(flags)}",
            "or once and for all in the file:",
            f"  itwinai config --adopt {file} {' '.join(flags)}",
            f"or by hand, below '{key}:' and with what is there now one step further in:",
            f"  class_path: {mine.partition(' ')[2]}",
            "  init_args:",
        ],
    )


def no_model(arguments: Sequence[str]) -> str:
    """Return the message for a command line without a model."""
    files = [value for flag, value in flags_of(arguments) if flag in CONFIG_FLAGS]
    found, others = _classes_to_name("LightningModule", given_by(arguments).find("data"))
    if not files:
        here = sorted(yaml_files(Path()), key=_by_name)
        hint = f" Config files here: {', '.join(here[:5])}." if here else ""
        return f"no config is given. Give one with -c CONFIG, or name classes: --model {found}.{hint}"
    return (
        f"{files[-1]}: there is no section 'model'. Write\n  model:\n    class_path: {found}{others}\n"
        f"or give --model {found}."
    )


def no_data(model: type, loader: str) -> str:
    """Return the message for a run without data.

    Args:
        model: the model's class.
        loader: the method that gives the data.
    """
    path = f"{model.__module__}.{model.__name__}"
    found, others = _classes_to_name("LightningDataModule", Given("", {"class_path": Given("", path)}))
    return (
        f"there is no data: the config has no section 'data', and {model.__name__} has no {loader}. Write\n  data:\n"
        f"    class_path: {found}{others}\nor give --data {found}."
    )


def _by_name(path: str) -> tuple[bool, str]:
    """Sort ``config.yaml`` before the others."""
    return Path(path).stem != "config", path


def _classes_to_name(base: str, other: Given | None) -> tuple[str, str]:
    """Return the class that a missing section probably is of, and a comment with further ones.

    Args:
        base: name of what it is derived from.
        other: the section that is there: its file counts before others.
    """
    section = other.find("class_path") if other is not None else None
    file = str(section.value).rpartition(".")[0] if section is not None else ""
    found = sorted(classes_here(base), key=lambda path: path.rpartition(".")[0] != file)
    if not found:
        return "module.Class", ""
    return found[0], f"  # or {', '.join(found[1:5])}" if found[1:] else ""


def class_here(base: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the class in a file of the current folder that fits best, as ``module.Class``; None if none does.

    Args:
        base: name of what it is derived from.
        arguments: names of arguments that it has.
    """
    best: tuple[float, str] | None = None
    for path, names in classes_here(base).items():
        share = sum(name in names for name in arguments) / max(len(arguments), 1)
        if best is None or share > best[0]:
            best = share, path
    return None if best is None else best[1]


def classes_here(base: str) -> dict[str, list[str]]:
    """Return the classes in files of the current folder that are derived from one, with their arguments.

    Args:
        base: its name.
    """
    derived: dict[str, list[str]] = {}
    found = _classes_here()
    for path, (bases, names) in found.items():
        line = set(bases)
        for other, (its_bases, _) in found.items():  # what it inherits from a class of the user's own
            line |= set(its_bases) if other.rpartition(".")[2] in bases else set()
        if base in line:
            derived[path] = names
    return derived


def _classes_here() -> dict[str, tuple[list[str], list[str]]]:
    """Return the classes in files of the current folder: names of their bases, and of the arguments of ``__init__``."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for file in sorted(Path().glob("*.py"))[:100]:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = [getattr(one, "attr", getattr(one, "id", "")) for one in node.bases]
                inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
                names = [one.arg for init in inits for one in (*init.args.args, *init.args.kwonlyargs)]
                found[f"{file.stem}.{node.name}"] = bases, names
    return found


def imported_class(path: str) -> type | str:
    """Return the class of a path; or, as a text, why there is none.

    Args:
        path: as module.Class, or the name of one of Lightning's, torch's or itwinai's own.
    """
    bases = (Callback, Logger, Strategy, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    found = _imported(path, bases)
    return found if isinstance(found, (type, str)) else f"{path} is {found!r}, and not a class."


def _imported(path: Any, classes: Sequence[type], at: str = "") -> Any:
    """Return the class of a path, which a config has at some place; or, as a text, why there is none."""
    if not isinstance(path, str):
        return f"{path!r} is not a path of a class. Accepted: text as module.Class."
    module, _, name = path.rpartition(".")
    if not module:
        known = {one.__name__: one for base in classes for one in _subclasses(base)}
        if name in known:
            return known[name]
        paths = {one.rpartition(".")[2]: one for one in _classes_here()} | {
            short: f"{one.__module__}.{short}" for short, one in known.items()
        }
        if Callback in classes:
            paths |= {plugin.name: plugin.name for plugin in find_plugins(CALLBACKS)}
        found = paths.get(name) or paths.get(nearest(name, paths, 0.7) or "")
        hint = f" Did you mean '{found}'?" if found else ""
        return f"'{path}' names no class that is known here; a class path is module.Class.{hint}"
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            candidates = [
                *_classes_here(),
                *(f"{one.__module__}.{one.__name__}" for base in classes for one in _subclasses(base)),
            ]
            folder = "" if "." in error.name else f" in {Path.cwd()} or among the installed packages"
            beside = Path(at.rpartition(":")[0]).parent if at and at[0] != "-" else Path()
            if beside != Path() and any((beside / one).exists() for one in (f"{error.name}.py", error.name)):
                return (
                    f"there is no module '{error.name}'{folder}. There is one beside the config: run itwinai in "
                    f"{beside}, or set PYTHONPATH={beside}"
                )
            meant = did_you_mean(path, candidates) if nearest(path, candidates, 0.7) else ""
            return f"there is no module '{error.name}'{folder}.{meant}"
        return _import_failure(module, error)
    except Exception as error:  # noqa: BLE001 - anything that the user's module raises
        return _import_failure(module, error)
    if hasattr(imported, name):
        return getattr(imported, name)
    fitting = [n for n, one in vars(imported).items() if isinstance(one, type) and issubclass(one, tuple(classes))]
    fitting = [n for n in fitting if not n.startswith("_")]
    public = [*fitting, *getattr(imported, "__all__", ())]  # of which some may not be imported yet
    meant = did_you_mean(name, public) if nearest(name, public, 0.6) else ""
    has = [n for n in fitting if getattr(imported, n).__module__ == imported.__name__] or fitting
    there = f" It has {', '.join(has[:8])}." if has and not meant else ""
    return f"the module '{module}' has no '{name}'.{meant}{there}"


def _import_failure(module: str, error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    lines = _frame_text(frames[-1]) if frames else []
    if isinstance(error, SyntaxError) and error.filename:
        lines = [f'  File "{_shown(error.filename)}", line {error.lineno}', f"    {(error.text or '').strip()}"]
    return "\n".join([f"importing {module} failed:", *lines, f"{type(error).__name__}: {error}"])


def _subclasses(base: type) -> Iterator[type]:
    below: list[type] = base.__subclasses__()
    for one in below:
        if not one.__name__.startswith("_"):
            yield one
        yield from _subclasses(one)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type, as the parser sees it."""
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except (ValueError, TypeError):
        return True
    try:
        parser.parse_object({"value": value})
    except jsonargparse.ArgumentError:
        return False
    return True


def _takes_mapping(hint: Any) -> bool:
    return any(
        one is dict or get_origin(one) in (dict, collections.abc.Mapping) or one is Any for one in members_of(hint)
    )


def _list_of_classes(key: str, given: Given) -> list[str]:
    name = next(iter(given.value), "EarlyStopping")
    inside = given.value.get(name) if isinstance(given.value, dict) else None
    arguments = list(inside.value)[:3] if inside is not None and isinstance(inside.value, dict) else []
    path = (
        name
        if "." in name
        else f"lightning.pytorch.callbacks.{name}"
        if key.endswith("callbacks")
        else f"module.{name}"
    )
    return [
        "Accepted is a list of classes:",
        f"  {key.rpartition('.')[2]}:",
        f"    - class_path: {path}",
        "      init_args:",
        *(f"        {one}: ..." for one in arguments or ["name"]),
    ]


def _example_class(classes: Sequence[type]) -> str:
    if issubclass(classes[0], torch.optim.Optimizer):
        return "torch.optim.Adam"
    if issubclass(classes[0], torch.optim.lr_scheduler.LRScheduler):
        return "torch.optim.lr_scheduler.StepLR"
    return f"module.{classes[0].__name__}"


def _argument_text(argument: ParserArgument) -> str:
    kind = "" if argument.type is None else f": {short_type(argument.type)}"
    return f"{argument.name}{kind}" if argument.required else f"{argument.name}{kind} = {argument.default!r}"


def _reaches_into(flag: str, known: Sequence[ParserArgument]) -> bool:
    """Return whether a flag is for something inside of an argument, as ``--model.lr``."""
    name = flag.removeprefix("--")
    return any(one.type is not None and one.name != "help" and name.startswith(f"{one.name}.") for one in known)


def _flag_meant(flag: str, shown: Sequence[str]) -> str:
    """Return the sentence with the flag that was meant: one of that spelling, or with that last name."""
    if found := nearest(flag, shown, 0.8):
        return f" Did you mean '{found}'?"
    last = {one.rpartition(".")[2].removeprefix("--"): one for one in reversed(shown)}
    found = nearest(flag.rpartition(".")[2].removeprefix("--"), last, 0.8)
    return f" Did you mean '{last[found]}'?" if found else ""


def _class_that_was_made(error: BaseException, config: Given) -> str:
    """Return place and class path of the section whose class raised an error, as far as that can be seen."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "__init__" and "self" in trace.tb_frame.f_locals:
            frames.append(type(trace.tb_frame.f_locals["self"]).__name__)
        trace = trace.tb_next
    for given in _specs(config):
        path = given.value["class_path"]
        if str(path.value).rpartition(".")[2] in frames:
            return f"{path.at}: {path.value}" if path.at else str(path.value)
    return ""


def _specs(given: Given) -> Iterator[Given]:
    """Yield everything in a config that stands for an object."""
    inside = (
        given.value.values() if isinstance(given.value, dict) else given.value if isinstance(given.value, list) else ()
    )
    for one in inside:
        yield from _specs(one)
    if isinstance(given.value, dict) and "class_path" in given.value:
        yield given


def _frame_text(frame: traceback.FrameSummary) -> list[str]:
    return [f'  File "{_shown(frame.filename)}", line {frame.lineno}, in {frame.name}', f"    {frame.line}"]


def _shown(file: str) -> str:
    return os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file


def _listed(names: Sequence[str]) -> list[str]:
    return _wrapped(f"Accepted: {', '.join(sorted(names))}.", "  ")[:9]


def _wrapped(text: str, indent: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        whole = line if line.startswith(" ") else ""
        lines += (
            [whole]
            if whole
            else textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
        )
    return lines

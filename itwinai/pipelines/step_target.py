"""The function or class of a step: its arguments as jsonargparse checks them, and what it returns."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import jsonargparse

from itwinai.compat.jsonargparse import instantiate, parser_arguments
from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.pipelines.outputs import KEPT_TYPES, is_output_folder

_METHODS = ("run", "__call__")
_UNKNOWN = object()


@dataclass(frozen=True)
class StepTarget:
    """A function, or a class with a method ``run`` or ``__call__``.

    Attributes:
        path: as the file has it.
        target: the function or class.
        method: name of the method of a class; empty for a function.
    """

    path: str
    target: Any
    method: str

    @classmethod
    def load(cls, path: str) -> StepTarget:
        """Import the function or class.

        Raises:
            ConfigurationError: it does not exist, or is neither.
        """
        module_name, _, name = path.rpartition(".")
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name + ".").startswith(error.name + "."):
                raise  # the module is there, and lacks something itself
            here = [f"{one.stem}.{name}" for one in Path.cwd().glob("*.py")]
            raise ConfigurationError(
                f"there is no module '{error.name}'.{did_you_mean(path, here)} Modules are looked for in the current "
                f"folder ({Path.cwd()}) and among installed packages."
            ) from None
        target = getattr(module, name, None)
        if target is None:
            own = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
            raise ConfigurationError(f"{module_name} has no '{name}'.{did_you_mean(name, own)}")
        if inspect.isclass(target):
            method = next((one for one in _METHODS if any(one in vars(base) for base in target.__mro__)), None)
            if method is None:
                raise ConfigurationError(f"the class {name} has no method run() or __call__(), which a step needs.")
            return cls(path, target, method)
        if not callable(target):
            raise ConfigurationError(f"{path} is a {type(target).__name__}, and neither a function nor a class.")
        return cls(path, target, "")

    @property
    def resumes(self) -> bool:
        """Whether it goes on in what an interrupted run has left in its folder."""
        return bool(getattr(self.target, "resumes", False))

    @property
    def returns(self) -> Any:
        """The type of what it returns; Any if it does not say."""
        function = getattr(self.target, self.method) if self.method else self.target
        hint = _hints(function).get("return", Any)
        return type(None) if hint is None else hint

    def resolve(self, given: Mapping[str, Any], unchecked: Collection[str] = ()) -> dict[str, Any]:
        """Return all arguments as plain values, with defaults.

        Args:
            given: arguments by name.
            unchecked: names of arguments that are given too, and whose values are not known yet: they are left out.

        Raises:
            ArgumentMistake: an argument is unknown, missing, or not of its type.
        """
        values = self._parse(given, unchecked)[1]
        found: dict[str, Any] = {}
        for part in ("init", "call"):
            found |= _plain(values.get(part) or {})
        return found

    def call(self, given: Mapping[str, Any], folder: Path) -> Any:
        """Make the objects that the arguments stand for, run the step, and return what it returns.

        Args:
            given: arguments by name.
            folder: its output folder.
        """
        parser, values = self._parse(given)
        made = instantiate(parser, values)
        arguments = {part: dict(vars(made.get(part) or jsonargparse.Namespace())) for part in ("init", "call")}
        for part, function in self._functions().items():
            arguments[part] |= dict.fromkeys(_folders(function), folder)
        if not self.method:
            return self.target(**arguments["call"])
        return getattr(self.target(**arguments["init"]), self.method)(**arguments["call"])

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The types of all arguments by name, without the output folder."""
        return {name: one.type for name, (_, one) in self._known(self._parser()).items()}

    @property
    def required(self) -> list[str]:
        """The names of the arguments that have no default, without the output folder."""
        names = [name for name, (_, one) in self._known(self._parser()).items() if one.required]
        return list(dict.fromkeys(name.partition(".")[0] for name in names))

    def _functions(self) -> dict[str, Callable[..., Any]]:
        if not self.method:
            return {"call": self.target}
        return {"init": self.target.__init__, "call": getattr(self.target, self.method)}

    def _parser(self, unchecked: Collection[str] = ()) -> jsonargparse.ArgumentParser:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        folders: dict[str, set[str | int]] = {
            part: {*_folders(function), *(name for name in unchecked if name in inspect.signature(function).parameters)}
            for part, function in self._functions().items()
        }
        try:
            if not self.method:
                parser.add_function_arguments(self.target, "call", skip=folders["call"])
            else:
                parser.add_class_arguments(self.target, "init", skip=folders["init"], instantiate=False)
                parser.add_method_arguments(self.target, self.method, "call", skip=folders["call"])
        except ValueError:
            if not (untyped := self._untyped()):
                raise
            raise ArgumentMistake(
                "", f"{self._label()} does not say the type of '{untyped}'. Write it, as in {untyped}: Path"
            ) from None
        return parser

    def _untyped(self) -> str | None:
        """Return the first argument without a type and a default; None if there is none."""
        parameters = [
            one for function in self._functions().values() for one in inspect.signature(function).parameters.values()
        ]
        bare = [one for one in parameters if one.annotation is one.empty and one.default is one.empty]
        return next((one.name for one in bare if one.name != "self" and one.kind == one.POSITIONAL_OR_KEYWORD), None)

    @staticmethod
    def _known(parser: jsonargparse.ArgumentParser) -> dict[str, tuple[str, Any]]:
        found: dict[str, tuple[str, Any]] = {}
        for one in parser_arguments(parser):
            part, _, name = one.name.partition(".")
            if part in ("init", "call") and name and not one.name.endswith(".help"):
                found.setdefault(name, (part, one))
        return found

    def _parse(
        self, given: Mapping[str, Any], unchecked: Collection[str] = ()
    ) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
        everything = self._known(self._parser()) if unchecked else {}
        for name in unchecked:
            self._check_name(name, everything)
        parser = self._parser(unchecked)
        known = self._known(parser)
        nested: dict[str, dict[str, Any]] = {"init": {}, "call": {}}
        for name, value in given.items():
            nested[self._check_name(name, known)][name] = value
        for name, (_, one) in known.items():
            if one.required and name.partition(".")[0] not in given:
                raise ArgumentMistake("", f"{self._label()} needs '{name}', which is not given.")
        parts = {part: values for part, values in nested.items() if values}
        try:
            return parser, parser.parse_object(parts)
        except argparse.ArgumentError as error:
            text = str(error)
            for name, value in given.items():
                part, one = known.get(name, ("", None))
                if f'"{part}.{name}' in text and one is not None:
                    raise ArgumentMistake(name, _refused(value, one.type)) from None
            raise ArgumentMistake("", " ".join(text.split())) from None

    def _check_name(self, name: str, known: Mapping[str, tuple[str, Any]]) -> str:
        """Return whether an argument is one of the class or of its method."""
        part = known[name][0] if name in known else _section_of(name, known)
        if part is not None:
            return part
        names = list(dict.fromkeys(one.partition(".")[0] for one in known))
        raise ArgumentMistake(
            name,
            f"{self._label()} has no argument '{name}'.{did_you_mean(name, names)} "
            + (f"It has {', '.join(names)}." if names else "It has none."),
        )

    def _label(self) -> str:
        return f"{self.path.rpartition('.')[2]}{'' if self.method else '()'}"


class ArgumentMistake(Exception):
    """An argument of a step is wrong.

    Attributes:
        argument: path of it; empty for the whole.
    """

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(text)
        self.argument = argument


def output_type(returns: Any, output: str) -> Any:
    """Return the type of an output of a step that says what it returns; Any where that is not said.

    Args:
        returns: the type of all.
        output: names with dots between; empty for all.

    Raises:
        ConfigurationError: there is no such output.
    """
    hint = returns
    done: list[str] = []
    for name in output.split(".") if output else ():
        named = named_outputs(hint)
        origin = get_origin(hint)
        if named is not None:
            if name not in named:
                raise ConfigurationError(f"'{name}'.{did_you_mean(name, named)} It returns {', '.join(named)}.")
            hint = named[name]
        elif hint is Any or hint is dict or hint is list or hint is tuple:
            return Any
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            hint = get_args(hint)[1]
        elif isinstance(origin, type) and issubclass(origin, (list, tuple, typing.Sequence)) and name.isdigit():
            inside = [one for one in get_args(hint) if one is not ...]
            hint = inside[int(name)] if origin is tuple and int(name) < len(inside) else inside[0]
        elif origin in (Union, types.UnionType):
            return Any
        else:
            what = f"its output {'.'.join(done)}" if done else "it"
            raise ConfigurationError(f"'{output}': {what} returns {type_text(hint)}.")
        done.append(name)
    return hint


def named_outputs(hint: Any) -> dict[str, Any] | None:
    """Return the types of the outputs that a NamedTuple, dataclass or TypedDict names; None for other types."""
    if isinstance(hint, type) and (
        dataclasses.is_dataclass(hint) or hasattr(hint, "_fields") or hasattr(hint, "__total__")
    ):
        return _hints(hint)
    return None


def sample(hint: Any) -> Any:
    """Return a plain value of a type, to try what takes it; or a value that stands for none, see `is_sample`."""
    if hint is bool:
        return True
    if hint is int:
        return 1
    if hint is float:
        return 0.5
    if hint is str:
        return "text"
    if hint is type(None):
        return None
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "path"
    origin, inside = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return sample(inside[0])
    if isinstance(origin, type) and issubclass(origin, Mapping) and inside:
        one = sample(inside[1])
        return {"name": one} if one is not _UNKNOWN else _UNKNOWN
    if origin in (list, set, tuple) or (isinstance(origin, type) and issubclass(origin, typing.Sequence)):
        items = [sample(one) for one in inside if one is not ...]
        return _UNKNOWN if _UNKNOWN in items else items
    named = named_outputs(hint)
    if named is not None:
        values = {name: sample(one) for name, one in named.items()}
        return _UNKNOWN if _UNKNOWN in values.values() else values
    return _UNKNOWN


def is_sample(value: Any) -> bool:
    """Return whether `sample` has found a value."""
    return value is not _UNKNOWN


def takes_only_some(hint: Any) -> bool:
    """Return whether a type takes some texts or paths and not others, so that a sample says nothing."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(takes_only_some(one) for one in get_args(hint))
    if get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return True
    # jsonargparse's own types: paths that exist, numbers in a range.
    return isinstance(hint, type) and hint.__module__.startswith("jsonargparse")


def is_of_type(value: Any, hint: Any) -> bool:
    """Return whether what a step has returned is of the type that it says, as far as that is checked: not within it."""
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return is_of_type(value, get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return any(is_of_type(value, one) for one in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    kind = origin or hint
    if hasattr(kind, "__total__"):  # a TypedDict
        return isinstance(value, dict)
    wider = {int: numbers.Integral, float: numbers.Real}  # of numpy too
    return not isinstance(kind, type) or isinstance(value, wider.get(kind, kind))


def not_kept(hint: Any, _inside: tuple[Any, ...] = ()) -> Any:
    """Return the part of a type of which no value can be kept as an output; None if there is none.

    Args:
        hint: what a step says that it returns.
    """
    if hint is Any or hint in _inside:  # a dataclass with fields of its own type
        return None
    inside = (*_inside, hint)
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return not_kept(get_args(hint)[0], inside)
    if origin in (Union, types.UnionType):
        found = [not_kept(one, inside) for one in get_args(hint) if one is not type(None)]
        return None if None in found else found[0]
    if (named := named_outputs(hint)) is not None:
        parts = list(named.values())
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        parts = list(get_args(hint)[1:])
    elif isinstance(kind := origin or hint, type) and origin is not Literal:
        if not _may_be_kept(kind):
            return hint
        parts = list(get_args(hint)) if origin is not None else []
    else:
        parts = []
    found = [not_kept(part, inside) for part in parts if part is not ...]
    return next((one for one in found if one is not None), None)


def _may_be_kept(kind: type) -> bool:
    """Return whether a value of a class may be kept: it or a class below it is of what is kept."""
    if getattr(kind, "_is_protocol", False):  # which says what a value can do, and not what it is
        return True
    if any(issubclass(kind, one) or issubclass(one, kind) for one in KEPT_TYPES):
        return True
    # What numpy and torch have of a single number is kept as this number.
    own = dataclasses.is_dataclass(kind) or any(hasattr(kind, name) for name in ("_asdict", "item", "__total__"))
    below: list[type] = type.__subclasses__(kind)
    return own or any(map(_may_be_kept, below))


def type_text(hint: Any) -> str:
    """Return a type as a person writes it."""
    if hint is type(None):
        return "nothing"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else type_text(one) for one in get_args(hint))
    if get_origin(hint) is typing.Annotated:
        return type_text(get_args(hint)[0])
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "").replace("pathlib.", "")


def _refused(value: Any, hint: Any) -> str:
    return f"{value!r} is not accepted here. Accepted: {type_text(hint)}."


def _section_of(name: str, known: Mapping[str, tuple[str, Any]]) -> str | None:
    """Return the part of an argument that consists of others, as a dataclass does."""
    return next((part for other, (part, _) in known.items() if other.startswith(f"{name}.")), None)


def _folders(function: Callable[..., Any]) -> list[str]:
    return [name for name, hint in _hints(function).items() if name != "return" and is_output_folder(hint)]


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of, include_extras=True)
    except (NameError, TypeError):  # a hint that is imported for type checkers only
        return dict(getattr(of, "__annotations__", {}))


def _plain(value: Any) -> Any:
    if isinstance(value, jsonargparse.Namespace):
        return {name: _plain(one) for name, one in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)

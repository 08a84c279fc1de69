"""JSON schemas of type hints, as configs write their values."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import inspect
import json
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch

from itwinai.compat.jsonargparse import ParserArgument
from itwinai.config.type_hints import class_arguments

Schema = dict[str, Any]

_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_OF_PACKAGES = ("itwinai", "lightning", "torch")
# Optimizers get parameters, schedulers an optimizer, from the model.
_DEEPEST = 4


class TypeSchemas:
    """Schemas of types, with one definition for each class whose arguments are known.

    Args:
        known: the classes that are offered, beside those that a type names.

    Attributes:
        definitions: the schemas that others refer to, by name.
    """

    def __init__(self, known: Iterable[type] = ()) -> None:
        self.definitions: dict[str, Schema] = {}
        self._known = list(dict.fromkeys(known))
        self._depth = 0
        self._found: dict[tuple[type, int], dict[str, ParserArgument] | None] = {}

    def argument(self, one: ParserArgument, names: Sequence[str] = ()) -> Schema:
        """Return the schema of an argument.

        Args:
            one: the argument.
            names: what is accepted where the type says only that it is text.
        """
        schema = self.of(one.type, names)
        if one.help:
            schema = {"description": " ".join(one.help.split()), **schema}
        if (default := _as_json(one.default)) is not _NOTHING and not one.required:
            schema["default"] = default
        return schema

    def of(self, hint: Any, names: Sequence[str] = ()) -> Schema:
        """Return the schema of a type.

        Args:
            hint: the type.
            names: what is accepted where the type says only that it is text.
        """
        found = [self._single(member, names) for member in _flat(hint)]
        if any(not one for one in found):
            return {}
        kinds = [one["type"] for one in found if set(one) == {"type"} and isinstance(one["type"], str)]
        if "number" in kinds and "integer" in kinds:
            kinds.remove("integer")
        others = [one for one in found if not (set(one) == {"type"} and isinstance(one["type"], str))]
        choices = [choice for one in others if set(one) == {"enum"} for choice in one["enum"]]
        others = [one for one in others if set(one) != {"enum"}]
        parts = list(others)
        if kinds:
            parts.append({"type": kinds[0] if len(kinds) == 1 else list(dict.fromkeys(kinds))})
        if choices:
            parts.append({"enum": list(dict.fromkeys(choices))})
        return parts[0] if len(parts) == 1 else {"anyOf": parts}

    def _single(self, hint: Any, names: Sequence[str]) -> Schema:
        origin, inside = get_origin(hint), get_args(hint)
        if hint in (Any, object, inspect.Parameter.empty):
            return {}
        if hint is str and names:
            return {"enum": list(names)}
        if hint in _SIMPLE:
            return {"type": _SIMPLE[hint]}
        if origin is Literal:
            return {"enum": list(inside)}
        if hint in _LISTS or origin in _LISTS:
            items = [one for one in inside if one is not Ellipsis]
            varied = origin is tuple and len(items) > 1
            return {"type": "array", **({"items": self.of(items[0], names)} if items and not varied else {})}
        if hint is dict or origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
            values = self.of(inside[1]) if len(inside) == 2 else {}
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if origin is os.PathLike:
            return {"type": "string"}
        if origin is collections.abc.Callable or hint is collections.abc.Callable:
            returned = inside[1] if len(inside) == 2 else None
            taken = len(inside[0]) if len(inside) == 2 and isinstance(inside[0], list) else 0
            if isinstance(returned, type) and returned not in _SIMPLE:
                return self.class_value(returned, taken)
            return {"type": ["string", "object"]}
        return self._class(hint) if isinstance(hint, type) else {}

    def _class(self, hint: type) -> Schema:
        if issubclass(hint, enum.Enum):
            return {"enum": list(hint.__members__)}
        if issubclass(hint, bool) or issubclass(hint, (int, float)):
            return {"type": "integer" if issubclass(hint, int) else "number"}
        if issubclass(hint, (str, datetime.timedelta, Path, os.PathLike)) or hint.__module__.startswith("jsonargparse"):
            return {"type": "string"}
        if hint in (torch.dtype, torch.device) or hint.__module__ == "builtins" or getattr(hint, "_is_protocol", False):
            return {}
        if dataclasses.is_dataclass(hint):
            arguments = class_arguments(hint, 0) or {}
            return self._arguments(arguments) | {"required": [one.name for one in arguments.values() if one.required]}
        return self.class_value(hint)

    def class_value(
        self, base: type, skipped: int = 0, *, of_section: bool = False, default: type | None = None
    ) -> Schema:
        """Return the schema of a value that stands for an object: a class and its arguments.

        Args:
            base: what the class is derived from.
            skipped: how many arguments come from elsewhere.
            of_section: whether it is a section, whose class another file or a flag may name.
            default: the class of a section in which there is none.
        """
        classes = [one for one in self._known if issubclass(one, base) and not inspect.isabstract(one)]
        by_path = {path: one for one in classes for path in _paths(one)}
        short = {one.__name__: one for one in classes}
        own = "|".join(f"{name}\\." for name in _OF_PACKAGES)
        path: Schema = {
            "description": f"class of a {base.__name__}, as module.Class",
            "anyOf": [
                {"enum": [*by_path, *short]},
                # Of classes that are not known here; those of these packages are.
                {"type": "string", "pattern": f"^(?!{own})[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z_][A-Za-z0-9_]*)+$"},
            ],
        }
        section: Schema = {
            "type": "object",
            "properties": {
                "class_path": path,
                "init_args": {"type": ["object", "null"]},
                "dict_kwargs": {"type": "object"},
            },
            "additionalProperties": False,
        }
        if not of_section:
            section["required"] = ["class_path"]
        if self._depth >= _DEEPEST:
            return {"anyOf": [{"type": "string"}, section]}
        conditions = [
            self._condition([*_paths(one), one.__name__], one, skipped) for one in classes if one is not default
        ]
        if default is not None:
            conditions.append(self._condition([*_paths(default), default.__name__], default, skipped, unnamed=True))
        section["allOf"] = [one for one in conditions if one]
        name = f"{base.__name__}{'.section' if of_section else ''}{f'.{skipped}' if skipped else ''}"
        self.definitions[name] = {"anyOf": [path, section]} if not of_section else section
        return {"$ref": f"#/$defs/{name}"}

    def _condition(self, paths: Sequence[str], cls: type, skipped: int, unnamed: bool = False) -> Schema:
        """Return what holds where a class is named, or where none is, if that means this one."""
        name = self._definition(cls, skipped)
        if name is None:
            return {}
        arguments = self._arguments_of(cls, skipped) or {}
        required = [one.name for one in arguments.values() if one.required]
        named = {"properties": {"class_path": {"enum": list(paths)}}}
        then: Schema = {"properties": {"init_args": {"$ref": f"#/$defs/{name}"}}}
        if not required:
            return {"if": named | ({} if unnamed else {"required": ["class_path"]}), "then": then}
        # What is missing can be in another file, which then does not name the class.
        whole = {"required": ["init_args"], "properties": {"init_args": {"required": required}}}
        if unnamed:
            then = {**then, "if": {"required": ["class_path"]}, "then": whole}
            return {"if": named, "then": then}
        return {"if": named | {"required": ["class_path"]}, "then": {"allOf": [then, whole]}}

    def _definition(self, cls: type, skipped: int) -> str | None:
        """Define the arguments of a class, and return the name of the definition; None if they cannot be known."""
        name = f"{cls.__module__}.{cls.__qualname__}{f'.{skipped}' if skipped else ''}"
        if name not in self.definitions:
            arguments = self._arguments_of(cls, skipped)
            if arguments is None:
                return None
            self.definitions[name] = {}  # it may refer to itself
            self._depth += 1
            self.definitions[name] = self._arguments(arguments)
            self._depth -= 1
        return name

    def _arguments_of(self, cls: type, skipped: int) -> dict[str, ParserArgument] | None:
        if (cls, skipped) not in self._found:
            self._found[cls, skipped] = class_arguments(cls, skipped)
        return self._found[cls, skipped]

    def _arguments(self, arguments: Mapping[str, ParserArgument]) -> Schema:
        return {
            "type": ["object", "null"],
            "properties": {name: self.argument(one) for name, one in arguments.items() if "." not in name},
            "additionalProperties": False,
        }


def _flat(hint: Any) -> list[Any]:
    """Return the types of a union, without annotations."""
    if get_origin(hint) in (Union, types.UnionType):
        return [member for one in get_args(hint) for member in _flat(one)]
    if get_origin(hint) is typing.Annotated:
        return _flat(get_args(hint)[0])
    return [type(None) if hint is None else hint]


def _paths(cls: type) -> list[str]:
    """Return the paths by which a class is named: the public one, and where it is defined."""
    module = cls.__module__
    paths = [f"{module}.{cls.__qualname__}"]
    while "." in module:
        module = module.rpartition(".")[0]
        if getattr(sys.modules.get(module), cls.__name__, None) is cls:
            paths.insert(0, f"{module}.{cls.__name__}")
    return list(dict.fromkeys(paths))


_NOTHING = object()


def _as_json(value: Any) -> Any:
    """Return a default as JSON has it; `_NOTHING` if it has none."""
    if value == "==SUPPRESS==" or isinstance(value, float) and value in (float("inf"), float("-inf")):
        return _NOTHING
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return _NOTHING

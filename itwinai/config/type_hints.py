"""What the type hints of arguments say: the classes in them, and in words what they accept."""

from __future__ import annotations

import collections.abc
import datetime
import os
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import jsonargparse
import torch

from itwinai.compat.jsonargparse import ParserArgument, parser_arguments


def class_arguments(cls: type, skipped: int) -> dict[str, ParserArgument] | None:
    """Return the arguments of a class; None if they cannot be known."""
    skip: set[Any] = {skipped} if skipped else set()
    if issubclass(cls, torch.optim.Optimizer):
        skip = {"params"}
    elif issubclass(cls, torch.optim.lr_scheduler.LRScheduler):
        skip = {"optimizer"}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        names = parser.add_class_arguments(cls, fail_untyped=False, skip=skip)
    except (ValueError, TypeError, AttributeError):
        return None
    return {one.name: one for one in parser_arguments(parser) if one.name in names}


def members_of(hint: Any) -> list[Any]:
    """Return the types of a union, or the only one."""
    if get_origin(hint) in (Union, types.UnionType):
        return [member for one in get_args(hint) for member in members_of(one)]
    return [hint]


def classes_of(hint: Any) -> tuple[list[type], int]:
    """Return the classes whose objects a type takes, and how many of their arguments come from elsewhere."""
    found: list[type] = []
    skipped = 0
    for one in members_of(hint):
        origin = get_origin(one)
        if origin is collections.abc.Callable and len(get_args(one)) == 2:
            taken, returned = get_args(one)
            found += classes_of(returned)[0]
            skipped = len(taken) if isinstance(taken, list) else 1
        elif origin in (list, collections.abc.Sequence, collections.abc.Iterable) and get_args(one):
            found += [cls for cls in classes_of(get_args(one)[0])[0] if cls not in found]
        elif (
            isinstance(one, type)
            and one.__module__ != "builtins"
            and not issubclass(one, (Path, datetime.timedelta, os.PathLike))
        ):
            found.append(one)
    return found, skipped


def short_type(hint: Any) -> str:
    """Return a type as code has it, without modules."""
    if hint is type(None):
        return "None"
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(short_type(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) is not None and isinstance(get_origin(hint), type) and get_args(hint):
        inside = ", ".join(short_type(one) if not isinstance(one, list) else "..." for one in get_args(hint))
        return f"{get_origin(hint).__name__}[{inside}]"
    return getattr(hint, "__name__", str(hint))


_WORDS: dict[Any, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
    datetime.timedelta: "a time as '0:30:00'",
    Any: "anything",
}


def type_text(hint: Any) -> str:
    """Return in words what a type takes."""
    members = members_of(hint)
    if float in members and int in members:
        members.remove(int)
    words: list[str] = []
    for one in members:
        origin, inside = get_origin(one), get_args(one)
        if origin is Literal:
            words += [str(choice) for choice in inside]
        elif origin in (list, collections.abc.Sequence, collections.abc.Iterable, tuple, set) and inside:
            words.append("a list")
        elif origin in (dict, collections.abc.Mapping):
            words.append("a mapping")
        elif isinstance(one, type) and issubclass(one, os.PathLike) or origin is os.PathLike:
            words.append("a path")
        elif one in _WORDS:
            words.append(_WORDS[one])
        else:
            words.append(f"the class_path of a {getattr(one, '__name__', str(one))}")
    words = [*[word for word in dict.fromkeys(words) if word != "null"], *(["null"] if "null" in words else [])]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

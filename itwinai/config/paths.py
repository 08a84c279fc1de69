"""Values in a config by their path, as in ``model.init_args.lr``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from itwinai.errors import ConfigurationError, nearest

_CLASS, _ARGUMENTS = "class_path", "init_args"


def spelled_out(config: Mapping[str, Any], path: str) -> str:
    """Return a path with everything in it that may be left out: ``model.lr`` is ``model.init_args.lr``.

    Args:
        config: the whole config, defaults included.
        path: the path as it is given; numbers are places in a list.

    Raises:
        ConfigurationError: there is nothing at the path; the message names the nearest that there is.
    """
    node: Any = config
    names: list[str] = []
    for name in path.split("."):
        if isinstance(node, Mapping) and name not in node and _CLASS in node and name in (node.get(_ARGUMENTS) or {}):
            names.append(_ARGUMENTS)
            node = node[_ARGUMENTS]
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise ConfigurationError(_nothing_at(config, path))
        names.append(name)
    return ".".join(names)


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path that exists."""
    node: Any = config
    for name in path.split("."):
        node = node[int(name)] if isinstance(node, list) else node[name]
    return node


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config with other values at some paths, which exist.

    Whole sections are set before what is in them, so that a class can be chosen together with its arguments.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for path in sorted(values, key=lambda path: path.count(".")):
        *parents, name = path.split(".")
        node: Any = changed
        for parent in parents:
            if isinstance(node, list):
                node = node[int(parent)]
            else:
                if not isinstance(node.get(parent), (dict, list)):
                    node[parent] = {}
                node = node[parent]
        if isinstance(node, list):
            node[int(name)] = copy.deepcopy(values[path])
        else:
            node[name] = copy.deepcopy(values[path])
    return changed


def _nothing_at(config: Mapping[str, Any], path: str) -> str:
    known = list(_paths(config))
    plain = {_without_frames(one): one for one in reversed(known)}
    found = nearest(_without_frames(path), plain, cutoff=0.8)
    meant = plain.get(found or "")
    if meant is None:  # the last name alone, wherever it is
        last = {one.rpartition(".")[2]: one for one in reversed(known)}
        meant = last.get(nearest(path.rpartition(".")[2], last, cutoff=0.6) or "")
    hint = "" if meant is None else f" Did you mean '{meant}'?"
    return (
        f"There is nothing at '{path}' in the config.{hint} Paths go over the whole config, with all defaults; "
        "`itwinai fit -c CONFIG --print_config` shows it."
    )


def _without_frames(path: str) -> str:
    """Return a path without what may be left out of it."""
    return path.replace(f".{_ARGUMENTS}.", ".")


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for name, value in items:
        path = f"{prefix}{name}"
        yield path
        yield from _paths(value, f"{path}.")

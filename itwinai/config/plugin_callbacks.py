"""Callbacks of plugins in configs and flags, where their short names are enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning.pytorch import Callback

from itwinai.config.source import Given, as_given, flags_of, scalar
from itwinai.plugins import CALLBACKS, Plugin, find_plugin

_SECTION = "trainer.callbacks"


def import_named_callbacks(config: Given, arguments: Sequence[str] = ()) -> None:
    """Import the callbacks of plugins that a config or flags name, so that the parser knows their short names.

    A short name is that of a class. Names of lightning's and itwinai's own callbacks stay theirs.

    Args:
        config: what config files and flags say.
        arguments: the command line, for flags that add to a list.

    Raises:
        PluginError: a plugin that is named cannot be used, or two have the same name.
    """
    names = set(_short_names(config.find(_SECTION)))
    for flag, value in flags_of(arguments):
        if flag.startswith(f"--{_SECTION}") and value is not None:
            names |= set(_short_names(as_given(scalar(value))))
    for name in sorted(names - builtin_callbacks()):
        plugin = find_plugin(CALLBACKS, name)
        if plugin is not None:
            callback_class(plugin)


def callback_class(plugin: Plugin) -> type[Callback]:
    """Return the callback's class of a plugin.

    Raises:
        PluginError: it cannot be loaded, or is no class of callbacks of that name.
    """
    cls = plugin.load()
    if not isinstance(cls, type) or not issubclass(cls, Callback):
        raise plugin.error(f"{plugin.value} is not a class of Lightning's Callback")
    if cls.__name__ != plugin.name:
        raise plugin.error(f"its class is called '{cls.__name__}'; a callback's name is that of its class")
    return cls


def builtin_callbacks() -> set[str]:
    """Return the short names of lightning's and itwinai's callbacks."""
    import itwinai.callbacks

    return {*itwinai.callbacks.__all__, *(one.__name__ for one in _below(Callback) if _is_builtin(one))}


def _is_builtin(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("lightning", "itwinai")


def _below(cls: type) -> Iterator[type]:
    below: list[type] = cls.__subclasses__()
    for one in below:
        yield one
        yield from _below(one)


def _short_names(given: Given | None) -> Iterator[str]:
    """Yield the classes of a section that are named without a module."""
    value = None if given is None else given.value
    if isinstance(value, list):
        for one in value:
            yield from _short_names(one)
    elif isinstance(value, dict):
        yield from _short_names(value.get("class_path"))
    elif isinstance(value, str) and "." not in value:
        yield value

"""The loggers of a config, given as names, as classes, or several of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from itwinai.loggers.registry import LOGGERS, logger_kind

_LIGHTNINGS = "lightning.pytorch.loggers"
_HOMES = (_LIGHTNINGS, "pytorch_lightning.loggers", "itwinai.loggers")

_KINDS = {kind.class_path.rpartition(".")[2]: kind for kind in LOGGERS.values()}

# A class without its module is Lightning's, where it has one of that name.
_OF_SHORT_PATHS = {name: kind.class_path for name, kind in _KINDS.items()} | {
    "MLFlowLogger": f"{_LIGHTNINGS}.MLFlowLogger"
}


@dataclass(frozen=True)
class Entry:
    """One logger of a config.

    Attributes:
        class_path: its class.
        kind: the name of `itwinai.loggers.registry` for a logger of this kind; empty if it is not one of them.
        is_ours: whether its class is one of itwinai's, or derives from one.
        is_named: whether the config has its name only.
        init_args: what it is created with.
        rest: what else the config says of it.
    """

    class_path: str
    kind: str
    is_ours: bool
    is_named: bool = False
    init_args: Mapping[str, Any] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """All that its class gets; what is None is left out, as if it was not given."""
        given = {**(self.rest.get("dict_kwargs") or {}), **self.init_args}
        return {name: value for name, value in given.items() if value is not None}

    def with_arguments(self, **arguments: Any) -> Entry:
        """Return it with other arguments besides, or in the place of, those that it has."""
        unchecked = self.rest.get("dict_kwargs") or {}
        left = {name: value for name, value in unchecked.items() if name not in arguments}
        rest = {name: value for name, value in self.rest.items() if name != "dict_kwargs"}
        return replace(
            self, init_args={**self.init_args, **arguments}, rest={**rest, "dict_kwargs": left} if left else rest
        )

    def as_config(self) -> dict[str, Any]:
        """Return it as a config holds it."""
        return {"class_path": self.class_path, "init_args": dict(self.init_args), **self.rest}


def entries_of(given: Any) -> list[Entry | Any]:
    """Return the loggers that a config asks for.

    Args:
        given: what it has at ``trainer.logger``.

    Returns:
        One entry for each; what is neither a name nor a class with arguments stays what it is. None and True ask for
        the logger that Lightning chooses then: TensorBoard if it is installed, or else CSV.

    Raises:
        ConfigurationError: there is no logger of a name.
    """
    if given is False:
        return []
    if given is None or given is True:
        is_there = find_spec("tensorboard") or find_spec("tensorboardX")
        given = {"class_path": LOGGERS["tensorboard" if is_there else "csv"].class_path}
    if isinstance(given, str):
        given = given.split(",")
    items = [given] if isinstance(given, Mapping) or not isinstance(given, Iterable) else list(given)
    found = [_entry(item) for item in items]
    # Each name counts once, as for the trainer.
    return [one for number, one in enumerate(found) if not _is_named(one) or one not in found[:number]]


def _is_named(one: Entry | Any) -> bool:
    return isinstance(one, Entry) and one.is_named


def _entry(item: Any) -> Entry | Any:
    if isinstance(item, Mapping) and isinstance(item.get("class_path"), str):
        rest = {name: value for name, value in item.items() if name not in ("class_path", "init_args")}
        return _of_class(item["class_path"], dict(item.get("init_args") or {}), rest)
    if not isinstance(item, str):
        return item
    if "." in item or item in _OF_SHORT_PATHS:
        return _of_class(item.strip(), {}, {})
    kind = logger_kind(item.strip().lower())
    entry = _of_class(kind.class_path, {}, {})
    return replace(entry, kind=entry.kind or kind.name, is_named=True)


def _of_class(class_path: str, init_args: dict[str, Any], rest: dict[str, Any]) -> Entry:
    full = _OF_SHORT_PATHS.get(class_path, class_path)
    kind, is_ours = _kind_of(full)
    return Entry(full, kind, is_ours, init_args=init_args, rest=rest)


def _kind_of(class_path: str) -> tuple[str, bool]:
    """Return which kind of logger a class is or derives from, and whether that is itwinai's."""
    module, _, name = class_path.rpartition(".")
    if name in _KINDS and _is_at_home(module):
        return _KINDS[name].name, module.startswith("itwinai")
    for cls in _bases(module, name):
        if cls.__name__ in _KINDS and _is_at_home(cls.__module__):
            return _KINDS[cls.__name__].name, cls.__module__.startswith("itwinai")
    return "", False


def _is_at_home(module: str) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in _HOMES)


def _bases(module: str, name: str) -> tuple[type, ...]:
    if not module:
        return ()
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError):  # the parser will say what is wrong
        return ()
    return found.__mro__ if isinstance(found, type) else ()

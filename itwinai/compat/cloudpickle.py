"""Classes that cloudpickle sends by value, and how their copies stay the same class."""

from __future__ import annotations

import multiprocessing.reduction
import sys
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any

import cloudpickle.cloudpickle


def dynamic_class_id(cls: type) -> str | None:
    """Return the id by which cloudpickle knows a class that it sent by value, or None for an importable class."""
    return cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)


def register_dynamic_classes(classes: Iterable[type]) -> None:
    """Give every class that cloudpickle would send by value an id now, which copies of this process then share.

    What a copy sends back is then of this process's own classes.

    Args:
        classes: all that there are.
    """
    for cls in classes:
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            cloudpickle.cloudpickle._get_or_create_tracker_id(cls)


def register_script_classes(classes: Iterable[type]) -> None:
    """Give every class of the script an id that is the same in each process that runs this script.

    What such a process sends back, an exception of the script's own for example, is then of this process's classes.

    Args:
        classes: all that there are. Those that are made within functions have no name by which to find them.
    """
    tracker = cloudpickle.cloudpickle
    script = sys.modules["__main__"]
    for cls in classes:
        if cls.__module__ == "__main__" and _found(script, cls.__qualname__) is cls:
            class_id = f"itwinai-script:{cls.__qualname__}"
            tracker._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls] = class_id
            tracker._DYNAMIC_CLASS_TRACKER_BY_ID[class_id] = cls


def _found(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = vars(owner).get(name) if hasattr(owner, "__dict__") else None
    return owner


class _ByValuePickler(cloudpickle.cloudpickle.Pickler):
    """cloudpickle's, with what `multiprocessing` and torch add for objects that processes share."""

    @property
    def dispatch_table(self) -> Mapping[type, Any]:
        extra = multiprocessing.reduction.ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        return ChainMap(extra, cloudpickle.cloudpickle.Pickler.dispatch_table)


def start_processes_by_value() -> None:
    """Let `multiprocessing` send by value what a process that it starts could not import, such as a script's dataset.

    A worker that was sent its payload has no script to import it from.
    """

    def dump(obj: Any, file: Any, protocol: int | None = None) -> None:
        _ByValuePickler(file, protocol).dump(obj)

    multiprocessing.reduction.dump = dump


def dynamic_class(class_id: str) -> type:
    """Return the class of this process that cloudpickle sent by value under an id."""
    return cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[class_id]

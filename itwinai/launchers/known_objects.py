"""The kinds of objects that a worker's changes are written into, where they are: the caller may hold them elsewhere."""

from __future__ import annotations

import argparse
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

Key = tuple[str, str]

# Only their own library knows what belongs to objects of these classes: they are sent whole.
_FRAMEWORKS = sys.stdlib_module_names | {
    "cloudpickle",
    "deepspeed",
    "horovod",
    "itwinai",
    "jsonargparse",
    "lightning",
    "lightning_fabric",
    "matplotlib",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "pytorch_lightning",
    "ray",
    "scipy",
    "tensorboard",
    "torch",
    "torchmetrics",
    "tqdm",
    "wandb",
    "xarray",
    "zarr",
}
# Elements of longer lists are not looked into one by one.
_LONG = 1000

Container = list | dict | set | deque | bytearray
RandomSource = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def is_known_kind(value: Any) -> bool:
    """Return whether changes are written into a value, and not a new one put in its place."""
    if type(value) is np.ndarray:
        return value.dtype != object and value.flags.writeable
    return (
        isinstance(value, (Container, RandomSource)) and type(value) is not random.SystemRandom or is_own_object(value)
    )


def is_own_object(value: Any) -> bool:
    """Return whether a value is of a class of the user's own, or of one that is used like that."""
    kind = type(value)
    if kind in (SimpleNamespace, argparse.Namespace) or isinstance(value, (Dataset, Sampler)):
        return True
    return (
        (hasattr(value, "__dict__") or _slots(kind) != ())
        and not isinstance(value, (type, nn.Module, torch.Tensor, Callback, Logger))
        # What is called for a module of Python, a function or a lock has its class in one of these.
        and kind.__module__.partition(".")[0] not in _FRAMEWORKS | {"builtins"}
        and "__reduce__" not in kind.__dict__
    )


def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of the slots of a class and of those it is derived from, as attributes are called by them."""
    names: list[str] = []
    for cls in kind.__mro__:
        own = vars(cls).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name.startswith("__") and not name.endswith("__"):  # as Python writes private names
                name = f"_{cls.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__"):
                names.append(name)
    return tuple(names)


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes that an object itself has, those in slots included."""
    slots = _slots(type(value)) if is_own_object(value) else ()
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots if hasattr(value, name)}}


def set_attribute(value: Any, name: str, attribute: Any) -> None:
    """Set an attribute that `attributes` returned, bypassing the setters of the class."""
    if name in _slots(type(value)):
        object.__setattr__(value, name, attribute)
    else:
        vars(value)[name] = attribute


def remove_attribute(value: Any, name: str) -> None:
    """Remove an attribute that `attributes` tells of, if it is there."""
    if name in _slots(type(value)):
        with suppress(AttributeError):
            object.__delattr__(value, name)
    else:
        vars(value).pop(name, None)


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is directly reached from a value, with the step of the path to it."""
    if isinstance(value, DataLoader):
        for name in ("dataset", "sampler", "batch_sampler", "generator"):
            yield f".{name}", getattr(value, name, None)
    elif isinstance(value, dict):
        if len(value) <= _LONG:
            for key, child in value.items():
                yield f"[{key!r}]" if isinstance(key, (str, int)) else "[?]", child
    # A class derived of these may refuse to tell its length.
    elif isinstance(value, (list, tuple, deque)) and (sized_len(value) or 0) <= _LONG:
        for index, child in enumerate(value):
            yield f"[{index}]", child
    if is_own_object(value) and not isinstance(value, DataLoader):
        for name, child in attributes(value).items():
            yield f".{name}", child


def contents(value: Any) -> Any:
    """Return a copy of what a container or a random number generator holds; None for objects with attributes."""
    if isinstance(value, dict):
        return tuple(value.items())
    if isinstance(value, Container):
        return tuple(value)
    if isinstance(value, np.ndarray):
        return value.view()  # another object, which is sent by value
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    return None


def restore(value: Any, held: Any) -> bool:
    """Let a container or a random number generator hold what `contents` has returned; return whether it is one."""
    if isinstance(value, Container):
        # By the built-in class: a Counter, for example, would count what it is updated with.
        kind: Any = next(kind for kind in (OrderedDict, *get_args(Container)) if isinstance(value, kind))
        kind.clear(value)
        (kind.update if issubclass(kind, dict | set) else kind.extend)(value, held)
    elif isinstance(value, np.ndarray):
        value[...] = held
    elif isinstance(value, torch.Generator):
        value.set_state(held)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = held
    elif isinstance(value, np.random.RandomState):
        value.set_state(held)
    elif isinstance(value, random.Random):
        value.setstate(held)
    else:
        return False
    return True

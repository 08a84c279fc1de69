"""What is given in place of a DataLoader: a dataset, an array, nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from itwinai.errors import WrongTypeError
from itwinai.warn import warn_user


def check_loaders(loaders: Any, hook: str = "", owner: object = None) -> None:
    """Warn of data that Lightning iterates as if each element were a batch; raise an error where that cannot be meant.

    Args:
        loaders: what was passed to the trainer, or returned by a hook: one loader, or lists and dicts of them.
        hook: name of the method that returned it; empty if it was passed.
        owner: the object whose method that is.

    Raises:
        WrongTypeError: a hook returned nothing; or there is an array or a DataFrame.
    """
    came = f"{type(owner).__name__}.{hook} returned " if hook else "the trainer got "
    if loaders is None and hook:
        raise WrongTypeError(f"{came}None. Return a DataLoader: is the `return` missing?")
    for one in _leaves(loaders):
        if isinstance(one, Dataset) and not isinstance(one, IterableDataset):
            warn_user(
                f"{came}a Dataset ({type(one).__name__}): each of its items is taken as a whole batch. If they are "
                "single samples, wrap it: DataLoader(dataset, batch_size=32)."
            )
        if isinstance(one, Tensor):
            warn_user(
                f"{came}a Tensor: each of its rows is taken as a whole batch. If they are single samples, write "
                "DataLoader(TensorDataset(x, y), batch_size=32)."
            )
        if isinstance(one, np.ndarray) or _is_frame(one):
            raise WrongTypeError(
                f"{came}data ({type(one).__name__}) where a DataLoader or a datamodule belongs. Make a loader: "
                "DataLoader(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), batch_size=32)."
            )


def _leaves(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if not isinstance(loaders, (list, tuple)):
        yield loaders
        return
    for one in loaders:
        yield from _leaves(one)


def _is_frame(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(value, "columns")

"""What is given in the place of a DataLoader, and is none: a dataset, an array, nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from itwinai.errors import WrongTypeError


def check_loaders(loaders: Any, hook: str = "", owner: object = None) -> None:
    """Raise an error for data that Lightning would iterate as if each element were a batch.

    Args:
        loaders: what was passed to the trainer, or returned by a hook: one loader, or lists and dicts of them.
        hook: name of the method that returned it; empty if it was passed.
        owner: the object whose method that is.

    Raises:
        WrongTypeError: a hook returned nothing; or there is a dataset, an array, a tensor or a DataFrame.
    """
    came = f"{type(owner).__name__}.{hook} returned " if hook else "the trainer got "
    if loaders is None and hook:
        raise WrongTypeError(f"{came}None. Return a DataLoader: is the `return` missing?")
    for one in _leaves(loaders):
        if isinstance(one, Dataset) and not isinstance(one, IterableDataset):
            raise WrongTypeError(
                f"{came}a Dataset ({type(one).__name__}), which has single samples and no batches. Wrap it: "
                "DataLoader(dataset, batch_size=32); batch_size=None if each of its items is a whole batch."
            )
        if isinstance(one, (np.ndarray, Tensor)) or _is_frame(one):
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

"""Nested values with a row for each sample: cut them, join them, and find the rows of what a module returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itwinai.errors import PredictorError


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return nested mappings, tuples and lists with each of their other values replaced by what a function returns."""
    if isinstance(tree, Mapping):
        return _rebuilt_mapping(tree, {key: map_leaves(function, item) for key, item in tree.items()})
    if isinstance(tree, (tuple, list)):
        return _rebuilt_sequence(tree, [map_leaves(function, item) for item in tree])
    return function(tree)


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested mappings, tuples and lists with the path of each, as ``['rain'][0]``."""
    if isinstance(tree, Mapping):
        parts: list[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, (tuple, list)):
        parts = list(enumerate(tree))
    else:
        yield "", tree
        return
    for key, item in parts:
        for path, leaf in leaves_of(item):
            yield f"[{key!r}]{path}", leaf


def has_rows(value: Any) -> bool:
    """Return whether a value is a tensor with a first dimension."""
    return isinstance(value, Tensor) and value.ndim > 0


def description(tree: Any) -> str:
    """Return what an input is, for messages: ``float32 of shape (8, 3)``; for a collection, its first values."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} of shape {tuple(tree.shape)}"
    leaves = list(leaves_of(tree))
    if not isinstance(tree, (Mapping, tuple, list)) or not leaves:
        return f"a value of type {type(tree).__name__}"
    shown = ", ".join(f"{path}: {description(leaf)}" for path, leaf in leaves[:4])
    return f"a {type(tree).__name__} ({shown}{', ...' if len(leaves) > 4 else ''})"


def count_rows(tree: Any) -> int:
    """Return the number of rows that all tensors of an input have.

    Raises:
        PredictorError: there is no tensor, or their numbers of rows differ.
    """
    sizes = {path: len(leaf) for path, leaf in leaves_of(tree) if has_rows(leaf)}
    if not sizes:
        raise PredictorError(
            f"There is no array with rows in this input ({type(tree).__name__}). The first dimension counts the "
            "samples: for a single sample x, pass x[None]."
        )
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{path or 'the input'}: {size}" for path, size in sizes.items())
        raise PredictorError(f"The arrays of an input have different numbers of rows ({listed}).")
    return next(iter(sizes.values()))


def take(tree: Any, start: int, stop: int) -> Any:
    """Return some rows of an input, as views; values without rows stay as they are."""
    return map_leaves(lambda leaf: leaf[start:stop] if has_rows(leaf) else leaf, tree)


def repeat_first(tree: Any, rows: int) -> Any:
    """Return an input that repeats its first row."""
    return map_leaves(lambda leaf: leaf[:1].expand(rows, *leaf.shape[1:]).clone() if has_rows(leaf) else leaf, tree)


def join(trees: Sequence[Any]) -> Any:
    """Return inputs of equal form as one, in memory of its own, which the module may change."""
    first = trees[0]
    if isinstance(first, Mapping):
        return _rebuilt_mapping(first, {key: join([tree[key] for tree in trees]) for key in first})
    if isinstance(first, (tuple, list)):
        return _rebuilt_sequence(first, [join(parts) for parts in zip(*trees, strict=True)])
    return torch.cat(list(trees)) if has_rows(first) else first


def form_of(tree: Any, sizes: bool) -> Any:
    """Return what two inputs have to have in common, as a value that can be compared.

    Args:
        tree: the input.
        sizes: with the sizes of the dimensions after the first, and the values that have no rows: inputs that have all
            this in common can be joined.
    """
    if isinstance(tree, Mapping):
        return type(tree), tuple((key, form_of(item, sizes)) for key, item in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree), tuple(form_of(item, sizes) for item in tree)
    if has_rows(tree):
        return tree.dtype, tree.device, tuple(tree.shape[1:]) if sizes else tree.ndim
    if not sizes:
        return type(tree)
    if isinstance(tree, Tensor):
        return tree.dtype, tree.device, tree.item()
    try:
        hash(tree)
    except TypeError:
        return id(tree)
    return type(tree), tree


# ------------------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Rows:
    """A part of an output that has one row, or one item, per sample."""


@dataclass(frozen=True)
class Same:
    """A part of an output that is None for all samples."""


@dataclass(frozen=True)
class Parts:
    """A part of an output that is made of others.

    Attributes:
        keys: of a mapping; None for a sequence.
        parts: in the order of the keys.
    """

    keys: tuple[Any, ...] | None
    parts: tuple[Layout, ...]


Layout = Rows | Same | Parts
"""Where the rows of an output are."""


def layout_of(output: Any, rows: int, other: Any, other_rows: int, path: str = "") -> Layout:
    """Find the rows of an output.

    One output does not tell: ten numbers for ten samples may be ten classes of the first one. So that of another number
    of rows is compared with it.

    Args:
        output: what the module has returned.
        rows: number of rows that it was given.
        other: what it has returned for another number of rows.
        other_rows: that number.
        path: of the output in the whole.

    Raises:
        PredictorError: a part of it does not have one row per sample.
    """
    if type(output) is not type(other):
        pass
    elif isinstance(output, (Tensor, np.ndarray)):
        if output.ndim and other.ndim and (len(output), len(other)) == (rows, other_rows):
            return Rows()
    elif output is None and other is None:
        return Same()
    elif isinstance(output, Mapping):
        if output.keys() == other.keys():
            keys = tuple(output)
            parts = [layout_of(output[key], rows, other[key], other_rows, f"{path}[{key!r}]") for key in keys]
            return Parts(keys, tuple(parts))
    elif isinstance(output, (tuple, list)):
        if len(output) != len(other):
            if (len(output), len(other)) == (rows, other_rows):
                return Rows()
        else:
            pairs = enumerate(zip(output, other, strict=True))
            parts = [layout_of(one, rows, two, other_rows, f"{path}[{i}]") for i, (one, two) in pairs]
            return Parts(None, tuple(parts))
    what = f"Part {path} of the output" if path else "The output"
    raise PredictorError(
        f"{what} does not have one row per sample: for {rows} rows it is {_shown(output)}, and for {other_rows} rows "
        f"{_shown(other)}."
    )


def check(output: Any, layout: Layout, rows: int, path: str = "") -> None:
    """Make sure that the rows of an output are where those of others were.

    Raises:
        PredictorError: they are not.
    """
    if isinstance(layout, Rows) and hasattr(output, "__len__") and len(output) == rows:
        return
    if isinstance(layout, Same) and output is None:
        return
    if isinstance(layout, Parts) and isinstance(output, (Mapping, tuple, list)):
        keys = tuple(output) if isinstance(output, Mapping) else None
        if keys == layout.keys and len(output) == len(layout.parts):
            for key, part in zip(keys or range(len(output)), layout.parts, strict=True):
                check(output[key], part, rows, f"{path}[{key!r}]")
            return
    what = f"part {path} of the output" if path else "the output"
    raise PredictorError(
        f"For {rows} rows {what} is {_shown(output)}, which differs from the form for other inputs. Each "
        "output must have one row per sample, independent of the values."
    )


def _shown(output: Any) -> str:
    if isinstance(output, (Tensor, np.ndarray)):
        return f"of shape {tuple(output.shape)}"
    size = f" of {len(output)}" if isinstance(output, (tuple, list)) else ""
    return f"a {type(output).__name__}{size}"


def split(output: Any, layout: Layout, start: int, stop: int) -> Any:
    """Return some rows of an output, which share no memory with it."""
    if isinstance(layout, Same):
        return output
    if isinstance(layout, Rows):
        part = output[start:stop]
        if isinstance(part, Tensor):
            return part.clone()
        return part.copy() if isinstance(part, np.ndarray) else part
    if layout.keys is None:
        pairs = zip(output, layout.parts, strict=True)
        return _rebuilt_sequence(output, [split(item, part, start, stop) for item, part in pairs])
    items = zip(layout.keys, layout.parts, strict=True)
    return _rebuilt_mapping(output, {key: split(output[key], part, start, stop) for key, part in items})


def join_outputs(outputs: Sequence[Any], layout: Layout) -> Any:
    """Return outputs for consecutive rows as one."""
    first = outputs[0]
    if len(outputs) == 1 or isinstance(layout, Same):
        return first
    if isinstance(layout, Rows):
        if isinstance(first, Tensor):
            return _joined_tensors(outputs)
        if isinstance(first, np.ndarray):
            return np.concatenate(outputs)
        return _rebuilt_sequence(first, [item for output in outputs for item in output])
    if layout.keys is None:
        parts = zip(zip(*outputs, strict=True), layout.parts, strict=True)
        return _rebuilt_sequence(first, [join_outputs(items, part) for items, part in parts])
    keyed = zip(layout.keys, layout.parts, strict=True)
    return _rebuilt_mapping(first, {key: join_outputs([one[key] for one in outputs], part) for key, part in keyed})


def _joined_tensors(tensors: Sequence[Tensor]) -> Tensor:
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:4])
        raise PredictorError(
            f"The outputs of several batches cannot be joined: their shapes are {shapes}. Pass an input of at most "
            "batch_size rows, or return a list with one tensor per sample from predict_step."
        )
    return torch.cat(list(tensors))


def _rebuilt_mapping(like: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    return items if type(like) is dict else type(like)(OrderedDict(items))  # type: ignore[call-arg]


def _rebuilt_sequence(like: Any, items: list[Any]) -> Any:
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)

"""Columns of a table, from what a ``predict_step`` returns: a row for each sample, a column for each tensor.

| returned | columns |
| --- | --- |
| tensor of shape ``(samples, ...)`` | one; each row has the shape ``(...)``, as nested lists of fixed size |
| dict, dataclass, named tuple | one for each entry, named ``entry``, ``entry.inner`` |
| tuple; list of tensors with a row for each sample | one for each element, named ``prediction.0``... |
| list with one element for each sample | one; texts, numbers, tensors of any length, or dicts, which are split up |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from itwinai.errors import ConfigurationError, did_you_mean

Column: TypeAlias = "np.ndarray[Any, Any] | pa.Array"
"""An array whose first dimension is the samples; Arrow's where a row has no fixed shape."""

_PLAIN = (str, bytes, bool, int, float, np.generic)


def columns_of(value: Any, samples: int, name: str = "prediction") -> dict[str, Column]:
    """Return the columns of a batch of predictions.

    Args:
        value: what ``predict_step`` has returned; the arrays are copied.
        samples: number of samples in the batch.
        name: of the column of a value without names of its own.

    Raises:
        ConfigurationError: a part of it has not a row for each sample.
    """
    columns: dict[str, Column] = {}
    _add(columns, "", value, samples, name)
    return columns


def rows_in(value: Any) -> int | None:
    """Return for how many samples a value has a row; None if it does not tell."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.shape[0] if value.ndim else None
    if isinstance(value, list) or (isinstance(value, tuple) and all(isinstance(one, _PLAIN) for one in value)):
        return len(value)
    parts = _parts(value, -1)
    return next((rows for part in parts.values() if (rows := rows_in(part)) is not None), None) if parts else None


def picked(batch: Any, wanted: Mapping[str, str | int], samples: int) -> dict[str, Column]:
    """Return columns of the batch itself, such as ids.

    Args:
        batch: what the loader has given.
        wanted: for each column its name, and the key, position or attribute in the batch.
        samples: number of samples in the batch.

    Raises:
        ConfigurationError: the batch has not what is wanted, or not for each sample.
    """
    columns: dict[str, Column] = {}
    for name, key in wanted.items():
        try:
            value = getattr(batch, key) if isinstance(key, str) and hasattr(batch, key) else batch[key]
        except (KeyError, IndexError, TypeError):
            raise ConfigurationError(
                f"PredictionWriter(columns=...) requests {key!r}, which the batches do not have.{_hint(batch, key)}"
            ) from None
        _add(columns, name, value, samples, name)
    return columns


def arrow_array(column: Column) -> pa.Array:
    """Return a column as Arrow has it, with a list of fixed size for a row of several numbers, nested if need be."""
    if isinstance(column, pa.Array):
        return column
    array = pa.array(np.ascontiguousarray(column).reshape(-1))
    for size in column.shape[:0:-1]:
        if not size:
            return pa.array(column.tolist(), pa.list_(pa.from_numpy_dtype(column.dtype)))
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def is_text(column: Column) -> bool:
    """Return whether a column holds texts."""
    return isinstance(column, pa.Array) and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def numpy_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, Any]:
    """Return a column of numbers, or of lists of fixed size, as an array of shape ``(samples, ...)``.

    Raises:
        TypeError: its rows have no fixed shape, or are not numbers.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind, shape = array.type, [len(array)]
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        array, kind = array.flatten(), kind.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise TypeError(str(column.type))
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def _hint(batch: Any, key: str | int) -> str:
    if isinstance(batch, Mapping):
        return f"{did_you_mean(str(key), map(str, batch))} They have {', '.join(map(repr, batch))}."
    if isinstance(batch, (list, tuple)):
        return f" They are a {type(batch).__name__} of {len(batch)}: name a position, as in columns={{'target': 1}}."
    return f" They are a {type(batch).__name__}."


def _add(columns: dict[str, Column], path: str, value: Any, samples: int, name: str) -> None:
    """Add the columns of one part of a value.

    Args:
        columns: what it is added to.
        path: name of the part so far; empty for the value as a whole.
        value: the part.
        samples: number of samples.
        name: of the value as a whole.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        if not value.shape or value.shape[0] != samples:
            raise _not_by_sample(path or name, f"shape {tuple(value.shape)}", samples)
        columns[path or name] = _numpy(value, copy=True)
        return
    parts = _parts(value, samples)
    if parts is not None:
        for key, part in parts.items():
            inner = f"{path}.{key}" if path else key if _has_names(value) else f"{name}.{key}"
            _add(columns, inner, part, samples, name)
        return
    if isinstance(value, (list, tuple)) and len(value) == samples:
        _add_rows(columns, path, value, samples, name)
        return
    size = f"{len(value)} elements" if isinstance(value, (list, tuple)) else f"the value {value!r}"
    raise _not_by_sample(path or name, size, samples)


def _parts(value: Any, samples: int) -> dict[str, Any] | None:
    """Return the parts of a value each of which has all samples, by name or position; None if it has none."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)) and value:
        plain = all(isinstance(one, _PLAIN) for one in value)
        whole = all(isinstance(one, (Tensor, np.ndarray)) and one.shape[:1] == (samples,) for one in value)
        if (isinstance(value, tuple) and not plain) or (whole and len(value) != samples):
            return {str(place): part for place, part in enumerate(value)}
    return None


def _has_names(value: Any) -> bool:
    return not isinstance(value, (list, tuple)) or hasattr(value, "_fields")


def _add_rows(columns: dict[str, Column], path: str, rows: Sequence[Any], samples: int, name: str) -> None:
    """Add the columns of a list that has one element for each sample."""
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = list(rows[0])
        if any(list(row) != names for row in rows):
            raise ConfigurationError(
                f"predict_step returns a dict for each sample, and not all have the same keys: {names} and "
                f"{next(list(row) for row in rows if list(row) != names)}. Give each the same ones."
            )
        for key in names:
            inner = f"{path}.{key}" if path else str(key)
            _add_rows(columns, inner, [row[key] for row in rows], samples, name)
        return
    if rows and all(isinstance(row, (Tensor, np.ndarray)) for row in rows):
        arrays = [_numpy(row, copy=False) for row in rows]
        if all(array.ndim == 0 for array in arrays):
            columns[path or name] = np.stack(arrays)
            return
        # A list says that lengths differ, also where by chance those of one batch are the same.
        kind = pa.from_numpy_dtype(arrays[0].dtype)
        for _ in range(max(array.ndim for array in arrays)):
            kind = pa.list_(kind)
        columns[path or name] = pa.array([array.tolist() for array in arrays], kind)
        return
    try:
        columns[path or name] = pa.array(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ConfigurationError(
            f"predict_step returns for {path or name!r} a list of {type(rows[0]).__name__}, of which no column can be "
            f"made ({error}). Return tensors, numbers, texts, or lists of these."
        ) from error


def _numpy(value: Tensor | np.ndarray[Any, Any], copy: bool) -> np.ndarray[Any, Any]:
    """Return an array of a type that Arrow, pandas and DuckDB have."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.layout is not torch.strided:
            value = value.to_dense()
        if value.dtype is torch.bfloat16:
            value = value.float()
        value = (torch.view_as_real(value) if value.is_complex() else value).resolve_neg()
        moved = value.cpu()
        array: np.ndarray[Any, Any] = moved.numpy()
        return array.copy() if copy and moved.data_ptr() == value.data_ptr() else array
    if np.iscomplexobj(value):
        value = np.stack([value.real, value.imag], axis=-1)
    return np.array(value) if copy else value


def _not_by_sample(name: str, what: str, samples: int) -> ConfigurationError:
    return ConfigurationError(
        f"predict_step returns for '{name}' {what} for a batch of {samples} samples; a file of predictions has a row "
        "for each sample. Return tensors whose first dimension is the batch, or a list with one element per sample; "
        "leave out values of the batch as a whole."
    )

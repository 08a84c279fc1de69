"""DataFrames as inputs of a module, and its outputs as DataFrames."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from itwinai.errors import PredictorError
from itwinai.inference.rows import Layout, Parts, Rows

if TYPE_CHECKING:
    import pandas as pd


def is_frame(value: Any) -> bool:
    """Return whether a value is a DataFrame of pandas, without importing pandas."""
    return _is_of_pandas(value, "DataFrame")


def is_series(value: Any) -> bool:
    """Return whether a value is a Series of pandas, without importing pandas."""
    return _is_of_pandas(value, "Series")


def _is_of_pandas(value: Any, name: str) -> bool:
    return any(cls.__module__.partition(".")[0] == "pandas" and cls.__name__ == name for cls in type(value).__mro__)


def takes_columns(function: Callable[..., Any], columns: list[Any]) -> bool:
    """Return whether a function takes the columns of a DataFrame one by one, and not as one array.

    Args:
        function: ``predict_step`` or ``forward`` of a module.
        columns: names of the columns.
    """
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        return False
    if len(columns) > 1 and set(columns) <= set(parameters):
        return True
    try:
        kind = get_type_hints(function).get(parameters[0])
    except (NameError, TypeError):  # of names that are imported for type checkers only
        return str(function.__annotations__.get(parameters[0], "")).lower().startswith(("dict", "mapping"))
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping)


def tensor_of(frame: pd.DataFrame, dtype: torch.dtype) -> Tensor:
    """Return all columns as one tensor of shape (rows, columns).

    Raises:
        PredictorError: a column is not numeric.
    """
    other = [str(name) for name, kind in frame.dtypes.items() if kind.kind not in "biuf"]
    if other:
        raise PredictorError(
            f"The columns {', '.join(other)} are not numbers. Leave them out, or encode them as in the training."
        )
    return torch.from_numpy(np.array(frame, dtype=np.float64)).to(dtype)


def columns_of(frame: pd.DataFrame) -> dict[Any, Any]:
    """Return the columns by their names."""
    return {name: frame[name] for name in frame.columns}


def frame_of(output: Any, layout: Layout, index: Any) -> pd.DataFrame:
    """Return an output as a DataFrame with the index of the input.

    One value per row becomes a column, a vector per row as many columns as it has values, anything else a column of
    objects. Columns are called like those of `PredictionWriter`: by the keys of the output, and ``prediction`` where it
    has none; the values of a vector and the items of a tuple have their number at the end: ``prediction.0``.
    """
    import pandas as pd

    return pd.DataFrame(dict(_columns(output, layout, "")), index=index)


def _columns(output: Any, layout: Layout, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(layout, Parts):
        mapping = layout.keys is not None
        keys = layout.keys if layout.keys is not None else range(len(layout.parts))
        for key, part in zip(keys, layout.parts, strict=True):
            longer = str(key) if mapping and not name else f"{name or _NAME}.{key}"
            yield from _columns(output[key], part, longer)
    elif isinstance(layout, Rows):
        name = name or _NAME
        if not isinstance(output, np.ndarray) or output.ndim > 2:
            cells = np.empty(len(output), dtype=object)
            for number, item in enumerate(output):
                cells[number] = item
            yield name, cells
        elif output.ndim == 2 and output.shape[1] != 1:
            for number, column in enumerate(output.T):
                yield f"{name}.{number}", column
        else:
            yield name, output.reshape(len(output))


_NAME = "prediction"

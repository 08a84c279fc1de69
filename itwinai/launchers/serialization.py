"""Pickle by value what cannot be imported elsewhere, as cloudpickle does, with the names of source files kept."""

from __future__ import annotations

import io
from collections import ChainMap
from types import CodeType
from typing import Any

import cloudpickle


def dumps(value: Any) -> bytes:
    """Pickle a value, the classes and functions of ``__main__`` and of notebooks included."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


# What cloudpickle 3.1.3 writes in the place of a file's name, so that equal code gives equal pickles.
_NO_FILE = "<dynamic-code>"

_reduce = cloudpickle.Pickler.dispatch_table[CodeType]


def _reduce_with_file(code: CodeType) -> Any:
    # Without the file's name a worker's traceback would not show the line of the user's script that failed.
    make, parts = _reduce(code)
    return make, tuple(code.co_filename if type(part) is str and part == _NO_FILE else part for part in parts)


class _Pickler(cloudpickle.Pickler):
    dispatch_table = ChainMap({CodeType: _reduce_with_file}, cloudpickle.Pickler.dispatch_table)

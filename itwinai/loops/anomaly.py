"""What `detect_anomaly=True` finds, in a few lines: the user's line, and the batch if the NaN is in the data."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from itwinai.tracebacks import add_note, is_library, shows_all_frames

_TOLD = "Traceback of forward call that caused the error"
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line \d+, in .*\n(?:    .*\n)*', re.MULTILINE)


@contextmanager
def anomalies_told() -> Iterator[None]:
    """Shorten torch's warning of an anomaly to the user's lines, and say of its error which batch has NaN."""
    if not torch.is_anomaly_enabled():
        yield
        return
    show = warnings.showwarning

    def shortened(message: Any, category: Any, filename: str, lineno: int, *rest: Any, **options: Any) -> None:
        if _TOLD in str(message) and not shows_all_frames():
            print(f"itwinai: {users_lines(str(message))}", file=sys.stderr, flush=True)
        else:
            show(message, category, filename, lineno, *rest, **options)

    warnings.showwarning = shortened
    try:
        yield
    except RuntimeError as error:
        if "returned nan values" in str(error):
            _note_batch(error)
        raise
    finally:
        warnings.showwarning = show


def users_lines(message: str) -> str:
    """Return torch's message with those of its frames that are the user's; all, if none is."""
    frames = list(_FRAME.finditer(f"{message.rstrip()}\n"))
    own = [one.group() for one in frames if not is_library(one["file"]) and ", in <module>" not in one.group()]
    head = message.partition(_TOLD)[0].strip()
    return f"{head} It was computed here:\n{''.join(own).rstrip()}" if own else message


def _note_batch(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None:
        found = trace.tb_frame.f_locals
        if "batch" in found and isinstance(found.get("batch_idx"), int):
            for place, number, shape in _nans(found["batch"], "batch"):
                add_note(
                    error,
                    f"itwinai: batch {found['batch_idx']} has {number} NaN in {place}, shape {shape}: look at the data "
                    "first",
                )
            return
        trace = trace.tb_next


def _nans(value: Any, place: str) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and (number := int(value.isnan().sum())):
            yield place, number, tuple(value.shape)
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _nans(one, f"{place}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _nans(one, f"{place}[{number}]")

"""Warnings to the user, in one line each."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

_shown: dict[Any, Any] = {}  # by Python itself, which shows equal warnings once
_formatting = threading.Lock()


class ItwinaiWarning(UserWarning):
    """What every warning of itwinai is."""


@rank_zero_only
def warn_user(message: str) -> None:
    """Warn on rank 0, as in ``itwinai warning: nothing is left to train``.

    Args:
        message: what happened, and what to do.
    """
    with _formatting, _in_one_line():
        warnings.warn_explicit(message, ItwinaiWarning, "itwinai", 0, registry=_shown)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Let warnings be printed without file, line and class: those of itwinai are of no use to the user."""
    before = warnings.formatwarning
    warnings.formatwarning = _text_of
    try:
        yield
    finally:
        warnings.formatwarning = before


def _text_of(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"itwinai warning: {message}\n"

"""Warnings to the user, in one line each."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

_shown: dict[Any, Any] = {}  # by Python itself, which shows equal warnings once


class ItwinaiWarning(UserWarning):
    """What every warning of itwinai is."""


@rank_zero_only
def warn_user(message: str) -> None:
    """Warn on rank 0.

    Python would print the line of itwinai that warns, which is of no use to the user.

    Args:
        message: what happened, and what to do.
    """
    warnings.warn_explicit(message, ItwinaiWarning, "itwinai", 0, registry=_shown)

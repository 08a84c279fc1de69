"""What can be told of a batch without knowing what is in it."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from itwinai.compat.lightning_logging import common_size


def samples_in(batch: Any) -> int | None:
    """Return the number of samples in a batch, or None where that cannot be told."""
    if (size := common_size(batch)) is not None:
        return size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a guess; `self.log` says so where it matters
            return extract_batch_size(batch)
    except MisconfigurationException:
        return None

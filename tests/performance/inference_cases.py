"""Name who is compared in prediction, and with what. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RAW, LIGHTNING, ACCELERATE, RAY_DATA = "raw", "lightning", "accelerate", "ray-data"
ITWINAI, ITWINAI_WRITER = "itwinai", "itwinai-writer"

TITLES = {
    RAW: "raw PyTorch, a file per worker",
    LIGHTNING: "lightning, gathered by hand",
    ACCELERATE: "accelerate, `gather_for_metrics`",
    RAY_DATA: "Ray Data, `map_batches`",
    ITWINAI: "itwinai, returned",
    ITWINAI_WRITER: "itwinai, `PredictionWriter` (Parquet)",
}
"""Who is compared, in the order of the tables."""

UNDER_TORCHRUN = (RAW, ACCELERATE)
"""Whose workers are started by torchrun; the others start theirs."""

MODEL_TITLES = {
    "mlp": "MLP 32-128-128-1, batches of 256",
    "lstm": "LSTM with 64 units, series of 60 days, batches of 64",
}

BATCH_SIZES = {"mlp": 256, "lstm": 64}
"""By model, samples of a batch of one worker."""

DISTINCT = 4096
"""Number of samples in memory, which are served again and again."""


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        repeats: times that everyone is started again.
        batches: by model, the number of batches of all workers together.
    """

    repeats: int = 5
    batches: Mapping[str, int] = field(default_factory=lambda: {"mlp": 40_000, "lstm": 4_000})


QUICK = Effort(1, {"mlp": 2_000, "lstm": 200})

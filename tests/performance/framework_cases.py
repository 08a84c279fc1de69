"""Name who is compared, and with what. Nothing heavy is imported here: the benchmark has to stay out of the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RAW, ACCELERATE, LIGHTNING = "raw", "accelerate", "lightning"
ITWINAI_DDP, RAY_TRAIN, ITWINAI_RAY = "itwinai-ddp", "ray-train", "itwinai-ray"

TITLES = {
    RAW: "raw PyTorch, torchrun",
    ACCELERATE: "accelerate, torchrun",
    LIGHTNING: "lightning, `ddp`",
    ITWINAI_DDP: "itwinai, `ddp`",
    RAY_TRAIN: "Ray Train, TorchTrainer",
    ITWINAI_RAY: "itwinai, `ray`",
}
"""Who is compared, in the order of the tables."""

UNDER_TORCHRUN = (RAW, ACCELERATE)
"""Whose workers are started by torchrun; the others start theirs."""

MODEL_TITLES = {
    "convolutional": "Convolutional network, 9,930 parameters, 64 images of 8x8 per step",
    "lstm": "LSTM, 3.2 million parameters, 32 series of 60 days per step",
}

BATCH_SIZES = {"convolutional": 64, "lstm": 32}
"""By model, samples of a step: of all workers together, so that the losses do not depend on their number."""


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        repeats: times that everybody is started anew.
        warmup: by model, number of first steps that do not count.
        steps: by model, number of steps after them, which do.
    """

    repeats: int = 3
    warmup: Mapping[str, int] = field(default_factory=lambda: {"convolutional": 200, "lstm": 5})
    steps: Mapping[str, int] = field(default_factory=lambda: {"convolutional": 2000, "lstm": 40})


QUICK = Effort(1, {"convolutional": 10, "lstm": 2}, {"convolutional": 200, "lstm": 5})

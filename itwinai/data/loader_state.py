"""Where a training loader stands in its epoch, and what it takes to resume from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from itwinai.data.rng_state import RandomStates


@dataclass(frozen=True)
class Position:
    """Where a training loader stands.

    Attributes:
        global_batch: number of samples of a whole global batch; None if the user's batch sampler decides.
        begun_with: random states in which the sampler drew the order of this epoch; None if it draws nothing.
        generator: state of the sampler's own generator now, if it has one.
        generator_begun_with: the same when the order of this epoch was drawn.
    """

    global_batch: int | None = None
    begun_with: RandomStates | None = None
    generator: torch.Tensor | None = None
    generator_begun_with: torch.Tensor | None = None


@runtime_checkable
class Resumable(Protocol):
    """A sampler that can resume in the middle of an epoch."""

    def position(self) -> Position:
        """Return the position from which the order of this epoch can be drawn again."""

    def resume_drawing(self, position: Position) -> None:
        """Let the sampler's own generator, if it has one, resume where it was at a position."""

    def resume(self, position: Position, batches: int) -> None:
        """Let the next iteration repeat the order of a position, without its first batches."""

    def end_resume(self) -> None:
        """Let later iterations draw an order of their own: the loader has begun the one that was resumed."""

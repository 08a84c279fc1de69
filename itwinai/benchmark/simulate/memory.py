"""How much memory parameters, gradients and the optimizer's state take on each worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from itwinai.errors import ConfigurationError

Precision = Literal["fp32", "mixed"]
"""``fp32``: all in 32 bits, as with autocast too. ``mixed``: parameters and gradients in 16 bits, and the optimizer has
the parameters in 32 bits."""

PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class ModelStates:
    """Bytes on each worker. Activations, buffers and workspace come on top.

    Attributes:
        parameters: of the parameters that forward and backward use.
        gradients: of their gradients.
        optimizer: of the optimizer's state.
    """

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """Bytes of all three."""
        return self.parameters + self.gradients + self.optimizer


# Bytes for each parameter with Adam, which has two moments of it.
_BYTES = {"fp32": ModelStates(4, 4, 8), "mixed": ModelStates(2, 2, 12)}


def memory_per_worker(parameters: int, workers: int, stage: int, precision: Precision = "fp32") -> ModelStates:
    """Return the memory of a model that Adam trains.

    Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models", 2020, sections 3.1 and
    5: stage 1 divides the optimizer's state among the workers, stage 2 the gradients too, stage 3 the parameters too.

    Args:
        parameters: number of trainable parameters.
        workers: how many there are.
        stage: of ZeRO; 0 divides nothing.
        precision: in which the model is trained.
    """
    if precision not in _BYTES:
        raise ConfigurationError(f"There is no precision '{precision}' here: take one of {', '.join(PRECISIONS)}.")
    each = _BYTES[precision]
    return ModelStates(
        parameters * each.parameters / (workers if stage >= 3 else 1),
        parameters * each.gradients / (workers if stage >= 2 else 1),
        parameters * each.optimizer / (workers if stage >= 1 else 1),
    )

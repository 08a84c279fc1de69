"""How far two runs are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# What contract and tests ask for in fp32: itwinai adds up in another order than one process does.
LIMIT, DEEPSPEED_LIMIT = 1e-6, 1e-5
# Arithmetic in fewer digits rounds earlier; in steps of its epsilon.
_LOW_PRECISION = {"bf16": 2e-2, "16": 2e-3, "transformer": 2e-2}


def weight_limit(strategy: str, precision: object) -> float:
    """Return the largest relative difference of weights that counts as rounding.

    Args:
        strategy: name of the strategy.
        precision: of the trainer.
    """
    low = next((limit for name, limit in _LOW_PRECISION.items() if str(precision or "").startswith(name)), 0.0)
    return max(low, DEEPSPEED_LIMIT if "deepspeed" in strategy else LIMIT)


def weight_difference(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Return the distance of two models relative to the length of the second; infinite where they have other names."""
    if weights.keys() != reference.keys():
        return math.inf
    apart = sum(float((weights[name].double() - reference[name].double()).square().sum()) for name in reference)
    length = sum(float(value.double().square().sum()) for value in reference.values())
    return math.sqrt(apart) / (math.sqrt(length) or 1.0)


def worst_weight(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> str:
    """Return the name of the weight that is farthest from the reference, relative to its length."""

    def apart(name: str) -> float:
        expected = reference[name].double()
        return float((weights[name].double() - expected).norm() / (expected.norm() or 1.0))

    common = [name for name in reference if name in weights]
    return max(common, key=apart) if common else ""


def differing(values: Mapping[str, float], reference: Mapping[str, float], rel: float = 1e-4) -> list[str]:
    """Return the names of numbers that differ by more than rounding, or that only one of the two has."""
    return [
        name
        for name in sorted({*values, *reference})
        if name not in values
        or name not in reference
        or not (
            math.isclose(values[name], reference[name], rel_tol=rel, abs_tol=1e-6)
            or (math.isnan(values[name]) and math.isnan(reference[name]))
        )
    ]


def rows(predictions: Sequence[Any]) -> dict[str, Tensor]:
    """Return the tensors of all batches of a prediction, joined, by their place in what predict_step returns."""
    parts: dict[str, list[Tensor]] = {}

    def add(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            parts.setdefault(path, []).append(value.detach().cpu().reshape(value.shape or (1,)))
        elif isinstance(value, Mapping):
            for name, part in value.items():
                add(part, f"{path}.{name}" if path else str(name))
        elif isinstance(value, (list, tuple)):
            for index, part in enumerate(value):
                add(part, f"{path}[{index}]")

    for batch in predictions:
        add(batch, "")
    return {path: torch.cat(tensors) for path, tensors in parts.items()}

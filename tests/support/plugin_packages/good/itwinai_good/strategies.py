"""Two strategies: one with the numbers of one process, one that says that it has others."""

from __future__ import annotations

from typing import Any

import torch

from itwinai.strategies import DDPStrategy
from itwinai.strategies.registry import StrategyEntry


class CountedDDP(DDPStrategy):
    """DDP that counts its steps."""

    strategy_name = "counted_ddp"
    steps = 0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        self.lightning_module.counted = self.steps  # comes back to the caller
        return super().optimizer_step(*args, **kwargs)


class DriftingDDP(DDPStrategy):
    """DDP that moves every weight a little further."""

    strategy_name = "drifting_ddp"

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.by = by

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for parameter in self.lightning_module.parameters():
                parameter += self.by
        return result


COUNTED = StrategyEntry("counted_ddp", "itwinai_good.strategies.CountedDDP", deviation="")
DRIFTING = StrategyEntry(
    "drifting_ddp", "itwinai_good.strategies.DriftingDDP", {"by": 0.1}, deviation="adds 0.1 to every weight"
)

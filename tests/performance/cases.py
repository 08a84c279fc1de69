"""Name what is measured, and what is asked of ItwinaiTrainer in each case.

Neither torch nor lightning is imported here: the process that runs the benchmark has to stay out of the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RAW, ACCELERATE, LIGHTNING, ITWINAI = "raw", "accelerate", "lightning", "itwinai"
COMPILED = "compiled"  # itwinai with compile_step=True
CONTENDERS = (RAW, ACCELERATE, LIGHTNING, ITWINAI, COMPILED)
UNCOMPILED = CONTENDERS[:-1]

Clock = Literal["cpu", "wall"]
Quantity = Literal["time of a step", "collectives of an epoch", "time to the first step"]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: for ``--cases``.
        title: for tables and plots.
        goal: what itwinai may cost at most, as a multiple of `base`; for collectives, their number.
        quantity: what is measured.
        contenders: who takes part.
        base: the contender that counts as 1.
        clock: the clock that decides on the goal. CPU time is hardly disturbed by other programs; but where workers
            wait for each other, waiting is part of the cost, and only wall time has it.
        workers: number of processes of a contender.
        evaluate: run the evaluation loop, not the training loop.
        log: the module logs its loss on step and epoch.
        defaults: leave logger, checkpoints, progress bar and model summary at their defaults; otherwise all are off.
        metrics: number of values that are logged per epoch with ``sync_dist=True``.
        model: the network.
    """

    name: str
    title: str
    goal: float
    quantity: Quantity = "time of a step"
    contenders: tuple[str, ...] = CONTENDERS
    base: str = RAW
    clock: Clock = "cpu"
    workers: int = 1
    evaluate: bool = False
    log: bool = False
    defaults: bool = False
    metrics: int = 0
    model: Literal["mlp", "lstm", "cnn"] = "mlp"


_CASES = (
    Case("off", "everything off", 1.1),
    Case("log", "self.log on step and epoch", 1.25, log=True),
    Case("default", "defaults, self.log to the bar", 1.3, log=True, defaults=True),
    Case("lstm", "small LSTM, 30 time steps", 1.2, contenders=(RAW, ITWINAI, COMPILED), model="lstm"),
    Case("cnn", "small CNN", 1.2, contenders=(RAW, ITWINAI, COMPILED), model="cnn"),
    Case("ddp", "DDP, 2 workers, everything off", 1.05, workers=2, clock="wall"),
    Case("validate", "evaluation loop", 1.3, contenders=UNCOMPILED, evaluate=True),
    Case(
        "metrics",
        "20 metrics with sync_dist, 2 workers",
        1,
        quantity="collectives of an epoch",
        contenders=(LIGHTNING, ITWINAI),
        workers=2,
        metrics=20,
    ),
    Case(
        "startup",
        "command to first step, 2 workers",
        1.3,
        quantity="time to the first step",
        contenders=(LIGHTNING, ITWINAI),
        base=LIGHTNING,
        clock="wall",
        workers=2,
    ),
)
CASES = {case.name: case for case in _CASES}

# For `watching`, which asks another question: what do callbacks cost?
WATCHING = Case(
    "watching",
    "callbacks that watch a run",
    1.0,
    contenders=(ITWINAI, "logging", "monitoring", "profiling", "all"),
    base=ITWINAI,
    log=True,
)

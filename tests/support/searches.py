"""Records of searches over a known function, as if trials had been trained."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from itwinai.trials.records import Objective, Range, Report, SearchRecord, TrialRecord

LR = "model.init_args.lr"
WIDTH = "model.init_args.width"
DROPOUT = "model.init_args.dropout"
OPTIMIZER = "model.init_args.optimizer"
MOMENTUM = "model.init_args.momentum"
BATCH = "data.init_args.batch_size"

RANGES = {
    LR: Range(1e-5, 0.1, log=True),
    WIDTH: Range(16, 512, log=True),
    DROPOUT: Range(0.0, 0.5),
    OPTIMIZER: Range(choices=("adam", "sgd")),
    MOMENTUM: Range(0.0, 0.99),
    BATCH: Range(choices=(16, 32, 64, 128)),
}

LOSS = Objective("val_loss", "min")
SPEED = Objective("samples_per_second", "max")

MEMORY = "RuntimeError: CUDA out of memory. Tried to allocate {} MiB"


def draw(rng: random.Random) -> dict[str, Any]:
    """Return parameters of one trial; only ``sgd`` has a momentum."""
    drawn: dict[str, Any] = {
        LR: 10 ** rng.uniform(-5, -1),
        WIDTH: round(2 ** rng.uniform(4, 9)),
        DROPOUT: rng.uniform(0, 0.5),
        OPTIMIZER: rng.choice(("adam", "sgd")),
        BATCH: rng.choice((16, 32, 64, 128)),
    }
    if drawn[OPTIMIZER] == "sgd":
        drawn[MOMENTUM] = rng.uniform(0, 0.99)
    return drawn


def loss(parameters: dict[str, Any]) -> float:
    """Return what a trial ends with: it depends on the learning rate, a little on the width, on the rest hardly."""
    lr = math.log10(parameters[LR])
    width = math.log2(parameters[WIDTH])
    return 0.2 + 0.4 * (lr + 2.5) ** 2 + 0.03 * (9 - width) + (0.05 if parameters[OPTIMIZER] == "sgd" else 0.0)


def search(
    trials: int = 60,
    reports: int = 12,
    seed: int = 0,
    objectives: Sequence[Objective] = (LOSS,),
    ranges: bool = True,
    failing: bool = True,
) -> SearchRecord:
    """Return a random search in which half of the trials were stopped, and some have failed or diverged."""
    rng = random.Random(seed)
    made: list[TrialRecord] = []
    for number in range(trials):
        made.append(_trial(number, draw(rng), reports, objectives, rng, failing))
    seconds = max((report.at or 0.0 for trial in made for report in trial.reports), default=0.0)
    return SearchRecord(
        name="digits",
        objectives=tuple(objectives),
        parameters=tuple(RANGES),
        trials=tuple(made),
        seconds=seconds,
        folder="/data/searches/digits",
        settings={"searcher": "random, seed 0", "scheduler": "ASHA, half go on", "resources": "1 CPU, 0.5 GPU each"},
        ranges=RANGES if ranges else {},
    )


def _trial(
    number: int,
    parameters: dict[str, Any],
    reports: int,
    objectives: Sequence[Objective],
    rng: random.Random,
    failing: bool,
) -> TrialRecord:
    end = loss(parameters)
    fails = failing and parameters[BATCH] == 128 and parameters[WIDTH] > 200
    diverges = failing and parameters[LR] > 0.06
    stopped = end > 0.6
    count = min(reports, 2) if fails else max(reports // 4, 1) if stopped else reports
    begin, pace = 4.0 * number, 3.0 + rng.random()
    made = []
    for done in range(1, count + 1):
        value = end + 2.0 * math.exp(-3.0 * done / reports) + 0.01 * rng.gauss(0, 1)
        metrics = {
            "val_loss": math.nan if diverges and done > 2 else value * (1e4 if diverges else 1),
            "samples_per_second": 4e4 / parameters[WIDTH] * (1 + parameters[BATCH] / 64) + rng.gauss(0, 1),
            "parameters": 100.0 * parameters[WIDTH],
        }
        kept = {one.metric: metrics[one.metric] for one in objectives}
        made.append(Report(done, pace * done, kept, at=begin + pace * done))
    return TrialRecord(
        number=number,
        name=f"trial_{number:04d}",
        parameters=parameters,
        status="failed" if fails else "stopped" if stopped else "finished",
        reports=tuple(made),
        seconds=pace * count,
        failures=3 if fails else 0,
        error=MEMORY.format(512 + number) if fails else "",
        folder=f"/data/searches/digits/trial_{number:04d}",
        checkpoint=f"/data/searches/digits/trial_{number:04d}/best.ckpt" if made else "",
    )

"""In which order the runs of a benchmark take place."""

from __future__ import annotations

import random
from collections.abc import Sequence

from itwinai.benchmark.records import Cell

Run = tuple[Cell, int]
"""A cell, and the number of the repeat, 0 for the first."""


def interleaved(cells: Sequence[Cell], repeats: int, seed: int = 0) -> list[Run]:
    """Return all runs, each repeat of all cells before the next, in an order of its own.

    A machine that gets slower in the course of a benchmark, as it warms up or others begin to use it, then slows down
    all cells alike, and none is favoured by what runs before it: the randomized block design of experiments (Fisher,
    1935).

    Args:
        cells: what is run.
        repeats: how often.
        seed: of the orders.
    """
    runs: list[Run] = []
    for repeat in range(repeats):
        block = list(cells)
        random.Random(f"{seed}-{repeat}").shuffle(block)
        runs += [(cell, repeat) for cell in block]
    return runs

"""A script for outer launchers: every worker runs it whole, joins, and rank 0 leaves the results in a file.

``joined.py STRATEGY,STRATEGY... WORKERS FILE [CASE...]`` trains with one strategy after the other, in the same group.
"""

from __future__ import annotations

import sys

import torch
from lightning.pytorch.utilities import rank_zero_only

from tests.support.cases import CASES, run_case

strategies, workers, out, only = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
cases = [case for case in CASES if not only or str(case) in only]
results = [
    {"strategy": strategy, **run_case(case, strategy, workers, devices="auto")}
    for strategy in strategies
    for case in cases
]

if rank_zero_only.rank == 0:
    torch.save(results, out)

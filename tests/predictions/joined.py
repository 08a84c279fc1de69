"""A script for outer launchers: predict what a file lists, with one strategy after the other, and check the files."""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from tests.predictions.cases import check, predict

folder, workers, strategies = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
torch.set_num_threads(1)
found: list[str] = []
for strategy in strategies:
    for number, case in enumerate(pickle.loads((folder / "cases.pickle").read_bytes())):
        if strategy == "deepspeed_stage_3" and case.source in ("stream", "divided stream", "list of batches"):
            continue  # an error there
        try:
            output = predict(case, strategy, "auto", folder / f"{strategy}-{number}")
            if rank_zero_only.rank == 0:
                check(case, workers, output)
        except AssertionError:
            found.append(f"{strategy}: {case}\n{traceback.format_exc()}")
if rank_zero_only.rank == 0:
    (folder / "found.pickle").write_bytes(pickle.dumps(found))

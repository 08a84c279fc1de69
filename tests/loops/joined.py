"""A script for torchrun: compare the trainers in scenarios from a file, and leave there what each rank has found."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from itwinai import ItwinaiTrainer
from tests.loops.freezing import difference
from tests.loops.runs import RANK, run

folder = Path(sys.argv[1])
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
torch.set_num_threads(1)
dist.init_process_group("gloo")
scenarios = pickle.loads((folder / "scenarios.pickle").read_bytes())
found: list[tuple[int, str]] = []
for index, scenario in enumerate(scenarios):
    try:
        seen = [run(scenario, trainer, folder / f"run-{RANK}") for trainer in (Trainer, ItwinaiTrainer)]
    except Exception:
        found.append((index, traceback.format_exc()))
        break  # the other rank may be anywhere
    if (text := difference(*seen)) is not None:
        found.append((index, text))
(folder / f"found-{RANK}.pickle").write_bytes(pickle.dumps(found))

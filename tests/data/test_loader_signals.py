"""Processes of a DataLoader outlive the signals that a scheduler sends to them, and end with their run."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from itwinai.data.loader_signals import OutliveSignals


class Pids(Dataset[int]):
    """Gives the process that loads a sample, which may signal itself before."""

    def __init__(self, signals: tuple[signal.Signals, ...] = ()) -> None:
        self.signals = signals

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        for number in self.signals:
            os.kill(os.getpid(), number)
        return os.getpid()


def seeded(number: int, worker_id: int) -> None:
    info: Any = get_worker_info()
    info.dataset.signals = (*info.dataset.signals, signal.Signals(number))


def test_they_outlive_signals_of_others() -> None:
    # Twice each, as SLURM does; SIGTERM comes by the loader's own function, which is called too.
    dataset = Pids((signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1))
    then = partial(seeded, signal.SIGTERM)
    for context in ("fork", "spawn"):
        loader = DataLoader(
            dataset, num_workers=2, worker_init_fn=OutliveSignals(then), multiprocessing_context=context
        )
        loaded = torch.cat(list(loader)).tolist()
        assert len(loaded) == 6 and len(set(loaded)) == 2


def test_their_run_ends_them() -> None:
    loader = DataLoader(Pids(), num_workers=1, worker_init_fn=OutliveSignals(None), persistent_workers=True)
    iterator: Any = iter(loader)
    next(iterator)
    (worker,) = iterator._workers
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0
    iterator._workers_status[0] = False  # the loader need not wait for it

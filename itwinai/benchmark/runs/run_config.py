"""The config of a benchmark's run: the user's, with what the cell varies, and without what would not be training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import yaml

from itwinai.benchmark.records import SINGLE, Cell
from itwinai.config.paths import spelled_out, with_values

# Validation, loggers, checkpoints and bars are not part of a training step, and limits would end the run too early.
_ONLY_TRAINING: dict[str, Any] = {
    "max_time": None,
    "min_steps": None,
    "min_epochs": None,
    "fast_dev_run": False,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    # It writes nothing, and modules and callbacks that ask for a logger find one.
    "logger": {"class_path": "lightning.pytorch.loggers.logger.DummyLogger"},
    "profiler": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "watch": False,
    "resume": None,
    "max_restarts": 0,
}


@dataclass(frozen=True)
class RunConfigs:
    """Makes the configs of runs.

    Attributes:
        config: the user's, with all defaults, as plain values.
        workers_per_node: most workers of a node; None for all on one.
        seed: of runs whose config has none: they are to come to the same loss.
        threads: that each worker computes with; None leaves them as the config has them.
    """

    config: Mapping[str, Any]
    workers_per_node: int | None = None
    seed: int = 0
    threads: int | None = None

    def of(self, cell: Cell, folder: str) -> dict[str, Any]:
        """Return the config of the runs of a cell.

        Args:
            cell: the cell.
            folder: for what a run may write.

        Raises:
            ConfigurationError: there is no such path as that of an axis.
        """
        nodes, on_each = spread_over_nodes(cell.workers, self.workers_per_node)
        given = {spelled_out(self.config, path): yaml.safe_load(value) for path, value in cell.axes}
        config = copy.deepcopy(dict(self.config))
        trainer = config["trainer"]
        trainer |= _ONLY_TRAINING
        trainer |= {
            "strategy": "auto" if cell.strategy == SINGLE else cell.strategy,
            "devices": on_each,
            "num_nodes": nodes,
            "split_batches": cell.scaling == "strong",
            "default_root_dir": folder,
            "cpu_threads": self.threads or trainer.get("cpu_threads"),
            "callbacks": _watching_nothing(trainer.get("callbacks")),
        }
        seed = config.get("seed_everything")
        if not isinstance(seed, int) or isinstance(seed, bool):  # of True Lightning makes another seed each time
            config["seed_everything"] = self.seed
        return with_values(config, given)


def most_on_a_node(workers: Iterable[int], workers_per_node: int | None) -> int:
    """Return the largest number of workers on one node, of several numbers of workers."""
    return max(spread_over_nodes(one, workers_per_node)[1] for one in workers)


def spread_over_nodes(workers: int, workers_per_node: int | None) -> tuple[int, int]:
    """Return the number of nodes, and that of the workers on each.

    Workers are spread evenly: 6 with at most 4 per node are 2 nodes with 3 each.
    """
    if workers_per_node is None or workers <= workers_per_node:
        return 1, workers
    nodes = -(-workers // workers_per_node)
    while workers % nodes:
        nodes += 1
    return nodes, workers // nodes


def _watching_nothing(callbacks: Any) -> Any:
    """Return a config's callbacks without those that stop early or save: there is nothing for them to see."""
    if not callbacks:
        return callbacks
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return [one for one in listed if not _stops_or_saves(str(one.get("class_path", "")))]


def _stops_or_saves(class_path: str) -> bool:
    from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

    module, _, name = class_path.rpartition(".")
    kind = getattr(import_module(module), name, None)
    return isinstance(kind, type) and issubclass(kind, (EarlyStopping, Checkpoint))

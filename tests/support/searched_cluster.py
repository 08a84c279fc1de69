"""A search on a Ray cluster of two nodes, whose trials have three workers each: ``python -m ... FOLDER``."""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

from itwinai.tune import Tuner


def main(folder: str) -> None:
    """Search, and print what came of it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    config: dict[str, Any] = {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "logger": False, "split_batches": True},
        "model": {"class_path": "tests.support.tuned.Regression"},
        "data": {"class_path": "tests.support.tuned.Points", "init_args": {"batch_size": 6}},
    }
    tuner = Tuner(
        config,
        {"model.lr": {"grid": [0.1, 0.2]}},
        metric="val_loss",
        workers_per_trial=3,
        strategy="ray",
        storage=folder,
        address=cluster.address,
    )
    result = tuner.fit()
    print(json.dumps({one.name: (one.status, len(one.reports), one.error) for one in result.record.trials}))
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])

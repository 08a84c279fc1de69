"""Searches on a Ray cluster of three nodes, to see how many trials run at once: ``placed.py FOLDER``.

The nodes have 2, 2 and 1 CPUs, and the second one has two of a resource of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")

import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from itwinai.errors import ResourceError
from itwinai.tune.resource_plan import make_plan
from itwinai.tune.resources import TrialResources, cluster_nodes

folder = Path(sys.argv[1])

CASES = {
    "local": TrialResources(2, strategy="ddp"),
    "spread": TrialResources(3, spread=True, strategy="ray"),
    "licence": TrialResources(1, {"licence": 1}),
    "too large": TrialResources(3, strategy="ddp"),
}


def search(name: str, resources: TrialResources, at_once: int) -> list[dict[str, Any]]:
    """Run one trial more than has room, each until as many as have room were there together."""
    began = folder / name
    began.mkdir()

    def trial(config: dict[str, Any]) -> None:
        context = ray.get_runtime_context()
        group = ray.util.get_current_placement_group()
        begin = time.time()
        (began / context.get_actor_id()).touch()
        workers = [
            ray.remote(num_cpus=1)(_node).options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, place))
            for place in range(resources.workers if resources.spread else 0)
        ]
        nodes = ray.get([worker.remote() for worker in workers])
        deadline = time.monotonic() + 60
        while len(list(began.iterdir())) < at_once and time.monotonic() < deadline:
            time.sleep(0.02)
        given = context.get_assigned_resources()
        tune.report({"begin": begin, "end": time.time(), "nodes": len(set(nodes)), "given": given})

    tuner = tune.Tuner(
        tune.with_resources(trial, resources.placement_group_factory()),
        tune_config=tune.TuneConfig(num_samples=at_once + 1),
        run_config=tune.RunConfig(verbose=0, storage_path=str(folder)),
    )
    return [{key: result.metrics[key] for key in ("begin", "end", "nodes", "given")} for result in tuner.fit()]


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=2, resources={"licence": 2})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
found: dict[str, Any] = {"nodes": [dict(node.amounts) for node in cluster_nodes()]}
for name, resources in CASES.items():
    try:
        plan = make_plan(resources, cluster_nodes(), num_trials=8)
    except ResourceError as error:
        found[name] = {"error": str(error)}
        continue
    trials = search(name, resources, plan.at_once)
    found[name] = {"text": plan.text(), "at_once": plan.at_once, "idle": dict(plan.idle), "trials": trials}
(folder / "found.json").write_text(json.dumps(found))
ray.shutdown()
cluster.shutdown()

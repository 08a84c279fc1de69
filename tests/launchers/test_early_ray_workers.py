"""Ray workers that were started while the driver still imported are those of the run, on Ray with one node."""

from __future__ import annotations

import pytest

from itwinai.launchers.ray_worker_pool import EarlyRayWorkers
from tests.conftest import RunCommand, python

SCRIPT = """
import os
import sys
import tempfile
import time
os.environ.pop("RAY_ADDRESS", None)
from itwinai.launchers.ray_init import RayWorkersRequest, ray_starting

with ray_starting(RayWorkersRequest(2, on_cpu=True)) as starting:
    import ray, torch
    from torch.utils.data import DataLoader
    from itwinai import ItwinaiTrainer
    from tests.support.cases import Regression

    class Pids(Regression):
        def predict_step(self, batch, batch_idx):
            assert os.environ["PL_GLOBAL_SEED"] == "7" and os.getcwd() == here and "/late" in sys.path
            return torch.tensor([os.getpid()])

    early = starting.take_workers()
    assert ray.get(ray.remote(lambda: 3).remote()) == 3  # the workers leave room for a task
    pids = [pid for pid, _, _ in ray.get([actor.start.remote() for actor in early.actors])]
    starting._workers = early
    os.environ["PL_GLOBAL_SEED"] = "7"  # all of it after the workers have started
    here = tempfile.mkdtemp()
    os.chdir(here)
    sys.path.append("/late")

    def of_a_run():
        trainer = ItwinaiTrainer(
            strategy="ray", devices=2, accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True
        )
        trainer.strategy.connect_by(starting)
        return sorted(torch.cat(trainer.predict(Pids(), DataLoader(torch.zeros(2, 8)))).tolist())

    assert of_a_run() == sorted(pids)
    assert not set(of_a_run()) & set(pids)  # they were for one run
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:  # nothing stays reserved
        time.sleep(0.05)
    print("released")

ray.shutdown()
from ray.cluster_utils import Cluster  # as `ray start` makes them

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
os.environ["RAY_ADDRESS"] = cluster.address
for nodes in (1, 2):
    for workers in (2, 3):
        ray.init(cluster.address, logging_level=40)
        while ray.available_resources().get("CPU") != 2 + nodes:  # of the nodes, when those before have released theirs
            time.sleep(0.05)
        ray.shutdown()
        with ray_starting(RayWorkersRequest(workers, on_cpu=True)) as starting:
            print(f"{workers} early on {nodes}: {starting.take_workers() is not None}")
    cluster.add_node(num_cpus=1)
cluster.shutdown()
"""


def test_the_first_run_has_the_early_workers(run_command: RunCommand) -> None:
    ended = run_command(python("-c", SCRIPT), fresh=True)
    assert ended.code == 0, ended.output
    said = [line for line in ended.output.splitlines() if "early" in line or line == "released"]
    assert said == [
        *("released", "2 early on 1: True", "3 early on 1: False", "2 early on 2: False", "3 early on 2: False")
    ], ended.output


@pytest.mark.parametrize(
    ("resources", "num_workers", "placement", "fit"),
    [
        ({"CPU": 1}, 2, "PACK", True),
        ({"CPU": 1, "GPU": 1}, 2, "PACK", False),
        ({"CPU": 2}, 2, "PACK", False),
        ({"CPU": 1}, 3, "PACK", False),
        ({"CPU": 1}, 2, "SPREAD", False),
    ],
)
def test_what_early_workers_are_for(resources: dict[str, float], num_workers: int, placement: str, fit: bool) -> None:
    early = object.__new__(EarlyRayWorkers)
    early.resources, early.actors = {"CPU": 1}, [None, None]
    assert early.are_for(resources, num_workers, placement) is fit

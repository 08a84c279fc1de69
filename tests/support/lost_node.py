"""A run on a Ray cluster of two nodes that loses one: ``lost_node.py FOLDER``."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import ray
import torch
from ray.cluster_utils import Cluster

from itwinai.callbacks import ModelCheckpoint
from itwinai.strategies import RayStrategy
from tests.support.cases import GLOBAL_BATCH, Regression, loader, make_trainer
from tests.support.interrupted import EPOCHS

folder = Path(sys.argv[1])


class Loses(L.Callback):
    """Lets its worker wait for the loss of a node, once."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        with (folder / "sizes").open("a") as file:
            print(trainer.global_step, trainer.world_size, file=file)
        if trainer.global_step == 17 and trainer.world_size == 2:
            (folder / "ready").touch()
            time.sleep(3600)


def lose() -> None:
    while not (folder / "ready").exists():
        time.sleep(0.1)
    cluster.remove_node(second, allow_graceful=False)


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
threading.Thread(target=lose, daemon=True).start()
L.seed_everything(11, verbose=False)
module = Regression("adamw")
checkpoints = ModelCheckpoint(folder / "checkpoints", every="5steps", keep=3)
strategy = RayStrategy("ddp", address=cluster.address, min_workers=1, placement="SPREAD")
options: dict[str, Any] = {"max_epochs": EPOCHS, "enable_checkpointing": True, "max_restarts": 1}
trainer = make_trainer(strategy, 2, split_batches=True, callbacks=[checkpoints, Loses()], **options)
trainer.fit(module, loader(GLOBAL_BATCH, shuffle=True), loader(GLOBAL_BATCH))
torch.save(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]), folder / "weights.pt")
ray.shutdown()
cluster.shutdown()  # takes its address out of the file by which others on this machine would find it

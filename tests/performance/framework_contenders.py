"""Train the same network under one framework: ``python -m tests.performance.framework_contenders CONTENDER MODEL ...``.

Each contender is written as the framework's own tutorials have it, with everything off that is not training. None
imports another's packages.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from tests.performance.framework_cases import ACCELERATE, ITWINAI_DDP, ITWINAI_RAY, LIGHTNING, RAW, RAY_TRAIN
from tests.performance.framework_models import MODELS, Model, Samples, make_loader, make_optimizer
from tests.performance.framework_stopwatch import Stopwatch

if TYPE_CHECKING:  # nobody shall pay for what another one uses
    import lightning as L


@dataclass(frozen=True)
class Run:
    """What a contender has to do.

    Attributes:
        model: name of the model.
        workers: number of workers.
        stopwatch: takes the time.
    """

    model: str
    workers: int
    stopwatch: Stopwatch

    def start(self) -> tuple[Model, torch.nn.Module, Samples, int]:
        """Return the model, its network with the weights that all begin with, the data, and the batch of a worker."""
        model = MODELS[self.model]
        torch.manual_seed(0)
        network = model.network()
        samples = Samples(model, self.stopwatch.batches, self.stopwatch)
        return model, network, samples, model.batch_size // self.workers


def run_raw(run: Run) -> None:
    """Train as in PyTorch's tutorials, started by torchrun: the yardstick."""
    dist.init_process_group("gloo")
    model, network, samples, batch_size = run.start()
    wrapped = DistributedDataParallel(network)
    optimizer = make_optimizer(wrapped, model.lr)
    loader = make_loader(samples, batch_size, DistributedSampler(samples, shuffle=False))
    loss = None
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = model.loss(wrapped(inputs), targets)
        loss.backward()
        optimizer.step()
    run.stopwatch.write(dist.get_rank(), dist.get_world_size(), loss, network.state_dict())
    dist.destroy_process_group()


def run_accelerate(run: Run) -> None:
    """Train as in accelerate's tutorials, started by torchrun: its own launcher starts one process on a CPU."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, network, samples, batch_size = run.start()
    optimizer = make_optimizer(network, model.lr)
    wrapped, optimizer, loader = accelerator.prepare(network, optimizer, make_loader(samples, batch_size))
    loss = None
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = model.loss(wrapped(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
    weights = accelerator.unwrap_model(wrapped).state_dict()
    run.stopwatch.write(accelerator.process_index, accelerator.num_processes, loss, weights)
    accelerator.end_training()


def run_ray_train(run: Run) -> None:
    """Train by Ray Train's TorchTrainer, with Ray started as itwinai starts it."""
    import logging

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    num_cpus = max(os.cpu_count() or 1, run.workers)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR)
    trainer = TorchTrainer(
        _train_in_ray,
        train_loop_config={"run": run},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=run.workers),
        run_config=RunConfig(storage_path=str(run.stopwatch.folder / "ray")),
    )
    trainer.fit()
    ray.shutdown()


def _train_in_ray(config: dict[str, Any]) -> None:
    from ray.train import get_context
    from ray.train.torch import prepare_data_loader, prepare_model

    run: Run = config["run"]
    model, network, samples, batch_size = run.start()
    wrapped = prepare_model(network)
    optimizer = make_optimizer(wrapped, model.lr)
    loader = prepare_data_loader(make_loader(samples, batch_size))
    loss = None
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = model.loss(wrapped(inputs), targets)
        loss.backward()
        optimizer.step()
    context = get_context()
    run.stopwatch.write(context.get_world_rank(), context.get_world_size(), loss, network.state_dict())


def run_lightning(run: Run) -> None:
    """Train with stock lightning, which starts its workers itself."""
    import lightning as L

    # Left to itself it shuffles the training data of several workers, also where the loader does not.
    _run_trainer(run, L.Trainer, "ddp", use_distributed_sampler=False)


def run_itwinai_ddp(run: Run) -> None:
    """Train with ItwinaiTrainer, which starts its workers itself."""
    from itwinai import ItwinaiTrainer

    _run_trainer(run, ItwinaiTrainer, "ddp")


def run_itwinai_ray(run: Run) -> None:
    """Train with ItwinaiTrainer, which starts Ray, and its workers there."""
    from itwinai import ItwinaiTrainer

    _run_trainer(run, ItwinaiTrainer, "ray")


def _run_trainer(
    run: Run, trainer_class: Callable[..., L.Trainer], strategy: str, use_distributed_sampler: bool = True
) -> None:
    from tests.performance.framework_module import Trained

    model, network, samples, batch_size = run.start()
    trainer = trainer_class(
        strategy=strategy,
        accelerator="cpu",
        devices=run.workers,
        max_epochs=1,
        use_distributed_sampler=use_distributed_sampler,
        default_root_dir=run.stopwatch.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler: DistributedSampler | None = None
    if not use_distributed_sampler:
        sampler = DistributedSampler(samples, run.workers, trainer.global_rank, shuffle=False)
    trainer.fit(Trained(run.model, network, run.stopwatch), make_loader(samples, batch_size, sampler))


RUNNERS = {
    RAW: run_raw,
    ACCELERATE: run_accelerate,
    LIGHTNING: run_lightning,
    ITWINAI_DDP: run_itwinai_ddp,
    RAY_TRAIN: run_ray_train,
    ITWINAI_RAY: run_itwinai_ray,
}


def main() -> None:
    """Run one contender, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=RUNNERS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("began", help="when this command was started; nobody needs it here")
    given = parser.parse_args()
    RUNNERS[given.contender](Run(given.model, given.workers, Stopwatch(given.warmup, given.steps, given.folder)))


if __name__ == "__main__":
    main()

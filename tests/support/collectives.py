"""A module that runs every collective operation of its strategy inside the workers and keeps what came out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import CatMetric

Check = Callable[["Collectives"], Any]


class Collectives(L.LightningModule):
    """Runs the checks at the start of training; what they returned comes back as ``results``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.cat = CatMetric()
        self.results: dict[str, Any] = {}

    def on_train_start(self) -> None:
        self.results = {name: check(self) for name, check in CHECKS.items()}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).mean()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(4, 2), batch_size=2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tensor(module: Collectives, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor that differs between ranks: rank + 1 everywhere."""
    return torch.full(shape, module.global_rank + 1, dtype=dtype, device=module.device)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


def reduce_by_name(module: Collectives) -> dict[str, list[float]]:
    reduce = module.trainer.strategy.reduce
    return {op: reduce(tensor(module, 2), reduce_op=op).tolist() for op in ("mean", "avg", "sum", "min", "max")}


def reduce_by_enum(module: Collectives) -> list[float]:
    operation = torch.distributed.ReduceOp
    reduce = module.trainer.strategy.reduce
    return [reduce(tensor(module), reduce_op=op).item() for op in (operation.SUM, operation.MAX, operation.MIN)]


def reduce_dtypes(module: Collectives) -> dict[str, tuple[str, float]]:
    sums = {dtype: module.trainer.strategy.reduce(tensor(module, dtype=dtype), reduce_op="sum") for dtype in DTYPES}
    return {str(dtype): (str(value.dtype), float(value)) for dtype, value in sums.items()}


def reduce_integer_mean(module: Collectives) -> float:
    return float(module.trainer.strategy.reduce(tensor(module, dtype=torch.int64), reduce_op="mean"))


def reduce_in_place(module: Collectives) -> list[float]:
    value = tensor(module, 2)
    module.trainer.strategy.reduce(value, reduce_op="sum")
    return value.tolist()


def reduce_others(module: Collectives) -> list[Any]:
    reduce = module.trainer.strategy.reduce
    return [reduce(value) for value in (3, 2.5, "text", None, [1, 2])]


def gather_shapes(module: Collectives) -> dict[str, tuple[list[int], list[float]]]:
    gathered = {shape: module.all_gather(tensor(module, *shape)) for shape in ((), (3,), (2, 3), (1, 2, 2))}
    return {str(shape): (list(value.shape), value.flatten().tolist()) for shape, value in gathered.items()}


def gather_dtypes(module: Collectives) -> dict[str, tuple[str, list[float]]]:
    gathered = {dtype: module.all_gather(tensor(module, dtype=dtype)) for dtype in DTYPES}
    booleans = module.all_gather(tensor(module) > 1)
    return {str(dtype): (str(value.dtype), value.double().tolist()) for dtype, value in gathered.items()} | {
        "bool": (str(booleans.dtype), booleans.double().tolist())
    }


def gather_collection(module: Collectives) -> dict[str, Any]:
    gathered = module.all_gather({"a": tensor(module), "b": [tensor(module, 2)], "c": 1.5, "d": "text"})
    return {
        "a": gathered["a"].tolist(),
        "b": gathered["b"][0].tolist(),
        "c": gathered["c"].tolist(),
        "d": gathered["d"],
    }


def gather_gradients(module: Collectives) -> list[float]:
    """d/dx of the sum over ranks r of r+1 times what was gathered: every rank computes it, and the gradients add up."""
    x = tensor(module, 2).requires_grad_()
    gathered = module.all_gather(x, sync_grads=True)
    weights = torch.arange(1.0, 1 + len(gathered), device=module.device)
    (gathered * weights[:, None]).sum().backward()
    mine = x.grad
    assert mine is not None
    return module.all_gather(mine).flatten().tolist()


def gather_without_gradients(module: Collectives) -> bool:
    return module.all_gather(tensor(module, 2).requires_grad_()).requires_grad


def broadcast_objects(module: Collectives) -> list[Any]:
    broadcast = module.trainer.strategy.broadcast
    rank = module.global_rank
    return [
        broadcast({"rank": rank, "text": "x" * 1000}),
        broadcast(rank, src=1),
        broadcast(None),
        broadcast("only here" if rank == 0 else None),
        broadcast([rank] * 3),
    ]


def barrier_blocks(module: Collectives) -> bool:
    """Rank 1 comes late; nobody may pass before it has come."""
    strategy = module.trainer.strategy
    if module.global_rank == 1:
        time.sleep(1.0)  # the delay that the barrier is tested with
    arrived = time.time()
    strategy.barrier()
    passed = time.time()
    latest = strategy.reduce(torch.tensor(arrived, dtype=torch.float64), reduce_op="max").item()
    earliest = strategy.reduce(torch.tensor(passed, dtype=torch.float64), reduce_op="min").item()
    return latest <= earliest


def boolean_decision(module: Collectives) -> list[bool]:
    decide = module.trainer.strategy.reduce_boolean_decision
    mine = module.global_rank == 0
    return [decide(mine, all=True), decide(mine, all=False), decide(True, all=True), decide(False, all=False)]


def metric_of_uneven_states(module: Collectives) -> list[float]:
    """Rank r has r + 1 values: their states have different lengths."""
    module.cat.update(tensor(module, module.global_rank + 1))
    values = module.cat.compute()
    module.cat.reset()
    return values.tolist()


def sizes(module: Collectives) -> dict[str, Any]:
    strategy = module.trainer.strategy
    return {
        "world_size": strategy.world_size,
        "trainer": module.trainer.world_size,
        "sampler": strategy.distributed_sampler_kwargs,
        "global_zero": module.trainer.is_global_zero,
    }


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        reduce_by_name,
        reduce_by_enum,
        reduce_dtypes,
        reduce_integer_mean,
        reduce_in_place,
        reduce_others,
        gather_shapes,
        gather_dtypes,
        gather_collection,
        gather_gradients,
        gather_without_gradients,
        broadcast_objects,
        barrier_blocks,
        boolean_decision,
        metric_of_uneven_states,
        sizes,
    )
}

"""``compile_step=True`` with several workers: two graphs, and one average of all gradients between them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint
from itwinai.errors import CompileStepError, UnusedParametersError
from itwinai.loops.compiled import limits
from itwinai.strategies import DDPStrategy, DeepSpeedStrategy, HorovodStrategy, RayStrategy

CLOSE = 1e-6  # relative, of all weights as one vector
EPOCHS = 13  # of 4 steps: 7 global batches, the last of 5 samples, in windows of 2


class Shared(L.LightningModule):
    """Has running statistics, which differ between the workers, beside weights, which do not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.statistics = nn.BatchNorm1d(6, affine=False)
        self.seen: list[tuple[float, ...]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        self.statistics(x)
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Hooked(Shared):
    """Notes the loss, which is weighed, and the gradients, which are averages at the end of a window."""

    def on_before_backward(self, loss: Tensor) -> None:
        self.seen.append((float(loss),))

    def on_after_backward(self) -> None:
        self.seen.append(tuple(float(parameter.grad.norm()) for parameter in self.parameters()))


def fit(module: L.LightningModule, strategy: Any, compiled: Any, **options: Any) -> Any:
    """Train, with the same global batches for any number of workers, and return the trainer."""
    workers = options.pop("devices", 1 if strategy == "auto" else 2)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": EPOCHS,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.3,
    }
    path = options.pop("ckpt_path", None)
    trainer = ItwinaiTrainer(strategy=strategy, devices=workers, compile_step=compiled, **{**settings, **options})
    x = torch.randn(53, 6, generator=torch.Generator().manual_seed(3))
    data = TensorDataset(x, x.sum(1, keepdim=True).sin())
    trainer.fit(module, DataLoader(data, batch_size=8 // workers), ckpt_path=path)
    return trainer


def run(kind: type[Shared], strategy: Any, compiled: Any, **options: Any) -> tuple[Any, Any]:
    """Train a new module, and return it with its trainer."""
    torch.manual_seed(1)
    module = kind()
    return module, fit(module, strategy, compiled, **options)


def distance(one: nn.Module, other: nn.Module, weights_only: bool = False) -> float:
    """Return how far two modules are from each other."""
    both = [
        torch.cat(
            [
                value.double().flatten()
                for value in (dict(m.named_parameters()) if weights_only else m.state_dict()).values()
            ]
        )
        for m in (one, other)
    ]
    return float((both[0] - both[1]).norm() / both[1].norm())


@pytest.fixture(scope="module")
def lean() -> tuple[Any, Any]:
    """Two workers without a graph."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(Hooked, "ddp", False)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", Hooked), ("horovod", Shared)])
def test_weights_and_statistics(strategy: str, kind: type[Shared], lean: Any) -> None:
    module, trainer = run(kind, strategy, True)
    assert trainer.global_step == lean[1].global_step == 4 * EPOCHS
    assert distance(module, lean[0]) < CLOSE
    metrics = [{name: float(value) for name, value in one.callback_metrics.items()} for one in (trainer, lean[1])]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    if kind is Hooked:
        assert len(module.seen) == len(lean[0].seen) == 2 * 7 * EPOCHS
        # Without a graph, the first batch of an epoch is averaged by itself as well, which changes no average later.
        seen = [[noted for at, noted in enumerate(one.seen) if at % 14 != 1] for one in (module, lean[0])]
        numbers = [[number for noted in one for number in noted] for one in seen]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-6)


class Freezing(Shared):
    """Unfreezes a layer, and freezes a parameter that had a gradient in the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)
            self.net[2].bias.requires_grad_(False)


def test_parameters_that_are_frozen_and_unfrozen() -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 1, "max_epochs": 2}
    both = [run(Freezing, "ddp", compiled, **options)[0] for compiled in (True, False)]
    assert distance(*both) < CLOSE


def test_one_process_has_the_same_weights(lean: Any) -> None:
    alone, _ = run(Shared, "auto", False)
    assert distance(lean[0], alone, weights_only=True) < CLOSE


def test_resume_without_a_graph_in_one_process(tmp_path: Path, lean: Any) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=10, save_top_k=-1)
    run(Shared, "ddp", True, max_steps=10, callbacks=[saving], enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    module, trainer = run(Shared, "auto", False, ckpt_path=path)
    assert trainer.global_step == 4 * EPOCHS
    assert distance(module, lean[0], weights_only=True) < CLOSE


class FailsLate(Shared):
    """Reads a value on one rank, in the middle of an epoch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_rank == 1 and self.current_epoch == 2 and batch_idx == 3:
            loss = loss + 0 * loss.item()
        return loss


def test_one_worker_gives_up_in_mid_epoch(lean: Any) -> None:
    module, trainer = run(FailsLate, "ddp", "auto")
    assert trainer.global_step == 4 * EPOCHS
    assert distance(module, lean[0]) < CLOSE


class Partial(Shared):
    """Uses one layer on one rank only, and another one never."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes, self.never = nn.Linear(6, 1), nn.Linear(6, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + self.sometimes(batch[0]).square().mean() if self.trainer.global_rank else loss

    def on_train_end(self) -> None:
        assert self.never.weight.grad is None
        assert self.sometimes.weight.grad is not None


def test_parameters_without_a_gradient() -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 1, "gradient_clip_val": None, "max_epochs": 2}
    both = [
        run(Partial, DDPStrategy(find_unused_parameters=True), compiled, **options)[0] for compiled in (True, False)
    ]
    assert distance(*both) < CLOSE
    with pytest.raises(UnusedParametersError, match=r"never.weight"):
        run(Partial, "horovod", True, **options)


def test_what_workers_cannot_do_with_graphs() -> None:
    strategies: list[tuple[Any, str]] = [
        (DDPStrategy(gradient_compression="fp16"), "gradient_compression"),
        (DDPStrategy(static_graph=True), "static_graph"),
        (DDPStrategy(ddp_comm_hook=lambda *_: None), "ddp_comm_hook"),
        (DDPStrategy(skip_all_reduce_unused_params=True), "options of DDP"),
        (HorovodStrategy(op="Adasum"), "Adasum"),
        (DeepSpeedStrategy(), "runs steps in its own way"),
    ]
    trainer: Any = SimpleNamespace(world_size=2, lightning_module=Shared(), precision_plugin=Precision())
    for trainer.strategy, message in strategies:
        with pytest.raises(CompileStepError, match=message):
            limits.check_strategy(trainer)
    for trainer.strategy in (DDPStrategy(), HorovodStrategy(), RayStrategy("ddp"), RayStrategy("horovod")):
        limits.check_strategy(trainer)
    trainer.lightning_module.statistics = nn.SyncBatchNorm(6)
    with pytest.raises(CompileStepError, match="statistics exchanges statistics"):
        limits.check_strategy(trainer)
    limits.check_size(trainer)
    trainer.lightning_module.large = nn.Linear(4096, 2048)
    with pytest.raises(CompileStepError, match="the gradients have 32 MiB"):
        limits.check_size(trainer)

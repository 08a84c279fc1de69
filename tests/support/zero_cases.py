"""Modules that ask much of a DeepSpeed engine; as a script under torchrun, trains them in all stages given.

``zero_cases.py OUT STAGE,STAGE... CASE,CASE... [STAGES CASES]...`` leaves weights by stages, case and stage.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from itwinai.strategies import DeepSpeedStrategy
from tests.support.cases import make_trainer

# 22 samples in global batches of 4: six steps, the last of two samples, one for each of two workers.
SAMPLES, GLOBAL_BATCH = 22, 4


class Base(LightningModule):
    """A small network, for samples of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Linear(3, 5)
        self.head = nn.Linear(5, 1)
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def look(self) -> None:
        """Note the norms of all gradients."""
        self.seen += [float(p.grad.norm()) for p in self.parameters() if p.grad is not None]


class Adaptive(Base):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05, eps=1e-3)


# ------------------------------------------------------------------------------------------- what has to come back


class WithExactBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("exact", torch.tensor([1.0, 1e-12], dtype=torch.float64))


class Late(Base):
    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook, self.body = hook, None

    def make(self, hook: str) -> None:
        if self.body is None and hook == self.hook:
            torch.manual_seed(4)
            self.body = nn.Linear(3, 5)

    def configure_model(self) -> None:
        self.make("configure_model")

    def setup(self, stage: str) -> None:
        self.make("setup")


class SavesItsHead(Base):
    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {f"head.{name}": value for name, value in self.head.state_dict().items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch)


# ----------------------------------------------------------------------------------------------- hooks on gradients


class ClipsItself(Base):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if self.current_epoch > 0:
            self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 0.1)


class Looks(Base):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.look()


class Halves(Callback):
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.grad *= 0.5


class DropsLarge(Base):
    def on_after_backward(self) -> None:
        self.look()
        if self.seen[-1] > 0.6:
            self.head.bias.grad.zero_()


class OwnBackward(Base):
    def backward(self, loss: Tensor) -> None:
        (loss * 0.5).backward()


class Evaluates(Base):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class StepsEverySecond(Base):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class HooksParameter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.body.weight.register_hook(lambda gradient: gradient * torch.tensor([1.0, 0.0, 2.0]))


# -------------------------------------------------------------------------------------------- manual optimization


class Manual(Base):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Discards(Manual):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch) * 3)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch) * 0.3)
        self.manual_backward(self.loss(batch) * 0.7)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


class StepsByHand(Manual):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        (self.loss(batch) / 2).backward()
        if batch_idx % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()


# ------------------------------------------------------------------------------------------------ changing graphs


class Thaws(Base):
    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.body.requires_grad_(self.current_epoch > 0)


class Freezes(Base):
    def on_train_epoch_start(self) -> None:
        self.head.requires_grad_(self.current_epoch == 0)


class UsesSome(Base):
    """Its gate has a gradient in every second step only."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        return self.loss([self.gate(x) if batch_idx % 2 else x, y])


class Checkpointed(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        for _ in range(2):
            x = checkpoint(lambda h: torch.tanh(self.body(h))[:, :3], x, use_reentrant=True)
        return self.head(torch.nn.functional.pad(x, (0, 2)))


class Differentiates(Base):
    def loss(self, batch: list[Tensor]) -> Tensor:
        x = batch[0].clone().requires_grad_(True)
        (force,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
        return (force - 1).square().mean()


# ---------------------------------------------------------------------------------- parameters and outputs of layers


class OddParameters(Base):
    """A scalar, one in channels_last, one that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.image = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        pixels = x[:, :, None, None].expand(-1, -1, 2, 2).contiguous(memory_format=torch.channels_last)
        hidden = self.second(torch.tanh(self.first(x))) + self.image(pixels).mean((1, 2, 3))[:, None]
        return super().forward(hidden) / self.temperature


class Complex(Base):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.tensor([1 + 1j, 0.5 - 0.25j]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.phase**2).imag.sum()


class Empty(Base):
    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.none.sum()


class Sparse(Base):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 3, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.table((x[:, 0] > 0).long()))


class Exact(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))


@dataclass(frozen=True)
class Encoded:
    """What a layer returns: a tensor, and a number."""

    __slots__ = ("hidden", "length")
    hidden: Tensor
    length: int


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Encoded:
        return Encoded(torch.tanh(self.layer(x)), len(x))


class Counter(nn.Module):
    def forward(self, x: Tensor) -> int:
        return int(x.shape[1])


class ReturnsObjects(Base):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.counter = Encoder(), Counter()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.encoder(x).hidden) * self.counter(x)


Make = Callable[[], LightningModule]

CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "accumulated": (Adaptive, {"accumulate_grad_batches": 4}),
    "clipped": (Base, {"gradient_clip_val": 0.3}),
    "clipped by value": (Base, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
    "clips itself": (ClipsItself, {"accumulate_grad_batches": 2}),
    "halved": (Looks, {"callbacks": Halves, "gradient_clip_val": 0.4}),
    "drops large": (DropsLarge, {"accumulate_grad_batches": 2}),
    "own backward": (OwnBackward, {}),
    "steps every second": (StepsEverySecond, {}),
    "discards": (Discards, {}),
    "steps by hand": (StepsByHand, {}),
    "hooks a parameter": (HooksParameter, {}),
    "uses some": (UsesSome, {}),
    "odd parameters": (OddParameters, {}),
    "returns objects": (ReturnsObjects, {}),
    "complex": (Complex, {}),
    "sparse": (Sparse, {}),
    "thaws": (Thaws, {}),
    "checkpointed": (Checkpointed, {}),
}


def train(make: Make, strategy: Any, workers: int, **options: Any) -> LightningModule:
    """Train a module, and return it."""
    module = make()
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(SAMPLES, 3, generator=generator)
    data = TensorDataset(x, x.sin().sum(1, keepdim=True))
    if "callbacks" in options:
        options["callbacks"] = [options["callbacks"]()]
    trainer = make_trainer(strategy, workers, **{"max_epochs": 2, **options})
    trainer.fit(module, DataLoader(data, GLOBAL_BATCH // workers))
    return module


def weights(module: nn.Module) -> Tensor:
    """Return all weights of a module in one vector."""
    flat = [torch.view_as_real(p) if p.is_complex() else p for p in module.parameters()]
    return torch.cat([parameter.detach().double().flatten() for parameter in flat])


def strategy_of(stage: str) -> DeepSpeedStrategy:
    """Return the strategy of a stage; ``o`` after its number offloads, ``s`` shards small parameters too."""
    strategy = DeepSpeedStrategy(
        stage=int(stage[0]), offload_optimizer="o" in stage, whole_gradients=False if "f" in stage else None
    )
    if "s" in stage:
        strategy.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return strategy


def main(out: str, runs: Sequence[str]) -> None:
    """Train cases in stages, and leave a file with the results."""
    results: dict[tuple[str, str, str], Any] = {}
    for stages, names in zip(runs[::2], runs[1::2], strict=True):
        for name, stage in itertools.product(names.split(","), stages.split(",")):
            make, options = CASES[name]
            module = train(make, strategy_of(stage), 2, **options)
            left = [
                name for owner in (*module.modules(), *module.parameters()) for name in vars(owner) if "ds_" in name
            ]
            seen = getattr(module, "seen", [])
            results[stages, name, stage] = {"weights": weights(module), "seen": seen, "left": left}
    torch.save(results, f"{out}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

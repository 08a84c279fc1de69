"""Graphs that change, backward passes of all kinds, and workers that would drift apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from tests.situations.situation import RIGHT, Situation
from tests.support.cases import make_trainer

ENGINES = ("ddp", "horovod")

# 14 samples in global batches of 4: the last batch of an epoch is smaller, and 3 workers could not divide it.
SAMPLES, GLOBAL_BATCH = 14, 4


class Base(LightningModule):
    """Two layers, for samples of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Linear(3, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.backbone(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return (self(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def weights_after(make: Callable[[], LightningModule], strategy: Any, workers: int, **options: Any) -> Tensor:
    """Train a module and return all its weights."""
    module = make()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 3, generator=generator)
    data = TensorDataset(x, x.sin().sum(1, keepdim=True))
    callbacks = [callback() for callback in options.pop("callbacks", ())]
    trainer = make_trainer(strategy, workers, callbacks=callbacks, **{"max_epochs": 2, **options})
    trainer.fit(module, DataLoader(data, GLOBAL_BATCH // workers))
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])


def as_in_one_process(make: Callable[[], LightningModule], **options: Any) -> Callable[[str], None]:
    """Return what trains a module with two workers, and asserts the weights of one process."""

    def run(strategy: str) -> None:
        alone = weights_after(make, "auto", 1, **options)
        together = weights_after(make, strategy, 2, **options)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)

    return run


def with_workers(make: Callable[[], LightningModule], **options: Any) -> Callable[[str], None]:
    """Return what trains a module with two workers."""

    def run(strategy: str) -> None:
        weights_after(make, strategy, 2, **options)

    return run


def rank(module: LightningModule) -> int:
    """Return the rank of the process that a module is trained in."""
    return module.trainer.global_rank


# ------------------------------------------------------------------------------------------- graphs that change


class ThawsInMidEpoch(Base):
    def __init__(self) -> None:
        super().__init__()
        self.backbone.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.backbone.requires_grad_(self.global_step in (2, 3, 5, 6))


class FreezesWhileGradientsAccumulate(Base):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.backbone.requires_grad_(batch_idx % 2 == 0)


class ThawsEverything(Base):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)

    def on_train_start(self) -> None:
        self.requires_grad_(True)


class ThawsTheBackbone(Base):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.2)


class ReplacesTheHead(Base):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            torch.manual_seed(100 + rank(self))
            self.head = nn.Linear(4, 1)
            if rank(self) == 0:
                self.first = self.head.weight.detach().clone()
            self.trainer.optimizers[0].add_param_group({"params": list(self.head.parameters())})


class AddsALayer(Base):
    def on_train_start(self) -> None:
        torch.manual_seed(200 + rank(self))
        self.scale = nn.Parameter(torch.rand(4))
        self.trainer.optimizers[0].add_param_group({"params": [self.scale]})

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.backbone(x)) * self.scale)


class MakesItsHeadInTheStep(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = None

    def forward(self, x: Tensor) -> Tensor:
        if self.head is None:
            self.head = nn.Linear(4, 1)
        return super().forward(x)


class HasALazyHead(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(1)


class ThawsOnOneRank(ThawsEverything):
    def on_train_start(self) -> None:
        self.head.requires_grad_(True)
        self.backbone.requires_grad_(rank(self) == 0)


class NeedsNotAll(Base):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


# ----------------------------------------------------------------------------------------------- backward passes


class Checkpointed(Base):
    """Uses a layer in three segments that reentrant checkpoints run again, and once outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.backbone(x))
        for _ in range(3):
            hidden = checkpoint(lambda h: torch.tanh(self.mix(h)), hidden, use_reentrant=True)
        return self.head(self.mix(hidden))


class Adversarial(LightningModule):
    """Two nets and two optimizers; the generator's gradients come from two batches."""

    def __init__(self, by_itself: bool, toggles: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(3, 3), nn.Linear(3, 1)
        self.by_itself, self.toggles = by_itself, toggles

    def propagate(self, loss: Tensor) -> None:
        if self.by_itself:
            loss.backward()
        else:
            self.manual_backward(loss)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        real = batch[0]
        of_generator, of_critic = self.optimizers()
        if self.toggles:
            self.toggle_optimizer(of_critic)
        of_critic.zero_grad()
        self.propagate(softplus(self.critic(self.generator(real).detach())).mean())
        self.propagate(softplus(-self.critic(real)).mean())
        self.clip_gradients(of_critic, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        of_critic.step()
        if self.toggles:
            self.untoggle_optimizer(of_critic)
            self.toggle_optimizer(of_generator)
        if batch_idx % 2 == 0:
            of_generator.zero_grad()
        self.propagate(softplus(-self.critic(self.generator(real))).mean() / 2)
        if batch_idx % 2 == 1 or self.trainer.is_last_batch:
            of_generator.step()
        if self.toggles:
            self.untoggle_optimizer(of_generator)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.3) for net in (self.generator, self.critic)]


# ------------------------------------------------------------------------------------------ gradients and hooks


class DropsLargeGradients(Base):
    def on_after_backward(self) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])
        if norm > 1.0:
            self.zero_grad()


class HooksParameters(Base):
    def on_fit_start(self) -> None:
        self.backbone.weight.register_hook(lambda gradient: gradient * torch.tensor([[0.0], [1.0], [2.0], [1.0]]))
        self.head.weight.register_hook(lambda gradient: gradient * torch.tensor([1.0, 0.0, 1.0, -1.0]))


class OddParameters(Base):
    """Parameters of all kinds: complex, scalar, empty, in channels_last, of other types."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.rand(2, 3, dtype=torch.complex64))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.exact = nn.Parameter(torch.rand(3, dtype=torch.float64))
        self.coarse = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.image = nn.Conv2d(3, 2, 1).to(memory_format=torch.channels_last)
        self.frozen = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        waves = (x.to(torch.complex64) @ self.phase.T).abs().sum(1, keepdim=True)
        exact = (x.double() * self.exact).sum(1, keepdim=True).float() + self.empty.sum()
        pixels = self.image(x[:, :, None, None].expand(-1, -1, 2, 2).contiguous(memory_format=torch.channels_last))
        coarse = (x * self.coarse.float()).sum(1, keepdim=True)
        return super().forward(x) / self.temperature + waves + exact + coarse + pixels.mean((1, 2, 3))[:, None]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


class LooksUpSparsely(Base):
    """Has an embedding with sparse gradients, of other rows on each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3, sparse=True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        found = x[:, 0] > 0.3
        return (self(x) + self.table(found.long() + 2 * (x[:, 1] > 0).long()).sum(1, keepdim=True) - y).square().mean()


# ------------------------------------------------------------------------------ who knows torch.distributed only


class KeepsAMetricInADict(Base):
    """Sets a weight to what a metric says that is not part of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"error": MeanSquaredError()}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.metrics["error"].update(self(batch[0]).detach(), batch[1])
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            self.head.bias.fill_(self.metrics["error"].compute())
        self.metrics["error"].reset()


class CentersTheGlobalBatch(Base):
    """Subtracts the mean over the samples of all ranks, which it exchanges by itself."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        total = torch.cat([x.sum(0), torch.tensor([float(len(x))])])
        if dist.is_initialized():
            dist.all_reduce(total)
        return super().training_step([x - total[:3] / total[3], y], batch_idx)


def save_after_fit(strategy: str) -> None:
    """Save on the caller what workers have trained."""
    module = Base()
    trainer = make_trainer(strategy, 2, max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(torch.rand(8, 3), torch.rand(8, 1)), 2))
    trainer.save_checkpoint("after.ckpt")
    saved = torch.load("after.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in module.state_dict().items())


# ------------------------------------------------------------------------------------------------------ drift


class ChangesOneRank(Base):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if rank(self) == 1 and self.global_step == 4:
            with torch.no_grad():
                self.head.bias[0] = torch.nextafter(self.head.bias[0], torch.tensor(9.0))


class MonitorsItsOwnLoss(Base):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("own_loss", self.current_epoch * (-1.0) ** rank(self))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "own_loss"}}


def on_engines(outcome: str = RIGHT) -> dict[str, str]:
    """Return the same outcome for DDP and Horovod."""
    return dict.fromkeys(ENGINES, outcome)


def _finetuning() -> BackboneFinetuning:
    return BackboneFinetuning(1, lambda _: 1.0, backbone_initial_lr=0.05)


_DRIFT = "DriftError 1 of 4 parameters differ between ranks after epoch 0, step 4: head.bias; rank 1 differs"

SITUATIONS = (
    Situation(
        "A backbone that `BackboneFinetuning` unfreezes",
        as_in_one_process(ThawsTheBackbone, callbacks=[_finetuning]),
        on_engines(),
    ),
    Situation("A layer unfrozen and frozen within an epoch", as_in_one_process(ThawsInMidEpoch), on_engines()),
    Situation(
        "The same with accumulation",
        as_in_one_process(ThawsInMidEpoch, accumulate_grad_batches=2),
        on_engines(),
    ),
    Situation(
        "A layer frozen while gradients accumulate",
        as_in_one_process(FreezesWhileGradientsAccumulate, accumulate_grad_batches=2),
        on_engines(),
    ),
    Situation("A module that is frozen until the fit starts", as_in_one_process(ThawsEverything), on_engines()),
    Situation("A layer that is added when the fit starts", as_in_one_process(AddsALayer), on_engines()),
    Situation("A head that is replaced in a later epoch", as_in_one_process(ReplacesTheHead), on_engines()),
    Situation(
        "A layer made in the first training step",
        with_workers(MakesItsHeadInTheStep, max_epochs=1),
        on_engines("ConfigurationError head.weight, head.bias were created or replaced in training_step"),
    ),
    Situation(
        "A lazy layer",
        with_workers(HasALazyHead, max_epochs=1),
        on_engines("ConfigurationError head.weight, head.bias of HasALazyHead have no shape yet"),
    ),
    Situation(
        "A layer unfrozen on one rank only",
        with_workers(ThawsOnOneRank),
        on_engines("DriftError Not all ranks train the same parameters"),
    ),
    Situation(
        "Parameters that are not used",
        with_workers(NeedsNotAll),
        on_engines("UnusedParametersError 2 parameters got no gradient in a step: spare.weight, spare.bias"),
    ),
    Situation("A layer used in several reentrant checkpoints", as_in_one_process(Checkpointed), on_engines()),
    Situation(
        "Manual optimization, two optimizers", as_in_one_process(lambda: Adversarial(False, False)), on_engines()
    ),
    Situation("The same with toggled optimizers", as_in_one_process(lambda: Adversarial(False, True)), on_engines()),
    Situation(
        "Manual optimization by `loss.backward()`", as_in_one_process(lambda: Adversarial(True, True)), on_engines()
    ),
    Situation(
        "`on_after_backward` that drops large gradients",
        as_in_one_process(DropsLargeGradients),
        on_engines(),
    ),
    Situation("Hooks on parameters that scale gradients", as_in_one_process(HooksParameters), on_engines()),
    Situation(
        "Complex, scalar, empty, float64, bfloat16, `channels_last` parameters",
        as_in_one_process(OddParameters),
        on_engines(),
    ),
    Situation("An embedding with sparse gradients", as_in_one_process(LooksUpSparsely), on_engines()),
    Situation("A metric outside of the module", as_in_one_process(KeepsAMetricInADict), on_engines()),
    Situation("`torch.distributed` by hand", as_in_one_process(CentersTheGlobalBatch), on_engines()),
    Situation("`save_checkpoint` on the caller after a fit", save_after_fit, on_engines()),
    Situation(
        "A parameter that one rank changes",
        with_workers(ChangesOneRank, max_epochs=1),
        {**on_engines(_DRIFT), "deepspeed_stage_2": _DRIFT},
    ),
    Situation(
        "A plateau scheduler that monitors a value of each rank",
        with_workers(MonitorsItsOwnLoss, max_epochs=3),
        on_engines("UnequalValuesError own_loss"),
    ),
)

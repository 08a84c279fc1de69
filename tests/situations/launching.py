"""What scripts hold and set, and what they look at after a run: in workers, and back on the caller."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanMetric

from itwinai import ItwinaiTrainer
from tests.situations.situation import QUIET, Situation, everywhere

DATA = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))


class Net(L.LightningModule):
    """A layer, and the samples that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer: nn.Module = nn.Linear(3, 1)
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(round(float(self.all_gather(batch[0]).sum()), 3))
        return (self(batch[0]) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(strategy: str | None, **options: Any) -> ItwinaiTrainer:
    """Return a trainer with two workers, or of one process if no strategy is named."""
    workers: dict[str, Any] = {"devices": 1} if strategy is None else {"devices": 2, "strategy": strategy}
    return ItwinaiTrainer(**{**QUIET, "max_epochs": 2, **workers, **options})


def loader(strategy: str | None, **options: Any) -> DataLoader:
    """Return a loader with global batches of 8."""
    return DataLoader(TensorDataset(DATA), 8 if strategy is None else 4, **options)


def flat(module: nn.Module) -> Tensor:
    """Return all parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def same_weights(make: Callable[[], L.LightningModule]) -> Callable[[str], None]:
    """Return a situation in which a module has to end with the weights of one process."""

    def run(strategy: str) -> None:
        ended = []
        for which in (None, strategy):
            module = make()
            trainer(which).fit(module, loader(which))
            ended.append(flat(module))
        torch.testing.assert_close(ended[1], ended[0], rtol=1e-5, atol=1e-6)

    return run


def weight_norm() -> L.LightningModule:
    net = Net()
    net.layer = nn.utils.parametrizations.weight_norm(net.layer)
    return net


def old_weight_norm() -> L.LightningModule:
    net = Net()
    net.layer = nn.utils.weight_norm(net.layer)
    return net


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.tanh(x) * 2


@functools.cache
def scale(number: int) -> float:
    return 1.0 / number


def scripted_layer() -> L.LightningModule:
    net = Net()
    net.layer = nn.Sequential(net.layer, torch.jit.script(nn.Sequential(nn.Tanh())))
    return net


class Holding(Net):
    """Has a lock and an iterator, and uses a scripted and a cached function and torch's operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.numbers = iter([1.0] * 99)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return torch.ops.aten.mul(scripted(self.layer(x)), scale(2)) * next(self.numbers)


class Layer(nn.Module):
    """A layer of the user's own, which torch compiles in place; it leaves alone one of its own classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


def compiled(how: str) -> Callable[[str], None]:
    """Return a situation with a module that is compiled as a whole, in a layer, or in place."""

    def run(strategy: str) -> None:
        calls: list[int] = []

        def backend(graph: Any, inputs: Any) -> Any:
            calls.append(1)
            return graph.forward

        ended = []
        for which in (None, strategy):
            torch._dynamo.reset()
            net: Any = Net()
            net.calls, net.layer = calls, Layer()
            if how == "layer":
                net.layer = torch.compile(net.layer, backend=backend)
            if how == "in place":
                net.layer.compile(backend=backend)
            trainer(which).fit(torch.compile(net, backend=backend) if how == "whole" else net, loader(which))
            ended.append(flat(net))
            assert calls, "nothing was compiled"
            calls.clear()
        torch.testing.assert_close(ended[1], ended[0], rtol=1e-5, atol=1e-6)

    return run


def settings(strategy: str) -> None:
    class Looking(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.found = (torch.get_float32_matmul_precision(), np.geterr()["divide"], str(torch.ones(1).dtype))

    before = torch.get_default_dtype()
    with np.errstate(divide="raise"):
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        try:
            net = Looking().float()
            trainer(strategy, max_epochs=1).fit(net, loader(strategy))
        finally:
            torch.set_default_dtype(before)
            torch.set_float32_matmul_precision("highest")
    assert net.found == ("medium", "raise", "torch.float64")


class Data(L.LightningDataModule):
    """Finds out in ``setup("fit")`` what ``test`` needs."""

    def __init__(self, strategy: str | None) -> None:
        super().__init__()
        self.strategy = strategy
        self.mean = 0.0

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.mean = float(DATA.mean())

    def train_dataloader(self) -> DataLoader:
        return loader(self.strategy)

    def test_dataloader(self) -> DataLoader:
        assert self.mean != 0.0
        return loader(self.strategy)


class Tested(Net):
    """Fills a metric that it does not log."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.mean.update(batch[0].mean(dim=1))


def state_for_test(strategy: str) -> None:
    net, data = Tested(), Data(strategy)
    runner = trainer(strategy, max_epochs=1)
    runner.fit(net, data)
    runner.test(net, data, verbose=False)
    assert data.mean == float(DATA.mean())
    torch.testing.assert_close(net.mean.compute(), DATA.mean())


def shared_recorder(strategy: str) -> None:
    seen: list[float] = []
    net = Net()
    net.seen = seen
    trainer(strategy, max_epochs=1).fit(net, loader(strategy))
    one = Net()
    trainer(None, max_epochs=1).fit(one, loader(None))
    assert seen == one.seen and net.seen is seen


def save_on_caller(strategy: str) -> None:
    class Momentum(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    straight = Momentum()
    trainer(None, max_epochs=4).fit(straight, loader(None))
    first = trainer(strategy)
    first.fit(Momentum(), loader(strategy))
    first.save_checkpoint("on_caller.ckpt")
    again = Momentum()
    trainer(strategy, max_epochs=4).fit(again, loader(strategy), ckpt_path="on_caller.ckpt")
    torch.testing.assert_close(flat(again), flat(straight), rtol=1e-5, atol=1e-6)


def second_fit(generator: bool) -> Callable[[str], None]:
    """Return a situation in which a trainer fits twice, and goes on drawing where it was."""

    def run(strategy: str) -> None:
        orders = []
        for which in (None, strategy):
            net, runner = Net(), trainer(which)
            options = {"generator": torch.Generator().manual_seed(3)} if generator else {}
            training = loader(which, shuffle=True, **options)
            torch.manual_seed(5)
            runner.fit(net, training)
            runner.fit_loop.max_epochs = 4
            runner.fit(net, training)
            orders.append((net.seen, float(torch.rand(1))))
        assert len(orders[0][0]) == 12
        assert orders[1] == orders[0]

    return run


def parameter_hooks(strategy: str) -> None:
    def make() -> L.LightningModule:
        net = Net()
        net.layer.weight.register_hook(lambda gradient: gradient * torch.tensor([0.0, 1.0, 2.0]))  # type: ignore[union-attr]
        return net

    same_weights(make)(strategy)


class OnDisk(Dataset):
    """Reads its samples from a file that is open all the time, in two steps."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(np.arange(2000, dtype=np.float32).tobytes())
        self.file = path.open("rb", buffering=0)

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.file.seek(4 * index)
        return torch.from_numpy(np.frombuffer(self.file.read(4), np.float32).copy()), index


class ComparingSamples(Net):
    """Counts the samples that are not those of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.wrong += int(self.all_gather((batch[0][:, 0] != batch[1]).sum()).sum())
        return self(torch.ones(1, 3)).mean()


def open_file(strategy: str) -> None:
    """Each worker reads what it looks for, although all are copies of one process with one open file."""
    module = ComparingSamples()
    data = OnDisk(Path(f"{strategy}.bin"))
    trainer(strategy, max_epochs=1).fit(module, DataLoader(data, 4))
    assert module.wrong == 0


class Preparing(Net):
    """Makes what has no weights in `setup`."""

    def setup(self, stage: str) -> None:
        self.loss = nn.MSELoss()
        self.activation = torch.relu
        self.scaled = functools.partial(torch.mul, other=2.0)
        self.mean = MeanMetric()
        self.array = np.zeros(1_000_000)
        self.counter = collections.Counter()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.array[batch_idx] = 1
        self.counter["steps"] += 1
        self.mean.update(batch[0].mean(dim=1))
        return self.loss(self.scaled(self.activation(self(batch[0]))), batch[0][:, :1])


def made_in_setup(strategy: str) -> None:
    """What was made in the workers is there on the caller, with what it has come to."""
    found = []
    for which in (None, strategy):
        module = Preparing()
        trainer(which, max_epochs=1).fit(module, loader(which))
        output = module.scaled(module.activation(module(DATA)))
        found.append((float(module.loss(output, DATA[:, :1])), float(module.mean.compute())))
        assert module.array.sum() == module.counter["steps"] == 3
    assert found[1] == pytest.approx(found[0], abs=1e-5)


class StopTraining(Exception):
    """Of the user's own."""


class Stopping(Net):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise StopTraining


def exception_around_fit(strategy: str) -> None:
    """After an exception that the script catches the weights are those of that moment."""
    ended = []
    for which in (None, strategy):
        module = Stopping()
        with pytest.raises(StopTraining):
            trainer(which).fit(module, loader(which))
        ended.append((flat(module), module.seen))
    assert ended[1][1] == ended[0][1] and len(ended[0][1]) == 2
    torch.testing.assert_close(ended[1][0], ended[0][0], rtol=1e-5, atol=1e-6)


def autocast_around_fit(strategy: str) -> None:
    """The workers compute in the precision of the context that the script calls the trainer in."""
    ended = []
    for which in (None, strategy):
        module = Net()
        with torch.autocast("cpu", torch.bfloat16):
            trainer(which, max_epochs=1).fit(module, loader(which))
        ended.append(flat(module))
    exact = Net()
    trainer(None, max_epochs=1).fit(exact, loader(None))
    # A mean of rounded gradients is not the gradient of the whole batch, rounded; without the context all are exact.
    torch.testing.assert_close(ended[1], ended[0], rtol=5e-3, atol=5e-3)
    assert not torch.allclose(flat(exact), ended[1], rtol=1e-6, atol=1e-7)


class Averages(L.Callback):
    """Keeps an average of the module, and what it has seen in a tensor and an array."""

    def __init__(self, average: nn.Module, steps: Tensor, losses: np.ndarray) -> None:
        self.average, self.steps, self.losses = average, steps, losses

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        self.average.update_parameters(pl_module.layer)
        self.steps += 1
        self.losses[trainer.global_step - 1] = 1.0


def held_by_the_script(strategy: str) -> None:
    """An average that a callback has been given is the trained one, also for who has made it."""
    ended = []
    for which in (None, strategy):
        module = Net()
        average = torch.optim.swa_utils.AveragedModel(module.layer)
        steps, losses = torch.zeros(()), np.zeros(9)
        trainer(which, callbacks=[Averages(average, steps, losses)]).fit(module, loader(which))
        assert steps == losses.sum() == average.n_averaged == 6
        ended.append(flat(average))
    torch.testing.assert_close(ended[1], ended[0], rtol=1e-5, atol=1e-6)


class Slotted:
    """Has an attribute in a slot."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


class Tallies(list[int]):
    """A list with an attribute."""

    total = 0


class Marks(L.Callback):
    """Sets attributes of the trainer, as callbacks do to tell others of something."""

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        trainer.mark, trainer.tallies = "marked", Tallies([1])


class Odd(Net):
    """Holds what has no plain attributes, and a function that only workers have."""

    activation: Any

    def __init__(self) -> None:
        super().__init__()
        self.slotted, self.tallies, self.activation = Slotted(), Tallies(), None

    def on_train_start(self) -> None:
        self.activation = lambda x: x + 1

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.slotted.steps += 1
        self.tallies.append(batch_idx)
        self.tallies.total += 1
        return super().training_step(batch, batch_idx)


def slots_and_attributes(strategy: str) -> None:
    for which in (None, strategy):
        module = Odd()
        slotted, tallies = module.slotted, module.tallies
        runner: Any = trainer(which, max_epochs=1, callbacks=[Marks()])
        runner.fit(module, loader(which))
        assert module.slotted is slotted and slotted.steps == 3
        assert module.tallies is tallies and tallies == [0, 1, 2] and tallies.total == 3
        assert runner.mark == "marked" and type(runner.tallies) is Tallies
        assert module.activation(1) == 2


class Decaying(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


def optimizers_on_caller(strategy: str) -> None:
    """The optimizers are those of the caller's parameters, at the end of the fit; a second fit makes others."""
    found = []
    for which in (None, strategy):
        module, runner = Decaying(), trainer(which)
        for epochs in (2, 4):
            runner.fit_loop.max_epochs = epochs
            runner.fit(module, loader(which))
            optimizer, schedule = runner.optimizers[0], runner.lr_scheduler_configs[0]
            assert optimizer.param_groups[0]["params"][0] is module.layer.weight
            assert schedule.scheduler.optimizer is optimizer
            moments = optimizer.state[module.layer.weight]["exp_avg"]
            found.append((optimizer.param_groups[0]["lr"], schedule.scheduler.last_epoch, moments))
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one[:2] == other[:2]
        torch.testing.assert_close(one[2], other[2], rtol=1e-4, atol=1e-6)


SITUATIONS = (
    Situation("`weight_norm`, a parametrization", same_weights(weight_norm), everywhere()),
    Situation("`weight_norm` of the old kind", same_weights(old_weight_norm), everywhere()),
    Situation(
        "A scripted layer",
        same_weights(scripted_layer),
        everywhere(deepspeed_stage_3="ConfigurationError the scripted layer layer.1"),
    ),
    Situation("A lock, an iterator, scripted and cached functions, `torch.ops`", same_weights(Holding), everywhere()),
    Situation(
        "A compiled layer",
        compiled("layer"),
        everywhere(deepspeed_stage_3="ConfigurationError the compiled layer layer"),
    ),
    Situation("A layer compiled in place", compiled("in place"), everywhere()),
    Situation("A compiled module", compiled("whole"), {"ddp": "right"}),
    Situation("Process-wide settings of torch and numpy", settings, everywhere()),
    Situation("Hooks on parameters, registered in `__init__`", parameter_hooks, everywhere()),
    Situation("`test` uses what `setup('fit')` has found; a metric that is not logged", state_for_test, everywhere()),
    Situation("An object that script and module share", shared_recorder, everywhere()),
    Situation(
        "Slots, lists with attributes, functions, and attributes of the trainer", slots_and_attributes, everywhere()
    ),
    Situation(
        "`trainer.optimizers` and schedulers on the caller after a fit",
        optimizers_on_caller,
        {"ddp": "right", "horovod": "right"},
    ),
    Situation("`save_checkpoint` on the caller after a fit, and on from there", save_on_caller, everywhere()),
    Situation("A dataset that reads from a file which it has opened in `__init__`", open_file, everywhere()),
    Situation("Losses, metrics and functions that are made in `setup`", made_in_setup, everywhere()),
    Situation(
        "An average of the weights, a tensor and an array that a callback has from the script",
        held_by_the_script,
        everywhere(),
    ),
    Situation("An exception around `fit` that the script catches", exception_around_fit, {"ddp": "right"}),
    Situation("`torch.autocast` around `fit`", autocast_around_fit, {"ddp": "right"}),
    Situation("A second fit continues the random numbers", second_fit(generator=False), everywhere()),
    Situation("A second fit with a generator of its own", second_fit(generator=True), everywhere()),
)

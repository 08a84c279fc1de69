"""Loaders, samplers and random numbers that are not the plain ones."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    get_worker_info,
)

from itwinai import ItwinaiTrainer
from tests.situations.situation import QUIET, Situation, everywhere


class Fitted(L.LightningModule):
    """A line through points; it keeps what each step of each rank has got, the last step of an epoch first."""

    def __init__(self, loaders: Callable[[], Any] | None = None, validation: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        with torch.no_grad():
            self.layer.weight.fill_(0.3)
            self.layer.bias.fill_(-0.1)
        self.loaders = loaders
        self.validation = validation
        self.steps: list[list[int]] = []

    def train_dataloader(self) -> Any:
        assert self.loaders is not None
        return self.loaders()

    def val_dataloader(self) -> Any:
        return [] if self.validation is None else self.validation()

    def loss(self, batch: Any) -> Tensor:
        x = (batch[0] if isinstance(batch, (list, tuple)) else batch).float().reshape(-1, 1)
        return ((self.layer(x / 8) - x.sin()) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = list(batch.values()) if isinstance(batch, dict) else [batch]
        self.note([part for part in parts if part is not None])
        return torch.stack([self.loss(part) for part in parts if part is not None]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return batch

    def note(self, parts: list[Any]) -> None:
        """Keep the samples of a step, those of all ranks."""
        own = [int(x) for part in parts for x in (part[0] if isinstance(part, (list, tuple)) else part).flatten()]
        numbers = torch.full((32,), -1)
        numbers[: len(own)] = torch.tensor(own)
        gathered = self.all_gather(numbers).flatten().tolist()
        self.steps.append([int(number) for number in gathered if number >= 0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def points(number: int, *args: Any, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(number)), *args, **options)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def train(strategy: str, module: L.LightningModule, *loaders: Any, **options: Any) -> None:
    options = {"max_epochs": 2, **options}
    if strategy == "stock":
        L.Trainer(devices=1, **QUIET, **options).fit(module, *loaders)
    else:
        ItwinaiTrainer(devices=2, strategy=strategy, **QUIET, **options).fit(module, *loaders)


def same_as_stock(
    strategy: str,
    loaders: Callable[[int], Any],
    validation: Callable[[int], Any] | None = None,
    exact: bool = True,
    **options: Any,
) -> None:
    """Train with two workers, and in one process of stock lightning with the same global batches; compare.

    Args:
        strategy: of the two workers.
        loaders: makes the training loaders of a number of workers.
        validation: makes the validation loader.
        exact: whether a worker without a sample of its own has one of the same global batch.
        **options: of the trainers.
    """
    modules = []
    for name, workers in ((strategy, 2), ("stock", 1)):
        torch.manual_seed(3)
        random.seed(3)
        module = Fitted(
            lambda workers=workers: loaders(workers),  # type: ignore[misc]
            None if validation is None else lambda workers=workers: validation(workers),  # type: ignore[misc]
        )
        train(name, module, **options)
        modules.append(module)
    ours, stock = modules
    assert len(ours.steps) == len(stock.steps)
    for mine, expected in zip(ours.steps, stock.steps, strict=True):
        assert set(expected) == set(mine) if exact else set(expected) <= set(mine), (ours.steps, stock.steps)
    torch.testing.assert_close(weights(ours), weights(stock), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ orders and samplers


class Generators:
    """Makes loaders that draw from one generator in all epochs, as many as there are numbers of workers."""

    def __init__(self, processes: int, replacement: bool) -> None:
        self.processes = processes
        self.replacement = replacement
        self.of_workers = {workers: torch.Generator().manual_seed(5) for workers in (1, 2)}

    def __call__(self, workers: int) -> DataLoader:
        data = TensorDataset(torch.arange(12))
        sampler = RandomSampler(data, replacement=self.replacement, generator=self.of_workers[workers])
        return DataLoader(data, 4 // workers, sampler=sampler, num_workers=self.processes)


def own_generator(strategy: str) -> None:
    """Three epochs, without and with processes that look ahead."""
    same_as_stock(strategy, Generators(processes=0, replacement=False), max_epochs=3)
    same_as_stock(strategy, Generators(processes=1, replacement=True), max_epochs=3)


class OfRank(Sampler[Any]):
    """Every n-th index, alone or in batches, by the rank that torch.distributed or the environment tells."""

    def __init__(self, size: int, batch_size: int | None = None, shuffle: bool = False) -> None:
        self.size = size
        self.batch = batch_size
        self.shuffle = shuffle

    def place(self) -> tuple[int, int]:
        if dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def __len__(self) -> int:
        return len(list(self.batches(list(range(self.size)))))

    def __iter__(self) -> Iterator[Any]:
        return self.batches(torch.randperm(self.size).tolist() if self.shuffle else list(range(self.size)))

    def batches(self, order: list[int]) -> Iterator[Any]:
        rank, size = self.place()
        mine = order[rank::size]
        return iter(mine if self.batch is None else BatchSampler(mine, self.batch, False))


def sampler_of_rank(strategy: str) -> None:
    """17 samples, of which rank 0 has one more: in the order of one process, and shuffled in batches."""
    same_as_stock(strategy, lambda workers: points(17, 4 // workers, sampler=OfRank(17)), exact=False)
    module = Fitted()
    data = TensorDataset(torch.arange(16))
    train(strategy, module, DataLoader(data, batch_sampler=OfRank(16, 2, shuffle=True)))
    assert [sorted(itertools.chain(*steps)) for steps in (module.steps[:4], module.steps[4:])] == [list(range(16))] * 2


def split_other_loader(strategy: str) -> None:
    """Batches of a loader that is not a DataLoader shall be divided."""

    class Batches:
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.arange(8).view(2, 4))

        def __len__(self) -> int:
            return 2

    train(strategy, Fitted(), Batches(), split_batches=True)


def split_distributed_sampler(strategy: str) -> None:
    """The user's DistributedSampler divides the samples; the batch size is that of the global batch."""
    module = Fitted()
    data = TensorDataset(torch.arange(8))

    class OwnRank(DistributedSampler):
        def __iter__(self) -> Iterator[int]:
            self.rank = module.global_rank
            return super().__iter__()

    sampler = OwnRank(data, 2, 0, shuffle=False)
    train(strategy, module, DataLoader(data, 4, sampler=sampler), split_batches=True, max_epochs=1)
    assert [sorted(step) for step in module.steps] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def no_batch_size(strategy: str) -> None:
    """A dataset that makes batches; and a batch sampler without a batch size."""

    class Batches(Dataset[Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Tensor:
            return torch.arange(4) + 4 * index

    module = Fitted()
    train(strategy, module, DataLoader(Batches(), batch_size=None), max_epochs=1)
    assert [sorted(step) for step in module.steps] == [list(range(8)), list(range(8, 16))]
    module = Fitted()
    lists: Any = [[0, 1, 2], [3], [4, 5], [6, 7]]
    train(strategy, module, DataLoader(TensorDataset(torch.arange(8)), batch_sampler=lists), max_epochs=1)
    assert [sorted(step) for step in module.steps] == [[0, 1, 2, 3], [4, 5, 6, 7]]


# --------------------------------------------------------------------------------------------- loaders of other classes


class ByIndices(Dataset[Tensor]):
    """Takes a list of indices at once, as of large arrays on disk."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, indices: list[int]) -> Tensor:
        assert isinstance(indices, list), "one index at a time"
        return torch.tensor(indices)


class ArrayLoader(DataLoader):
    """Has arguments of its own, and lets its sampler draw the batches of a loader without a batch size."""

    def __init__(self, size: int, mini_batch: int, **options: Any) -> None:
        self.size = size
        batches = BatchSampler(SequentialSampler(range(size)), mini_batch, drop_last=False)
        super().__init__(ByIndices(), sampler=batches, batch_size=None, **options)


class CountingLoader(DataLoader):
    """Computes its length in the constructor."""

    def __init__(self, dataset: Any, size: int) -> None:
        super().__init__(dataset, size)
        self.number = -(-len(dataset) // size)

    def __len__(self) -> int:
        return self.number


def loader_subclasses(strategy: str) -> None:
    """Arguments by position, of other names, a length from the constructor; training and prediction."""
    for make in (
        lambda workers: ArrayLoader(10, 4 // workers),
        lambda workers: CountingLoader(TensorDataset(torch.arange(10)), 4 // workers),
    ):
        same_as_stock(strategy, make, max_epochs=1)
    trainer = ItwinaiTrainer(devices=2, strategy=strategy, **QUIET)
    predicted = trainer.predict(Fitted(), ArrayLoader(10, 2))
    assert torch.cat(predicted).tolist() == list(range(10))


def sampler_left_out(strategy: str) -> None:
    """A loader that draws its batches from something else than its sampler."""

    class Own(DataLoader):
        def __iter__(self) -> Any:
            return iter(torch.arange(8).view(2, 4))

    train(strategy, Fitted(), Own(TensorDataset(torch.arange(8)), 4))


# ---------------------------------------------------------------------------------------------- weights of uneven parts


class GlobalLoss(Fitted):
    """Each worker's loss is that of all samples of the step already."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].float().reshape(-1, 1)
        errors = ((self.layer(x / 8) - x.sin()) ** 2).sum()
        sums = self.all_gather(torch.stack([errors.detach(), torch.tensor(float(len(x)))])).reshape(-1, 2).sum(0)
        self.note([batch])
        return errors * self.trainer.world_size / sums[1]


def global_loss(strategy: str) -> None:
    ours, stock = GlobalLoss(), Fitted()
    train(strategy, ours, points(11, 2), weigh_uneven_batches=False)
    train("stock", stock, points(11, 4))
    torch.testing.assert_close(weights(ours), weights(stock), rtol=0, atol=1e-5)


class Logging(Fitted):
    """Logs the samples' mean and sum in every step, and once in the epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].float()
        for on_step in (True, False):
            which = {"on_step": on_step, "on_epoch": not on_step, "sync_dist": True}
            self.log(f"mean_{on_step}", x.mean(), **which)
            self.log(f"sized_{on_step}", x.mean(), batch_size=len(x), **which)
            self.log(f"sum_{on_step}", x.sum(), reduce_fx="sum", **which)
        return self.loss(batch)


def logged_steps(strategy: str) -> None:
    """Last global batches of 1 sample, of which rank 1 has none of its own, and of 3."""
    for number in (9, 11):
        values = []
        for name, size in ((strategy, 2), ("stock", 4)):
            module = Logging()
            train(name, module, points(number, size), max_epochs=1)
            values.append({key: float(value) for key, value in module.trainer.callback_metrics.items()})
        ours, stock = values
        assert ours.keys() == stock.keys() and len(ours) == 6
        # The step's sum is reduced to a sum over the ranks.
        torch.testing.assert_close(ours, stock)


def reloaded(strategy: str) -> None:
    """New loaders in every epoch, with a last global batch that cannot be divided evenly."""
    same_as_stock(
        strategy,
        lambda workers: points(7, 4 // workers, shuffle=True),
        max_epochs=3,
        reload_dataloaders_every_n_epochs=1,
    )


# Numbers of samples of two loaders, so that in no step their ends ask for different weights.
LIKE_ENDS: dict[Any, tuple[int, int]] = {"max_size_cycle": (7, 7), "min_size": (8, 11), "max_size": (4, 7)}


def several_loaders(strategy: str) -> None:
    """All ways to combine training loaders."""

    def combined(mode: Any, batch_size: int) -> CombinedLoader:
        return CombinedLoader(
            {str(number): points(size, batch_size) for number, size in enumerate(LIKE_ENDS[mode])}, mode
        )

    for mode in LIKE_ENDS:
        same_as_stock(strategy, lambda workers, mode=mode: combined(mode, 4 // workers))  # type: ignore[misc]


def uneven_loaders(strategy: str) -> None:
    """Two loaders of which only one ends unevenly in a step."""
    loaders = {"a": points(8, 2), "b": points(7, 2)}
    train(strategy, Fitted(), CombinedLoader(loaders, "max_size_cycle"))


def shuffled_validation(strategy: str) -> None:
    """Sanity steps, and validation in the midst of an epoch and at its end."""
    same_as_stock(
        strategy,
        lambda workers: points(12, 4 // workers, shuffle=True),
        lambda workers: points(9, 4 // workers, shuffle=True),
        max_epochs=3,
        val_check_interval=2,
        num_sanity_val_steps=1,
    )


# -------------------------------------------------------------------------------------------------- iterable datasets


class Stream(IterableDataset):
    """The samples in a random order, divided among the ranks or not."""

    def __init__(self, size: int, module: L.LightningModule | None = None, divided: bool = False) -> None:
        self.size = size
        self.module = module
        self.divided = divided

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(self.size)
        if self.divided:
            assert self.module is not None
            order = order[self.module.global_rank :: self.module.trainer.world_size]
        info = get_worker_info()
        return iter(order if info is None else order[info.id :: info.num_workers])


def predicted_stream(strategy: str) -> None:
    """Each sample once, from a dataset that each worker has whole, and from one that divides itself."""
    for size, divided in itertools.product((1, 5, 8), (False, True)):
        module = Fitted()
        trainer = ItwinaiTrainer(devices=2, strategy=strategy, **QUIET)
        if divided and size == 1:
            continue
        predicted = trainer.predict(module, DataLoader(Stream(size, module, divided), 1))
        assert sorted(torch.cat(predicted).tolist()) == list(range(size))


class NoisyStream(Fitted):
    """Draws numbers between the batches of a dataset that divides one random order."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.rand(1 + self.global_rank)
        return super().training_step(batch, batch_idx)


def divided_stream(strategy: str) -> None:
    """A dataset that permutes with the global generator and takes every n-th sample, with and without processes."""
    for processes in (0, 1):
        module = NoisyStream()
        train(strategy, module, DataLoader(Stream(8, module, divided=True), 2, num_workers=processes))
        epochs = [list(itertools.chain(*steps)) for steps in (module.steps[:2], module.steps[2:])]
        assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 2
        assert epochs[0] != epochs[1]


class Unequal(IterableDataset):
    """Has a length, and one batch more on rank 0."""

    def __init__(self, module: L.LightningModule) -> None:
        self.module = module

    def __len__(self) -> int:
        return 6 - 2 * self.module.global_rank

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


def unequal_lengths(strategy: str) -> None:
    module = Fitted()
    train(strategy, module, DataLoader(Unequal(module), 2))


# -------------------------------------------------------------------------------------------------- random numbers


class Augmented(Dataset[Any]):
    """Adds noise from all generators to its samples."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index]), torch.tensor([float(torch.rand(())), np.random.rand(), random.random()])


class Noisy(Fitted):
    """Keeps what was drawn in the steps of each rank, and what was drawn before training on each."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[list[list[float]]] = []
        self.before: list[list[float]] = []
        self.dropout = nn.Dropout(0.5)

    def draw(self) -> list[float]:
        return [float(torch.rand(())), np.random.rand(), random.random()]

    def of_all_ranks(self, numbers: list[float]) -> list[list[float]]:
        gathered: list[list[float]] = self.all_gather(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return gathered

    def setup(self, stage: str) -> None:
        self.of_setup = self.draw()

    def on_train_start(self) -> None:
        self.before = self.of_all_ranks([*self.of_setup, *self.draw()])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        dropped = self.dropout(torch.ones(64)).tolist()
        self.drawn.append(self.of_all_ranks([*batch[1][0].tolist(), *self.draw(), *dropped]))
        return self.loss(batch)


def own_noise(strategy: str) -> None:
    """What ranks draw in steps and datasets differs; what they draw before is the same; runs repeat."""
    for processes in (0, 1):
        runs = []
        for _ in range(2):
            torch.manual_seed(3), np.random.seed(3), random.seed(3)
            module = Noisy()
            train(strategy, module, DataLoader(Augmented(), 1, shuffle=True, num_workers=processes))
            runs.append(module)
        module = runs[0]
        assert module.before[0] == module.before[1]
        numbers = [list(zip(*of_step, strict=True))[:6] for of_step in module.drawn]
        assert all(one != other for step in numbers for one, other in step), numbers
        flat = [number for step in numbers for pair in step for number in pair]
        assert len(set(flat)) == len(flat)
        assert all(of_step[0][6:] != of_step[1][6:] for of_step in module.drawn)
        assert runs[0].drawn == runs[1].drawn


SITUATIONS = (
    Situation("A shuffled loader with a generator of its own, over three epochs", own_generator, everywhere()),
    Situation("A sampler or batch sampler that divides itself by rank", sampler_of_rank, everywhere()),
    Situation(
        "`split_batches=True` and a loader that is not a DataLoader",
        split_other_loader,
        everywhere("ConfigurationError is not a DataLoader"),
    ),
    Situation("`split_batches=True` and a DistributedSampler", split_distributed_sampler, everywhere()),
    Situation("`batch_size=None`, and batch samplers without a batch size", no_batch_size, everywhere()),
    Situation("Loader classes with arguments, samplers and lengths of their own", loader_subclasses, everywhere()),
    Situation(
        "A loader class that does not draw from its sampler",
        sampler_left_out,
        everywhere("ConfigurationError does not draw from its sampler"),
    ),
    Situation("A loss that is global already, and an uneven last batch", global_loss, everywhere()),
    Situation("Values of uneven steps, logged with `sync_dist`", logged_steps, everywhere()),
    Situation("`reload_dataloaders_every_n_epochs` and an uneven last batch", reloaded, everywhere()),
    Situation("Several training loaders with like ends", several_loaders, everywhere()),
    Situation(
        "Several training loaders with unlike, uneven ends",
        uneven_loaders,
        everywhere("ConfigurationError divided unevenly"),
    ),
    Situation("A shuffled validation loader", shuffled_validation, everywhere()),
    Situation(
        "Prediction over an iterable dataset",
        predicted_stream,
        everywhere(deepspeed_stage_3="ConfigurationError equally many batches"),
    ),
    Situation("An iterable dataset that permutes and divides itself", divided_stream, everywhere()),
    Situation(
        "An iterable dataset of unequal lengths", unequal_lengths, everywhere("ConfigurationError on ranks 0 to 1")
    ),
    Situation("Dropout, noise and augmentation", own_noise, everywhere()),
)

"""What `itwinai.compat.lightning_dataloaders` takes for granted about private names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler

from itwinai.compat import lightning_dataloaders
from itwinai.data.samplers import ResumableSampler
from itwinai.data.stateful_loader import StreamLoader
from itwinai.errors import ConfigurationError
from tests.compat.examples import ENTRY_POINTS, Numbers, Tiny, looked, make_trainer, numbers
from tests.support.cases import loader
from tests.support.cases import make_trainer as itwinai_trainer


class Stream(IterableDataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))


def batches_of(loader: Iterable[Tensor]) -> list[Any]:
    return [batch.tolist() for batch in loader]


class DistributedStrategy(SingleDeviceStrategy):
    """Runs in this process, and calls itself distributed, so that loaders are prepared."""

    def __init__(self, is_distributed: bool = True) -> None:
        super().__init__(device=torch.device("cpu"))
        self.is_distributed = is_distributed

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        return {"num_replicas": 2, "rank": 1}


class Preparation:
    """Prepares loaders, and remembers them; each gets the batches of another one."""

    def __init__(self) -> None:
        self.prepared: list[tuple[object, RunningStage, bool]] = []

    def __call__(self, loader: DataLoader, stage: RunningStage, map_style: bool) -> DataLoader:
        self.prepared.append((loader, stage, map_style))
        return numbers(3, batch_size=1)


class Watched(Tiny):
    """Remembers the batches that it gets from each entry point."""

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, list[Any]] = {name: [] for name in ENTRY_POINTS}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.got["fit"].append(batch.tolist())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.got["validate"].append(batch.tolist())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.got["test"].append(batch.tolist())

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        self.got["predict"].append(batch.tolist())
        return batch


def prepared_trainer(prepare: Callable[..., DataLoader], **options: Any) -> Trainer:
    trainer = make_trainer(**{"strategy": DistributedStrategy(), **options})
    lightning_dataloaders.replace_dataloader_preparation(trainer, prepare)
    return trainer


STAGES = {
    "fit": RunningStage.TRAINING,
    "validate": RunningStage.VALIDATING,
    "test": RunningStage.TESTING,
    "predict": RunningStage.PREDICTING,
}


@pytest.mark.parametrize("map_style", [True, False])
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_loaders_are_prepared_by_us(entry_point: str, map_style: bool) -> None:
    prepare, module = Preparation(), Watched()
    loader = numbers(8) if map_style else DataLoader(Stream(8), batch_size=2)
    getattr(prepared_trainer(prepare), entry_point)(module, loader)
    assert prepare.prepared == [(loader, STAGES[entry_point], map_style)]
    assert module.got[entry_point] == [[0], [1], [2]]


def test_loader_for_validation_during_fit_is_prepared_once_for_sanity_check_and_epochs() -> None:
    prepare, module, loaders = Preparation(), Watched(), (numbers(8), numbers(6))
    prepared_trainer(prepare, max_epochs=2, num_sanity_val_steps=1).fit(module, *loaders)
    assert sorted(prepare.prepared, key=lambda prepared: prepared[1]) == [
        (loaders[0], RunningStage.TRAINING, True),
        (loaders[1], RunningStage.VALIDATING, True),
    ]
    assert module.got["validate"] == [[0]] + 2 * [[0], [1], [2]]


def test_each_loader_of_a_collection_is_prepared() -> None:
    prepare, module, loaders = Preparation(), Watched(), [numbers(8), numbers(6)]
    prepared_trainer(prepare).predict(module, loaders)
    assert [loader for loader, _, _ in prepare.prepared] == loaders
    assert module.got["predict"] == 2 * [[0], [1], [2]]


class NoLoader:
    """Yields batches, and is not a DataLoader."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.tensor([5, 6])])


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("kind", ["distributed sampler", "no loader", "left alone", "one process"])
def test_other_loaders_are_left_to_lightning(kind: str, entry_point: str) -> None:
    prepare, module = Preparation(), Watched()
    options: dict[str, Any] = {}
    loader: Any = numbers(8)
    expected = [[0, 1], [2, 3], [4, 5], [6, 7]]
    if kind == "distributed sampler":
        sampler: DistributedSampler[int] = DistributedSampler(Numbers(8), num_replicas=2, rank=1, shuffle=False)
        loader, expected = numbers(8, sampler=sampler), [[1, 3], [5, 7]]
    elif kind == "no loader":
        loader, expected = NoLoader(), [[5, 6]]
    elif kind == "left alone":
        options = {"use_distributed_sampler": False}
    else:
        options = {"strategy": DistributedStrategy(is_distributed=False)}
    getattr(prepared_trainer(prepare, **options), entry_point)(module, loader)
    # A single worker's loader is prepared too for training, to go on in mid-epoch, and for prediction.
    stages = [stage for _, stage, _ in prepare.prepared]
    if kind == "one process" and entry_point in ("fit", "predict"):
        assert stages == [STAGES[entry_point]]
        expected = [[0], [1], [2]]
    else:
        assert stages == []
    assert module.got[entry_point] == expected


@pytest.mark.parametrize("kind", ["distributed sampler", "no loader", "left alone", "plain"])
def test_loaders_that_the_user_divides_are_prepared_by_another_function(kind: str) -> None:
    loader: Any = NoLoader() if kind == "no loader" else numbers(8)
    if kind == "distributed sampler":
        loader = numbers(8, sampler=DistributedSampler(Numbers(8), num_replicas=2, rank=1, shuffle=False))
    trainer = make_trainer(strategy=DistributedStrategy(), use_distributed_sampler=kind != "left alone")
    others: list[Any] = []

    def other(loader: Any, stage: RunningStage) -> Any:
        others.append((loader, stage))
        return [torch.tensor([0])]

    lightning_dataloaders.replace_dataloader_preparation(trainer, Preparation(), other)
    module = Watched()
    trainer.test(module, loader)
    assert others == ([] if kind == "plain" else [(loader, RunningStage.TESTING)])
    assert module.got["test"] == ([[0], [1], [2]] if kind == "plain" else [[0]])


def test_collection_of_the_user_is_prepared_from_the_user_s_loaders_again() -> None:
    prepare = Preparation()
    loaders = [numbers(8), DataLoader(Stream(8), batch_size=2)]
    collection = CombinedLoader(list(loaders), "sequential")
    for _ in range(2):
        prepared_trainer(prepare).predict(Watched(), collection)
    assert [loader for loader, _, _ in prepare.prepared] == 2 * loaders


def test_preparation_travels_with_the_trainer() -> None:
    trainer = cloudpickle.loads(cloudpickle.dumps(prepared_trainer(Preparation())))
    connector = trainer._data_connector
    assert connector._prepare_dataloader.args[0] is connector
    assert connector._prepare_dataloader(numbers(2), shuffle=False, mode=RunningStage.TESTING).dataset.size == 3
    module = Watched()
    trainer.test(module, numbers(8))
    assert module.got["test"] == [[0], [1], [2]]


class Reversed(Sampler[Any]):
    """Indices from the last to the first, alone or in batches, which remembers the epochs announced to it."""

    def __init__(self, size: int, batch_size: int | None = None) -> None:
        self.size = size
        self.batch_size = batch_size
        self.epochs: list[int] = []

    @property
    def sampler(self) -> Reversed:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[Any]:
        indices = reversed(range(self.size))
        return iter(BatchSampler(indices, self.batch_size, False)) if self.batch_size else indices


def in_hook(make: Callable[[], DataLoader], **options: Any) -> list[Any]:
    """Make a loader in a module's hook, draw it from another sampler, and return the batches trained on."""

    class WithLoader(Watched):
        def train_dataloader(self) -> DataLoader:
            return make()

    def prepare(loader: DataLoader, stage: RunningStage, map_style: bool) -> DataLoader:
        if not map_style:
            return lightning_dataloaders.with_batch_size(loader, 3)
        batched = loader.batch_sampler is not None
        return lightning_dataloaders.with_sampler(loader, Reversed(len(loader.dataset), 3 if batched else None), stage)

    module = WithLoader()
    prepared_trainer(prepare, **options).fit(module)
    return module.got["fit"]


class ScaledLoader(DataLoader):
    """With arguments of its own, which are nowhere to be found afterwards."""

    def __init__(self, size: int, scale: int, **options: Any) -> None:
        super().__init__(Numbers(size), collate_fn=lambda samples: scale * torch.tensor(samples), **options)


class RememberingLoader(DataLoader):
    """With an argument of its own, which it keeps under its name."""

    def __init__(self, dataset: Any, name: str, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.name = name


class SizedBatches(Sampler[list[int]]):
    """A batch sampler that lightning could not build anew: it wants sizes, and has no sampler."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(range(sum(self.sizes)))
        return ([next(indices) for _ in range(size)] for size in self.sizes)


def collate(samples: Sequence[int]) -> Tensor:
    return 10 * torch.tensor(samples)


def initialise(worker: int) -> None:
    pass


KEPT: dict[str, Any] = {
    "num_workers": 2,
    "collate_fn": collate,
    "pin_memory": False,
    "timeout": 7,
    "worker_init_fn": initialise,
    "prefetch_factor": 3,
    "persistent_workers": True,
    "generator": torch.Generator(),
    "multiprocessing_context": "spawn",
}


@pytest.mark.parametrize("batch_size", [4, None])
def test_loader_keeps_its_dataset_and_all_other_options_with_another_sampler(batch_size: int | None) -> None:
    loader = numbers(8, batch_size, **KEPT)
    sampler = Reversed(8, batch_size)
    of_the_user = (loader.sampler, loader.batch_sampler)
    built = lightning_dataloaders.with_sampler(loader, sampler, RunningStage.TRAINING)
    assert (loader.sampler, loader.batch_sampler) == of_the_user
    assert built is not loader
    assert built.dataset is loader.dataset
    assert (built.batch_sampler if batch_size else built.sampler) is sampler
    assert {name: getattr(built, name) for name in KEPT} == {name: getattr(loader, name) for name in KEPT}


@pytest.mark.parametrize(
    ("loader", "batches"),
    [
        (numbers(5), [[4, 3, 2], [1, 0]]),
        (numbers(5, shuffle=True, drop_last=True), [[4, 3, 2], [1, 0]]),
        (DataLoader(Numbers(5), batch_sampler=SizedBatches(1, 4)), [[4, 3, 2], [1, 0]]),
        (numbers(3, batch_size=None), [2, 1, 0]),
        (numbers(3, batch_size=None, sampler=[1, 1]), [2, 1, 0]),
    ],
    ids=["plain", "shuffled", "batch sampler", "no batches", "no batches but a sampler"],
)
@pytest.mark.parametrize("stage", STAGES.values())
def test_loader_draws_from_the_sampler_it_is_given(stage: RunningStage, loader: DataLoader, batches: list[Any]) -> None:
    sampler = Reversed(len(loader.dataset), None if loader.batch_sampler is None else 3)
    built = lightning_dataloaders.with_sampler(loader, sampler, stage)
    assert [batch if isinstance(batch, int) else batch.tolist() for batch in built] == batches
    assert len(built) == len(batches)


def test_loader_of_a_user_s_own_class_keeps_its_class_and_attributes() -> None:
    loader = RememberingLoader(Numbers(5), "mine", batch_size=2)
    built = lightning_dataloaders.with_sampler(loader, Reversed(5, 3), RunningStage.TRAINING)
    assert type(built) is RememberingLoader
    assert built.name == "mine"
    assert batches_of(built) == [[4, 3, 2], [1, 0]]


def late(loader: DataLoader) -> DataLoader:
    """Set an attribute on a finished loader, as users do in their hooks."""
    loader.collate_fn = collate
    return loader


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: numbers(5), [[4, 3, 2], [1, 0]]),
        (lambda: numbers(5, shuffle=True, drop_last=True), [[4, 3, 2], [1, 0]]),
        (lambda: ScaledLoader(5, 100, batch_size=2), [[400, 300, 200], [100, 0]]),
        (lambda: ScaledLoader(5, scale=100, batch_size=2, shuffle=True), [[400, 300, 200], [100, 0]]),
        (lambda: DataLoader(Numbers(5), batch_sampler=SizedBatches(1, 4)), [[4, 3, 2], [1, 0]]),
        (
            lambda: DataLoader(Numbers(5), batch_sampler=BatchSampler(range(5), batch_size=4, drop_last=True)),
            [[4, 3, 2], [1, 0]],
        ),
        (lambda: late(numbers(5)), [[40, 30, 20], [10, 0]]),
        (lambda: DataLoader(Stream(5), batch_size=2), [[0, 1, 2], [3, 4]]),
        (lambda: ScaledStream(5, scale=100, batch_size=2, drop_last=True), [[0, 100, 200]]),
    ],
    ids=[
        "plain",
        "shuffled",
        "own class",
        "own class, by keyword",
        "batch sampler",
        "torch's batch sampler",
        "attribute set late",
        "iterable",
        "own class, iterable",
    ],
)
def test_loader_made_in_a_hook_is_built_anew(make: Callable[[], DataLoader], batches: list[Any]) -> None:
    assert in_hook(make) == batches


class ScaledStream(DataLoader):
    def __init__(self, size: int, scale: int, **options: Any) -> None:
        super().__init__(Stream(size), collate_fn=lambda samples: scale * torch.tensor(samples), **options)


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: DataLoader(Numbers(5), 2), [[4, 3, 2], [1, 0]]),
        (lambda: DataLoader(Numbers(5), 2, True), [[4, 3, 2], [1, 0]]),
        (lambda: DataLoader(Stream(5), 2), [[0, 1, 2], [3, 4]]),
    ],
    ids=["batch size", "batch size and shuffle", "iterable"],
)
def test_loader_made_in_a_hook_may_have_positional_arguments(
    make: Callable[[], DataLoader], batches: list[Any]
) -> None:
    assert in_hook(make) == batches


def test_loader_made_in_a_hook_may_be_returned_again() -> None:
    loaders: list[DataLoader] = []

    def make() -> DataLoader:
        loaders.append(loaders[0] if loaders else numbers(5, shuffle=True))
        return loaders[0]

    assert in_hook(make, max_epochs=2, reload_dataloaders_every_n_epochs=1) == 2 * [[4, 3, 2], [1, 0]]
    assert len(loaders) == 2


class Computed(DataLoader):
    """Computes its length in the constructor, from arguments that have other names."""

    def __init__(self, samples: int, size: int, times: int = 1) -> None:
        super().__init__(Numbers(samples), size)
        self.number = times * -(-samples // size)

    def __len__(self) -> int:
        return self.number


def test_length_that_was_computed_before_follows_the_sampler() -> None:
    built = lightning_dataloaders.with_sampler(Computed(8, 2), Reversed(8, 4), RunningStage.TRAINING)
    assert (len(built), batches_of(built)) == (2, [[7, 6, 5, 4], [3, 2, 1, 0]])
    assert isinstance(built, Computed) and type(built).__name__ == "Computed"
    same = lightning_dataloaders.with_sampler(Computed(8, 2), Reversed(8, 2), RunningStage.TRAINING)
    assert type(same) is Computed
    with pytest.raises(ConfigurationError, match="has a length of its own, 8, with 4 batches in its sampler"):
        lightning_dataloaders.with_sampler(Computed(8, 2, times=2), Reversed(8, 4), RunningStage.TRAINING)


class Repeating(DataLoader):
    """Begins to iterate in its constructor, to keep its processes from one epoch to the next."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.iterator = super().__iter__()

    def __iter__(self) -> Any:
        for _ in range(len(self)):
            yield next(self.iterator)


def test_loader_that_has_begun_to_iterate_is_made_again() -> None:
    built = lightning_dataloaders.with_sampler(
        Repeating(Numbers(4), batch_size=2), Reversed(4, 2), RunningStage.TRAINING
    )
    assert type(built) is Repeating and batches_of(built) == [[3, 2], [1, 0]]
    assert not lightning_dataloaders.iterates_plainly(built)
    assert lightning_dataloaders.iterates_plainly(RememberingLoader(Numbers(4), "mine"))

    class Closed(Repeating):
        def __init__(self, samples: int) -> None:
            super().__init__(Numbers(samples))

    with pytest.raises(ConfigurationError, match="begins to iterate in its constructor"):
        lightning_dataloaders.with_sampler(Closed(4), Reversed(4, 2), RunningStage.TRAINING)


def test_sampler_that_a_loader_keeps_under_another_name_is_replaced_too() -> None:
    class Kept(DataLoader):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.kept = self.batch_sampler

        def __iter__(self) -> Any:
            return iter(self.kept)

    built = lightning_dataloaders.with_sampler(Kept(Numbers(4), 2), Reversed(4, 2), RunningStage.TRAINING)
    assert list(built) == [[3, 2], [1, 0]]


def test_persistent_processes_stay_with_their_loader() -> None:
    loader = numbers(4, num_workers=1, persistent_workers=True)
    own = iter(loader)
    built = lightning_dataloaders.with_sampler(loader, Reversed(4, 2), RunningStage.TRAINING)
    assert batches_of(built) == [[3, 2], [1, 0]]
    assert loader._iterator is own is not built._iterator
    assert batches_of(loader) == [[0, 1], [2, 3]]


def test_iterators_of_a_loader_may_be_wrapped() -> None:
    loader = numbers(4)
    built = lightning_dataloaders.with_iterator(loader, lambda make: [10 * batch for batch in make()].__iter__())
    assert batches_of(built) == [[0, 10], [20, 30]]
    assert batches_of(loader) == [[0, 1], [2, 3]]
    built = lightning_dataloaders.with_worker_init(loader, initialise)
    assert built.worker_init_fn is initialise and loader.worker_init_fn is None


def test_seed_that_a_loader_s_process_tells() -> None:
    lightning_dataloaders.set_seed_of_loader_worker(3)  # in no such process

    class Telling(Numbers):
        def __getitem__(self, index: int) -> int:
            lightning_dataloaders.set_seed_of_loader_worker(7)
            info = torch.utils.data.get_worker_info()
            assert info is not None
            return info.seed

    assert batches_of(DataLoader(Telling(2), 2, num_workers=1)) == [[7, 7]]


def test_lightning_seeds_the_processes_of_loaders_when_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lightning_dataloaders.seeds_loader_workers(numbers(2))
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    assert lightning_dataloaders.seeds_loader_workers(numbers(2))
    assert not lightning_dataloaders.seeds_loader_workers(numbers(2, worker_init_fn=initialise))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_hooks_that_make_loaders_run_in_a_context(entry_point: str) -> None:
    within: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        within.append("begins")
        yield
        within.append("ends")

    class Making(Watched):
        def train_dataloader(self) -> Any:
            assert within[-1] == "begins"
            return numbers(4)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    trainer = make_trainer(max_epochs=1)
    lightning_dataloaders.make_loaders_within(trainer, context, lambda *_: None)
    getattr(trainer, entry_point)(Making())
    assert within == ["begins", "ends"] * (2 if entry_point == "fit" else 1)


def test_samplers_and_loaders_of_predictions() -> None:
    trainer = make_trainer()
    assert lightning_dataloaders.prediction_loaders(trainer) == []
    trainer.predict(Tiny(), numbers(4))
    (loader,) = lightning_dataloaders.prediction_loaders(trainer)
    assert type(lightning_dataloaders.without_index_wrapper(loader.batch_sampler)) is BatchSampler
    sampler = Reversed(4, 2)
    assert lightning_dataloaders.without_index_wrapper(sampler) is sampler


@pytest.mark.parametrize("batch_size", [2, None])
def test_epochs_are_announced_to_the_sampler(batch_size: int | None) -> None:
    sampler = Reversed(8, batch_size)
    trainer = prepared_trainer(
        lambda loader, stage, _: lightning_dataloaders.with_sampler(loader, sampler, stage), max_epochs=3
    )
    trainer.fit(Tiny(), DataLoader([torch.ones(1)] * 8, batch_size))
    assert sorted(set(sampler.epochs)) == [0, 1, 2]


class Writer(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.batches: list[Any] = []
        self.epoch: Any = None

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.batches.append((prediction.tolist(), batch_indices))

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        self.epoch = batch_indices


def test_prediction_writers_get_the_indices_of_every_batch() -> None:
    writer = Writer()
    trainer = prepared_trainer(
        lambda loader, stage, _: lightning_dataloaders.with_sampler(loader, Reversed(5, 3), stage), callbacks=writer
    )
    trainer.predict(Tiny(), numbers(5))
    assert writer.batches == [([4, 3, 2], [4, 3, 2]), ([1, 0], [1, 0])]
    assert writer.epoch == [[[4, 3, 2], [1, 0]]]


@pytest.mark.parametrize("drop_last", [False, True])
def test_loader_of_an_iterable_dataset_keeps_all_but_the_batch_size(drop_last: bool) -> None:
    loader = RememberingLoader(Stream(7), "mine", batch_size=4, drop_last=drop_last, collate_fn=collate)
    built = lightning_dataloaders.with_batch_size(loader, 2)
    assert type(built) is RememberingLoader
    assert (built.name, built.dataset, built.batch_size) == ("mine", loader.dataset, 2)
    assert batches_of(built) == [[0, 10], [20, 30], [40, 50], [60]][: 3 if drop_last else 4]
    assert loader.batch_size == 4


def test_loader_of_an_iterable_dataset_keeps_its_workers() -> None:
    loader = DataLoader(Stream(7), batch_size=4, **KEPT)
    built = lightning_dataloaders.with_batch_size(loader, 2)
    assert {name: getattr(built, name) for name in KEPT} == {name: getattr(loader, name) for name in KEPT}


def test_training_loaders() -> None:
    found, _ = looked(
        lambda trainer: [type(loader.sampler) for loader in lightning_dataloaders.training_loaders(trainer)]
    )
    assert found == [[ResumableSampler]] * 13
    assert lightning_dataloaders.training_loaders(itwinai_trainer("auto", 1)) == []


def test_is_stateful() -> None:
    class Own(DataLoader):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    assert lightning_dataloaders.is_stateful(Own([1])) and not lightning_dataloaders.is_stateful(DataLoader([1]))


def test_with_index_sampler() -> None:
    original = loader(8, shuffle=True)
    built = lightning_dataloaders.with_index_sampler(original, ResumableSampler(original.sampler, 8))
    assert (type(built.sampler), built.batch_size, built.dataset) == (ResumableSampler, 8, original.dataset)
    assert len(built) == len(original)


class NumberStream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


def test_with_class() -> None:
    built = lightning_dataloaders.with_class(DataLoader(NumberStream(), batch_size=2, drop_last=True), StreamLoader)
    assert (type(built), built.batch_size, built.drop_last) == (StreamLoader, 2, True)


@pytest.mark.parametrize("length", [True, False])
def test_loaders_are_iterated_later(length: bool) -> None:
    begun: list[int] = []

    class Noting(DataLoader):
        def __iter__(self) -> Any:
            begun.append(1)
            return super().__iter__()

    combined = CombinedLoader([Noting(range(6) if length else NumberStream(), batch_size=2)], "max_size_cycle")  # type: ignore[arg-type]
    lightning_dataloaders.iterate_later(combined)
    fetcher = _PrefetchDataFetcher()
    fetcher.setup(combined)
    iter(fetcher)
    assert not begun and fetcher.length == (3 if length else None)
    lightning_dataloaders.iterate_now(combined)
    iter(fetcher)
    assert begun == [1] and len(list(fetcher)) == 3

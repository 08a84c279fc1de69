"""How Lightning and torch prepare, copy and iterate DataLoaders."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.fabric.utilities.data import has_iterable_dataset, sized_len
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.data import _get_dataloader_init_args_and_kwargs, _reinstantiate_wrapped_cls
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from itwinai.compat.lightning_trainer import ENTRY_POINT_LOOPS
from itwinai.drawn import Done, Drawn, Recent, drawn_as
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lightning.pytorch import Trainer


def replace_dataloader_preparation(
    trainer: Trainer,
    prepare: Callable[[DataLoader, RunningStage, bool], DataLoader],
    prepare_other: Callable[[Any, RunningStage], Any] | None = None,
    finish: Callable[[DataLoader], DataLoader] | None = None,
) -> None:
    """Let a function of ours prepare each DataLoader where Lightning would inject its DistributedSampler.

    Args:
        trainer: the trainer.
        prepare: gets the loader, the stage, and whether its dataset has indices; returns the loader to use.
        prepare_other: gets the loader and the stage for what is not a DataLoader, or is dealt out by the user; returns
            the loader to use. By default they stay as they are.
        finish: gets each DataLoader as it is about to be used; returns the one to use.
    """
    connector = trainer._data_connector
    stock = type(connector)._prepare_dataloader
    vars(connector)["_prepare_dataloader"] = functools.partial(
        _prepare_dataloader, connector, stock, prepare, prepare_other, finish
    )


def _prepare_dataloader(
    connector: Any,
    stock: Callable[..., object],
    prepare: Callable[[DataLoader, RunningStage, bool], DataLoader],
    prepare_other: Callable[[Any, RunningStage], Any] | None,
    finish: Callable[[DataLoader], DataLoader] | None,
    dataloader: Any,
    shuffle: bool,
    mode: RunningStage,
) -> object:
    flags = connector.trainer._accelerator_connector
    if isinstance(dataloader, DataLoader):
        # A collection of loaders that the user has made keeps what the last run has put into it.
        dataloader = vars(dataloader).get(_PREPARED_FROM, dataloader)
    given = dataloader
    if (
        not isinstance(dataloader, DataLoader)
        or not flags.use_distributed_sampler
        or isinstance(dataloader.sampler, DistributedSampler)  # the user deals the samples out
    ):
        if (flags.is_distributed or mode == RunningStage.PREDICTING) and prepare_other is not None:
            dataloader = prepare_other(dataloader, mode)
        prepared = stock(connector, dataloader, shuffle=shuffle, mode=mode)
    elif flags.is_distributed or mode in (RunningStage.TRAINING, RunningStage.PREDICTING):
        prepared = prepare(dataloader, mode, not has_iterable_dataset(dataloader))
    else:
        prepared = stock(connector, dataloader, shuffle=shuffle, mode=mode)
    if isinstance(prepared, DataLoader) and finish is not None:
        prepared = finish(prepared)
    if isinstance(prepared, DataLoader) and prepared is not given:
        vars(prepared)[_PREPARED_FROM] = given
    return prepared


# The attribute of a loader of ours that holds the user's.
_PREPARED_FROM = "_itwinai_prepared_from"


def _copied(dataloader: Loader) -> Loader:
    """Return a loader with the same attributes, even if its class overrides copying or its constructor.

    To call the constructor again takes its arguments, which the loader may not have kept, or not as they were given.
    """
    copied: Loader = object.__new__(type(dataloader))
    vars(copied).update(vars(dataloader))
    vars(copied)["_iterator"] = None  # persistent workers belong to the loader that has started them
    return copied


Loader = TypeVar("Loader", bound=DataLoader)


def with_batch_size(dataloader: Loader, batch_size: int) -> Loader:
    """Return a loader like another, with another batch size.

    Args:
        dataloader: a loader with a batch size.
        batch_size: that of the new one.
    """
    changed = _copied(dataloader)
    batches = BatchSampler(dataloader.sampler, batch_size, dataloader.drop_last)
    vars(changed).update(batch_size=batch_size, batch_sampler=batches)
    return changed


def with_class(dataloader: DataLoader, loader_class: type[Loader]) -> Loader:
    """Return a loader like another, of a subclass of its class that needs no attributes of its own."""
    changed: Any = _copied(dataloader)
    changed.__class__ = loader_class
    return changed


def with_sampler(dataloader: DataLoader, sampler: Any, stage: RunningStage) -> DataLoader:
    """Return a loader like another, of the same class, that draws from another sampler.

    Args:
        dataloader: the user's loader.
        sampler: a batch sampler; for a loader with ``batch_size=None`` a sampler.
        stage: the stage that the loader is for.

    Raises:
        ConfigurationError: the loader's class has begun to iterate, or computes its length, in its constructor, and
            cannot be created with another sampler.
    """
    batched = dataloader.batch_sampler is not None
    if batched and stage == RunningStage.PREDICTING:
        dealt, sampler = sampler, _IndexBatchSamplerWrapper(sampler)  # prediction writers ask it for the indices
        vars(sampler)["sampler"] = dealt  # to which Lightning announces the epoch; the wrapper hides properties
    if any(isinstance(value, _BaseDataLoaderIter) for name, value in vars(dataloader).items() if name != "_iterator"):
        return _built_anew(dataloader, sampler)
    name = "batch_sampler" if batched else "sampler"
    given = getattr(dataloader, name)
    changed = _copied(dataloader)
    scope = vars(changed)
    scope.update({attribute: sampler for attribute, value in scope.items() if value is given})
    if getattr(changed, name) is not sampler:
        return _built_anew(dataloader, sampler)
    if type(dataloader).__len__ is not DataLoader.__len__:
        _mend_length(dataloader, changed, given, sampler)
    return changed


def _mend_length(dataloader: DataLoader, changed: DataLoader, given: Any, sampler: Any) -> None:
    """Let a loader whose class has a length of its own have that of its new sampler, if it had that of the given."""
    lengths = [sized_len(sized) for sized in (dataloader, changed, given, sampler)]
    before, after, given_length, length = lengths
    if None in lengths or given_length == length or before != after:
        return
    if before != given_length:
        raise ConfigurationError(
            f"{type(dataloader).__name__} has a length of its own, {before}, with {given_length} batches in its "
            f"sampler, and still has it with {length} of them: the number of its batches is unknown. Let "
            "its __len__ follow from len(self.batch_sampler), or divide the samples yourself and let the trainer take "
            "the loader as it is: ItwinaiTrainer(use_distributed_sampler=False)."
        )
    cls: Any = type(changed)
    own: Any = type(cls.__name__, (cls,), {"__len__": DataLoader.__len__, "__module__": cls.__module__})
    cast_changed: Any = changed
    cast_changed.__class__ = own


def _built_anew(dataloader: DataLoader, sampler: Any) -> DataLoader:
    """Call the constructor of a loader again, which has begun to iterate in it, as Lightning does."""
    plain = copy.copy(dataloader)
    batched = dataloader.batch_sampler is not None
    if batched:
        # Lightning would build the user's batch sampler again around a sampler, which not every class allows.
        vars(plain)["batch_sampler"] = BatchSampler(SequentialSampler(()), 1, False)
    try:
        args, kwargs = _get_dataloader_init_args_and_kwargs(plain, SequentialSampler(()), RunningStage.TRAINING)
        place = {"batch_sampler": sampler, "sampler": None} if batched else {"batch_sampler": None, "sampler": sampler}
        kwargs.update(place, shuffle=False, drop_last=False, batch_size=1 if batched else None)
        named = dict(zip(getattr(dataloader, "__pl_saved_arg_names", ()), args, strict=False))
        return _reinstantiate_wrapped_cls(dataloader, **{**named, **kwargs})
    except (MisconfigurationException, TypeError) as error:
        raise ConfigurationError(
            f"{type(dataloader).__name__} begins to iterate in its constructor, or hides its sampler, and cannot be "
            f"made with another one: {error} Divide the samples yourself and let the trainer take the loader as it is: "
            "ItwinaiTrainer(use_distributed_sampler=False)."
        ) from error


def with_index_sampler(dataloader: DataLoader, sampler: Any) -> DataLoader:
    """Return a loader like another, with the same batch size, that draws its indices from another sampler.

    Args:
        dataloader: the user's loader, without a batch sampler of the user's.
        sampler: a sampler of indices.
    """
    assert dataloader.batch_size is not None
    changed = _copied(dataloader)
    vars(changed).update(
        sampler=sampler, batch_sampler=BatchSampler(sampler, dataloader.batch_size, dataloader.drop_last)
    )
    return changed


class _SeenBatches(_IndexBatchSamplerWrapper):
    """Notes the indices of batches until they are predicted; Lightning's notes those of all batches."""

    done: Done
    is_read: bool

    def __iter__(self) -> Any:
        super().__iter__()
        self.seen_batch_indices: Any = Recent()
        return self

    def __next__(self) -> list[int]:
        assert self._iterator is not None
        for batch in self._iterator:
            remaining = [index for index in batch if index not in self.done] if len(self.done) else batch
            if remaining:
                if self.is_read:
                    self.seen_batch_indices.append(remaining)
                return remaining
        raise StopIteration


class _SeenIndices:
    """Notes what a sampler draws that stands for a batch by itself."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.seen_batch_indices = Recent()

    def __iter__(self) -> Iterator[Any]:
        self.seen_batch_indices = Recent()
        for index in self.sampler:
            self.seen_batch_indices.append(index)
            yield index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "sampler" not in vars(self):
            raise AttributeError(name)
        return getattr(self.sampler, name)


def note_indices(loader: Any, is_read: bool) -> None:
    """Let a loader of a prediction, which has been prepared, note what its sampler draws, and give batches in order.

    Args:
        loader: the loader.
        is_read: whether someone asks for the indices, which are kept until then.
    """
    if not isinstance(loader, DataLoader) or _PREPARED_FROM not in vars(loader):
        return
    scope = vars(loader)
    if getattr(loader, "in_order", True) is False:
        scope["in_order"] = True  # batches would not be those of the indices that were drawn
    if isinstance(loader.batch_sampler, _IndexBatchSamplerWrapper):
        vars(loader.batch_sampler).update(done=Done(), is_read=is_read)
        loader.batch_sampler.__class__ = _SeenBatches
    elif is_read and loader.batch_sampler is None and not has_iterable_dataset(loader):
        scope["sampler"] = _SeenIndices(loader.sampler)


def drawn_batch(loader: Any, number: int) -> Drawn | None:
    """Return which batch a loader has given; None for one that does not note it.

    Args:
        loader: of a prediction.
        number: of the batch, as this worker counts them.
    """
    if (turns := _turns_of(loader)) is not None:
        return turns.drawn(number)
    for sampler in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        if isinstance(sampler, _SeenBatches | _SeenIndices):
            return drawn_as(sampler.seen_batch_indices[number], number)
    return None


def leave_out(loader: Any, done: Done, first: int | None) -> None:
    """Let a loader of a prediction skip the batches that are done.

    Args:
        loader: that notes what it draws, or whose batches the workers take in turn.
        done: indices of samples, or numbers of batches.
        first: how many batches of one process there are at most; None for all.
    """
    if (turns := _turns_of(loader)) is not None:
        turns.leave_out(done, first)
        return
    for name in ("batch_sampler", "sampler"):
        sampler = without_index_wrapper(getattr(loader, name, None))
        if hasattr(sampler, "leave_out"):
            sampler.leave_out(done, first)
            return
    if isinstance(getattr(loader, "batch_sampler", None), _SeenBatches):  # of the user's own division
        vars(loader.batch_sampler)["done"] = done


def own_batch_size(loader: Any) -> int | None:
    """Return the batch size of a loader of a prediction; None if a sampler of the user's decides, or it has none."""
    sampler = without_index_wrapper(getattr(loader, "batch_sampler", None))
    batches = getattr(sampler, "batches", sampler)
    return batches.batch_size if type(batches) is BatchSampler else None


def set_batch_size(loader: Any, size: int) -> None:
    """Let a loader of a prediction, which has been prepared, give batches of another size.

    Raises:
        ConfigurationError: it has no batch size to change.
    """
    if own_batch_size(loader) is None or _PREPARED_FROM not in vars(loader):
        raise ConfigurationError(
            f"batch_size={size} cannot be set for this {type(loader).__name__}: it has no batch size, or a batch "
            "sampler that decides. Leave batch_size out.",
            argument="batch_size",
        )
    wrapper = loader.batch_sampler
    sampler = without_index_wrapper(wrapper)
    if hasattr(sampler, "batches"):  # ours, around a batch sampler that was created for this prediction
        sampler.batches = BatchSampler(sampler.batches.sampler, size, False)
        sampler.batch_size = size
    elif wrapper is sampler:  # of an iterable dataset
        vars(loader)["batch_sampler"] = BatchSampler(loader.sampler, size, loader.drop_last)
    else:
        wrapper._batch_sampler = BatchSampler(sampler.sampler, size, False)
    vars(loader)["batch_size"] = size


def first_batch(loader: DataLoader, size: int) -> Any:
    """Return a batch of a loader's first samples, fetched in this process."""
    dataset: Any = loader.dataset
    indices = list(range(size))
    fetched = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[one] for one in indices]
    return loader.collate_fn(fetched)


def _turns_of(loader: Any) -> Any:
    """Return what makes a loader's iterators, if the workers take its batches in turn."""
    maker = iterator_maker(loader)
    return maker if hasattr(maker, "turns") else None


def divides_samples(trainer: Trainer) -> bool:
    """Return whether the samples are divided among several workers, and the user has not said that this is done."""
    flags = trainer._accelerator_connector
    return flags.is_distributed and trainer.world_size > 1 and flags.use_distributed_sampler


def iterator_maker(loader: Any) -> Any:
    """Return the object of ours that makes a loader's iterators, or None."""
    made_by = vars(loader).get("_get_iterator") if isinstance(loader, DataLoader) else None
    return made_by.func if isinstance(made_by, functools.partial) else getattr(loader, "iterate", None)


class ResettableIterator:
    """An iterator around that of a DataLoader, which keeps its processes from one epoch to the next if it has to.

    Args:
        batches: the loader's iterator.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return self

    def begin(self) -> None:
        """Begin to iterate."""

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self.batches._reset(loader, first_iter)
        self.begin()


def without_index_wrapper(sampler: Any) -> Any:
    """Return a sampler without what notes the indices that were predicted."""
    if isinstance(sampler, _SeenIndices):
        return sampler.sampler
    return sampler._batch_sampler if isinstance(sampler, _IndexBatchSamplerWrapper) else sampler


def prediction_loaders(trainer: Trainer) -> list[Any]:
    """Return the loaders of a prediction, as they are iterated."""
    combined = trainer.predict_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def with_worker_init(dataloader: Loader, function: Callable[[int], None]) -> Loader:
    """Return a copy of a loader with another function to initialize its processes."""
    changed = _copied(dataloader)
    changed.worker_init_fn = function
    return changed


def with_iterator(dataloader: Loader, wrap: Callable[[Callable[[], Any]], Any]) -> Loader:
    """Return a copy of a loader with another function to create iterators.

    Args:
        dataloader: a loader.
        wrap: gets what makes the loader's own iterator, and returns an iterator. That of a loader with processes has
            to be the loader's own.
    """
    changed = _copied(dataloader)
    vars(changed)["_get_iterator"] = functools.partial(wrap, functools.partial(type(changed)._get_iterator, changed))
    return changed


def seeds_loader_workers(dataloader: DataLoader) -> bool:
    """Return whether Lightning seeds the loader's processes, as `seed_everything` asked: each rank's differently."""
    return bool(int(os.environ.get("PL_SEED_WORKERS", 0))) and dataloader.worker_init_fn is None


def set_seed_of_loader_worker(seed: int) -> None:
    """Let `get_worker_info` in a process of a DataLoader tell a seed that was set later."""
    info: Any = get_worker_info()
    if info is not None:
        object.__setattr__(info, "seed", seed)  # it refuses to be changed


class _SharedSource(_DataLoaderSource):
    """Makes loaders in a context; Lightning asks it for those of a stage."""

    context: Callable[[], AbstractContextManager[None]]
    check: Callable[[Any, str, object], None]

    def dataloader(self) -> Any:
        with self.context():
            loaders = super().dataloader()
        if self.is_module():
            self.check(loaders, self.name, self.instance)
        return loaders


def make_loaders_within(
    trainer: Trainer,
    context: Callable[[], AbstractContextManager[None]],
    check: Callable[[Any, str, object], None],
) -> None:
    """Let the hooks that make loaders run in a context, and look at what they return.

    Args:
        trainer: the trainer.
        context: makes the context.
        check: is called with the loaders, the name of the hook, and the object that has it.
    """
    loops = (trainer.fit_loop.epoch_loop.val_loop, *(getattr(trainer, name) for name in ENTRY_POINT_LOOPS))
    for loop in loops:
        loop._data_source = _SharedSource(loop._data_source.instance, loop._data_source.name)
        loop._data_source.context = context
        loop._data_source.check = check


def iterates_plainly(dataloader: DataLoader) -> bool:
    """Return whether a loader is iterated as torch's own class: each time from its sampler."""
    return type(dataloader).__iter__ is DataLoader.__iter__ and not any(
        isinstance(value, _BaseDataLoaderIter) for name, value in vars(dataloader).items() if name != "_iterator"
    )


class _LaterLoader(CombinedLoader):
    """Training loaders that are not iterated before it is known where they continue."""

    waits: bool

    def __iter__(self) -> Any:
        if not self.waits:
            return super().__iter__()
        # For the length alone: Lightning iterates as soon as the loaders are created.
        flattened, self._flattened = self._flattened, [_Sized(loader) for loader in self._flattened]
        try:
            return super().__iter__()
        finally:
            self._flattened = flattened

    def __next__(self) -> Any:
        if self.waits:
            raise StopIteration
        return super().__next__()


class _Sized:
    """Has the length of a loader, and nothing else of it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def iterate_later(loader: CombinedLoader) -> None:
    """Let training loaders not be iterated until `iterate_now` is called."""
    if type(loader) is CombinedLoader:
        loader.__class__ = _LaterLoader
    if isinstance(loader, _LaterLoader):
        loader.waits = True


def iterate_now(loader: CombinedLoader) -> None:
    """Let training loaders be iterated from now on."""
    if isinstance(loader, _LaterLoader):
        loader.waits = False


def loader_mode(loader: CombinedLoader) -> str:
    """Return how training loaders are combined, such as ``max_size_cycle``."""
    return loader._mode


def training_loaders(trainer: Trainer) -> list[Any]:
    """Return the training loaders as they are iterated, in the order of the user's collection."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def training_mode(trainer: Trainer) -> str:
    """Return how several training loaders are combined: ``min_size``, ``max_size`` or ``max_size_cycle``."""
    combined = trainer.fit_loop._combined_loader
    return "max_size_cycle" if combined is None else loader_mode(combined)


def is_stateful(loader: Any) -> bool:
    """Return whether Lightning saves and restores a loader's own state."""
    return isinstance(loader, _Stateful)

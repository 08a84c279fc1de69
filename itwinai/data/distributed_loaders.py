"""DataLoaders of a run with several workers: each worker gets its part of every global batch, each sample once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import BatchSampler, DataLoader

from itwinai.collectives import gather, gather_of, tensor_gather_of
from itwinai.compat import lightning_dataloaders, lightning_loops
from itwinai.compat.lightning_trainer import MisconfiguredTrainerError
from itwinai.data.evaluation_streams import IterateInStep
from itwinai.data.loader_signals import OutliveSignals
from itwinai.data.rank_streams import RankSeed
from itwinai.data.samplers import (
    DistributedBatchSampler,
    DistributedIndexSampler,
    OwnPartBatchSampler,
    ResumableSampler,
    divides_itself,
    is_plain,
    name_of,
)
from itwinai.data.stateful_loader import StreamLoader
from itwinai.data.undivided_loader import (
    DividesBatches,
    IteratedLoader,
    IterateInTurns,
    IterateShared,
    iterated,
)
from itwinai.data.weights import StepWeights
from itwinai.data.whole_batches import fetch_quickly
from itwinai.interfaces import Stateful

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


_EVALUATING = (RunningStage.VALIDATING, RunningStage.TESTING, RunningStage.SANITY_CHECKING)


class DistributedLoaders:
    """Divides the user's DataLoaders among the workers of a trainer.

    Args:
        trainer: the trainer.
        split_batches: whether the batch size of a loader is that of all workers together.
        weigh_uneven_batches: whether the losses of workers with unequal parts of a global batch count by their samples.
        outlive_signals: whether a scheduler signals the processes of loaders, too.
    """

    def __init__(
        self, trainer: Trainer, split_batches: bool, weigh_uneven_batches: bool, outlive_signals: bool
    ) -> None:
        self.outlive_signals = outlive_signals
        self.trainer = trainer
        self.split_batches = split_batches
        self.weigh_uneven_batches = weigh_uneven_batches
        self._announced = ""

    @property
    def _strategy(self) -> DividesBatches | None:
        """The strategy, if it is one of ours."""
        strategy = self.trainer.strategy
        return cast("DividesBatches", strategy) if hasattr(strategy, "weigh_batches") else None

    @property
    def _gather(self) -> Callable[[Any], list[Any]]:
        """What returns the objects of all workers, by rank."""
        return gather_of(self.trainer.strategy)

    def prepare(self, dataloader: DataLoader, stage: RunningStage, map_style: bool) -> DataLoader:
        """Let a DataLoader give this worker its part of every global batch.

        Args:
            dataloader: the user's loader.
            stage: the stage that the loader is for.
            map_style: whether the dataset has indices to deal out. An iterable dataset has not: every worker
                iterates it whole, or its own part, as the dataset decides.

        Raises:
            ConfigurationError: the batch size cannot be divided among the workers.
        """
        if self.split_batches:
            _check_divisible(dataloader, self.trainer.world_size)
        if stage == RunningStage.TRAINING:
            self._announce_global_batch(dataloader)
        if not map_style:
            if self.split_batches and dataloader.batch_size is not None:
                dataloader = lightning_dataloaders.with_batch_size(
                    dataloader, dataloader.batch_size // self.trainer.world_size
                )
            if stage == RunningStage.TRAINING:
                self._check_equal_lengths(dataloader)
                dataloader = self._resumable_stream(dataloader)
            return self._shared_stream(dataloader, stage)
        if self.trainer.world_size == 1 and stage != RunningStage.PREDICTING:
            return _resumable(dataloader) if stage == RunningStage.TRAINING else dataloader
        if stage == RunningStage.TRAINING and self.weigh_uneven_batches and self._strategy is not None:
            self._strategy.weigh_batches(StepWeights(self.trainer))
        return self._with_rank_seed(
            lightning_dataloaders.with_sampler(dataloader, self._distributed_sampler(dataloader, stage), stage)
        )

    def prepare_other(self, loader: Any, stage: RunningStage) -> Any:
        """Return the loader to use for one that the user divides: no DataLoader, or with a sampler that does it.

        Args:
            loader: the user's loader.
            stage: the stage that the loader is for.

        Raises:
            ConfigurationError: its batches have to be divided, which only the user can do.
        """
        while isinstance(loader, IteratedLoader):  # a collection keeps what the last run has put into it
            loader = loader.loader
        if stage == RunningStage.TRAINING:
            self._check_equal_lengths(loader)
        if isinstance(loader, DataLoader):
            loader = self._with_rank_seed(loader)
        elif stage == RunningStage.PREDICTING:
            return iterated(loader, self._in_turns())
        elif stage in _EVALUATING and lightning_dataloaders.divides_samples(self.trainer) and not self.split_batches:
            return iterated(loader, self._in_step())
        if not self.split_batches or self.trainer.world_size == 1 or sized_len(loader) == 0:
            return loader
        if not isinstance(loader, DataLoader):
            raise MisconfiguredTrainerError(
                f"split_batches=True divides the batches of DataLoaders among {self.trainer.world_size} workers, and "
                f"{type(loader).__name__} is not a DataLoader: every worker would train on its whole batches. Return a "
                "DataLoader; or leave split_batches out, and let the loader give each worker its own batches "
                "(trainer.global_rank and trainer.world_size tell which)."
            )
        _check_divisible(loader, self.trainer.world_size)
        if type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
            raise MisconfiguredTrainerError(
                f"split_batches=True divides every batch among {self.trainer.world_size} workers, and the loader's "
                f"DistributedSampler has divided the samples already, for {type(loader.batch_sampler).__name__}. "
                "Leave split_batches out, or the DistributedSampler."
            )
        return lightning_dataloaders.with_batch_size(loader, loader.batch_size // self.trainer.world_size)

    def finish(self, dataloader: DataLoader) -> DataLoader:
        """Return the loader to use for one that is about to be used: it fetches quickly, or outlives signals."""
        if not dataloader.num_workers:
            return fetch_quickly(dataloader)
        return self._outliving_signals(dataloader) if self.outlive_signals else dataloader

    def _outliving_signals(self, dataloader: DataLoader) -> DataLoader:
        """Return a loader whose processes are ended by this one alone, and not by what a scheduler sends to them."""
        then = dataloader.worker_init_fn
        if lightning_dataloaders.seeds_loader_workers(dataloader):  # which lightning does where there is no function
            then = functools.partial(pl_worker_init_function, rank=self.trainer.global_rank)
        return lightning_dataloaders.with_worker_init(dataloader, OutliveSignals(then))

    def shared_random_numbers(self) -> AbstractContextManager[None]:
        """Return a context in which all ranks draw the same random numbers; all workers have to enter it."""
        return nullcontext() if self._strategy is None else self._strategy.random_numbers.shared()

    def _announce_global_batch(self, dataloader: DataLoader) -> None:
        """Say how large the batch of all workers is: as in Lightning, it grows with their number."""
        size, workers, windows = dataloader.batch_size, self.trainer.world_size, self.trainer.accumulate_grad_batches
        if size is None or workers == 1:
            return
        own = size // workers if self.split_batches else size
        factors = f"{workers} workers x {own}" + (f" x {windows} accumulated batches" if windows > 1 else "")
        hint = "" if self.split_batches else f"; with split_batches=True it would be {size * windows}"
        samples = sized_len(dataloader.dataset)
        few = f"; the data has {samples} samples, so an epoch is one step" if 0 < (samples or 0) < workers * own else ""
        line = f"itwinai: global batch {workers * own * windows} = {factors}{hint}{few}"
        if line != self._announced:
            rank_zero_info(line)
        self._announced = line  # loaders may be made again in each epoch

    def _resumable_stream(self, dataloader: DataLoader) -> DataLoader:
        """Return a loader of an iterable dataset that resumes in mid-epoch, if its dataset can."""
        if type(dataloader) is not DataLoader or dataloader.num_workers or not isinstance(dataloader.dataset, Stateful):
            return dataloader
        loader = lightning_dataloaders.with_class(dataloader, StreamLoader)
        loader.consumed = lambda: (
            self.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            lightning_loops.is_epoch_over(self.trainer.fit_loop.epoch_loop),
        )
        loader.gather = self._gather
        loader.rank = self.trainer.global_rank
        return loader

    def _shared_stream(self, dataloader: DataLoader, stage: RunningStage) -> DataLoader:
        """Return a loader of an iterable dataset that draws the same random numbers on all ranks.

        Datasets that divide themselves rely on it: they draw one order on all ranks, of which each takes its part. In
        prediction and evaluation the workers take turns, unless the dataset divides itself.
        """
        shared = None
        if self.trainer.world_size > 1 and self._strategy is not None:
            shared = IterateShared(self._strategy, dataloader.num_workers > 0)
        if stage == RunningStage.PREDICTING:
            return lightning_dataloaders.with_iterator(dataloader, self._in_turns(shared))
        if stage in _EVALUATING and shared is not None:
            return lightning_dataloaders.with_iterator(dataloader, self._in_step(shared))
        return dataloader if shared is None else lightning_dataloaders.with_iterator(dataloader, shared)

    def _in_turns(self, iterate: Callable[[Callable[[], Any]], Any] | None = None) -> IterateInTurns:
        """Return what lets the workers take the batches of a prediction in turn."""
        if self.trainer.world_size > 1 and getattr(self._strategy, "zero_stage_3", False):
            raise MisconfiguredTrainerError(
                "DeepSpeed in stage 3 gathers parameters in each forward, for which all workers have to run equally "
                "many batches, and of an iterable dataset some may get one more. Predict with the strategy "
                "'deepspeed_stage_2' or 'ddp', which use the same weights, or from a map-style dataset."
            )
        return IterateInTurns(
            self.trainer.global_rank, self.trainer.world_size, functools.partial(gather, self.trainer), iterate
        )

    def _in_step(self, iterate: Callable[[Callable[[], Any]], Any] | None = None) -> IterateInStep:
        """Return what lets the workers evaluate batches in turn, and equally many of them."""
        return IterateInStep(
            self.trainer.global_rank,
            self.trainer.world_size,
            functools.partial(gather, self.trainer),
            tensor_gather_of(self.trainer.strategy),
            self.trainer.strategy.root_device,
            iterate,
        )

    def _with_rank_seed(self, dataloader: DataLoader) -> DataLoader:
        """Return a loader whose processes draw other random numbers on each rank."""
        if (
            not self.trainer.global_rank
            or not dataloader.num_workers
            or lightning_dataloaders.seeds_loader_workers(dataloader)
        ):
            return dataloader
        return lightning_dataloaders.with_worker_init(
            dataloader, RankSeed(self.trainer.global_rank, dataloader.worker_init_fn)
        )

    def _distributed_sampler(
        self, dataloader: DataLoader, stage: RunningStage
    ) -> DistributedIndexSampler | DistributedBatchSampler:
        """Return a sampler that gives this worker its part of what a loader's sampler draws."""
        predicting = stage == RunningStage.PREDICTING
        options: dict[str, Any] = {
            "num_replicas": self.trainer.world_size,
            "rank": self.trainer.global_rank,
            # DeepSpeed in stage 3 gathers parameters in each forward.
            "even_batches": not predicting or getattr(self._strategy, "zero_stage_3", False),
            "borrow_samples": stage not in (RunningStage.TRAINING, RunningStage.PREDICTING),
            "whole": predicting,
            "broadcast": self.trainer.strategy.broadcast,
            "gather": None if self._strategy is None else self._gather,
        }
        # Without a batch size a sampler may still draw batches: then the dataset takes a list of indices.
        batches: Any = dataloader.batch_sampler
        if batches is None and isinstance(dataloader.sampler, BatchSampler):
            batches = dataloader.sampler
        drawn_from = dataloader.sampler if batches is None else batches
        if options["gather"] and is_plain(drawn_from):
            _check_same_data(dataloader, self._gather(sized_len(dataloader.dataset)))
        elif options["gather"] and divides_itself(
            drawn_from, dataloader.dataset, self.trainer.strategy.broadcast, self._gather
        ):
            return self._own_part(drawn_from, options, single=batches is None)
        if batches is None:
            return DistributedIndexSampler(drawn_from, **options)
        if predicting and type(batches) is BatchSampler:  # Lightning drops none either
            batches = BatchSampler(batches.sampler, batches.batch_size, drop_last=False)
        return DistributedBatchSampler(batches, split=self.split_batches, **options)

    def _own_part(
        self, sampler: Any, options: dict[str, Any], single: bool
    ) -> DistributedIndexSampler | DistributedBatchSampler:
        """Return a sampler that gives this worker what the user's sampler, which divides itself, draws here.

        Args:
            sampler: the user's.
            options: of the samplers.
            single: whether what it draws are no batches.
        """
        if self.split_batches:
            if type(sampler) is not BatchSampler:
                raise MisconfiguredTrainerError(
                    f"split_batches=True divides every batch among {self.trainer.world_size} workers, and the batch "
                    f"sampler {type(sampler).__name__} has divided the samples already: it draws other batches on each "
                    "rank. Leave split_batches out, or let the batch sampler draw the same batches on all ranks."
                )
            size = sampler.batch_size // self.trainer.world_size
            sampler = BatchSampler(sampler.sampler, size, sampler.drop_last)
        lengths = options["gather"](sized_len(sampler))
        options["length"] = None if None in lengths else max(lengths)
        rank_zero_info(
            f"itwinai: {type(sampler).__name__ if single else name_of(sampler)} draws other samples on each rank: it "
            "divides them itself, and is taken as it is"
        )
        return DistributedIndexSampler(sampler, **options) if single else OwnPartBatchSampler(sampler, **options)

    def _check_equal_lengths(self, loader: Any) -> None:
        """Raise an error if the workers would train on unequal numbers of batches."""
        limit = self.trainer.limit_train_batches
        length = sized_len(loader)
        if isinstance(limit, int) and length is not None:
            length = min(length, limit)
        lengths = self._gather(length)
        if None not in lengths and len(set(lengths)) > 1:
            raise MisconfiguredTrainerError(
                f"{type(loader).__name__} has {', '.join(map(str, lengths))} batches on ranks 0 to {len(lengths) - 1}. "
                "The workers train in step, and those with more batches would wait for the others forever. Give each "
                f"rank equally many, or set limit_train_batches={min(lengths)}."
            )


def _resumable(dataloader: DataLoader) -> DataLoader:
    """Return a loader of a single worker with a sampler that can resume in mid-epoch."""
    if not lightning_dataloaders.iterates_plainly(dataloader):  # it may draw from anything that it has kept
        return dataloader
    if type(dataloader.batch_sampler) is BatchSampler:
        return lightning_dataloaders.with_index_sampler(
            dataloader, ResumableSampler(dataloader.sampler, dataloader.batch_size)
        )
    if dataloader.batch_sampler is None:
        return lightning_dataloaders.with_sampler(
            dataloader, ResumableSampler(dataloader.sampler, 1), RunningStage.TRAINING
        )
    return lightning_dataloaders.with_sampler(
        dataloader, ResumableSampler(dataloader.batch_sampler, None), RunningStage.TRAINING
    )


def _check_same_data(dataloader: DataLoader, lengths: Sequence[int | None]) -> None:
    if len(set(lengths)) > 1:
        raise MisconfiguredTrainerError(
            f"A {type(dataloader.dataset).__name__} has {', '.join(map(str, lengths))} samples on ranks 0 to "
            f"{len(lengths) - 1}, and batches are dealt out of data that is the same on all ranks. Give all ranks the "
            "whole dataset: each gets its part. Where each rank has data of its own, set use_distributed_sampler=False "
            "and limit_train_batches to the number of batches that all have."
        )


def _check_divisible(dataloader: DataLoader, workers: int) -> None:
    size = dataloader.batch_size or getattr(dataloader.batch_sampler or dataloader.sampler, "batch_size", None)
    if size is None and dataloader.batch_sampler is not None:
        return  # batches of a sampler of the user's own: each is split as evenly as it can be
    if size is None or size % workers:
        if size is None:
            reason = "the loader has batch_size=None"
            remedy = "Give the loader a batch size, or leave split_batches out."
        else:
            reason = f"batch_size={size} is not a multiple of it"
            remedy = f"Take batch_size={max(1, round(size / workers)) * workers}, or as many workers as divide {size}."
        raise MisconfiguredTrainerError(
            f"split_batches=True divides every batch among {workers} workers, and {reason}: workers with unequal "
            f"batches would weigh samples unequally. {remedy}"
        )

"""Continue from a checkpoint at the very next sample, with the random numbers that would have come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from itwinai.checkpoints.state import ItwinaiState, training_samplers
from itwinai.compat import lightning_dataloaders, lightning_loops, lightning_trainer
from itwinai.data.rank_streams import seed_generators, seed_of_rank
from itwinai.data.rng_state import unpack_random_states
from itwinai.interfaces import DrawsRandomNumbers
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from itwinai.data.loader_state import Position


def iterate_in_epoch(
    trainer: Trainer, data_fetcher: lightning_loops.DataFetcher, resumed: ItwinaiState, batches: int
) -> None:
    """Iterate the training loaders so that the batch after the first ``batches`` comes next.

    Samplers and loaders that can continue where they were do so. Where one cannot, the batches before are loaded again
    and skipped.

    Args:
        trainer: in a fit, before the loaders are iterated.
        data_fetcher: the fetcher that iterates them.
        resumed: our part of the checkpoint.
        batches: number of batches of the epoch that were trained.

    Raises:
        CheckpointError: the global batch has another size.
    """
    loaders, samplers = lightning_dataloaders.training_loaders(trainer), training_samplers(trainer)
    positions = [resumed.positions[i] if i < len(resumed.positions) else None for i in range(len(loaders))]
    skipped = [_skipped(trainer, loader, len(loaders), batches) for loader in loaders]
    begun_with = resumed.begun_with or []
    rank = trainer.global_rank
    begun = begun_with[rank] if len(begun_with) == trainer.world_size else None
    stateful = [lightning_dataloaders.is_stateful(loader) for loader in loaders]
    jumps = [
        keeps or (position is not None and sampler is not None and skip is not None)
        for keeps, sampler, position, skip in zip(stateful, samplers, positions, skipped, strict=True)
    ]
    replays = batches > 0 and not all(jumps)
    if replays and (begun is None or any(stateful)):
        _warn_of_samples_seen_twice(batches)
        replays = False
    if begun is not None:
        lightning_trainer.set_rng_states(unpack_random_states(begun))
    for sampler, position, skip in zip(samplers, positions, skipped, strict=True):
        if sampler is None or position is None or not (replays or skip is not None):
            continue
        if batches or (begun is not None and _is_drawn(position)):
            sampler.resume(position, 0 if replays else skip or 0)
    iter(data_fetcher)
    for sampler in samplers:
        if sampler is not None:
            sampler.end_resume()
    if replays:
        rank_zero_info(f"itwinai: loading the first {batches} batches of the epoch again, to continue after them")
        for _ in range(batches):
            next(data_fetcher)
    for sampler, position in zip(samplers, positions, strict=True):
        if sampler is not None and position is not None and not batches and not _is_drawn(position):
            sampler.resume_drawing(position)


def restore_loader_rng(trainer: Trainer, resumed: ItwinaiState) -> None:
    """Let the generators of the training samplers continue where the checkpoint was written."""
    for sampler, position in zip(training_samplers(trainer), resumed.positions, strict=False):
        if sampler is not None and position is not None:
            sampler.resume_drawing(position)


def _is_drawn(position: Position) -> bool:
    """Return whether the order of the epoch was drawn."""
    return position.begun_with is not None


def _skipped(trainer: Trainer, loader: Any, loaders: int, batches: int) -> int | None:
    """Return how many batches of its present iteration a loader has given; None if that cannot be told."""
    if loaders == 1:
        return batches
    combined = trainer.fit_loop.combined_loader  # type: ignore[attr-defined]
    try:
        length = len(loader)
    except TypeError:
        return None
    if lightning_dataloaders.loader_mode(combined) == "max_size_cycle" and batches:
        return (batches - 1) % length + 1  # it is begun again when a batch is asked for, and not before
    return min(batches, length)


def _warn_of_samples_seen_twice(batches: int) -> None:
    warn_user(
        f"The checkpoint was saved in mid-epoch, after {batches} batches, but the training loader starts the epoch "
        "over: the first samples are seen twice, and the last ones not at all. The checkpoint comes from another "
        "number of workers or from the middle of a batch, and a loader cannot resume its position. A torch DataLoader "
        "over a map-style dataset can resume; so can any loader that has state_dict and load_state_dict, or whose "
        "iterable dataset has them, with num_workers=0."
    )


def restore_rng(trainer: Trainer, resumed: ItwinaiState) -> None:
    """Let the random number generators continue where the checkpoint was written.

    A rank that did not exist then begins a stream of its own where rank 0 continues.
    """
    rank, states = trainer.global_rank, [unpack_random_states(one) for one in resumed.random_states]
    if rank < len(states):
        lightning_trainer.set_rng_states(states[rank])
    else:
        seed_generators(seed_of_rank(states[0], rank))
    if isinstance(trainer.strategy, DrawsRandomNumbers):
        trainer.strategy.random_numbers.restarts += 1

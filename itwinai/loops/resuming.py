"""Go on from a checkpoint at the very next sample, with the random numbers that would have come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from itwinai import compat
from itwinai.checkpoints.content import Section, training_samplers
from itwinai.data.random_states import unpack_random_states
from itwinai.data.rank_streams import RankStreams, seed_generators, seed_of_rank
from itwinai.data.streams import StreamLoader

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@runtime_checkable
class Drawing(Protocol):
    """A strategy whose workers draw from streams of their own."""

    @property
    def random_numbers(self) -> RankStreams:
        """The streams of this worker."""


def go_on_in_epoch(trainer: Trainer, resumed: Section, batches: int) -> None:
    """Let the training loaders go on where the checkpoint was written.

    Args:
        trainer: in a fit, before its first epoch iterates the loaders.
        resumed: our part of the checkpoint.
        batches: number of global batches that were consumed of the epoch; 0 begins a new one.

    Raises:
        CheckpointError: the global batch has another size, in mid-epoch.
    """
    if batches >= trainer.num_training_batches:
        return  # nothing of the epoch is left, and the next one is drawn as any other
    samplers = training_samplers(trainer)
    if batches and len(samplers) != 1:
        rank_zero_warn(
            f"The checkpoint was written in mid-epoch, and there are {len(samplers)} training loaders: they begin "
            "their epoch anew. Only a single loader can go on where it was."
        )
        return
    for index, sampler in enumerate(samplers):
        position = resumed.positions[index] if index < len(resumed.positions) else None
        if sampler is not None and position is not None:
            sampler.resume(position, batches)
        elif batches and not compat.is_stateful(compat.training_loaders(trainer)[index]):
            rank_zero_warn(
                f"The checkpoint was written in mid-epoch, after {batches} batches, and the training loader begins its "
                "epoch anew: the first samples are seen twice, and the last ones not at all. A loader of a dataset "
                "with indices, of torch's own class DataLoader, can go on where it was; so can any loader with the "
                "methods state_dict and load_state_dict, or whose iterable dataset has them, with num_workers=0."
            )


def rewind(trainer: Trainer, in_epoch: bool) -> bool:
    """Let the loaders be iterated anew, now that they know where to go on; return False if they need not be.

    lightning has let those that keep their own state begin where they stood.

    Args:
        trainer: in a fit, before its first epoch iterates the loaders.
        in_epoch: whether it goes on in mid-epoch.
    """
    stateful = [loader for loader in compat.training_loaders(trainer) if compat.is_stateful(loader)]
    if stateful and (in_epoch or not all(isinstance(loader, StreamLoader) for loader in stateful)):
        return False
    for loader in stateful:
        loader.rewind()
    return True


def go_on_drawing(trainer: Trainer, resumed: Section) -> None:
    """Let the random number generators go on where the checkpoint was written.

    A rank that did not exist then begins a stream of its own where rank 0 goes on.
    """
    rank, states = trainer.global_rank, [unpack_random_states(one) for one in resumed.random_states]
    if rank < len(states):
        compat.set_rng_states(states[rank])
    else:
        seed_generators(seed_of_rank(states[0], rank))
    if isinstance(trainer.strategy, Drawing):
        trainer.strategy.random_numbers.restarts += 1

"""How much this worker's loss counts in a training step, where the workers have unequal numbers of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lightning.fabric.utilities.data import sized_len

from itwinai.compat import lightning_dataloaders
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@runtime_checkable
class Weighing(Protocol):
    """A sampler whose workers may have unequal parts of a global batch."""

    @property
    def iterations(self) -> int:
        """How often a loader has begun to iterate."""

    def weight_of(self, batch_index: int) -> float:
        """Return the weight of this worker's mean loss for a batch of the current epoch; 1 for even batches."""

    def planned_weights(self, batch_index: int) -> list[float] | None:
        """Return the weights of all workers for a batch, before it is drawn; None where that cannot be told."""


def sampler_of(loader: Any) -> Weighing | None:
    """Return the sampler or iterator that divides a loader's samples among the workers, or None."""
    found = (
        lightning_dataloaders.without_index_wrapper(getattr(loader, name, None))
        for name in ("batch_sampler", "sampler")
    )
    candidates = (*found, lightning_dataloaders.iterator_maker(loader))
    return next((sampler for sampler in candidates if isinstance(sampler, Weighing)), None)


def check_drawn(loader: Any, sampler: Weighing) -> None:
    """Make sure that a loader which has given a batch has it from its sampler.

    Raises:
        ConfigurationError: it has not.
    """
    if not sampler.iterations:
        raise ConfigurationError(
            f"{type(loader).__name__} does not draw from its sampler, so its batches cannot be divided among the "
            "workers: each would get all of them. Let its __iter__ draw from self.batch_sampler; or let it give each "
            "worker its own batches (trainer.global_rank and trainer.world_size tell which), and let the trainer take "
            "it as it is: ItwinaiTrainer(use_distributed_sampler=False)."
        )


class StepWeights:
    """The weights of this worker's losses, by the index of the training step in its epoch.

    A step may take a batch from each of several loaders. Where their parts are uneven in the same way, that is the
    weight of the step; otherwise no weight of the loss as a whole lets all samples count alike.

    Args:
        trainer: whose training loaders they are.
        strict: whether it is an error if no weight is right; otherwise all workers count alike then.
    """

    def __init__(self, trainer: Trainer, strict: bool = True) -> None:
        self.trainer = trainer
        self.strict = strict
        self._loaders: list[Any] | None = None
        self._samplers: list[Weighing | None] = []

    def __call__(self, step: int) -> float:
        """Return the weight of this worker's loss in a step of the epoch.

        Raises:
            ConfigurationError: the loaders of this step ask for different weights.
        """
        samplers = self._up_to_date()
        if not step:
            for index, _ in self._batches(step):
                if (sampler := samplers[index]) is not None:
                    check_drawn(lightning_dataloaders.training_loaders(self.trainer)[index], sampler)
        if len(samplers) == 1:
            return 1.0 if samplers[0] is None else samplers[0].weight_of(step)
        weights = [
            1.0 if (sampler := samplers[index]) is None else sampler.weight_of(batch)
            for index, batch in self._batches(step)
        ]
        if len(set(weights)) > 1 and self.strict:
            raise self._error(step, weights)
        return weights[0] if len(set(weights)) == 1 else 1.0

    def check(self) -> None:
        """Find steps whose loaders ask for different weights before the first step, as far as that can be told.

        Raises:
            ConfigurationError: there is one.
        """
        samplers = self._up_to_date()
        steps = self.trainer.num_training_batches
        if len(samplers) < 2 or not isinstance(steps, int):
            return
        ends = {
            step
            for sampler, length in zip(samplers, self._lengths(), strict=True)
            if sampler is not None and length
            for step in range(length - 1, steps, length)
        }
        for step in sorted(ends):
            planned = [
                None if (sampler := samplers[index]) is None else sampler.planned_weights(batch)
                for index, batch in self._batches(step)
            ]
            known = [weights for weights in planned if weights is not None]
            if any(weights != known[0] for weights in known):
                raise self._error(step, known)

    def _up_to_date(self) -> list[Weighing | None]:
        loaders = lightning_dataloaders.training_loaders(self.trainer)
        if loaders != self._loaders:
            self._loaders = loaders
            self._samplers = [sampler_of(loader) for loader in loaders]
        return self._samplers

    def _lengths(self) -> list[int | None]:
        return [sized_len(loader) for loader in self._loaders or ()]

    def _batches(self, step: int) -> list[tuple[int, int]]:
        """Return from which loaders a step takes a batch, and which of it."""
        lengths = self._lengths()
        if lightning_dataloaders.training_mode(self.trainer) == "max_size_cycle":
            return [(index, step % length if length else step) for index, length in enumerate(lengths)]
        return [(index, step) for index, length in enumerate(lengths) if length is None or step < length]

    def _error(self, step: int, weights: Sequence[Any]) -> ConfigurationError:
        return ConfigurationError(
            f"Step {step} of the epoch takes a batch from each of {len(weights)} training loaders, and their last "
            f"batches are divided unevenly among {self.trainer.world_size} workers, each in another way (weights "
            f"{weights}). No weight of a worker's loss lets the samples of all loaders count alike, as in one process. "
            "Use drop_last=True for these loaders, or numbers of samples that can be divided; or accept it with "
            "ItwinaiTrainer(weigh_uneven_batches=False), which lets the loss of each worker count alike."
        )

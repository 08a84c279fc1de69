"""Weights of training steps that take batches of one or of several loaders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from itwinai.compat import lightning_dataloaders
from itwinai.data.samplers import DistributedBatchSampler
from itwinai.data.weights import StepWeights, check_drawn, sampler_of
from itwinai.errors import ConfigurationError


def dealt(number: int, rank: int = 0) -> DataLoader:
    """Return the loader of one of two workers, with global batches of 4."""
    options: dict[str, Any] = {
        "split": False,
        "even_batches": True,
        "borrow_samples": False,
        "broadcast": lambda own: own,
    }
    sampler = DistributedBatchSampler(BatchSampler(SequentialSampler(range(number)), 2, False), 2, rank, **options)
    return lightning_dataloaders.with_sampler(DataLoader(range(number), 2), sampler, RunningStage.TRAINING)  # type: ignore[arg-type]


def trainer_of(combined: CombinedLoader) -> Any:
    combined.limits = [float("inf")] * len(combined.flattened)
    iter(combined)
    loop = SimpleNamespace(_combined_loader=combined)
    return SimpleNamespace(fit_loop=loop, num_training_batches=len(combined), world_size=2)


def weights_of(mode: str, *numbers: int, strict: bool = True, rank: int = 0) -> list[float]:
    """Return the weights of the steps of an epoch."""
    combined = CombinedLoader([dealt(number, rank) for number in numbers], mode)  # type: ignore[arg-type]
    trainer = trainer_of(combined)
    weights = StepWeights(trainer, strict)
    if strict:
        weights.check()
    return [weights(step) for step, _ in enumerate(combined)]


@pytest.mark.parametrize(
    ("mode", "numbers", "expected"),
    [
        ("max_size_cycle", (7,), [1, 4 / 3]),
        ("max_size_cycle", (7, 7), [1, 4 / 3]),
        ("max_size_cycle", (4, 8), [1, 1]),
        ("min_size", (8, 11), [1, 1]),
        ("max_size", (4, 7), [1, 4 / 3]),
    ],
)
def test_steps_weigh_as_the_loaders_that_give_their_batches(
    mode: str, numbers: tuple[int, ...], expected: list[float]
) -> None:
    assert weights_of(mode, *numbers) == pytest.approx(expected)


def test_loader_that_begins_again_weighs_again() -> None:
    assert weights_of("max_size_cycle", 7, 15, strict=False, rank=1) == pytest.approx([1, 1, 1, 2 / 3])
    with pytest.raises(ConfigurationError, match="Step 1 .* divided unevenly among 2 workers"):
        weights_of("max_size_cycle", 7, 15)


@pytest.mark.parametrize(("mode", "numbers"), [("max_size_cycle", (8, 7)), ("min_size", (7, 11)), ("max_size", (7, 5))])
def test_loaders_that_ask_for_different_weights_are_found_before_they_are_used(
    mode: str, numbers: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigurationError, match="weigh_uneven_batches=False"):
        StepWeights(trainer_of(CombinedLoader([dealt(number) for number in numbers], mode))).check()  # type: ignore[arg-type]
    assert weights_of(mode, *numbers, strict=False)[-1] == 1.0


def test_other_loaders_are_seen_after_a_reload() -> None:
    trainer = trainer_of(CombinedLoader(dealt(8), "max_size_cycle"))
    weights = StepWeights(trainer)
    list(trainer.fit_loop._combined_loader)
    assert weights(1) == 1.0
    trainer.fit_loop._combined_loader = CombinedLoader(dealt(7), "max_size_cycle")
    list(trainer.fit_loop._combined_loader)
    assert weights(1) == pytest.approx(4 / 3)


def test_loader_that_has_not_drawn_from_its_sampler_is_found() -> None:
    loader = dealt(8)
    sampler = sampler_of(loader)
    assert sampler is not None
    with pytest.raises(ConfigurationError, match="does not draw from its sampler"):
        check_drawn(loader, sampler)
    next(iter(loader))
    check_drawn(loader, sampler)
    assert sampler_of(DataLoader(range(2))) is None and sampler_of([1, 2]) is None  # type: ignore[arg-type]

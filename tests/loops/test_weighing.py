"""Values of workers that count unequally, and random numbers of ranks that a checkpoint does not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from itwinai.compat import lightning_trainer
from itwinai.data.rank_streams import seed_generators, seed_of_rank
from itwinai.data.rng_state import plain_random_states
from itwinai.loops.metric_sync import Entry, exchange, reduce_column
from itwinai.loops.resume import restore_rng
from tests.data.test_samplers import draw, random_states, seeded


def test_means_weigh_workers_and_leave_out_those_without_weight() -> None:
    column = torch.tensor([1.0, 4.0, float("nan")], dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    assert float(reduce_column(column, torch.float32, "mean", weights)) == pytest.approx(7 / 4)
    assert float(reduce_column(column[:2], torch.float32, "sum", weights[:2])) == 5.0


def test_equal_weights_change_no_bit() -> None:
    column = torch.rand(7, dtype=torch.float64).float().double()
    weights = torch.full((7,), 0.3, dtype=torch.float64)
    assert torch.equal(
        reduce_column(column, torch.float32, "mean", weights), reduce_column(column, torch.float32, "mean")
    )


@pytest.mark.parametrize("number", [1, 130])  # more than fit into the first message
def test_weights_travel_with_their_values(number: int) -> None:
    sent: list[list[torch.Tensor]] = []

    def worker(rank: int) -> list[torch.Tensor]:
        messages: list[torch.Tensor] = []

        def all_gather(message: torch.Tensor) -> torch.Tensor:
            messages.append(message)
            index = len(messages) - 1
            return torch.stack([sent[other][index] if sent else message for other in range(2)])

        strategy: Any = SimpleNamespace(root_device=torch.device("cpu"), all_gather=all_gather)
        entries = [
            Entry(f"{index}", torch.tensor(float(index + rank)), "mean", weight=1.0 + 2 * rank)
            for index in range(number)
        ]
        results = exchange(strategy, entries)
        replies.append(messages)
        return results

    replies: list[list[torch.Tensor]] = []
    for rank in range(2):
        worker(rank)
    sent.extend(replies)
    for rank in range(2):
        assert [float(value) for value in worker(rank)] == pytest.approx([index + 0.75 for index in range(number)])


def test_ranks_that_a_checkpoint_does_not_know_begin_where_rank_0_continues() -> None:
    saved = [seeded(1), seeded(2)]
    resumed: Any = SimpleNamespace(random_states=[plain_random_states(states) for states in saved])
    drawn = []
    for rank in range(4):
        streams = SimpleNamespace(restarts=0)
        trainer: Any = SimpleNamespace(global_rank=rank, strategy=SimpleNamespace(random_numbers=streams))
        with random_states(seeded(9)):
            restore_rng(trainer, resumed)
            drawn.append(draw())
        assert streams.restarts == 1
    for states, numbers in zip(saved, drawn, strict=False):
        with random_states(dict(states)):
            assert draw() == numbers
    with random_states(seeded(9)):
        seed_generators(seed_of_rank(saved[0], 3))
        assert draw() == drawn[3]
    assert len(set(drawn)) == 4
    assert lightning_trainer.collect_rng_states(include_cuda=False).keys() >= {"torch", "python"}

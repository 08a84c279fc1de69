"""Which batches of an iterable dataset each worker predicts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from itwinai.data.undivided_loader import Turns, content_print


def taken(parts: list[list[Any]]) -> list[list[Any]]:
    """Return what each of some workers takes of its batches."""
    prints = [content_print(part[:2]) for part in parts]
    return [list(Turns(iter(part), rank, len(parts), lambda own: prints)) for rank, part in enumerate(parts)]


@pytest.mark.parametrize("number", range(6))
def test_same_batches_are_taken_in_turns(number: int) -> None:
    batches = [torch.tensor([index]) for index in range(number)]
    assert taken([batches, batches]) == [batches[::2], batches[1::2]]


def test_batches_of_a_dataset_that_divides_itself_are_all_taken() -> None:
    batches = [torch.tensor([index]) for index in range(5)]
    assert taken([batches[::2], batches[1::2]]) == [batches[::2], batches[1::2]]
    assert taken([batches[:1], []]) == [batches[:1], []]


def test_no_more_than_two_batches_are_fetched_ahead() -> None:
    fetched = itertools.count()

    def endless() -> Iterator[int]:
        for number in fetched:
            assert number < 2
            yield number

    assert next(Turns(endless(), 0, 2, lambda own: [own, own])) == 0


class Graph:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.again = self


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.tensor([x]),
        lambda x: torch.tensor([float(x)], dtype=torch.bfloat16),
        lambda x: np.array([x]),
        lambda x: {"a": [torch.tensor(x)], "b": ("name", x)},
        lambda x: Graph(torch.tensor([x])),
        lambda x: [Graph(torch.tensor([x])), None],
        lambda x: f"text {x}",
    ],
)
def test_content_is_told_apart_whatever_holds_it(make: Callable[[int], Any]) -> None:
    assert content_print(make(1)) == content_print(make(1)) != content_print(make(2))
    assert content_print(object()) == content_print(object())

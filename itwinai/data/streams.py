"""Loaders of iterable datasets that can tell where they are, and go on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader


@runtime_checkable
class Stateful(Protocol):
    """A dataset that can go on in the midst of its samples."""

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration stands, after the last sample that was taken from it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where another one stood."""


class StreamLoader(DataLoader):
    """A DataLoader of a stateful iterable dataset, whose own state is that after the batches that were trained.

    Loaders without a length are asked for batches ahead of the training, so the states after the last few are kept.
    lightning saves and restores the state of such a loader; all workers have to save together.

    Attributes:
        consumed: gives the number of batches of this epoch that were trained.
        gather: returns the objects of all workers, by rank.
        rank: this worker.
    """

    consumed: Callable[[], int]
    gather: Callable[[Any], list[Any]]
    rank: int

    _AHEAD = 3

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        dataset: Any = self.dataset
        number = self.__dict__.pop("_first", 0)
        self._begun_at = dataset.state_dict()
        self._states = {number: self._begun_at}
        self._ended = False
        for batch in super().__iter__():
            number += 1
            self._states[number] = dataset.state_dict()
            self._states.pop(number - self._AHEAD, None)
            yield batch
        self._ended = True

    def rewind(self) -> None:
        """Take back what the last iteration has taken from the dataset."""
        dataset: Any = self.dataset
        if hasattr(self, "_begun_at"):
            dataset.load_state_dict(self._begun_at)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the datasets of all workers, after the batches that were trained; for every worker."""
        batches = self.consumed()
        states: dict[int, Any] = getattr(self, "_states", {})
        # After the last batch of an epoch the next one begins anew.
        finished = not states or (getattr(self, "_ended", False) and batches >= max(states))
        return {"batches": batches, "ranks": self.gather(None if finished else states.get(batches))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where this worker stood; a worker that did not exist then begins anew."""
        if self.rank < len(state["ranks"]) and (own := state["ranks"][self.rank]) is not None:
            dataset: Any = self.dataset
            dataset.load_state_dict(own)
            self._first = state["batches"]

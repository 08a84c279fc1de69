"""Loaders of iterable datasets that can tell where they are, and resume from there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from itwinai.compat import lightning_trainer


class StreamLoader(DataLoader):
    """A DataLoader of a stateful iterable dataset, whose own state is that after the batches that were trained.

    Loaders without a length are asked for batches ahead of the training, so the states after the last few are kept.
    Lightning saves and restores the state of such a loader; all workers have to save together.

    At the end of an epoch it is left to the dataset what its next iteration begins with: the last batch is taken from
    it once more, so that it is left as it was.

    Attributes:
        consumed: gives the number of batches of this epoch that were trained, and whether no other follows.
        gather: returns the objects of all workers, by rank.
        rank: this worker.
    """

    consumed: Callable[[], tuple[int, bool]]
    gather: Callable[[Any], list[Any]]
    rank: int

    _AHEAD = 3

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        dataset: Any = self.dataset
        number = self.__dict__.pop("_first", 0)
        self._states = {number: dataset.state_dict()}
        self._ended = False
        return self._noting(super().__iter__(), number)

    def _noting(self, batches: Iterator[Any], number: int) -> Iterator[Any]:
        """Yield batches and keep the states after the last few."""
        dataset: Any = self.dataset
        for batch in batches:
            number += 1
            self._states[number] = dataset.state_dict()
            self._states.pop(number - self._AHEAD, None)
            yield batch
        self._ended = True

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the datasets of all workers, after the batches that were trained; for every worker."""
        batches, over = self.consumed()
        states: dict[int, Any] = getattr(self, "_states", {})
        own = None
        if over and batches - 1 in states:
            own = {"before_last": states[batches - 1], "taken": max(states) - batches + 1, "ended": self._ended}
        elif batches in states:
            own = {"state": states[batches]}
        return {"batches": batches, "ranks": self.gather(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration resume where this worker stood; a worker that is new starts from the beginning."""
        own = state["ranks"][self.rank] if self.rank < len(state["ranks"]) else None
        if own is None:
            return
        dataset: Any = self.dataset
        if "state" in own:
            dataset.load_state_dict(own["state"])
            self._first = state["batches"]
            return
        dataset.load_state_dict(own["before_last"])
        random_states = lightning_trainer.collect_rng_states(include_cuda=False)
        batches = super().__iter__()
        for _ in itertools.islice(batches, None if own["ended"] else own["taken"]):
            pass
        lightning_trainer.set_rng_states(random_states)

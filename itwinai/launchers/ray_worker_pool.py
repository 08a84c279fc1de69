"""Ray workers that are kept for the next run: their imports take seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]


@dataclass
class RayWorkerPool:
    """The actors of the last run, if it has ended well.

    Attributes:
        actors: one per rank.
        key: where they are, and with which environment variables.
    """

    actors: list[Any] = field(default_factory=list)
    key: Key = ()

    def acquire(self, group: Any, bundles: Sequence[tuple[int, str]], variables: Mapping[str, str]) -> list[Any] | None:
        """Return the actors for a run in the same bundles with the same variables; None if there are no such."""
        actors, self.actors = self.actors, []
        if actors and self.key == _key(group, bundles, variables):
            return actors
        _end(actors)
        return None

    def release(
        self, group: Any, bundles: Sequence[tuple[int, str]], variables: Mapping[str, str], actors: Sequence[Any]
    ) -> None:
        """Keep the actors of a run that has ended well."""
        self.close()
        self.actors, self.key = list(actors), _key(group, bundles, variables)

    def close(self) -> None:
        """End the actors."""
        actors, self.actors = self.actors, []
        _end(actors)


def _key(group: Any, bundles: Sequence[tuple[int, str]], variables: Mapping[str, str]) -> Key:
    return group.id.hex(), tuple(bundles), tuple(sorted(variables.items()))


def _end(actors: Sequence[Any]) -> None:
    import ray

    for actor in actors:
        ray.kill(actor)

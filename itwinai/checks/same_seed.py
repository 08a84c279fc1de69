"""Check that a seed decides on a run: a sampler or a module with random numbers of its own makes each run another."""

from __future__ import annotations

import itertools
from typing import Any

from itwinai.checks.data_source import source_of_batches
from itwinai.checks.differences import weight_difference
from itwinai.checks.processes import RunFailedError
from itwinai.checks.session import Session
from itwinai.checks.source_lines import method_line
from itwinai.checks.verdict import CheckFailedError


def check(session: Session) -> str:
    """Run twice with the same seed, and compare.

    Raises:
        CheckFailedError: weights differ; the message says what differs first.
    """
    first = session.reference()
    try:
        second = session.again()
    except RunFailedError as error:
        raise CheckFailedError(f"the second run fails: {error.summary}", at=error.at) from None
    apart = weight_difference(second.weights, first.weights)
    if apart == 0.0:
        return f"weights after {first.steps} steps are equal, bit by bit"
    notes, others = first.notes, second.notes
    if notes.initial != others.initial:
        raise CheckFailedError(
            "two runs with the same seed begin with different weights",
            "Draw initial weights from torch's generator, which `seed_everything` sets.",
            session.once("line-init", "looking for the line", lambda: _module_line(session, "__init__")),
        )
    number = _first_difference(notes.batches, others.batches)
    if number is not None:
        name, at = session.once("line-data", "looking for the line", lambda: source_of_batches(session.subject))
        raise CheckFailedError(
            f"two runs with the same seed train on different data from batch {number + 1} on: {name} draws random "
            "numbers that the seed does not decide",
            "Draw from torch's, numpy's or Python's global generator, which `seed_everything` sets, or seed your own "
            "from them: torch.Generator().manual_seed(torch.initial_seed()).",
            at,
        )
    number = _first_difference(notes.losses, others.losses)
    step = "" if number is None else f", from step {number + 1} on, with equal batches"
    raise CheckFailedError(
        f"two runs with the same seed end with weights that differ by {apart:.1e}{step}",
        "Look for random numbers from a generator of its own, the time, or sets and file lists in the order of a hash; "
        "on GPUs set trainer.deterministic.",
        session.once("line-step", "looking for the line", lambda: _module_line(session, "training_step")),
    )


def _first_difference(one: list[Any], other: list[Any]) -> int | None:
    pairs = enumerate(itertools.zip_longest(one, other))
    return next((index for index, (a, b) in pairs if a != b), None)


def _module_line(session: Session, method: str) -> str:
    return method_line(type(session.subject.build().module), method)

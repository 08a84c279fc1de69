"""Check that a seed decides on a run: a sampler or a module with random numbers of its own makes each run another."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils.data import DataLoader

from itwinai.checks.differences import weight_difference
from itwinai.checks.processes import RunFailedError
from itwinai.checks.session import Session
from itwinai.checks.source_lines import class_line, method_line
from itwinai.checks.subject import Built
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
        name, at = session.once("line-data", "looking for the line", lambda: _source_of_batches(session))
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


def _source_of_batches(session: Session) -> tuple[str, str]:
    """Return what draws the samples, and its line: the user's sampler, the dataset, or what makes the loader."""
    built = session.subject.build()
    loader = _training_loader(built)
    found: list[Any] = []
    for start in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        while start is not None and start not in found:
            found.append(start)
            start = getattr(start, "sampler", None)
    for one in reversed(found):
        if at := method_line(type(one), "__iter__"):
            return f"the sampler {type(one).__name__}", at
    if any(getattr(one, "generator", None) is not None for one in found):
        return "the loader's generator", _loader_line(built)
    dataset: Any = getattr(loader, "dataset", None)
    while dataset is not None and not class_line(type(dataset)) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    for method in ("__getitem__", "__getitems__", "__iter__"):
        if dataset is not None and (at := method_line(type(dataset), method)):
            return f"the dataset {type(dataset).__name__}", at
    return "what makes the loader", _loader_line(built)


def _training_loader(built: Built) -> DataLoader | Any:
    if isinstance(built.data, tuple):
        return built.data[0]
    if built.datamodule is not None:
        built.datamodule.prepare_data()
        built.datamodule.setup("fit")
        return built.datamodule.train_dataloader()
    return built.module.train_dataloader()


def _loader_line(built: Built) -> str:
    owner = built.datamodule or built.module
    return method_line(type(owner), "train_dataloader")

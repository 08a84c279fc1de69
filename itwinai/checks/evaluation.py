"""Check that metrics of an evaluation do not depend on how samples are batched and dealt out."""

from __future__ import annotations

from collections.abc import Sequence

from itwinai.checks.differences import differing
from itwinai.checks.recorder import read_logged_keys
from itwinai.checks.session import Session
from itwinai.checks.training import Evaluated
from itwinai.checks.verdict import CheckFailedError, NotApplicableError


def check(session: Session) -> str:
    """Evaluate the same samples with several batch sizes, and with two workers.

    Raises:
        CheckFailedError: a metric differs.
        NotApplicableError: there is nothing to evaluate.
    """
    reference = session.reference()
    if "validate" in reference.not_evaluated:
        raise NotApplicableError(reference.not_evaluated["validate"])
    evaluated = [one for one in reference.evaluated if one.metrics]
    if not evaluated:
        raise NotApplicableError("validation logs nothing")
    first, *others = evaluated
    others += [one for one in two_workers(session) if one.metrics]
    for other in others:
        for key in differing(other.metrics, first.metrics):
            _fail(session, key, first, other)
    return f"{len(first.metrics)} metrics with {ways([first, *others])}"


def ways(evaluated: Sequence[Evaluated]) -> str:
    """Return how the same samples were evaluated, in words."""
    sizes = [one.how.removeprefix("batches of ") for one in evaluated if one.how.startswith("batches")]
    others = [one.how for one in evaluated if not one.how.startswith("batches")]
    named = [size for size in sizes if not size.endswith("again")]
    return " and with ".join([f"batches of {', '.join(named)}", *others])


def two_workers(session: Session) -> list[Evaluated]:
    """Return what two workers have evaluated with the weights of one process; nothing if they do not train."""
    ranks = session.two_workers() if session.subject.options.get("use_distributed_sampler", True) else []
    return ranks[0].evaluated if ranks else []


def _fail(session: Session, key: str, first: Evaluated, other: Evaluated) -> None:
    values = [f"{one.metrics.get(key, float('nan')):.6g} with {one.how}" for one in (first, other)]
    # A key of an epoch's mean has a suffix if there is one of steps, too.
    plain = key.removesuffix("_epoch").removesuffix("_step").partition("/dataloader_idx_")[0]
    lines = read_logged_keys(session.keys_file("one", 0))
    at = next((at for (hook, name), at in lines.items() if name == plain and "valid" in hook), "")
    if other.how.endswith("again"):
        raise CheckFailedError(
            f"the metric '{key}' of the same samples is {' and '.join(values)}: evaluation draws random numbers",
            "Draw none in validation_step, or from a generator that is seeded there.",
            at,
        )
    raise CheckFailedError(
        f"the metric '{key}' of the same samples is {' and '.join(values)}",
        "Log means in validation_step with self.log, which weighs each batch by its samples, or use a torchmetric; do "
        "not average the means of batches yourself, and leave layers such as batch norm in eval mode.",
        at,
    )

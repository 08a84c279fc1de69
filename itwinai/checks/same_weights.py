"""Check that every strategy trains to the weights of one process."""

from __future__ import annotations

from itwinai.checks.data_source import is_iterable, source_of_batches
from itwinai.checks.differences import weight_difference, weight_limit, worst_weight
from itwinai.checks.processes import RunFailedError
from itwinai.checks.ray_runs import ray_fits
from itwinai.checks.session import WORKERS, Session
from itwinai.checks.source_lines import attribute_line
from itwinai.checks.training import Trained
from itwinai.checks.verdict import CheckFailedError, NotApplicableError
from itwinai.errors import ConfigurationError

AMPLIFIED = 3.0
"""How much farther than a run with rounded initial weights another may be, and still differ by rounding only."""


def check(session: Session) -> str:
    """Train under every strategy with two workers, and compare the weights with those of one process.

    Raises:
        CheckFailedError: a strategy fails, or ends with other weights.
        NotApplicableError: no strategy can be compared.
    """
    check_comparable(session)
    reference = session.reference()
    passed, refused = [], []
    for strategy in session.strategies:
        try:
            trained = (
                ray_fits(session, strategy)[0] if strategy in session.ray_strategies else session.group(strategy)[0]
            )
        except RunFailedError as error:
            if isinstance(error.error, ConfigurationError):
                refused.append(f"{strategy} ({error.summary.partition(': ')[2] or error.summary})")
                continue
            raise CheckFailedError(f"training under {strategy} fails: {error.summary}", at=error.at) from None
        note = compare(session, trained, reference, strategy, f"under {strategy} with {WORKERS} workers")
        passed.append(f"{strategy}{note}")
    if not passed:
        raise NotApplicableError(f"no strategy accepts this run: {'; '.join(refused)}")
    return f"{', '.join(passed)}{'; not applicable: ' if refused else ''}{'; '.join(refused)}"


def check_comparable(session: Session) -> None:
    """Raise an error where the options say that several workers compute other numbers, or may on a CPU.

    Raises:
        NotApplicableError: they do.
    """
    options = session.subject.options
    if options.get("use_distributed_sampler") is False:
        raise NotApplicableError("with use_distributed_sampler=False the data decides what each worker trains on")
    if options.get("sync_batchnorm") and _has_batch_norm(session):
        raise NotApplicableError("torch synchronizes batch norm on GPUs only, and checks run on the CPU")


def compare(session: Session, trained: Trained, reference: Trained, strategy: str, how: str) -> str:
    """Raise an error if a run ends with other weights than that of one process.

    Returns:
        What is to be said of a strategy that passes; often nothing.

    Raises:
        CheckFailedError: it does.
    """
    limit = weight_limit(strategy, session.subject.options.get("precision"))
    apart = weight_difference(trained.weights, reference.weights)
    if trained.steps == reference.steps and apart <= limit:
        return ""
    if trained.steps != reference.steps:
        raise CheckFailedError(f"{how} the run has {trained.steps} steps, and {reference.steps} in one process")
    if reference.notes.random_step or reference.notes.random_data:
        return " (trains; weights differ, as random numbers are drawn in training)"
    if session.once("iterable", "looking for the cause", lambda: is_iterable(session.subject)):
        source, at = session.once("line-data", "looking for the line", lambda: source_of_batches(session.subject))
        raise CheckFailedError(
            f"{how} weights differ by {apart:.1e} from those of one process (allowed {limit:.0e}): an iterable dataset "
            f"decides by itself what each worker gets, here {source}",
            "Give each rank its part of the samples in __iter__ (docs/explanation/same-numbers.md), or use a dataset "
            "with indices, which itwinai deals out.",
            at,
        )
    # Adam with a tiny eps makes whole steps of gradients that are nothing but rounding: then no summation is the same.
    if apart <= AMPLIFIED * (rounding := weight_difference(session.perturbed().weights, reference.weights)):
        return f" (differs by {apart:.0e}, as does rounding of the initial weights: {rounding:.0e})"
    worst = worst_weight(trained.weights, reference.weights)
    statistics = "running_" in worst or _has_batch_norm(session)
    raise CheckFailedError(
        f"{how} weights differ by {apart:.1e} from those of one process (allowed {limit:.0e}), most of all {worst}",
        "Batch norm computes with the samples of each worker: set trainer.sync_batchnorm=true, which works on GPUs."
        if statistics
        else "Look for what depends on the samples of one worker: losses that are no means over samples, statistics of "
        "a batch, the rank. docs/explanation/same-numbers.md says when results are equal.",
        session.once("line-weights", "looking for the line", lambda: _line(session, worst)),
    )


def _line(session: Session, name: str) -> str:
    return attribute_line(session.subject.build().module, name)


def _has_batch_norm(session: Session) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    def look() -> bool:
        return any(isinstance(part, _BatchNorm) for part in session.subject.build().module.modules())

    return bool(session.once("batch-norm", "looking for the cause", look))

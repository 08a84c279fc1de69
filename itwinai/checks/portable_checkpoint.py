"""Check that one checkpoint continues under every strategy."""

from __future__ import annotations

from itwinai.checks.processes import RunFailedError
from itwinai.checks.ray_runs import ray_fits
from itwinai.checks.same_weights import check_comparable, compare
from itwinai.checks.session import Session
from itwinai.checks.verdict import CheckFailedError, NotApplicableError

CHECKPOINT = "last-step"
"""The checkpoint that is taken: at the last step of an epoch most is still to be done."""


def check(session: Session) -> str:
    """Continue from a checkpoint of one process under every strategy that has trained, to the same weights.

    Raises:
        CheckFailedError: a strategy does not load it, or ends with other weights.
        NotApplicableError: no strategy can be compared.
    """
    check_comparable(session)
    reference = session.reference()
    if CHECKPOINT not in reference.saved:
        raise NotApplicableError("the run has no checkpoint at the end of an epoch")
    passed = []
    for strategy in session.strategies:
        ray = strategy in session.ray_strategies
        try:
            if not ray:
                session.group(strategy)
        except RunFailedError:
            continue  # same_weights tells
        try:
            trained = ray_fits(session, strategy)[1] if ray else session.resumed_group(strategy, CHECKPOINT)
        except RunFailedError as error:
            raise CheckFailedError(
                f"a checkpoint of one process does not continue under {strategy}: {error.summary}", at=error.at
            ) from None
        how = f"continued under {strategy} from a checkpoint of one process"
        passed.append(f"{strategy}{compare(session, trained, reference, strategy, how)}")
    if not passed:
        raise NotApplicableError("no strategy accepts this run; see same_weights")
    return ", ".join(passed)

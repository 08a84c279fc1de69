"""Check that all ranks log the same keys: a value that only some have cannot be reduced over them."""

from __future__ import annotations

from itwinai.checks.processes import RunFailedError
from itwinai.checks.recorder import read_logged_keys
from itwinai.checks.session import WORKERS, Session
from itwinai.checks.verdict import CheckFailedError, NotApplicableError
from itwinai.errors import LoggedKeysError


def check(session: Session) -> str:
    """Train with two workers, and compare what each has logged.

    Raises:
        CheckFailedError: the keys differ.
        NotApplicableError: nothing is logged, or the run has failed for another reason.
    """
    session.reference()
    failure = None
    try:
        session.group("ddp")
    except RunFailedError as error:
        failure = error
    keys = [read_logged_keys(session.keys_file("two", rank)) for rank in range(WORKERS)]
    everywhere = set(keys[0]).intersection(*keys[1:])
    told = isinstance(failure and failure.error, LoggedKeysError)
    for rank, own in enumerate(keys):
        lone = {call: at for call, at in own.items() if call not in everywhere}
        # Where a run has stopped for another reason, some ranks may not have come as far as the others.
        if lone and (failure is None or told):
            (hook, key), at = next(iter(lone.items()))
            names = ", ".join(f"'{name}'" for _, name in lone)
            raise CheckFailedError(
                f"only rank {rank} logs {names} in {hook}",
                "Log the same keys on all ranks, with a neutral value where there is none; to log on one rank only, "
                "use self.log(..., rank_zero_only=True) without a key that depends on the rank.",
                at,
            )
    if failure is not None and told:
        raise CheckFailedError(" ".join(failure.summary.split()), at=failure.at)
    if failure is not None:
        raise NotApplicableError(f"two workers did not train: {failure.summary.splitlines()[0]}")
    if not everywhere:
        raise NotApplicableError("nothing is logged")
    return f"{len({key for _, key in everywhere})} keys on {WORKERS} ranks"

"""The names of the checks, what each asks for, and what it needs before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from itwinai.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from itwinai.checks.session import Session


@dataclass(frozen=True)
class Check:
    """A named check.

    Attributes:
        name: of the check, and of the file of this folder that has it.
        asks: what a module has to do to pass, in a few words.
        needs: checks without which this one says nothing: its runs would differ for their reasons.
    """

    name: str
    asks: str
    needs: tuple[str, ...] = ()

    def run(self, session: Session) -> str:
        """Run the check, and return what it has looked at.

        Raises:
            CheckFailedError: the module does not pass.
            NotApplicableError: there is nothing to check.
        """
        check: Callable[[Session], str] = import_module(f"itwinai.checks.{self.name}").check
        return check(session)


# To add a check, write `check(session)` into a file of this folder, and add an entry: they run in this order.
_CHECKS = (
    Check("trains", "two short epochs in one process end without an error"),
    Check("same_seed", "two runs with the same seed end with the same weights", ("trains",)),
    Check("unused_parameters", "every trained parameter gets a gradient in every step", ("trains",)),
    Check("pickling", "module, data and callbacks can be sent to worker processes and to Ray"),
    Check("logged_keys", "all ranks log the same keys", ("trains", "unused_parameters")),
    Check("resume", "a run that continues from a checkpoint ends with the weights of the whole run", ("same_seed",)),
    Check("evaluation", "metrics do not depend on the batch size and the number of workers", ("trains",)),
    Check("prediction_order", "predictions come in the order of the data, whatever the batches", ("trains",)),
    Check(
        "same_weights",
        "every strategy with two workers ends with the weights of one process",
        ("same_seed", "unused_parameters", "logged_keys"),
    ),
    Check("portable_checkpoint", "one checkpoint continues under every strategy", ("resume", "same_weights")),
    Check("hpo_trial", "a trial of a search trains and reports", ("trains", "pickling")),
)

CHECKS = {check.name: check for check in _CHECKS}
"""All checks, by name."""


def choose(names: Iterable[str] | None) -> Sequence[Check]:
    """Return the checks of some names, in their order; None stands for all.

    Raises:
        ConfigurationError: there is no check of a name; the message names the nearest.
    """
    if names is None:
        return _CHECKS
    wanted = [name.strip() for name in names if name.strip()]
    for name in wanted:
        if name not in CHECKS:
            raise ConfigurationError(
                f"There is no check '{name}'.{did_you_mean(name, CHECKS)} The checks are {', '.join(CHECKS)}."
            )
    if not wanted:
        raise ConfigurationError(f"No check is named. The checks are {', '.join(CHECKS)}.")
    return [check for check in _CHECKS if check.name in wanted]

"""Check that training reaches all parameters: strategies wait for the gradients of each."""

from __future__ import annotations

from itwinai.checks.session import Session
from itwinai.checks.source_lines import attribute_line
from itwinai.checks.verdict import CheckFailedError


def check(session: Session) -> str:
    """Look for parameters of the optimizers that a step gives no gradient.

    Raises:
        CheckFailedError: there are some.
    """
    trained = session.reference()
    unused, steps = trained.notes.unused, len(trained.notes.batches)
    if not unused:
        return f"all parameters got a gradient in each of {steps} batches"
    names = list(unused)
    never = [name for name in names if unused[name] == steps]
    how = "never reached" if never else f"not reached in {max(unused.values())} of {steps} batches"
    named = never or names
    at = session.once("line-unused", "looking for the line", lambda: _line(session, named[0]))
    shown = f"{', '.join(named[:4])}{', ...' if len(named) > 4 else ''}"
    raise CheckFailedError(
        f"{how} by a backward pass: {shown}",
        "Use them in training_step, remove or freeze them (requires_grad=False); or train with the strategy "
        "ddp_find_unused_parameters_true.",
        at,
    )


def _line(session: Session, name: str) -> str:
    return attribute_line(session.subject.build().module, name)

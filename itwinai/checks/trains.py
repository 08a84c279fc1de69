"""Check that a module trains at all."""

from __future__ import annotations

from itwinai.checks.session import Session
from itwinai.checks.training import EPOCHS, tensors_of
from itwinai.checks.verdict import CheckFailedError


def check(session: Session) -> str:
    """Train for two short epochs in one process.

    Raises:
        CheckFailedError: it fails, or weights are not finite afterwards.
    """
    trained = session.reference()
    if not bool(tensors_of(trained.weights).isfinite().all()):
        raise CheckFailedError(
            f"weights are NaN or infinite after {trained.steps} steps",
            "Lower the learning rate, or clip gradients: trainer.gradient_clip_val.",
        )
    return f"{trained.steps} steps in {EPOCHS} epochs"

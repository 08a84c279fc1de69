"""Check that predictions are those of the samples in their order, however they are batched and dealt out."""

from __future__ import annotations

import torch

from itwinai.checks.differences import rows
from itwinai.checks.evaluation import ways
from itwinai.checks.session import WORKERS, Session
from itwinai.checks.source_lines import method_line
from itwinai.checks.training import Evaluated
from itwinai.checks.verdict import CheckFailedError, NotApplicableError
from itwinai.launchers.payload import interleave


def check(session: Session) -> str:
    """Predict the same samples with several batch sizes, and with two workers.

    Raises:
        CheckFailedError: a prediction differs, or stands elsewhere.
        NotApplicableError: there is nothing to predict, or predictions have no row per sample.
    """
    reference = session.reference()
    if "predict" in reference.not_evaluated:
        raise NotApplicableError(reference.not_evaluated["predict"])
    predicted = [one for one in reference.evaluated if one.predictions]
    if not predicted:
        raise NotApplicableError("predict_step returns nothing")
    first, *others = predicted
    others += _two_workers(session)
    expected = rows(first.predictions)
    if not expected or any(len(value) != reference.predicted_samples for value in expected.values()):
        raise NotApplicableError("predict_step does not return one row per sample")
    for other in others:
        found = rows(other.predictions)
        for name, value in expected.items():
            _compare(session, name, value, found.get(name), first, other)
    return f"{reference.predicted_samples} samples with {ways([first, *others])}"


def _two_workers(session: Session) -> list[Evaluated]:
    ranks = session.two_workers()
    predictions = [next((one.predictions for one in rank.evaluated if one.predictions), []) for rank in ranks]
    return [Evaluated(f"{WORKERS} workers", predictions=interleave(predictions))] if any(predictions) else []


def _compare(
    session: Session,
    name: str,
    expected: torch.Tensor,
    found: torch.Tensor | None,
    first: Evaluated,
    other: Evaluated,
) -> None:
    what = f"predictions{f' ({name})' if name else ''}"
    if found is None or found.shape != expected.shape:
        shape = "missing" if found is None else tuple(found.shape)
        raise CheckFailedError(
            f"{what} have the shape {tuple(expected.shape)} with {first.how} and are {shape} with {other.how}",
            "Return one row per sample from predict_step.",
            _line(session),
        )
    close = torch.isclose(found.double(), expected.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
    wrong = (~close).reshape(len(expected), -1).any(1).nonzero().flatten().tolist()
    if not wrong:
        return
    moved = sorted(map(tuple, found.reshape(len(found), -1).tolist())) == sorted(
        map(tuple, expected.reshape(len(expected), -1).tolist())
    )
    raise CheckFailedError(
        f"{what} of the same samples {'stand elsewhere' if moved else 'differ'} with {other.how} and {first.how}, "
        f"that of sample {wrong[0]} first, {len(wrong)} of {len(expected)} in all",
        "Let predict_step compute each row from its sample alone: without statistics of the batch, random numbers, or "
        "state from the batches before.",
        _line(session),
    )


def _line(session: Session) -> str:
    def look() -> str:
        return method_line(type(session.subject.build().module), "predict_step")

    return str(session.once("line-predict", "looking for the line", look))

"""Check that a stopped run can be continued as if it had not been stopped."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from itwinai.checks.data_source import source_of_batches
from itwinai.checks.differences import weight_difference, weight_limit, worst_weight
from itwinai.checks.processes import RunFailedError
from itwinai.checks.session import Session
from itwinai.checks.source_lines import assignments
from itwinai.checks.training import Trained
from itwinai.checks.verdict import CheckFailedError


def check(session: Session) -> str:
    """Resume from checkpoints at five random steps, the last step of an epoch and after a validation.

    Raises:
        CheckFailedError: a resumed run fails, or ends with other weights.
    """
    whole = session.reference()
    limit = weight_limit("", session.subject.options.get("precision"))
    for name, where in whole.saved.items():
        try:
            resumed = session.resumed(name)
        except RunFailedError as error:
            raise CheckFailedError(f"resuming {where} fails: {error.summary}", at=error.at) from None
        apart = weight_difference(resumed.weights, whole.weights)
        if resumed.steps != whole.steps or not apart <= limit:
            found = f"resumed {where}, the run ends with weights that differ by {apart:.1e} (allowed {limit:.0e})"
            raise _explained(session, whole, resumed, name, found)
    return f"from {len(whole.saved)} checkpoints: at random steps, the last step of an epoch, after a validation"


def _explained(session: Session, whole: Trained, resumed: Trained, name: str, found: str) -> CheckFailedError:
    """Return the error, with what the checkpoint lacks where that can be told."""
    lost = session.once(
        "line-resume", "looking for the line", lambda: _lost(session, whole.notes.saved[name], resumed.notes.restored)
    )
    if lost:
        attribute, hook, at, had, has = lost[0]
        others = f" (likewise {', '.join(one[0] for one in lost[1:4])})" if lost[1:] else ""
        return CheckFailedError(
            f"{found}: self.{attribute}, which {hook} sets, is {had} when it is saved and {has} when it is resumed: "
            f"the checkpoint does not have it{others}",
            "Make it a buffer (self.register_buffer), or save it in on_save_checkpoint and restore it in "
            "on_load_checkpoint.",
            at,
        )
    seen = whole.notes.batches[len(whole.notes.batches) - len(resumed.notes.batches) :]
    if seen != resumed.notes.batches:
        source, at = session.once("line-data", "looking for the line", lambda: source_of_batches(session.subject))
        return CheckFailedError(
            f"{found}: the batches after it are others, which {source} decides",
            "A dataset or sampler with a state of its own needs state_dict() and load_state_dict().",
            at,
        )
    worst = worst_weight(resumed.weights, whole.weights)
    return CheckFailedError(
        f"{found}, most of all {worst}",
        "Look for state that hooks change and checkpoints lack: in callbacks (state_dict), in the datamodule "
        "(state_dict), in objects that the module holds.",
    )


def _lost(session: Session, saved: dict[str, Any], restored: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return the attributes that hooks change and that are not restored: name, hook, line, value before and after."""
    module = session.subject.build().module
    parts = dict(module.named_modules())
    found = []
    for path, had in saved.items():
        has = restored.get(path)
        if _equal(had, has):
            continue
        owner, _, name = path.rpartition(".")
        for at, hook in assignments(type(parts[owner]), name, hooks=True):
            found.append((path, hook, at, _short(had), _short(has)))
            break
    # Numbers and tensors rather than lists, which often only collect what is to be looked at.
    return sorted(found, key=lambda one: one[3].startswith(("[", "{")))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and one.shape == other.shape
            and bool((one == other).all())
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

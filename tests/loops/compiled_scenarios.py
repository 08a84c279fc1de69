"""Drawn scenarios whose training step a graph can hold, and how runs are compared that round differently."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.loops.freezing import Bits
from tests.loops.runs import Journal, first_tensor
from tests.loops.scenarios import Scenario

_REFUSED = ("backward", "optimizer_step", "configure_gradient_clipping", "clip_gradients")


def for_graphs(scenario: Scenario) -> Scenario:
    """Take out of a scenario what no graph can hold."""
    options = {name: value for name, value in scenario.options if name not in ("detect_anomaly", "profiler")}
    if options.get("precision") == "bf16-mixed":
        del options["precision"]
    return replace(
        scenario,
        overridden=tuple(hook for hook in scenario.overridden if hook not in _REFUSED),
        on_instance=tuple(hook for hook in scenario.on_instance if hook not in _REFUSED),
        step="with index" if scenario.step == "without index" else scenario.step,
        returns="tensor" if scenario.returns in ("none", "nothing") else scenario.returns,
        manual=0,
        optimizer="sgd" if scenario.optimizer == "lbfgs" else scenario.optimizer,
        batch="tensor" if scenario.batch in ("custom", "mixed", "some none") else scenario.batch,
        loader="map" if scenario.loader == "iterator step" else scenario.loader,
        strategy=(),
        precision=(),
        options=tuple(options.items()),
        logs=tuple(
            replace(log, value="loss", positional=False)
            if log.hook == "training_step" and log.value != "float"
            else log
            for log in scenario.logs
            if log.hook not in _REFUSED and (log.hook != "training_step" or log.value != "graph")
        ),
        actions=tuple(
            action
            for action in scenario.actions
            if action.hook not in ("training_step", *_REFUSED) and not action.what.startswith(("swap", "patch", "unp"))
        ),
    )


def train_on(self: Any, batch: Any, batch_idx: Any) -> Any:
    """Do what `DrawnModule.train_on` does, in a way that a graph can hold."""
    scenario = self.scenario
    for log in Journal.current.logs.get(("module", "training_step"), ()):
        if batch_idx % log.every == 0:
            number = 0.3 * batch_idx
            value = number if log.value == "float" else self.head.weight.sum() * number
            if log.by_dict:
                self.log_dict({log.name: value, f"{log.name}_too": value}, **dict(log.options))
            else:
                self.log(log.name, value, **dict(log.options))
    loss = (self(first_tensor(batch).to(self.dtype)) - 1).square().mean()
    if scenario.returns == "some none" and batch_idx == 1:
        return None
    if scenario.returns in ("dict", "extras"):
        return {"loss": loss, **({"twice": loss * 2, "name": "text"} if scenario.returns == "extras" else {})}
    return loss


def far_apart(left: Any, right: Any, path: str = "") -> str | None:
    """Return where two frozen values differ by more than another order of sums explains; None if nowhere."""
    if left == right:
        return None
    if isinstance(left, Bits) and isinstance(right, Bits):
        kinds = (left.dtype, left.shape) == (right.dtype, right.shape)  # the loss in a hook has no graph
        if kinds and torch.allclose(_tensor(left), _tensor(right), rtol=1e-5, atol=1e-6, equal_nan=True):
            return None
        return f"{path}: {left} against {right}"
    if _is_float(left) and _is_float(right):
        one, other = float.fromhex(left[1]), float.fromhex(right[1])
        close = math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
        return None if close else f"{path}: {one} against {other}"
    if isinstance(left, str) and isinstance(right, str) and path.startswith(".files"):
        return None if _numbers_alike(left, right) else f"{path}: {left!r} against {right!r}"
    if type(left) is type(right) and isinstance(left, (list, tuple)):
        pairs = enumerate(zip(left, right, strict=False))
        found = next((found for i, (a, b) in pairs if (found := far_apart(a, b, f"{path}[{i}]"))), None)
        alone = (left[len(right) :], right[len(left) :])
        return found or (f"{path}: {alone[0]!r} against {alone[1]!r}" if any(alone) else None)
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return next((found for key in left if (found := far_apart(left[key], right[key], f"{path}.{key}"))), None)
    return f"{path}: {left!r} against {right!r}"


def _is_float(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] == "float"


def _tensor(frozen: Bits) -> Tensor:
    if not frozen.data:
        return torch.zeros(0)
    values = torch.frombuffer(bytearray(frozen.data), dtype=frozen.dtype)
    return values.double()


def _numbers_alike(left: str, right: str) -> bool:
    """Compare two CSV files."""
    cells = [text.replace("\n", ",").split(",") for text in (left, right)]
    return len(cells[0]) == len(cells[1]) and all(
        a == b or math.isclose(float(a), float(b), rel_tol=1e-5, abs_tol=1e-6) for a, b in zip(*cells, strict=True)
    )

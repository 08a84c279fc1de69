"""Gather the state that ZeRO shards over the workers into what one process would have, and deal it out again.

DeepSpeed's own functions move the state of one parameter; all workers have to call them together, in the same order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from itwinai.compat import deepspeed as compat_deepspeed


def gather_weights(module: nn.Module, keep: bool) -> dict[str, Any]:
    """Return the state dict of a module with whole parameters, in full precision, in the memory of the CPU.

    Args:
        module: the module inside an engine.
        keep: whether this worker needs the result; the others get an empty dictionary.
    """
    if not accepts_keep_vars(module):
        with whole_parameters(module, changed=False):
            return _gather_own_state(module, keep)
    whole: dict[int, Tensor | None] = {}
    state: dict[str, Any] = {}
    # One parameter at a time, each copied to the CPU and let go: all at once would need the memory that sharding saves.
    # Workers that do not keep the result take part too, as every gather is a collective of all.
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter):
            if id(value) not in whole:  # tied parameters stay tied
                tensor = whole_parameter(value)
                whole[id(value)] = tensor.detach().to("cpu", copy=True) if keep else None
            value = whole[id(value)]
        elif isinstance(value, Tensor):
            value = value.detach().to("cpu", copy=True)
        if keep:
            state[name] = value
    return state


def accepts_keep_vars(module: nn.Module) -> bool:
    """Return whether ``state_dict`` accepts ``keep_vars``; one that a user has written need not."""
    parameters = inspect.signature(module.state_dict).parameters.values()
    return any(one.name == "keep_vars" or one.kind == inspect.Parameter.VAR_KEYWORD for one in parameters)


def _gather_own_state(module: nn.Module, keep: bool) -> dict[str, Any]:
    """Return the state dict that a module makes itself, with the parameters in it in full precision."""
    # A `state_dict` of the user's own may rename parameters or leave some out, so names say nothing. What is in it are
    # views of the parameters: each is found again by its memory.
    views = {_place(parameter): parameter for parameter in module.parameters() if parameter.numel()}
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            parameter = views.get(_place(value)) if value.numel() else None
            value = value if parameter is None else whole_parameter(parameter)
            value = value.detach().to("cpu", copy=True)
        state[name] = value
    return state if keep else {}


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


@contextmanager
def whole_parameters(module: nn.Module, changed: bool) -> Iterator[None]:
    """Let all workers have the whole parameters inside the context.

    Args:
        module: the module inside an engine.
        changed: whether what rank 0 makes of them is taken over.
    """
    import deepspeed

    sharded = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if changed else None):
        yield


def whole_parameter(parameter: nn.Parameter) -> Tensor:
    """Return the whole value of a parameter inside an engine, in full precision; all workers have to call it."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    # The engine computes with 16 bits where the precision says so. The exact values are the copies in 32 bits that its
    # optimizer steps on, divided among the workers; it has them of what it trains only.
    trained = parameter.requires_grad and compat_deepspeed.is_in_optimizer(parameter)
    full: Tensor | None = safe_get_full_fp32_param(parameter) if trained else None
    if full is not None:
        return full
    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters([parameter]):  # frozen ones are sharded without a copy in full precision
        return parameter.detach().clone()


class ShardedOptimizer:
    """The state of an optimizer that ZeRO has sharded, as the user's own optimizer would have it.

    Args:
        engine_optimizer: what DeepSpeed makes of the user's optimizer, in stages 1 to 3.
        groups: the parameters of the user's optimizer, by group.
    """

    def __init__(self, engine_optimizer: Any, groups: list[list[nn.Parameter]]) -> None:
        self.engine_optimizer = engine_optimizer
        self.groups = groups

    def gather(self, keep: bool) -> dict[str, Any]:
        """Return the state as ``state_dict()`` of the user's optimizer would give it, in the memory of the CPU.

        Args:
            keep: whether this worker needs the result; the others get an empty dictionary.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Any]] = {}
        param_groups: list[dict[str, Any]] = []
        number = 0
        for index, parameters in enumerate(self.groups):
            hyperparameters = {k: v for k, v in self.engine_optimizer.param_groups[index].items() if k != "params"}
            param_groups.append({**hyperparameters, "params": list(range(number, number + len(parameters)))})
            shared, sharded = self._split(index)
            # Numbered over all groups, as torch numbers them: frozen parameters keep their number and have no state.
            for parameter in parameters:
                entry = {
                    name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
                    for name, value in shared.items()
                }
                for name in sharded if parameter.requires_grad else ():
                    # A collective: also called where the result is dropped, in the same order on all workers.
                    tensor = safe_get_full_optimizer_state(parameter, name)
                    if keep:
                        entry[name] = tensor.detach().to("cpu", copy=True)
                if keep and entry and parameter.requires_grad:
                    state[number] = entry
                number += 1
        return {"state": state, "param_groups": param_groups} if keep else {}

    def scatter(self, whole: Mapping[str, Any]) -> None:
        """Load the state of the user's optimizer, as ``state_dict()`` gives it.

        Args:
            whole: the same on all workers.
        """
        number = 0
        for index, parameters in enumerate(self.groups):
            hyperparameters = {k: v for k, v in whole["param_groups"][index].items() if k != "params"}
            self.engine_optimizer.param_groups[index].update(hyperparameters)
            entries = [whole["state"].get(number + offset, {}) for offset in range(len(parameters))]
            number += len(parameters)
            self._initialize(index, parameters, entries)
        # The parameters learn where in the flat states their own part is; the setters below look it up there.
        compat_deepspeed.link_sharded_state(self.engine_optimizer)
        number = 0
        for parameters in self.groups:
            for parameter in parameters:
                for name, value in whole["state"].get(number, {}).items():
                    if isinstance(value, Tensor) and value.shape == _shape(parameter) and parameter.requires_grad:
                        _set_part(parameter, name, value.to(parameter.device, torch.float32))
                number += 1

    def kinds(self) -> list[str]:
        """Return the names of the states that are sharded like the parameters, as ``exp_avg``."""
        found = [name for index in range(len(self.groups)) for name in self._split(index)[1]]
        return list(dict.fromkeys(found))

    def shared(self) -> dict[str, Any]:
        """Return the state as in ``state_dict()`` of the user's optimizer, without sharded tensors."""
        state: dict[int, dict[str, Any]] = {}
        param_groups: list[dict[str, Any]] = []
        number = 0
        for index, parameters in enumerate(self.groups):
            hyperparameters = {k: v for k, v in self.engine_optimizer.param_groups[index].items() if k != "params"}
            numbers = list(range(number, number + len(parameters)))
            param_groups.append({**hyperparameters, "params": numbers})
            values = self._split(index)[0]
            # Copies: optimizers count the steps of each parameter in place.
            state |= {own: {name: _copied(value) for name, value in values.items()} for own in numbers if values}
            number += len(parameters)
        return {"state": state, "param_groups": param_groups}

    def initialize(self, whole: Mapping[str, Any], kinds: list[str]) -> None:
        """Make this worker's part of the state, with zeros for what is sharded.

        Args:
            whole: what `shared` returned.
            kinds: what is sharded.
        """
        number = 0
        for index, parameters in enumerate(self.groups):
            hyperparameters = {k: v for k, v in whole["param_groups"][index].items() if k != "params"}
            self.engine_optimizer.param_groups[index].update(hyperparameters)
            values = whole["state"].get(number, {})
            for flat, state in compat_deepspeed.flat_states(self.engine_optimizer, index):
                state.update({name: _copied(value) for name, value in values.items()})
                state.update({name: torch.zeros_like(flat) for name in kinds})
            number += len(parameters)

    def _split(self, index: int) -> tuple[dict[str, Any], list[str]]:
        """Return what all parameters of a group share, and the names of what is sharded like the parameters."""
        shared: dict[str, Any] = {}
        sharded: list[str] = []
        for flat, state in compat_deepspeed.flat_states(self.engine_optimizer, index):
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == flat.shape:
                    sharded.append(name)
                elif value is not None:  # the step count, which ZeRO keeps once for all that is in a flat buffer
                    shared[name] = value
        return shared, list(dict.fromkeys(sharded))

    def _initialize(self, index: int, parameters: list[nn.Parameter], entries: list[Mapping[str, Any]]) -> None:
        """Make this worker's part of the state of a group, which DeepSpeed makes in the first step only."""
        kinds: dict[str, Any] = {}
        for parameter, name, value in _values(parameters, entries):
            if isinstance(value, Tensor) and value.shape == _shape(parameter):
                kinds[name] = None
            elif name not in kinds or _later(value, kinds[name]):
                kinds[name] = value  # one for the whole group: ZeRO steps all its parameters at once
        for flat, state in compat_deepspeed.flat_states(self.engine_optimizer, index):
            for name, value in kinds.items():
                state[name] = torch.zeros_like(flat) if value is None else _copied(value)


def _set_part(parameter: nn.Parameter, name: str, value: Tensor) -> None:
    """Set this worker's part of the optimizer's state of a parameter."""
    from deepspeed.utils import (
        safe_get_local_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

    if not hasattr(parameter, "ds_id"):
        safe_set_full_optimizer_state(parameter, value, name)
        return
    # Not DeepSpeed's own way for stage 3: it fails for parameters that the number of workers does not divide. A
    # parameter is flattened and filled up with zeros to equal parts, of which rank r has the r-th.
    size = safe_get_local_optimizer_state(parameter, name).numel()
    padded = value.new_zeros(size * dist.get_world_size())
    padded[: value.numel()] = value.flatten()
    safe_set_local_optimizer_state(parameter, padded.narrow(0, size * dist.get_rank(), size), name)


def _values(
    parameters: list[nn.Parameter], entries: list[Mapping[str, Any]]
) -> Iterator[tuple[nn.Parameter, str, Any]]:
    for parameter, entry in zip(parameters, entries, strict=True):
        for name, value in entry.items():
            if value is not None:
                yield parameter, name, value


def _shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _later(value: Any, other: Any) -> bool:
    return other is not None and float(value) > float(other)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value

"""What a DeepSpeed engine does to a module, and how it is undone."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from itwinai.compat import deepspeed as compat_deepspeed
from itwinai.strategies.zero_gather import whole_parameter


class OriginalModule:
    """Remembers a module as it is before an engine wraps it.

    Args:
        module: the module.
        rounded: parameters that the engine will round to half precision without keeping them in full precision: those
            that it does not train.
    """

    def __init__(self, module: nn.Module, rounded: list[nn.Parameter]) -> None:
        self.module = module
        self._kept = {
            id(parameter): parameter.detach().to("cpu", copy=True)
            for parameter in rounded
            if not hasattr(parameter, "ds_id")
        }
        # What is there before the engine: all that has come later and looks like DeepSpeed's is removed at the end.
        # By id: the hash of a metric changes with what it has seen.
        self._attributes = {id(submodule): frozenset(vars(submodule)) for submodule in module.modules()}
        self._parameters = {
            # Layers made in `configure_model` come sharded, and are plain afterwards like others.
            id(parameter): (
                frozenset() if hasattr(parameter, "ds_id") else frozenset(vars(parameter)),
                parameter.dtype,
                parameter.stride(),
            )
            for parameter in module.parameters()
        }

    def align(self) -> None:
        """Give all workers the parameters of rank 0, in plain memory.

        DeepSpeed's own broadcast fails for parameters without dimensions, and for those whose memory is in another
        order, as ``channels_last``.
        """
        for parameter in self.module.parameters():
            if hasattr(parameter, "ds_id"):  # sharded at creation
                continue
            parameter.data = parameter.data.contiguous()
            if dist.get_world_size() > 1:
                dist.broadcast(parameter.data, 0)

    def whole_values(self) -> dict[int, Tensor]:
        """Return the values of all parameters in the type that they had, by the id of the parameter.

        All workers have to call it, while the engine still exists.
        """
        values: dict[int, Tensor] = {}
        for parameter in self.module.parameters():
            if id(parameter) in self._kept:
                values[id(parameter)] = self._kept[id(parameter)].to(parameter.device)
                continue
            dtype = self._dtype(parameter)
            # Only what is sharded (stage 3) or rounded has to be gathered; elsewhere each worker has the whole value.
            precise = hasattr(parameter, "ds_id") or parameter.dtype != dtype
            value = whole_parameter(parameter) if precise else parameter
            values[id(parameter)] = value.detach().to(dtype, copy=True)
        return values

    def restore(self, values: dict[int, Tensor]) -> None:
        """Remove everything that the engine, which is destroyed, has left: the next one would take it for its own.

        Args:
            values: of the parameters. Those without one stay as they are, sharded or not.
        """
        for submodule in self.module.modules():
            compat_deepspeed.remove_hooks_of_engine(submodule)
            self._remove(submodule, self._attributes.get(id(submodule)), compat_deepspeed.is_attribute_of_engine)
            # Not by attributes: a compiled layer passes those on to the layer inside.
            vars(submodule)["_parameters"] = dict(vars(submodule)["_parameters"])
        for parameter in self.module.parameters():
            if id(parameter) not in values:
                continue
            before, _, stride = self._parameters.get(id(parameter), (None, None, None))
            compat_deepspeed.remove_hooks_of_engine(parameter)
            self._remove(parameter, before, compat_deepspeed.is_parameter_attribute_of_engine)
            parameter.grad = None
            # The engine's flat buffer would stay in memory as long as one parameter is a view of it: these are copies.
            parameter.data = _strided(values[id(parameter)], stride)

    def _dtype(self, parameter: nn.Parameter) -> Any:
        known = self._parameters.get(id(parameter))
        return parameter.dtype if known is None else known[1]

    @staticmethod
    def _remove(owner: Any, before: frozenset[str] | None, is_of_engine: Any) -> None:
        for name in list(vars(owner)):
            # Of a layer that has come later it is not known whether `forward` is its own.
            if is_of_engine(name) and (name != "forward" if before is None else name not in before):
                del vars(owner)[name]


def _strided(value: Tensor, stride: tuple[int, ...] | None) -> Tensor:
    """Return a tensor whose memory is in the order that strides tell."""
    if stride is None or value.stride() == stride or len(stride) != value.dim():
        return value
    ordered = value.new_empty_strided(value.shape, stride)
    return ordered.copy_(value)

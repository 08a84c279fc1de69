"""The shards of ZeRO stage 3 as distributed tensors, which are written and read without gathering anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from itwinai.checkpoints import sharded
from itwinai.checkpoints.sharded import Part, key_of_state, key_of_weight
from itwinai.compat import deepspeed as compat_deepspeed
from itwinai.strategies.zero_gather import ShardedOptimizer


class Shards:
    """The parameters of a module, and the states of its optimizer, of which each worker has a part.

    Args:
        module: the module inside an engine of stage 3, which trains.
        optimizer: its optimizer.
    """

    def __init__(self, module: nn.Module, optimizer: ShardedOptimizer) -> None:
        self.module = module
        self.optimizer = optimizer
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}

    def weights(self) -> dict[str, DTensor]:
        """Return the parameters by key; the memory is that of the shards or a copy of it."""
        mesh = self._mesh()
        return {key: part.divided(mesh) for key, part in self._weights(mesh.device_type)}

    def states(self, kinds: list[str]) -> dict[str, DTensor]:
        """Return the states of the optimizer by key; the memory is that of the shards or a copy of it.

        Args:
            kinds: names of the sharded ones.
        """
        mesh = self._mesh()
        return {key: part.divided(mesh) for key, part in self._states(kinds, mesh.device_type)}

    def to_write(self, kinds: list[str], offloaded: bool) -> dict[str, Part]:
        """Return this worker's parts of the parameters and of the optimizer states, by key.

        Args:
            kinds: names of the sharded ones.
            offloaded: they do not fit into the device together: each goes to host memory before the next one.
        """
        device = "cpu" if offloaded else self._device()
        return {**dict(self._weights(device)), **dict(self._states(kinds, device))}

    def _weights(self, device: str) -> Iterator[tuple[str, Part]]:
        from deepspeed.utils import safe_get_local_fp32_param

        for name, parameter in self._parameters():
            trained = parameter.requires_grad
            # Trained ones in the 32 bits that the optimizer steps on; of frozen ones there is the engine's type only.
            part = safe_get_local_fp32_param(parameter) if trained else parameter.ds_tensor
            yield key_of_weight(name), _held(part, parameter, device)

    def _states(self, kinds: list[str], device: str) -> Iterator[tuple[str, Part]]:
        from deepspeed.utils import safe_get_local_optimizer_state

        for name, parameter in self._parameters():
            for kind in kinds if parameter.requires_grad else ():
                part = safe_get_local_optimizer_state(parameter, kind)
                yield key_of_state(kind, name), _held(part, parameter, device)

    def parts(self, kinds: list[str]) -> dict[str, Any]:
        """Return what makes whole tensors of them again: see `itwinai.checkpoints.sharded.read_whole`."""
        state = self.module.state_dict(keep_vars=True)
        return {
            "shapes": {name: list(parameter.ds_shape) for name, parameter in self._parameters()},
            "names": {key: self.names[id(value)] for key, value in state.items() if isinstance(value, nn.Parameter)},
            "optimizers": [[self.names[id(parameter)] for group in self.optimizer.groups for parameter in group]],
            "kinds": kinds,
        }

    def load_weights(self, folder: Path) -> None:
        """Read this worker's parts of the parameters, written by any number of workers.

        Args:
            folder: a sharded checkpoint.
        """
        from deepspeed.utils import safe_set_local_fp32_param

        # Laid out for today's workers: reading fills each part from the files of the old layout that overlap with it.
        tensors = self.weights()
        sharded.read_shards(tensors, folder)
        with compat_deepspeed.replacing_shards(self.optimizer.engine_optimizer):
            for name, parameter in self._parameters():
                weight = _padded(tensors[key_of_weight(name)], parameter)
                if parameter.requires_grad:
                    safe_set_local_fp32_param(parameter, weight)
                else:
                    parameter.ds_tensor.data.copy_(weight)

    def load_states(self, folder: Path, kinds: list[str]) -> None:
        """Read this worker's parts of the states of the optimizer, which have to exist already.

        Args:
            folder: a sharded checkpoint.
            kinds: names of the sharded ones.
        """
        from deepspeed.utils import safe_set_local_optimizer_state

        if not kinds:  # as of SGD without momentum
            return
        tensors = self.states(kinds)
        sharded.read_shards(tensors, folder)
        for name, parameter in self._parameters():
            for kind in kinds if parameter.requires_grad else ():
                part = _padded(tensors[key_of_state(kind, name)], parameter)
                safe_set_local_optimizer_state(parameter, part, kind)

    def _parameters(self) -> list[tuple[str, Any]]:
        return list(self.module.named_parameters())

    def _device(self) -> str:
        return next(self.module.parameters()).device.type

    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self._device(), (dist.get_world_size(),))


def _held(part: Tensor, parameter: Any, device: str) -> Part:
    """Return a worker's part of a flat parameter, without what fills up the last parts."""
    # All parts have the same size, so the last ones end with filling, or are nothing else. What is written must not
    # depend on it: another number of workers fills up to another size.
    size, number = part.numel(), parameter.ds_numel
    held = max(0, min(size, number - dist.get_rank() * size))
    return Part(part.detach().flatten()[:held].to(device), number)


def _padded(tensor: DTensor, parameter: Any) -> Tensor:
    local = tensor.to_local()
    padded = local.new_zeros(parameter.ds_tensor.numel())
    padded[: local.numel()] = local
    return padded

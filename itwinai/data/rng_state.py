"""The states of random number generators, as tensors and plain values that every checkpoint may hold."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch

from itwinai.compat import lightning_trainer

RandomStates = dict[str, Any]


def pack_random_states() -> RandomStates:
    """Return the states of this process's random number generators, as tensors and plain values.

    Of CUDA's, the one of this worker's device, if it uses one: to ask for those of all devices would start the driver
    in a run on the CPU, after which its process cannot be forked any more.
    """
    states = lightning_trainer.collect_rng_states(include_cuda=False)
    if torch.cuda.is_initialized():
        states["torch.cuda"] = [torch.cuda.get_rng_state()]
    return plain_random_states(states)


def plain_random_states(states: RandomStates) -> RandomStates:
    """Return random states with a tensor in the place of numpy's array."""
    packed = dict(states)
    if "numpy" in packed:
        name, keys, *rest = packed["numpy"]
        packed["numpy"] = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    return packed


def unpack_random_states(packed: RandomStates) -> RandomStates:
    """Return random states from `pack_random_states` as `lightning_trainer.set_rng_states` takes them."""
    states = dict(packed)
    if "numpy" in states:
        name, keys, *rest = states["numpy"]
        states["numpy"] = (name, keys.numpy().astype(np.uint32), *rest)
    # A GPU run may continue without GPUs, or on one with another number. What the other devices draw does not matter.
    # Earlier versions packed the states of all of them.
    of_cuda, devices = states.pop("torch.cuda", ()), torch.cuda.device_count()
    if devices and len(of_cuda) in (1, devices):
        states["torch.cuda"] = list(of_cuda) * (devices if len(of_cuda) == 1 else 1)
    return states


def same_states(one: RandomStates, other: RandomStates) -> bool:
    """Return whether generators in these states draw the same numbers."""
    return (
        torch.equal(one["torch"], other["torch"])
        and one["python"] == other["python"]
        and pickle.dumps(one.get("numpy")) == pickle.dumps(other.get("numpy"))
    )

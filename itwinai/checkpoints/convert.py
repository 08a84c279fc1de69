"""Make other formats of a checkpoint, and a portable one of a DeepSpeed engine's folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itwinai.checkpoints import portable_file, sharded, state
from itwinai.checkpoints.naming import MODULE_CLASS
from itwinai.errors import CheckpointError, ConfigurationError, require
from itwinai.io.atomic import part_name


def weights_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by the names that the module gives them.

    Raises:
        CheckpointError: there are none in it.
    """
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} has no 'state_dict': it holds no module's weights.")
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}


def to_weights(source: Path, target: Path, weights_only: bool = True) -> None:
    """Write nothing but the weights, as ``torch.load`` reads them.

    Args:
        source: a checkpoint.
        target: the file to write.
        weights_only: see `itwinai.checkpoints.portable_file.read`.
    """
    written_beside(target, lambda part: torch.save(weights_of(sharded.read_any(source, weights_only), source), part))


def to_safetensors(source: Path, target: Path, weights_only: bool = True) -> None:
    """Write the weights in the format of safetensors, with what the manifest says of them.

    Args:
        source: a checkpoint.
        target: the file to write.
        weights_only: see `itwinai.checkpoints.portable_file.read`.

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    require("safetensors", "Install it with `pip install 'itwinai[export]'`.", f"The format of {target.name}")
    from safetensors.torch import save_file

    checkpoint = sharded.read_any(source, weights_only)
    about = state.describe(checkpoint)
    metadata = {name: str(about[name]) for name in ("epoch", "global_step", "strategy", "world_size")}
    # Tied weights share memory, which the format cannot express.
    weights = {name: tensor.contiguous().clone() for name, tensor in weights_of(checkpoint, source).items()}
    written_beside(target, lambda part: save_file(weights, part, metadata={"format": "pt", **metadata}))


def to_engine_folder(source: Path, target: Path, weights_only: bool = True) -> None:
    """Write a folder from which a DeepSpeed engine loads the weights: ``load_checkpoint(..., load_module_only=True)``.

    Args:
        source: a checkpoint.
        target: the folder to write, which must not exist.
        weights_only: see `itwinai.checkpoints.portable_file.read`.
    """
    weights = weights_of(sharded.read_any(source, weights_only), source)
    if target.exists():
        raise ConfigurationError(f"{target} exists; choose a new folder.")
    (target / "checkpoint").mkdir(parents=True)
    states: dict[str, Any] = {
        "module": weights,
        "optimizer": None,
        "lr_scheduler": None,
        "sparse_tensor_module_names": [],
    }
    counts = {"global_steps": 0, "global_samples": 0, "skipped_steps": 0, "dp_world_size": 1, "mp_world_size": 1}
    torch.save({**states, **counts, "buffer_names": [], "param_shapes": None}, target / "checkpoint" / _ENGINE_STATES)
    (target / "latest").write_text("checkpoint")


_ENGINE_STATES = "mp_rank_00_model_states.pt"


def from_engine_folder(source: Path, target: Path, read: Callable[[Path], dict[str, Any]]) -> None:
    """Write a portable checkpoint with the weights of a DeepSpeed engine's folder, and Lightning's content.

    The state of the optimizer, which the engine keeps in a form of its own, is not in it.

    Args:
        source: the folder.
        target: the file to write.
        read: reads the folder.
    """
    checkpoint = read(source)
    kept = {name: checkpoint[name] for name in _LIGHTNINGS if name in checkpoint}
    kept["state_dict"] = weights_of(checkpoint, source)
    portable_file.write(kept, target, state.describe(kept), written_at=time.time())


_LIGHTNINGS = ("epoch", "global_step", "pytorch-lightning_version", "hparams_name", "hyper_parameters", MODULE_CLASS)


def written_beside(target: Path, write: Callable[[str], object]) -> None:
    """Let a file be written beside its place, and rename it."""
    # In a folder of its own: torch.export looks at the ending, and ONNX keeps large weights in a file beside the model.
    folder = target.with_name(part_name(target.name))
    folder.mkdir(parents=True)
    try:
        write(str(folder / target.name))
        for beside in [path for path in folder.iterdir() if path.name != target.name]:
            beside.replace(target.with_name(beside.name))
        (folder / target.name).replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

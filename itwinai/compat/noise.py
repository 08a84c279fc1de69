"""Messages of other libraries that concern neither your code nor the numbers, and how they are silenced."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch

from itwinai.compat.python import forget_warned

VERBOSE = "ITWINAI_VERBOSE"
"""The environment variable that lets frameworks print all that they print."""

# Regular expressions for warnings that concern neither the user's code nor the numbers.
_NOISE_WARNINGS = (
    # Lightning looks for srun also where you do not use it.
    "The `srun` command is available on your system but is not used",
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, in every step.
    r"`torch\.distributed\.\w+` is deprecated",
    # Lightning 2.6 asks torch 2.13's pytree in a way that torch deprecates.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # The training loop says it after the first epoch, and only if values are logged on steps.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Followed by the line "Seed set to 0".
    "No seed found, seed set to",
    # Nothing in it is overwritten: a file of the same name gets a version.
    r"Checkpoint directory .* exists and is not empty",
    # torch's exporter calls what torch deprecates, and takes the parts of an LSTM for attributes of yours.
    "_check_is_size will be removed in a future PyTorch release",
    "The tensor attributes? .*_flat_weights.* assigned during export",
)

# What lines of the log begin with that say what is not there, or recommend a product.
_NOISE_MESSAGES = (
    # The handlers are replaced, and `itwinai slurm` has its jobs queued again.
    "SLURM auto-requeueing enabled",
    "GPU available: False",
    "TPU available: False",
    "💡 Tip: For seamless cloud",
    "Setting accelerator to CPU",
    "torchvision is not installed. Skipping",
    "Trainer already configured with model summary callbacks: [<class 'itwinai.",
    # Followed by a line that says what was loaded from there.
    "Restoring states from the checkpoint path at",
)

_NOISY_LOGGERS = (
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.pytorch.utilities.rank_zero",
    "DeepSpeed",
    "torch.onnx._internal.exporter._registration",
)


def _is_verbose() -> bool:
    return os.environ.get(VERBOSE, "0") != "0"


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE_MESSAGES)


def silence_known_noise(rank: int = 0) -> None:
    """Silence what concerns neither the user's code nor ours; for processes that are itwinai's own.

    Args:
        rank: of this process. Of what all ranks have in common, Lightning warns in part on each; rank 0 says it.
    """
    if _is_verbose():
        return
    if rank > 0:
        warnings.filterwarnings("ignore", module=r"lightning\.(pytorch|fabric)\.")
    for message in _NOISE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_no_noise)


def silence_sockets() -> None:
    """Let torch's C++ code print errors only, in a worker: when another one is killed it warns of each socket.

    The variable TORCH_CPP_LOG_LEVEL would say so, and is read when torch is imported, which the caller has done.
    """
    if _is_verbose() or "TORCH_CPP_LOG_LEVEL" in os.environ:
        return
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    with suppress(OSError, ValueError):  # another system, or a torch that is built with glog
        ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "FLAGS_caffe2_log_level").value = 2


@contextmanager
def known_noise_silenced(rank: int = 0) -> Iterator[None]:
    """Silence it for a while; for processes of the user, whose own filters stay as they are.

    Args:
        rank: see `silence_known_noise`.
    """
    filters = list(warnings.filters)
    loggers = [one for one in map(logging.getLogger, _NOISY_LOGGERS) if _is_no_noise not in one.filters]
    silence_known_noise(rank)
    ours = [one for one in warnings.filters if one not in filters]
    try:
        yield
    finally:
        for one in ours:
            if one in warnings.filters:  # the user's code may have reset them
                cast(list[Any], warnings.filters).remove(one)
        forget_warned()
        for logger in loggers:
            logger.removeFilter(_is_no_noise)

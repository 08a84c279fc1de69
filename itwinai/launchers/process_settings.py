"""Process-wide settings of torch, numpy and Python that a script makes and its workers need.

A forked copy has most of them; torch keeps some of them for each thread. A new process has none.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from itwinai.compat import python as compat_python
from itwinai.compat import torch as compat_torch


@dataclass(frozen=True)
class ProcessSettings:
    """What a process is set to.

    Attributes:
        torch: settings of torch, by the name of their setter; see `_torch_settings`.
        backends: flags below ``torch.backends``, by their path.
        numpy_errors: what numpy does upon floating-point errors.
        log_levels: of Python's loggers that have one of their own, by name; the root logger's is under ``""``.
        warning_filters: of Python's module ``warnings``.
        start_method: how Python starts processes, such as the workers of a DataLoader; None is the default.
        recursion_limit: of the interpreter.
    """

    torch: dict[str, Any]
    backends: dict[str, Any]
    numpy_errors: dict[str, Any]
    log_levels: dict[str, int]
    warning_filters: list[Any]
    start_method: str | None
    recursion_limit: int

    @classmethod
    def of_this_process(cls) -> ProcessSettings:
        """Return the settings of this process, as this thread sees them."""
        loggers = logging.root.manager.loggerDict
        levels = {n: one.level for n, one in loggers.items() if isinstance(one, logging.Logger) and one.level}
        return cls(
            torch=_torch_settings(),
            backends={path: value for path in _BACKEND_FLAGS if (value := _flag(path)) is not None},
            numpy_errors=dict(np.geterr()),
            log_levels={"": logging.root.level, **levels},
            warning_filters=list(warnings.filters),
            start_method=multiprocessing.get_start_method(allow_none=True),
            recursion_limit=sys.getrecursionlimit(),
        )

    def apply(self) -> None:
        """Set this process to them."""
        _apply_torch(self.torch)
        for path, value in self.backends.items():
            if _flag(path) != value:  # some setters warn, also where nothing changes
                owner, _, name = path.rpartition(".")
                setattr(_backend(owner), name, value)
        np.seterr(**self.numpy_errors)
        for name, level in self.log_levels.items():
            logging.getLogger(name or None).setLevel(level)
        if warnings.filters != self.warning_filters:
            warnings.filters[:] = self.warning_filters  # type: ignore[index]
            compat_python.forget_warned()
        if self.start_method != multiprocessing.get_start_method(allow_none=True):
            multiprocessing.set_start_method(self.start_method, force=True)
        sys.setrecursionlimit(self.recursion_limit)


# Of those that torch documents, the ones that change numbers or speed.
_BACKEND_FLAGS = (
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.allow_tf32",
    "cudnn.benchmark_limit",
    "cuda.matmul.allow_tf32",
    # What torch calls these since 2.9. Where they are set, the older ones cannot be read any more.
    "fp32_precision",
    "cuda.matmul.fp32_precision",
    "cudnn.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "opt_einsum.enabled",
    "opt_einsum.strategy",
    "nnpack.enabled",
)


def _backend(path: str) -> Any:
    owner: Any = torch.backends
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


def _flag(path: str) -> Any:
    try:
        return _backend(path)
    except (AttributeError, RuntimeError):  # not in this release or build of torch, or mixed with its newer names
        return None


def _matmul_precision() -> str | None:
    """Return in what fp32 matrices are multiplied; None where the newer flags are set, which torch does not mix."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _torch_settings() -> dict[str, Any]:
    return {
        "default_dtype": torch.get_default_dtype(),
        "default_device": str(torch.get_default_device()),
        "matmul_precision": _matmul_precision(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "grad": torch.is_grad_enabled(),
        "autocast": {
            device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")
        },
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "sharing_strategy": torch.multiprocessing.get_sharing_strategy(),
        "validate_args": compat_torch.validates_distributions(),
        "printing": compat_torch.print_options(),
    }


def _apply_torch(settings: dict[str, Any]) -> None:
    torch.set_default_dtype(settings["default_dtype"])
    if settings["default_device"] != str(torch.get_default_device()):
        torch.set_default_device(settings["default_device"])
    if settings["matmul_precision"] not in (None, _matmul_precision()):
        torch.set_float32_matmul_precision(settings["matmul_precision"])
    mode, warn_only = settings["deterministic"]
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    torch.autograd.set_detect_anomaly(settings["anomaly"][0], check_nan=settings["anomaly"][1])
    torch.set_grad_enabled(settings["grad"])
    for device, (enabled, dtype) in settings["autocast"].items():
        if enabled and not torch.is_autocast_enabled(device):
            torch.autocast_increment_nesting()  # the caller is within a context, and so is the whole run
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.set_autocast_cache_enabled(settings["autocast_cache"])
    torch.multiprocessing.set_sharing_strategy(settings["sharing_strategy"])
    torch.distributions.Distribution.set_default_validate_args(settings["validate_args"])
    compat_torch.set_print_options(settings["printing"])

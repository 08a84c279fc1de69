"""`self.log` without the checks that it has passed before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from itwinai.compat import lightning_logging
from itwinai.compat import torch as compat_torch
from itwinai.loops.results import LeanResults

# As it is defined. Where someone has put something else in its place, as tests do, that has to be called.
LIGHTNING_LOG = LightningModule.log


class QuickLog:
    """Takes the place of a module's ``log`` while a loop runs.

    The first call with a name, in a hook, with certain options, goes through Lightning, which checks and registers it.
    Those that follow go straight to what Lightning has registered.

    Args:
        module: the module.
        results: where the loop keeps logged values.
        connector: the trainer's keeper of logged values.
    """

    def __init__(
        self, module: LightningModule, results: LeanResults, connector: lightning_logging.LoggerConnector
    ) -> None:
        self.module = module
        self.scope = vars(module)
        self.results = results
        self.connector = connector
        self.known: dict[Any, tuple[str, lightning_logging.ResultMetric]] = {}
        self.ended = False

    def __call__(self, name: str, value: Any, *args: Any, batch_size: int | None = None, **options: Any) -> None:
        """Log a value, as `LightningModule.log` does."""
        results = self.results
        hook = self.scope[lightning_logging.HOOK_NAME]
        call = (hook, name, results.dataloader_idx, batch_size is None, *options.items())
        if type(value) is not Tensor and isinstance(value, Tensor):
            value = compat_torch.plain_tensor(value)
        if type(value) is Tensor and not args and value.numel() == 1 and not torch.compiler.is_compiling():
            try:
                known = self.known.get(call)
            except TypeError:  # an option that cannot be a key, such as a list of ranks
                LightningModule.log(self.module, name, value, batch_size=batch_size, **options)
                return
            if known is not None and lightning_logging.keeps_logging(self.connector, hook):
                key, metric = known
                value = value.detach()
                if value.dim():
                    value = value.squeeze()
                if metric.value.device != value.device:
                    metric.to(value.device)
                results.update_metrics(key, value, lightning_logging.batch_size_of(results, metric, batch_size))
                return
        LightningModule.log(self.module, name, value, *args, batch_size=batch_size, **options)  # type: ignore[misc]
        if not args and not self.ended:
            key = lightning_logging.result_key(results, hook, name, options.get("add_dataloader_idx", True))
            registered = results.get(key)
            if registered is not None and registered.is_tensor and not registered.meta.enable_graph:
                self.known[call] = (key, registered)

    def end(self) -> None:
        """Leave everything to Lightning from now on: someone may have kept this object, and may put it back."""
        self.ended = True
        self.known.clear()

    def __reduce__(self) -> Any:
        # A copy of the module, or one in another process, has no part in this run.
        return partial, (LightningModule.log, self.module)


@contextmanager
def quick_log(
    module: LightningModule, results: LeanResults, connector: lightning_logging.LoggerConnector
) -> Iterator[None]:
    """Let `self.log` of a module go the short way, unless the module has a ``log`` of its own."""
    scope = vars(module)
    previous = scope.get("log")
    if type(module).log is not LIGHTNING_LOG or not (previous is None or isinstance(previous, QuickLog)):
        yield
        return
    quick = scope["log"] = QuickLog(module, results, connector)
    try:
        yield
    finally:
        quick.end()
        if scope.get("log") is not quick:  # the user's own, or nothing
            pass
        elif previous is None:
            del scope["log"]
        else:
            scope["log"] = previous

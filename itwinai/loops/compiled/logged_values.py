"""`self.log` within a graph: the sums of an epoch are outputs, where the loop would compute them in each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from itwinai.compat import lightning_logging, torch_compile
from itwinai.loops.fast_log import QuickLog

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

_DEFAULTS = {"sync_dist": False, "reduce_fx": "mean", "enable_graph": False, "sync_dist_group": None}


class LoggedValue:
    """One call of `self.log` whose value is a number of the graph, reduced to a mean or not at all.

    Args:
        module: the module.
        name: the name that is logged.
        batch_size: number of samples, if the call says so.
        options: further arguments of the call.

    Attributes:
        total: sum over the epoch until now, an input of the graph.
        weight: number of samples until now, another one.
        first: index of the first of three outputs: the value, and the two sums with it.
    """

    def __init__(self, module: LightningModule, name: str, batch_size: int | None, options: dict[str, Any]) -> None:
        self.scope = vars(module)
        self.module, self.name, self.batch_size, self.options = module, name, batch_size, options
        self.key = ("training_step", name, None, batch_size is None, *options.items())
        with torch_compile.outside_of_trace():
            self.total: Tensor = torch.zeros(())
            self.weight: Tensor = torch.zeros((), dtype=torch.int64)
        self.first = 0
        self.metric: lightning_logging.ResultMetric | None = None

    @staticmethod
    def takes(value: Any, args: Any, options: dict[str, Any]) -> bool:
        """Return whether a call of `self.log` in a trace is one of these."""
        return (
            type(value) is not float
            and isinstance(value, Tensor)
            and value.dim() == 0
            and value.dtype is torch.float32
            and not args
            and all(options.get(name, default) == default for name, default in _DEFAULTS.items())
            and all(isinstance(one, (bool, int, str, type(None))) for one in options.values())
        )

    def trace(self, value: Tensor, total: Tensor, weight: Tensor, samples: int) -> list[Tensor]:
        """Return the outputs, given the stand-ins of the inputs."""
        value = value.detach()
        return [value.clone(), total + value * samples, weight + samples]

    def prepare(self) -> tuple[Tensor, Tensor]:
        """Return the sums until now, and find out whether the graph may continue them."""
        self.metric = None
        log = self.scope.get("log")
        if type(log) is QuickLog and not log.results.restored and log.results.weight == 1.0:
            known = log.known.get(self.key)
            if known is not None and lightning_logging.keeps_logging(log.connector, "training_step"):
                metric = known[1]
                if lightning_logging.is_summed(metric, self.total, self.weight):
                    self.metric = metric
                    return metric.value, metric.cumulated_batch_size
        return self.total, self.weight

    def log(self, outputs: list[Tensor]) -> None:
        """Log the value of the step."""
        value, total, weight = outputs[self.first : self.first + 3]
        if self.metric is None:
            (self.scope.get("log") or self.module.log)(self.name, value, batch_size=self.batch_size, **self.options)
        else:
            lightning_logging.set_sums(self.metric, value, total, weight)

"""How Lightning keeps, reduces and publishes logged values, and what its loggers hold."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _METRICS,
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger


# The attribute of a LightningModule by which `self.log` finds out in which hook it is called.
HOOK_NAME = "_current_fx_name"


def logger_connector(trainer: Trainer) -> Any:
    """Return what keeps a trainer's logged values."""
    return trainer._logger_connector


class ResultCollection(_ResultCollection):
    """Lightning's collection of logged values, which notes whether `self.log` was given a batch size.

    Attributes:
        is_size_given: whether it was, for the value in work.
    """

    is_size_given = False

    def _extract_batch_size(self, value: _ResultMetric, batch_size: int | None, meta: Any) -> int:
        self.is_size_given = batch_size is not None
        return super()._extract_batch_size(value, batch_size, meta)


ResultMetric = _ResultMetric

LoggerConnector = _LoggerConnector

Metrics = _METRICS


def batch_size_of(results: _ResultCollection, metric: _ResultMetric, batch_size: int | None) -> int:
    """Return the weight of a logged value in the mean of its epoch."""
    if batch_size is None and results.batch_size is None and metric.meta.on_epoch and metric.meta.is_mean_reduction:
        results.batch_size = common_size(results.batch)
    return results._extract_batch_size(metric, batch_size, metric.meta)


def common_size(batch: Any) -> int | None:
    """Return the batch size of the most usual kinds of batches; None leaves it to Lightning to find one."""
    tensors = batch.values() if type(batch) is dict else batch if type(batch) in (list, tuple) else (batch,)
    sizes = {tensor.shape[0] if type(tensor) is Tensor and tensor.ndim else None for tensor in tensors}
    return sizes.pop() if len(sizes) == 1 else None


def result_key(results: _ResultCollection, hook: str, name: str, add_dataloader_idx: bool) -> str:
    """Return the key of a value that was logged in a hook."""
    key = f"{hook}.{name}"
    return f"{key}.{results.dataloader_idx}" if add_dataloader_idx and results.dataloader_idx is not None else key


def add_to_result(metric: _ResultMetric, value: Tensor, batch_size: int) -> None:
    """Add a detached value to what is kept of a key.

    As the metric's own ``update``, without torchmetrics' checks around it, and without exchanging values of the step.
    """
    metric._computed = None
    metric._update_count += 1
    metric.has_reset = False
    meta = metric.meta
    synced = is_synced(metric)
    if (
        value.dtype in (torch.float32, torch.float64)
        and (synced or not meta.sync.should or not meta.on_step)
        and (meta.is_mean_reduction or not meta.on_epoch)
    ):
        # The most usual case, in fewer calls.
        if meta.on_step:
            metric._forward_cache = value.clone()
            if not meta.on_epoch:
                metric.value = metric._forward_cache
                return
        metric.value = metric.value + value * batch_size
        metric.cumulated_batch_size = metric.cumulated_batch_size + batch_size
        return
    if not (meta.on_step and synced):
        _ResultMetric.update(metric, value, batch_size)
        return
    meta.sync.should = False  # Lightning would exchange this one value now
    try:
        _ResultMetric.update(metric, value, batch_size)
    finally:
        meta.sync.should = True


def is_summed(metric: _ResultMetric, total: Tensor, weight: Tensor) -> bool:
    """Return whether a key is a mean, and keeps sums that have the types and devices of these."""
    value = metric.value
    return (
        not metric.meta.sync.should
        and metric.meta.is_mean_reduction
        and value.dtype is total.dtype
        and value.device == total.device
        and metric.cumulated_batch_size.dtype is weight.dtype
    )


def set_sums(metric: _ResultMetric, value: Tensor, total: Tensor, weight: Tensor) -> None:
    """Set what `add_to_result` would have computed of a value."""
    metric._computed = None
    metric._update_count += 1
    metric.has_reset = False
    meta = metric.meta
    if meta.on_step:
        metric._forward_cache = value
        if not meta.on_epoch:
            metric.value = value
            return
    metric.value = total
    metric.cumulated_batch_size = weight


def is_synced(metric: _ResultMetric) -> bool:
    """Return whether a key is reduced over all workers. Those of a group of workers are exchanged by Lightning."""
    sync = metric.meta.sync
    return sync.should and not sync.rank_zero_only and sync.group is None


def sync_operation(metric: _ResultMetric) -> str:
    """Return the operation that reduces the values of the workers: ``mean``, ``sum``, ``max`` or ``min``."""
    return str(metric.meta.sync.op)


def step_value(metric: _ResultMetric) -> Tensor:
    """Return the value of the step in work."""
    assert metric._forward_cache is not None
    return metric._forward_cache


def step_value_if_any(metric: _ResultMetric) -> Tensor | None:
    """Return the value of the step in work, or None where the key has none."""
    if not metric.meta.on_step or not isinstance(metric._forward_cache, Tensor):
        return None
    value = metric._forward_cache
    return value.detach() if value.requires_grad and not metric.meta.enable_graph else value


def published_names(results: _ResultCollection, metric: _ResultMetric, on_step: bool) -> tuple[str, str]:
    """Return the names under which a key's value becomes readable: its own, and that of the step or the epoch."""
    return results._forked_name(metric, on_step)


def set_step_value(metric: _ResultMetric, value: Tensor) -> None:
    """Set the value of the step in work to that of all workers."""
    metric._forward_cache = value
    if not metric.meta.on_epoch:
        metric.value = value


def waits_for_epoch(metric: _ResultMetric) -> bool:
    """Return whether a key's value of the epoch has to be reduced over the workers, and has not been."""
    return metric.is_tensor and metric.meta.on_epoch and metric._computed is None and is_synced(metric)


def is_metric_of_epoch(metric: _ResultMetric) -> bool:
    """Return whether a key is a metric of torchmetrics, which all workers compute at the end of the epoch."""
    return not metric.is_tensor and metric.meta.on_epoch and not metric.meta.sync.rank_zero_only


def epoch_state(metric: _ResultMetric) -> tuple[Tensor, Tensor | None]:
    """Return the accumulated value of a key, and for a mean its weight."""
    return metric.value, metric.cumulated_batch_size if metric.meta.is_mean_reduction else None


def set_epoch_value(metric: _ResultMetric, value: Tensor) -> None:
    """Set a key's value of the epoch."""
    metric._computed = value  # type: ignore[assignment]


def read_result(metric: _ResultMetric) -> dict[str, Any] | None:
    """Return the accumulated state of a key, as tensors and plain values; None if there is none."""
    meta = metric.meta
    if metric.has_reset or not meta.on_epoch:
        return None
    options = {name: getattr(meta, name) for name in _RESULT_OPTIONS}
    sync = meta.sync
    state: dict[str, Any] = {
        "options": {**options, "reduce_fx": meta.reduce_fx.__name__},
        "sync": {"_should": sync.should, "rank_zero_only": sync.rank_zero_only},
        "grouped": sync.group is not None,
        "is_tensor": metric.is_tensor,
        "updates": metric._update_count,
    }
    if metric.is_tensor:
        state["value"] = metric.value.detach().cpu()
        if meta.is_mean_reduction:
            state["weight"] = torch.as_tensor(metric.cumulated_batch_size).cpu()
    return state


_RESULT_OPTIONS = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)


def make_result(state: Mapping[str, Any], trainer: Trainer) -> _ResultMetric:
    """Make a key of what `read_result` returned, as `self.log` registers it."""
    meta = _Metadata(**state["options"])
    meta.sync = _Sync(fn=trainer.strategy.reduce, **state["sync"])
    metric = _ResultMetric(meta, state["is_tensor"])
    if not state["is_tensor"]:
        metric.value = trainer.lightning_module.get_submodule(meta.metric_attribute or "")
    return metric


def write_result(metric: _ResultMetric, state: Mapping[str, Any], device: torch.device) -> None:
    """Let a key continue with what `read_result` returned."""
    metric._update_count = state["updates"]
    metric._computed = None
    metric.has_reset = False
    if "value" in state:
        metric.value = state["value"].to(device, copy=True)
    if "weight" in state:
        metric.cumulated_batch_size = state["weight"].to(device, copy=True)


def resume_iteration(connector: _LoggerConnector) -> None:
    """Note that the next batch of the loop is not its first."""
    connector._first_loop_iter = False


def count_iteration(connector: _LoggerConnector) -> None:
    """Note that a batch of the loop begins, the first or another."""
    first = connector._first_loop_iter
    if first is None:
        connector._first_loop_iter = True
    elif first:
        connector._first_loop_iter = False


def is_first_iteration(connector: _LoggerConnector) -> bool:
    """Return whether the batch in work is the first of its loop."""
    return bool(connector._first_loop_iter)


def keeps_logging(connector: _LoggerConnector, hook: str) -> bool:
    """Return whether a hook continues to log in the same epoch, so that its values are not reset."""
    return connector._first_loop_iter is False or connector._current_fx == hook


def publish(connector: _LoggerConnector, metrics: _METRICS) -> None:
    """Make values readable as ``callback_metrics``, ``logged_metrics`` and ``progress_bar_metrics``."""
    connector._progress_bar_metrics.update(metrics["pbar"])
    connector._callback_metrics.update(metrics["callback"])
    connector._logged_metrics.update(metrics["log"])


def replace_logger_connector(trainer: Trainer, connector_class: type[_LoggerConnector]) -> None:
    """Let another class keep the trainer's logged values."""
    trainer._logger_connector = connector_class(trainer)


def active_results(trainer: Trainer) -> Any:
    """Return the results of the running loop, or None."""
    return trainer._results


def replace_results(loop: Any, results: _ResultCollection) -> None:
    """Let another collection hold the logged values of a loop."""
    loop._results = results


def step_values(trainer: Trainer) -> dict[str, float]:
    """Return the values for the loggers that this worker has logged in the step in work."""
    values = trainer._logger_connector.metrics["log"]
    return {name: float(value) for name, value in values.items()}


def live_attributes(logger: Any) -> frozenset[str]:
    """Return the attributes of a logger that are a connection of this process, and mean nothing in another.

    Lightning's WandbLogger opens its run in the caller, where it is pickled, and attaches to it in a worker. The caller
    keeps the run that it has opened, which knows what the worker has logged.
    """
    return frozenset({"_experiment", "_attach_id"}) if isinstance(logger, WandbLogger) else frozenset()


def open_runs(trainer: Trainer) -> None:
    """Open the runs that belong to the caller, and that its workers attach to: those of Lightning's WandbLogger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            _ = logger.experiment


def can_continue_run(logger: Logger) -> bool:
    """Return whether a logger has yet to open a run, and could continue one.

    Lightning's of MLflow and W&B can, and those that count the versions of a folder, as its CSVLogger does.
    """
    if isinstance(logger, MLFlowLogger):
        return logger._run_id is None
    if isinstance(logger, WandbLogger):
        return logger._experiment is None and logger._id is None
    return hasattr(type(logger), "log_dir") and vars(logger).get("_version", "") is None


def open_run(logger: Logger) -> int | str:
    """Open a run of a logger that `can_continue_run`, and return its id: of a folder of versions, the next version."""
    if isinstance(logger, (MLFlowLogger, WandbLogger)):
        _ = logger.experiment
        return str(logger.version)
    version = logger.version
    assert version is not None
    return version


def continue_run(logger: Logger, run: int | str) -> None:
    """Open a run again that an earlier process has begun.

    Args:
        logger: one that `can_continue_run`.
        run: the id that `open_run` has returned.
    """
    if isinstance(logger, WandbLogger):
        logger._id = logger._wandb_init["id"] = str(run)
        _ = logger.experiment
    elif isinstance(logger, MLFlowLogger):
        logger._run_id = str(run)
        logger.experiment.update_run(run, status="RUNNING")
    else:
        vars(logger)["_version"] = run
        if isinstance(logger, CSVLogger):
            logger._experiment = _AppendingWriter(logger.log_dir)


class _AppendingWriter(ExperimentWriter):
    """Writes to the file of an earlier process, which Lightning's writer removes."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


def uploads_at_once(logger: Logger, callback: LightningModelCheckpoint) -> bool:
    """Return whether a logger of Lightning uploads each checkpoint of a callback as soon as it is saved."""
    log_model = getattr(logger, "_log_model", False)
    return log_model == "all" or (log_model is True and callback.save_top_k == -1)

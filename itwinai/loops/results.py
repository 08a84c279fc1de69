"""What `self.log` keeps, and how it gets from there to callbacks, loggers and progress bars.

No value differs from those of Lightning's own collection. What differs is that what was given with a key the first
time is not built and compared again in every step, and that values with ``sync_dist`` travel together (see
`metric_sync`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from itwinai.compat import lightning_logging
from itwinai.compat import torch as compat_torch
from itwinai.errors import CheckpointError
from itwinai.loops.desync_detection import MissingWorkers
from itwinai.loops.metric_sync import METRIC, WEIGHT, Entry, exchange
from itwinai.loops.monitored_metrics import check_callbacks
from itwinai.loops.torchmetrics_sync import MetricSync
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class LeanResults(lightning_logging.ResultCollection):
    """Lightning's collection of logged values, for one loop of a trainer.

    Args:
        training: whether the loop is that of training.
        trainer: the trainer.
    """

    def __init__(self, training: bool, trainer: Trainer) -> None:
        super().__init__(training)
        self.trainer = trainer
        # Values of this step with sync_dist that have not been exchanged yet, by key.
        self.unsynced: dict[str, lightning_logging.ResultMetric] = {}
        self.missing: MissingWorkers | None = None
        self.metric_sync = MetricSync(trainer)
        # The names of keys for the progress bar and the loggers, which do not change.
        self.names: dict[str, tuple[str, str]] = {}
        # How much this worker's part of the batch in work counts, and by key how much the value of the step does.
        self.weight = 1.0
        self.step_weights: dict[str, float] = {}
        # What was accumulated before the checkpoint that this run resumes from, until the key is logged again.
        self.restored: dict[str, dict[str, Any]] = {}
        self._taken_up: set[str] = set()  # keys that are registered because a checkpoint has them

    @property
    def exchanges(self) -> bool:
        """Whether there are other workers to exchange values with."""
        return self.trainer.world_size > 1 and isinstance(self.trainer.strategy, ParallelStrategy)

    @override
    def log(self, fx: str, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Metric) and not value.sync_on_compute and self.exchanges:
            warn_user(
                f"'{name}' is a {type(value).__name__}(sync_on_compute=False): only rank 0's samples are in the logged "
                "value. Remove sync_on_compute=False to include all ranks."
            )
        key = lightning_logging.result_key(self, fx, name, kwargs.get("add_dataloader_idx", True))
        if key in self._taken_up and self[key].has_reset:
            # It is registered as in the checkpoint, which may be of one process, that reduces nothing.
            self._taken_up.discard(key)
            del self[key]
        super().log(fx, name, compat_torch.plain_tensor(value) if isinstance(value, Tensor) else value, *args, **kwargs)

    @override
    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        metric = self[key]
        if self.restored and (state := self.restored.pop(key, None)) is not None:
            lightning_logging.write_result(metric, state, metric.device if value is None else value.device)
        if not metric.is_tensor or metric.meta.enable_graph:
            super().update_metrics(key, value, batch_size)
            return
        synced = lightning_logging.is_synced(metric)
        if synced and not self.weight:  # a sample that another worker has as well
            batch_size = 0
            value = value if lightning_logging.sync_operation(metric) in ("max", "min") else torch.zeros_like(value)
        lightning_logging.add_to_result(metric, value, batch_size)
        if metric.meta.on_step and synced:
            self.unsynced[key] = metric
            sized = self.is_size_given or (metric.meta.on_epoch and metric.meta.is_mean_reduction)
            self.step_weights[key] = float(batch_size) if sized or not self.weight else self.weight

    def accumulated(self) -> dict[str, dict[str, Any]]:
        """Return the accumulated state of each key, as tensors and plain values."""
        found = {key: lightning_logging.read_result(metric) for key, metric in self.items()}
        return self.restored | {key: state for key, state in found.items() if state is not None}

    def restore_unlogged_keys(self) -> None:
        """Register the keys that were logged before the checkpoint of this epoch, and have not been since.

        Raises:
            CheckpointError: a key was reduced over a group of workers, which no checkpoint can hold.
        """
        while self.restored:
            key, state = self.restored.popitem()
            if not state["sync"]["_should"]:
                state = state.get("whole", state)
            if state["grouped"]:
                raise CheckpointError(
                    f"The checkpoint was saved in mid-epoch, and {state['options']['name']!r} was logged with "
                    "sync_dist_group before the checkpoint but not after it. Log it in every step, or resume from a "
                    "checkpoint saved at the end of an epoch."
                )
            self._taken_up.add(key)
            self[key] = lightning_logging.make_result(state, self.trainer)
            lightning_logging.write_result(self[key], state, self.trainer.strategy.root_device)

    def sync_step(self, everyone: bool = False) -> None:
        """Reduce the step's values over the workers, at a point of the step that all of them reach.

        Args:
            everyone: take part in the exchange with nothing to send: without a store monitor, all workers do
                so once per epoch, so that one that logs nothing notices that the others do.
        """
        if (self.unsynced or everyone) and self.exchanges:
            self._exchange_step(list(self.unsynced))

    def sync_epoch(self) -> None:
        """Reduce the epoch's values over the workers, at a point that all of them reach, with or without values.

        Metrics are merged one by one when they are read: here the workers make sure that all have logged the same.
        """
        if self.exchanges:
            metrics = [key for key, metric in self.valid_items() if lightning_logging.is_metric_of_epoch(metric)]
            self._exchange_epoch(self._waiting(), [f"{METRIC}{key}" for key in metrics])

    def sync_read(self, on_step: bool) -> None:
        """Reduce the values that someone reads, one by one, in the order in which they were logged.

        A progress bar reads on rank 0 only, where the other workers read later, and then more values. One by one, as
        in Lightning, both are the same exchanges.
        """
        if not self.exchanges:
            return
        if on_step:
            for key in list(self.unsynced):
                self._exchange_step([key])
        else:
            for waiting in self._waiting():
                self._exchange_epoch([waiting])

    def _waiting(self) -> list[tuple[str, lightning_logging.ResultMetric]]:
        return [(key, metric) for key, metric in self.valid_items() if lightning_logging.waits_for_epoch(metric)]

    def _exchange_step(self, keys: list[str]) -> None:
        pending = [(key, self.unsynced.pop(key)) for key in keys]
        entries = [
            Entry(
                f"{key} (step)",
                lightning_logging.step_value(metric),
                lightning_logging.sync_operation(metric),
                self.step_weights.get(key, 1.0),
            )
            for key, metric in pending
        ]
        for (_, metric), value in zip(pending, self.exchanged(entries), strict=True):
            lightning_logging.set_step_value(metric, value)

    def _exchange_epoch(
        self, pending: list[tuple[str, lightning_logging.ResultMetric]], present: Sequence[str] = ()
    ) -> None:
        entries = []
        for key, metric in pending:
            value, weight = lightning_logging.epoch_state(metric)
            operation = lightning_logging.sync_operation(metric)
            entries.append(Entry(key, value, operation))
            if weight is not None:
                entries.append(Entry(key + WEIGHT, weight, operation))
        entries += [Entry(name, torch.zeros(()), "sum") for name in present]
        reduced = iter(self.exchanged(entries))
        for _, metric in pending:
            value = next(reduced)
            lightning_logging.set_epoch_value(metric, value / next(reduced) if metric.meta.is_mean_reduction else value)

    def exchanged(self, entries: list[Entry]) -> list[Tensor]:
        """Return the values of all workers, while another thread ends the run if a worker would hang."""
        with nullcontext() if self.missing is None else self.missing.expecting_all([entry.name for entry in entries]):
            return exchange(self.trainer.strategy, entries)

    @override
    def metrics(self, on_step: bool) -> lightning_logging.Metrics:
        metrics: lightning_logging.Metrics = {"callback": {}, "log": {}, "pbar": {}}
        if not self:
            return metrics
        self.sync_read(on_step)
        if not on_step:
            return super().metrics(on_step)
        for key, metric in self.items():
            meta = metric.meta
            if metric.has_reset or meta.dataloader_idx != self.dataloader_idx:
                continue
            value = lightning_logging.step_value_if_any(metric)
            if value is None:
                continue
            if key not in self.names:
                self.names[key] = lightning_logging.published_names(self, metric, on_step=True)
            name, step_name = self.names[key]
            if meta.logger:
                metrics["log"][step_name] = value
            if self.training:
                metrics["callback"][name] = metrics["callback"][step_name] = value
            if meta.prog_bar:
                # As a tensor: the reader converts it to a number, which does not happen in every step.
                metrics["pbar"][step_name] = value  # type: ignore[assignment]
        return metrics


class LeanLoggerConnector(lightning_logging.LoggerConnector):
    """Lightning's logger connector, which does only the necessary work in each batch."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._warned_of: set[str] = set()
        self._logs_rarely: bool | None = None  # not known yet
        self._lost = False

    def check_monitored(self) -> None:
        """Compare what callbacks have monitored with the other workers."""
        check_callbacks(self.trainer, self._warned_of)

    @override
    def update_train_epoch_metrics(self) -> None:
        super().update_train_epoch_metrics()
        if self._logs_rarely is None:
            self._logs_rarely = self._warn_of_rare_logging()
        if not self._lost:
            self._lost = self._warn_of_lost_run()
        self.check_monitored()  # all workers have read all values of the epoch

    def _warn_of_lost_run(self) -> bool:
        """Warn when a loss becomes NaN or infinite: a run may otherwise continue like that for days."""
        for name, value in self.callback_metrics.items():
            if "loss" in name and value.numel() == 1 and not torch.isfinite(value):
                warn_user(
                    f"'{name}' is {value.item()} at the end of epoch {self.trainer.current_epoch}. Look for missing "
                    "values in the data first; else lower the learning rate or set gradient_clip_val. "
                    "detect_anomaly=True finds the operation that caused it."
                )
                return True
        return False

    def _warn_of_rare_logging(self) -> bool:
        """Say that loggers do not get a value of each epoch, if there are values that are logged on steps."""
        trainer: Any = self.trainer
        batches, every = trainer.num_training_batches, trainer.log_every_n_steps
        if not trainer.loggers or trainer.fast_dev_run or batches >= every:
            return False
        results = trainer.fit_loop.epoch_loop.results
        metas = [metric.meta for metric in results.values()]
        on_step = [meta.name for meta in metas if meta.on_step and meta.logger and not meta.on_epoch]
        if on_step:
            warn_user(
                f"An epoch has {batches} steps, but log_every_n_steps={every}: '{on_step[0]}' is not logged in every "
                f"epoch. Set log_every_n_steps={max(1, batches // 4)}, or log it with on_epoch=True."
            )
        return bool(on_step)

    def begin_batch(self, results: LeanResults, batch: Any, dataloader_idx: int | None = None) -> None:
        """Note which batch is in work, for the batch size that `self.log` takes from it."""
        lightning_logging.count_iteration(self)
        results.batch = batch
        results.batch_size = None
        results.dataloader_idx = dataloader_idx

    def end_batch(self, results: LeanResults) -> lightning_logging.Metrics:
        """Hand the values of this batch on to callbacks, loggers and progress bars; return them."""
        metrics = results.metrics(on_step=True)
        if results:
            lightning_logging.publish(self, metrics)
        results.batch = None
        results.batch_size = None
        results.weight = 1.0
        return metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The values for the progress bar, as numbers."""
        metrics = super().progress_bar_metrics
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                metrics[name] = convert_tensors_to_scalars(value)
        return metrics

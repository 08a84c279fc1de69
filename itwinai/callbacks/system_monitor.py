"""Watch what a run uses: processor, memory, disk, network, GPUs, energy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from itwinai.collectives import gather
from itwinai.compat import lightning_dataloaders, lightning_loops
from itwinai.errors import ConfigurationError, MissingPackageError, require
from itwinai.loggers.metric_callback import ReportingCallback
from itwinai.monitoring.emissions import INSTALL, check_country, estimate
from itwinai.monitoring.gpus import gpus_of
from itwinai.monitoring.monitor_summary import MonitorSummary, NodeSummary
from itwinai.monitoring.node_metrics import machine_instruments
from itwinai.monitoring.node_topology import Node, nodes_of, this_location
from itwinai.monitoring.process_tree import tree_instruments
from itwinai.monitoring.rapl import rapl_instruments
from itwinai.monitoring.sample_count import trained_samples
from itwinai.monitoring.system_sampler import Sampler
from itwinai.monitoring.time_series import Recorder

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from itwinai.monitoring.gauges import Instruments
    from itwinai.reporting.sections import Section

LONGEST = 60.0
"""Longest interval: energy counters of processors begin again from 0 after some minutes at full power."""


class SystemMonitor(ReportingCallback):
    """Sample what a run uses on each of its nodes, log it, and sum it up at the end.

    A thread of one worker per node samples all processes of the node's workers, what they have started, the node
    itself, and its GPUs. The loggers get the means since the last time, at the trainer's log steps, as
    ``system/cpu_percent``, ``system/gpu0_power_w``...; those of other nodes at the end of each epoch, as
    ``system/NODE/cpu_percent``... Nothing that cannot be measured ends a run: it is named at the end, with the reason.

    Args:
        interval: seconds between two samples, at most 60. A sample takes about a millisecond of one core.
        country: whose electricity the run uses, for an estimate of CO2: ISO 3166 alpha-3, like ``"DEU"``. None uses
            the average of the world, which for a given country may be wrong by a factor of ten.
        gpus: measure GPUs, where there are any.

    Attributes:
        summary: what was measured, on rank 0 after a fit; None before.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(self, interval: float = 1.0, country: str | None = None, gpus: bool = True) -> None:
        number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
        if not number or not math.isfinite(interval) or not 0 < interval <= LONGEST:
            raise ConfigurationError(
                f"interval must be a number of seconds above 0 and at most {LONGEST:.0f}; got {interval!r}."
            )
        if not isinstance(gpus, bool):
            raise ConfigurationError(
                f"gpus must be True or False; got {gpus!r}. Choose GPUs with CUDA_VISIBLE_DEVICES."
            )
        if country is not None:
            check_country(country)
        self.interval = float(interval)
        self.country = country
        self.gpus = gpus
        self.summary: MonitorSummary | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop all that belongs to one fit, none of which can be sent to another process."""
        self._node: Node | None = None
        self._nodes: list[Node] = []
        self._sampler: Sampler | None = None
        self._logged: Recorder | None = None  # set where values go to loggers at log steps
        self._logged_step = -1
        self._begun: tuple[int, int] | None = None
        self._unknown: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the packages that are needed."""
        if stage != "fit":
            return
        require("psutil", INSTALL, "SystemMonitor")
        if self.country is not None:
            require("codecarbon", INSTALL, "SystemMonitor(country=...)")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out which workers share a node, and begin to sample."""
        self._end()
        self._forget()
        self.summary = None
        rank = trainer.global_rank
        places = gather(trainer, this_location(trainer.node_rank, gpu_of(trainer.strategy.root_device)))
        if len(places) < trainer.world_size:
            name = type(trainer.strategy).__name__
            self._unknown = [f"{name} cannot say where its workers are: only the process of rank 0 is measured"]
        self._nodes = nodes_of(places)
        self._node = next((node for node in self._nodes if node.leader == rank), None)
        if self._node is None:
            return
        self._sampler = Sampler(self._openers(self._node), self.interval, self._node.name)
        self._sampler.start()
        if trainer.is_global_zero and trainer.loggers:
            self._logged = self._sampler.recorder

    def _openers(self, node: Node) -> dict[str, Callable[[], Instruments]]:
        openers: dict[str, Callable[[], Instruments]] = {
            "the processes": functools.partial(tree_instruments, [worker.pid for worker in node.workers]),
            "the node": machine_instruments,
            "energy of the processors": rapl_instruments,
        }
        if self.gpus:
            openers["GPUs"] = functools.partial(gpus_of, node)
        return openers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the fit begins, which may resume from a checkpoint."""
        self._begun = lightning_loops.batches_done(trainer)

    def values_at_log_step(self, trainer: Trainer, batch: Any) -> dict[str, float]:
        """Return the means of the samples since the last log step."""
        if self._logged is None or not self._logged.fresh:
            return {}
        return {f"system/{name}": value for name, value in self._logged.take_means().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is left, and what the other nodes have sampled."""
        step = _last_step(trainer)
        if self._logged is not None and self._logged.fresh:
            self._log(trainer, step, self._logged.take_means())
        if len(self._nodes) > 1:
            self._log_other_nodes(trainer, step)

    def _log_other_nodes(self, trainer: Trainer, step: int) -> None:
        means = None if self._sampler is None else self._sampler.recorder.take_means()
        gathered = gather(trainer, means)
        for node in self._nodes:
            if node.leader != 0 and trainer.is_global_zero:
                self._log(trainer, step, gathered[node.leader], f"{node.name}/")

    def _log(self, trainer: Trainer, step: int, means: dict[str, float], where: str = "") -> None:
        if not means:
            return
        self._logged_step = step
        metrics = {f"system/{where}{name}": value for name, value in means.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End sampling, and bring together what the nodes have sampled."""
        self._end()
        step = _last_step(trainer)
        if self._logged is not None and self._logged.fresh and step != self._logged_step:
            self._log(trainer, step, self._logged.take_means())
        gathered = gather(trainer, self._own_summary())
        if trainer.is_global_zero:
            self.summary = self._summarize(trainer, [node for node in gathered if node is not None])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the emissions."""
        self._end()
        own = self._own_summary()
        if trainer.is_global_zero and own is not None:
            summary = self.summary or self._summarize(trainer, [own])  # a fit that had nothing to train
            self.summary = self._with_emissions(summary)
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End sampling, and keep what this node has sampled: the others may not answer any more."""
        self._end()
        own = self._own_summary()
        if trainer.is_global_zero and own is not None and self.summary is None:
            summary = self._summarize(trainer, [own])
            ended = f"the run was ended by {type(exception).__name__}: there is no estimate of CO2"
            if len(self._nodes) > 1:
                ended += f", and nothing of the other {len(self._nodes) - 1} nodes"
            self.summary = replace(summary, missing=(*summary.missing, ended))
        self._forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End sampling, if that was not done."""
        self._end()
        self._forget()

    def report(self) -> list[Section]:
        """Return the report: tables and recommendations."""
        from itwinai.reporting.sections.system import system_sections

        return [] if self.summary is None else system_sections(self.summary)

    def _end(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    def _own_summary(self) -> NodeSummary | None:
        if self._node is None or self._sampler is None:
            return None
        return NodeSummary(self._node.name, len(self._node.workers), self._sampler.sampled())

    def _summarize(self, trainer: Trainer, nodes: list[NodeSummary]) -> MonitorSummary:
        batches, samples = 0, None
        if self._begun is not None:
            in_epoch, before = self._begun
            batches = lightning_loops.batches_done(trainer)[1] - before
            loaders = lightning_dataloaders.training_loaders(trainer)
            samples = trained_samples(loaders, trainer.world_size, trainer.num_training_batches, in_epoch, batches)
        return MonitorSummary(tuple(nodes), nodes[0].cost.seconds, batches, samples, missing=tuple(self._unknown))

    def _with_emissions(self, summary: MonitorSummary) -> MonitorSummary:
        if not summary.joules:
            return summary
        try:
            return replace(summary, emissions=estimate(summary.joules, self.country))
        except MissingPackageError as error:
            return replace(summary, missing=(*summary.missing, f"CO2: {error}"))


def _last_step(trainer: Trainer) -> int:
    """Return the step by which loggers number what belongs to the last batch, between two epochs."""
    return max(lightning_loops.stepped_batches(trainer.fit_loop.epoch_loop) - 1, 0)


def gpu_of(device: torch.device) -> str | None:
    """Return the id of an NVIDIA GPU, as NVML writes it; None for other devices."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"

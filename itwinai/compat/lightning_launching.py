"""How Lightning's trainer starts workers: its launchers, the environments it knows, and its strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_only as utils_rank_zero_only

from itwinai.compat.jsonargparse import unlisted

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


Launcher = _Launcher


if TYPE_CHECKING:  # which cannot follow a function that makes a class
    UnlistedParallelStrategy = ParallelStrategy
else:
    UnlistedParallelStrategy = unlisted(ParallelStrategy)


if TYPE_CHECKING:  # which cannot follow a function that makes a class
    UnlistedDDPStrategy = LightningDDPStrategy
else:
    UnlistedDDPStrategy = unlisted(LightningDDPStrategy)


class ConfiguresLauncher:
    """Mixin for strategies that bring their own launcher.

    Lightning asks for the launcher once, at the end of ``Trainer.__init__``, by a private method.
    """

    def make_launcher(self) -> Launcher | None:
        """Return the launcher, or None if this process is a worker already."""
        raise NotImplementedError

    def _configure_launcher(self) -> None:
        self._launcher = self.make_launcher()

    def drop_launcher(self) -> None:
        """Forget the launcher: in a worker nothing is launched again."""
        self._launcher = None


def call_in_worker(trainer: Trainer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run one of the trainer's entry points in this process, with Lightning's handling of exceptions around it."""
    return call._call_and_handle_interrupt(trainer, function, *args, **kwargs)


class SrunEnvironment(SLURMEnvironment):
    """lightning's SLURM environment, for tasks that are spread over nodes in any way.

    Lightning computes ranks from the tasks per node and therefore insists on ``--ntasks-per-node``; here srun's own
    ranks are used.
    """

    @staticmethod
    def _validate_srun_variables() -> None:
        """Accept any srun."""


def set_rank_zero(rank: int) -> None:
    """Set the rank of this process for Lightning's rank-zero-only functions."""
    for decorator in (rank_zero_only, utils_rank_zero_only):
        setattr(decorator, "rank", rank)  # noqa: B010 - an attribute of a function


def selects_ddp(accelerator: Any, devices: Any, num_nodes: int) -> bool:
    """Return whether ``strategy="auto"`` stands for DDP, given the other flags."""
    connector = _AcceleratorConnector(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="auto")
    return type(connector.strategy) is LightningDDPStrategy  # TPUs have a subclass of it


def ddp_option_names(strategy: LightningDDPStrategy) -> set[str]:
    """Return the names of the options that Lightning passes on to DistributedDataParallel."""
    return {*strategy._ddp_kwargs}


@contextmanager
def ddp_options(strategy: LightningDDPStrategy, options: dict[str, Any]) -> Iterator[None]:
    """Let Lightning wrap modules with further options of DistributedDataParallel for a while."""
    before = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**before, **options}
    try:
        yield
    finally:
        strategy._ddp_kwargs = before

"""What a callback, a strategy, a trainer or a dataset may implement for itwinai to call it: the map for extending it.

Nothing has to be registered, and no class to be derived from: an object that has the methods of a protocol is called.
Lightning's own hooks come on top of these. Each protocol says who calls it, when, and which class shows how it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:  # everything may import this module, so that it imports nothing of the package when it runs
    import torch.distributed as dist
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from itwinai.data.rank_streams import RankStreams
    from itwinai.launchers.base import PayloadLauncher
    from itwinai.launchers.environment import PlacedEnvironment
    from itwinai.launchers.payload import FinalState
    from itwinai.profiling.step_timer import StepClock
    from itwinai.reporting.sections import Section


# ---------------------------------------------------------------------------------------------------- callbacks


@runtime_checkable
class SkipsHooks(Protocol):
    """A callback that says which of its hooks have nothing to do, so that the training loop leaves them out.

    The lean loops ask before each epoch, once per hook. It saves a call per batch where a callback is idle, as
    `TuneReportCallback` is outside of a search.
    """

    def skips_hook(self, hook: str) -> bool:
        """Return whether a hook of this callback would do nothing in this epoch."""


@runtime_checkable
class MonitorsMetrics(Protocol):
    """A callback that fails if some metrics are not logged.

    The lean loops ask after the first batches of a fit, and raise `MissingMetricError` for a name that nothing logs,
    hours before the end of the epoch would. `TuneReportCallback` names what the search maximizes.
    """

    def monitored_metrics(self) -> list[str]:
        """Return the names of the metrics."""


@runtime_checkable
class LogStepReporter(Protocol):
    """A callback with values of its own for the loggers.

    The training loop calls it on every worker at the end of each step in which Lightning logs
    (``log_every_n_steps``), and sends the values together with those of the module. `LoggingCallback` reports learning
    rates and the gradient norm this way.
    """

    def values_at_log_step(self, trainer: Trainer, batch: Any) -> dict[str, float]:
        """Return the values by name."""


@runtime_checkable
class StepWatcher(Protocol):
    """A callback for which the training loop times its steps.

    The loop leaves its clock in the attribute before the first step of an epoch. Without such a callback nothing is
    timed. `ProfilingCallback` and `LoggingCallback` read it.

    Attributes:
        step_clock: the clock, or None before the first epoch.
    """

    step_clock: StepClock | None


@runtime_checkable
class Preemptible(Protocol):
    """A callback that saves what would be lost when a signal stops the run.

    The training loop calls it after SIGTERM or SIGUSR1, on all workers before the same batch. `ModelCheckpoint` saves a
    checkpoint there.
    """

    def on_preemption(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; collectives are allowed."""


@runtime_checkable
class ServingWorkers(Protocol):
    """A callback with work to do in the caller's process while workers run in others.

    The launcher enters the context before it starts the workers and leaves it when their results are applied.
    `TuneReportCallback` passes on what the workers report to Ray Tune.
    """

    def serving_workers(self) -> AbstractContextManager[None]:
        """Return the context."""


@runtime_checkable
class WritesPredictions(Protocol):
    """A callback that stores what ``predict_step`` returns, and knows what an interrupted prediction has left to do.

    The prediction loop asks before the first batch, leaves out what is done, and returns no predictions unless the
    caller asks for them. `PredictionWriter` is one.

    Attributes:
        batch_size: of the loaders, in place of their own; ``"auto"`` for the fastest; None to leave them.
    """

    batch_size: int | Literal["auto"] | None

    def begin_predictions(self, trainer: Trainer, samples: list[int | None], limits: list[int | None]) -> list[Any]:
        """Return what is done, as a `Done` for each loader and the number of batches to predict of it.

        Args:
            trainer: the trainer; collectives are allowed.
            samples: number of samples of each loader's dataset; None where it has no length.
            limits: number of batches that one process would predict of each loader; None for all.
        """


@runtime_checkable
class Reporting(Protocol):
    """A callback with a report at the end of a run.

    It is asked on rank 0, after ``on_fit_end`` of all callbacks, by `RunSummary`, or else by the callback itself.
    `SystemMonitor` returns its tables and advice as sections.
    """

    def report(self) -> list[Section]:
        """Return the sections of its report."""


@runtime_checkable
class SummaryReporter(Protocol):
    """A callback that prints and writes the reports of all `Reporting` callbacks; these then print nothing themselves.

    The trainer moves it to the end of its list. `RunSummary` is one.
    """

    reports_all: bool


# --------------------------------------------------------------------------------------------------- strategies


class WorkerSource(Protocol):
    """Where a strategy's workers come from: an argument of strategies, for your own launchers.

    The strategy asks for a launcher at the end of ``ItwinaiTrainer.__init__``, once, unless an outer launcher such as
    torchrun has started this process. `LocalProcesses` and `RayPlacement` implement it.
    """

    def launcher(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        accelerator: str,
        variables: Mapping[str, str],
    ) -> PayloadLauncher | None:
        """Return the launcher, or None when a single worker can run in this process."""


@runtime_checkable
class Worker(Protocol):
    """A strategy that can become the strategy of one worker; launchers need it.

    Called in the new process, before the entry point runs. `LaunchedStrategy` implements it for all of itwinai's.

    Attributes:
        final_state: what the workers have collected for the caller, when the run has ended.
    """

    final_state: FinalState

    def worker_imports(self) -> tuple[str, ...]:
        """Return names of modules to import once, before workers become copies of the process that has them."""

    def become_worker(self, environment: PlacedEnvironment) -> None:
        """Turn the strategy, in a new process, into that of one worker."""


@runtime_checkable
class Gathering(Protocol):
    """A strategy that can collect Python objects of all its workers.

    Checkpoints, loaders and callbacks call it, on all workers, through `itwinai.collectives`. `LaunchedStrategy` uses
    torch.distributed, `HorovodStrategy` Horovod.
    """

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the objects of all workers, by rank."""

    def parameter_names(self) -> list[list[list[str]]] | None:
        """Return the parameters' names by optimizer and group; None if the optimizers hold the module's parameters."""


@runtime_checkable
class DrawsRandomNumbers(Protocol):
    """A strategy whose workers draw random numbers from streams of their own.

    Resuming sets the streams to where they were in the checkpoint. `LaunchedStrategy` implements it.
    """

    @property
    def random_numbers(self) -> RankStreams:
        """The streams of this worker."""


@runtime_checkable
class Coordinated(Protocol):
    """A strategy whose workers have a key-value store in common.

    A thread of the training loop uses it to agree on where a signal stops the run, and to notice workers that ended
    early, without a collective per step. `LaunchedStrategy` has the store of the process group.
    """

    def coordination_store(self) -> dist.Store | None:
        """Return the store, through an object that nothing else uses: a wait in one thread must not block another."""


@runtime_checkable
class ComparesRanks(Protocol):
    """A strategy that can check what has to be the same on all workers.

    The training loop calls it after each epoch, on all workers. `LaunchedStrategy` compares parameters and learning
    rates, and raises `DriftError`.
    """

    def compare_ranks(self) -> None:
        """Raise an error if workers differ."""


@runtime_checkable
class TimesCommunication(Protocol):
    """A strategy that can measure how long its workers wait for each other.

    The training loop calls it before the first step of an epoch, if a `StepWatcher` is there and there are several
    workers. `DDPStrategy` asks its reducer, `HorovodStrategy` times each exchange.
    """

    def time_communication(self, clock: StepClock) -> None:
        """Begin to measure: report each exchange to the clock, or let the engine sum them up."""


@runtime_checkable
class AveragesFlat(Protocol):
    """A strategy that can average the gradients of a step in one tensor, outside of backward.

    ``compile_step`` needs it with several workers: a graph of forward and backward, this average, a graph of the
    update. `DDPStrategy` and `HorovodStrategy` have it.

    Attributes:
        find_unused_parameters: whether some parameters may get no gradient, on some workers only.
    """

    find_unused_parameters: bool

    def check_flat_average(self) -> None:
        """Raise `CompileStepError` if the options ask for more than an average of the gradients."""

    def begin_flat_step(self, exchanges: bool) -> None:
        """Do what comes before forward: follow changes of the parameters, share buffers.

        Args:
            exchanges: whether gradients are averaged in this step; otherwise they accumulate.
        """

    def batch_weight(self) -> float:
        """Return the weight of this worker's loss in the step in work."""

    def average_flat(self, tensor: Tensor, name: str) -> None:
        """Replace a tensor by its average over all workers, which all call it under the same name."""

    def unused_error(self, names: list[str]) -> Exception:
        """Return the error for parameters without a gradient, where each has to have one."""


# ------------------------------------------------------------------------------------------- trainers and datasets


@runtime_checkable
class Restartable(Protocol):
    """A trainer whose workers may be started again when one dies. Launchers ask; `ItwinaiTrainer` is one."""

    max_restarts: int

    def prepare_restart(self) -> None:
        """Let the next workers resume from the newest checkpoint that was written since the first were started."""


@runtime_checkable
class KeepsCheckpoint(Protocol):
    """A trainer that can save checkpoints in the caller's process, with state from its workers. Launchers call it."""

    def keep_checkpoint(self, parts: dict[str, Any]) -> None:
        """Take the parts of a checkpoint that belong to the fit that has just ended."""


@runtime_checkable
class Abortable(Protocol):
    """A trainer whose process can be ended from another thread, when its main thread waits without end."""

    def abort(self, error: BaseException) -> None:
        """End this process because of an error."""


@runtime_checkable
class Stateful(Protocol):
    """An iterable dataset that can resume in the middle of an epoch.

    Its state goes into checkpoints, so that a run resumes at the exact sample. See `StreamLoader`.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration stands, after the last sample that was taken from it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where another one stood."""

"""Payload out, result back: what a launched worker is given, and what the caller gets from it.

The trainer, the entry point and its arguments travel in one pickle, so that identities hold (the trainer in the
arguments is the trainer of the bound method) and classes defined in ``__main__`` travel too. What the run changed
comes back as a trace and is written into the caller's own objects: afterwards the caller's trainer, module and
callbacks look as if the run had been local.
"""

from __future__ import annotations

import io
import logging
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any

import cloudpickle
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule

from itwinai.compat import cloudpickle as compat_cloudpickle
from itwinai.compat import lightning_launching, lightning_signals, lightning_trainer
from itwinai.compat import noise as compat_noise
from itwinai.compat import torch as compat_torch
from itwinai.errors import PayloadError
from itwinai.interfaces import KeepsCheckpoint, Worker
from itwinai.launchers import module_values
from itwinai.launchers.cpu_affinity import share_cores
from itwinai.launchers.environment import PlacedEnvironment, RankInfo
from itwinai.launchers.module_values import ModuleValues, changed_values
from itwinai.launchers.process_settings import ProcessSettings
from itwinai.launchers.state_sync import StateDiff, write_back
from itwinai.launchers.worker import TRACE

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

OTHER_WAYS = (
    "Where nothing has to be sent it works as it is: workers of this machine are copies of this process with "
    "launcher='fork', or run the script again with launcher='script', as under `torchrun --nproc-per-node 2 script.py`."
)


@dataclass
class FinalState:
    """What a strategy keeps of a run, over all workers, before it takes down what they share.

    Attributes:
        checkpoint: parts of a checkpoint that the caller's trainer has no other way to, such as the optimizers' states;
            on rank 0.
        metrics: the states of the module's metrics, by the metric's name.
    """

    checkpoint: dict[str, Any] | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Payload:
    """Everything a worker needs to run one entry point of a trainer.

    Attributes:
        trainer: the caller's trainer.
        function: the entry point, a bound method of ``trainer``.
        args: positional arguments of ``function``.
        kwargs: keyword arguments of ``function``.
        rng_states: global random states of the caller, so that every worker continues where the caller is.
        arguments: the command line of the caller, which the user's code may read in a worker as well.
        settings: what the caller's process is set to.
        module_values: what the caller has set in the user's modules, once it is packed; a copy has it by itself.
    """

    trainer: Trainer
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng_states: dict[str, Any] = field(default_factory=lambda: lightning_trainer.collect_rng_states(include_cuda=False))
    arguments: list[str] = field(default_factory=lambda: sys.argv)
    settings: ProcessSettings = field(default_factory=ProcessSettings.of_this_process)
    module_values: ModuleValues = field(default_factory=dict)

    @property
    def given(self) -> tuple[Any, ...]:
        """All arguments of the call."""
        return (*self.args, *self.kwargs.values())

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The datamodule among the arguments, if there is one."""
        return lightning_trainer.datamodule_of(self.given)

    def pack(self) -> bytes:
        """Pickle the payload, and what pickles of parameters leave out.

        Raises:
            PayloadError: something in it cannot be pickled; the message says where it sits.
        """
        module = self.trainer.lightning_module
        if compiled := [name for name, part in module.named_modules() if compat_torch.is_compiled_in_place(part)]:
            names = ", ".join(name or "the whole module" for name in compiled)
            raise PayloadError(
                f"The run cannot be sent to worker processes, because a pickle leaves out that {names} was compiled "
                f"with .compile(). Call it in setup() or configure_model(), so that each worker does. {OTHER_WAYS}"
            )
        self.module_values = changed_values()
        try:
            return dumps((self, compat_torch.parameter_hooks(module)))
        except Exception as error:  # pickling runs the user's own __reduce__ and __getstate__: anything can come
            raise PayloadError(_explain_unpicklable(self, error)) from error


@dataclass(frozen=True)
class Result:
    """What one worker sends back.

    Attributes:
        rank: the worker's global rank.
        returned: what the entry point returned, on the CPU.
        predict_dataloaders: number of dataloaders that were predicted; 0 unless the entry point predicts.
        trace: what the run changed on the caller's objects, if it was asked for.
        checkpoint: see `FinalState`; of rank 0.
        rng_states: where rank 0 stands in its random numbers.
    """

    rank: int
    returned: Any
    predict_dataloaders: int = 0
    trace: bytes | None = None
    checkpoint: dict[str, Any] | None = None
    rng_states: dict[str, Any] | None = None


def run_packed(packed: bytes, rank_info: RankInfo, on_failure: Callable[[BaseException], None], traced: bool) -> Result:
    """Unpack a payload and `run` it.

    Args:
        packed: what `Payload.pack` returned on the caller.
        rank_info: as in `run`.
        on_failure: as in `run`.
        traced: as in `run`.

    Raises:
        PayloadError: something in it cannot be recreated in this process.
    """
    try:
        payload, hooks = pickle.loads(packed)
    except Exception as error:  # unpickling runs the user's own __new__ and __setstate__: anything can come
        raise PayloadError(
            f"The run was sent to this worker process, and something in it cannot be recreated here: "
            f"{type(error).__name__}: {error}. A class whose __new__ or __init__ takes arguments needs __reduce__ or "
            f"__getnewargs__, and what is unpickled needs to be importable in the worker. {OTHER_WAYS}"
        ) from error
    sys.argv[:] = payload.arguments
    compat_cloudpickle.start_processes_by_value()
    compat_torch.register_parameter_hooks(payload.trainer.lightning_module, hooks)
    # A copy of the caller has the seed of its GPUs too; a new process draws from torch's default there.
    torch.set_rng_state(payload.rng_states["torch"])
    torch.cuda.manual_seed_all(torch.initial_seed())
    return run(payload, rank_info, on_failure, traced)


def run(payload: Payload, rank_info: RankInfo, on_failure: Callable[[BaseException], None], traced: bool) -> Result:
    """Run a payload in this process, which becomes the worker of a rank.

    Args:
        payload: the caller's, or a copy of it.
        rank_info: this worker's ranks in the group.
        on_failure: called with an exception at once, before the hooks that Lightning runs on exceptions: these may
            wait for other workers, and the caller must know the first failure of several.
        traced: whether the caller needs to know what the run changed; true for one worker of each caller.
    """
    trainer = payload.trainer
    payload.settings.apply()
    module_values.apply(payload.module_values)
    compat_noise.silence_known_noise(rank_info.rank)
    compat_noise.silence_sockets()
    lightning_trainer.set_rng_states(payload.rng_states)
    if (threads := getattr(trainer, "cpu_threads", None)) is None:
        share_cores(rank_info.local_world_size)
    else:
        torch.set_num_threads(threads)
    strategy = trainer.strategy
    assert isinstance(strategy, Worker)
    strategy.become_worker(PlacedEnvironment(rank_info))
    observer = StateDiff(trainer, payload.given) if traced else None
    lightning_signals.expect_late_signals(trainer)
    if hasattr(trainer, "report_failure"):
        trainer.report_failure = on_failure

    def reporting(*args: Any, **kwargs: Any) -> Any:
        try:
            return payload.function(*args, **kwargs)
        except BaseException as error:
            on_failure(error)
            raise

    try:
        returned = lightning_launching.call_in_worker(trainer, reporting, *payload.args, **payload.kwargs)
    except BaseException as error:
        if observer is not None:
            vars(error)[TRACE] = _trace_of_failure(observer)
        raise
    final = strategy.final_state
    return Result(
        rank=rank_info.rank,
        returned=move_data_to_device(returned, torch.device("cpu")),
        predict_dataloaders=len(trainer.num_predict_batches) if lightning_trainer.is_predicting(trainer) else 0,
        trace=observer.trace(final.metrics) if observer else None,
        checkpoint=final.checkpoint if rank_info.rank == 0 else None,
        rng_states=lightning_trainer.collect_rng_states(include_cuda=False) if rank_info.rank == 0 else None,
    )


def _trace_of_failure(observer: StateDiff) -> bytes | None:
    try:
        return observer.trace({}, finished=False)
    except Exception:  # the failure itself is what the caller has to see
        log.debug("what the run has changed before it failed cannot be told", exc_info=True)
        return None


def apply(payload: Payload, results: Sequence[Result]) -> Any:
    """Write what the workers sent back into the caller's objects.

    Args:
        payload: the payload as the caller packed it.
        results: one result per worker of this launch, in any order.

    Returns:
        What the entry point would have returned locally: rank 0's value, or for predictions those of all ranks in
        the order of the dataset.
    """
    results = sorted(results, key=lambda result: result.rank)
    first = results[0]
    if first.trace is not None:
        write_back(first.trace, payload.trainer, payload.given)
    if first.rng_states is not None:  # what the caller draws from now on is what one process would draw
        lightning_trainer.set_rng_states(first.rng_states)
    if first.checkpoint is not None and isinstance(payload.trainer, KeepsCheckpoint):
        payload.trainer.keep_checkpoint(first.checkpoint)
        for optimizer, state in zip(payload.trainer.optimizers, first.checkpoint["optimizer_states"], strict=False):
            optimizer.load_state_dict(state)
    lightning_trainer.attach(payload.trainer, payload.trainer.lightning_module, payload.datamodule)
    if first.predict_dataloaders == 0 or first.returned is None:
        return first.returned
    if first.predict_dataloaders == 1:
        return interleave([result.returned for result in results])
    return [interleave([result.returned[index] for result in results]) for index in range(first.predict_dataloaders)]


def interleave(per_rank: Sequence[Sequence[Any]]) -> list[Any]:
    """Put the batches of all ranks into the order of the dataset.

    Batch k of rank r is part r of global batch k, so the order is (0, 0), (0, 1), ..., (1, 0), ... Ranks whose part
    of the last global batches was empty have fewer batches.
    """
    longest = max(len(batches) for batches in per_rank)
    return [batches[index] for index in range(longest) for batches in per_rank if index < len(batches)]


def _explain_unpicklable(payload: Payload, error: Exception) -> str:
    """Say which part of a payload cannot be pickled."""
    trainer = payload.trainer
    parts: dict[str, Any] = {f"the module {type(trainer.lightning_module).__name__}": trainer.lightning_module}
    parts |= {f"the callback {type(callback).__name__}": callback for callback in lightning_trainer.callbacks(trainer)}
    parts |= {f"the logger {type(logger).__name__}": logger for logger in trainer.loggers}
    if payload.datamodule is not None:
        parts[f"the datamodule {type(payload.datamodule).__name__}"] = payload.datamodule
    parts |= {"an argument of the trainer's call": (payload.args, payload.kwargs)}
    where = "the trainer"
    for name, part in parts.items():
        if _unpicklable(part):
            attributes = [key for key, value in getattr(part, "__dict__", {}).items() if _unpicklable(value)]
            where = f"{name} (attribute {', '.join(attributes)})" if attributes else name
            break
    return (
        f"The run cannot be sent to worker processes, because {where} cannot be pickled: {error}. Create such objects "
        f"in setup() or when they are first used, so that each worker makes its own. {OTHER_WAYS}"
    )


def _unpicklable(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:  # any error is the answer
        return True
    return False


def dumps(value: Any) -> bytes:
    """Pickle a value, the classes and functions of ``__main__`` and of notebooks included."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


# What cloudpickle 3.1.3 writes in the place of a file's name, so that equal code gives equal pickles.
_NO_FILE = "<dynamic-code>"

_reduce = cloudpickle.Pickler.dispatch_table[CodeType]


def _reduce_with_file(code: CodeType) -> Any:
    # Without the file's name a worker's traceback would not show the line of the user's script that failed.
    make, parts = _reduce(code)
    return make, tuple(code.co_filename if type(part) is str and part == _NO_FILE else part for part in parts)


class _Pickler(cloudpickle.Pickler):
    dispatch_table = ChainMap({CodeType: _reduce_with_file}, cloudpickle.Pickler.dispatch_table)

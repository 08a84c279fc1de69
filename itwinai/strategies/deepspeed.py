"""DeepSpeed: ZeRO shards optimizer state (stage 1), gradients (2) and parameters (3) over the workers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn

from itwinai import compat
from itwinai.errors import ConfigurationError, require
from itwinai.strategies.base import LocalProcesses, WorkerSource
from itwinai.strategies.ddp import DEFAULT_TIMEOUT, TorchDistributedStrategy, as_timedelta

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class DeepSpeedStrategy(TorchDistributedStrategy, compat.EngineMaker):
    """Train with DeepSpeed, on CUDA or on the CPU with gloo.

    The module's own optimizer and scheduler are used. The caller owns the boundary of gradient accumulation, so that
    the last, partial window of an epoch ends with a step, as under DDP.

    Args:
        stage: what is sharded: nothing (0), optimizer state (1), gradients too (2), parameters too (3).
        offload_optimizer: keep the optimizer state in host memory.
        offload_parameters: keep the parameters of stage 3 in host memory.
        config: a DeepSpeed configuration, as a dictionary or the path of a JSON file; ``stage`` and the offload
            options are then ignored in favour of what it says.
        timeout: seconds after which a collective operation that some worker has not joined is an error.
        workers: where workers come from; processes of this machine by default.
        **kwargs: further arguments of lightning's DeepSpeedStrategy.

    Raises:
        ConfigurationError: the stage does not exist.
        MissingPackageError: DeepSpeed is not installed.
    """

    strategy_name = "deepspeed"

    def __init__(
        self,
        *,
        stage: int = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        config: str | Path | dict[str, Any] | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        workers: WorkerSource | None = None,
        **kwargs: Any,
    ) -> None:
        require("deepspeed", "Install it with `pip install 'itwinai[deepspeed]'`.", "The strategy 'deepspeed'")
        if stage not in (0, 1, 2, 3):
            raise ConfigurationError(f"ZeRO has the stages 0, 1, 2 and 3; stage={stage!r} is none of them.")
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            config=config,
            **kwargs,
        )
        self.collective_timeout = as_timedelta(timeout)
        self.worker_source = workers or LocalProcesses()
        self._own_attributes: dict[nn.Module, frozenset[str]] = {}
        _complete(self.config)

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.config.get("zero_optimization", {}).get("stage", 0))

    # ---------------------------------------------------------------------------------------------- the group

    def worker_variables(self) -> dict[str, str]:
        # DeepSpeed chooses its accelerator when it is imported, and prefers a GPU that is not meant to be used.
        return {"DS_ACCELERATOR": "cpu"} if self._on_cpu() else {}

    def _on_cpu(self) -> bool:
        return not self.parallel_devices or self.parallel_devices[0].type == "cpu"

    def setup_environment(self) -> None:
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def init_process_group(self, backend: str) -> None:
        super().init_process_group(backend)
        # Before DeepSpeed is asked anything, it has to know where it runs.
        os.environ.update({"RANK": str(self.global_rank), "WORLD_SIZE": str(self.world_size)})
        os.environ.update({"LOCAL_RANK": str(self.local_rank)})
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        wanted = "cpu" if self._on_cpu() else "cuda"
        if get_accelerator().device_name() != wanted:
            raise ConfigurationError(
                f"DeepSpeed chose the accelerator '{get_accelerator().device_name()}' when it was imported, and this "
                f"run is on '{wanted}'. Set the environment variable DS_ACCELERATOR={wanted}."
            )
        compat.leave_out_shared_memory_operator()
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)

    def describe_backend(self) -> str:
        return f"ZeRO stage {self.stage}, {super().describe_backend()}"

    # ---------------------------------------------------------------------------------------------- the model

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: lightning's loop says when to step, so that partial windows are treated as under DDP."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Do nothing: until the step the engine accumulates on each worker, and stages 2 and 3 know no other way."""
        yield

    def setup(self, trainer: Trainer) -> None:
        if self._layer_sync is not None and trainer.training:
            assert self.model is not None
            self.model = self._layer_sync.apply(self.model)
        super().setup(trainer)

    def make_engine(self, config: dict[str, Any], model: nn.Module, **options: Any) -> tuple[Any, ...]:
        """Wrap a module into a DeepSpeed engine.

        Args:
            config: the DeepSpeed configuration.
            model: the module.
            **options: further arguments of ``deepspeed.initialize``.

        Returns:
            The engine, and its optimizer.
        """
        import deepspeed

        # By default DeepSpeed takes the device's index for the local rank, and a CPU has none.
        arguments = argparse.Namespace(device_rank=self.local_rank)
        self._own_attributes = {submodule: frozenset(vars(submodule)) for submodule in model.modules()}
        engine, optimizer, _, _ = deepspeed.initialize(
            args=arguments, config=config, model=model, dist_init_required=False, **options
        )
        return engine, optimizer

    def teardown(self) -> None:
        """Leave the module with plain, whole parameters, as it came."""
        engine: Any = self.model
        module = self.lightning_module
        if hasattr(engine, "destroy") and module is not None:
            # After an exception the other workers may be gone, and gathering needs them all.
            if self.zero_stage_3 and module.trainer.state.status != TrainerStatus.INTERRUPTED:
                gather_parameters(module)
            engine.destroy()
            self._remove_traces(module)
            self.model = module
        super().teardown()

    def _remove_traces(self, module: nn.Module) -> None:
        """Take off what an engine hangs on submodules: the next engine would take it for its own."""
        for submodule in module.modules():
            before = self._own_attributes.get(submodule, frozenset(vars(submodule)))
            for name in vars(submodule).keys() - before:
                if compat.is_attribute_of_engine(name):
                    delattr(submodule, name)
            submodule._parameters = dict(submodule._parameters)
        self._own_attributes = {}

    # -------------------------------------------------------------------------------------------- checkpoints

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint directory into the engine, and return lightning's part of it.

        Without training only the weights are read, of whatever stage and number of workers: the engine could not load
        those of stage 3 without an optimizer.
        """
        assert self.lightning_module is not None
        folder = Path(checkpoint_path)
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING or not (folder / TAG).is_dir():
            return super().load_checkpoint(checkpoint_path, weights_only)
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        sharded = folder / TAG / "zero_pp_rank_0_mp_rank_00_model_states.pt"
        states = sharded if sharded.exists() else folder / TAG / "mp_rank_00_model_states.pt"
        checkpoint: dict[str, Any] = torch.load(states, map_location="cpu", weights_only=False)
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), TAG) if sharded.exists() else None
        checkpoint["state_dict"] = checkpoint.pop("module") if weights is None else dict(weights)
        strict = self.lightning_module.strict_loading
        if self.zero_stage_3:
            self.restore_sharded(checkpoint, strict)
        else:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)
        return checkpoint


# The folder inside a checkpoint directory into which lightning lets DeepSpeed write.
TAG = "checkpoint"


def gather_parameters(module: nn.Module) -> None:
    """Replace the sharded parameters of a module by plain ones that hold the whole values.

    All workers have to call it. The parameters are new objects: DeepSpeed leaves its state on the sharded ones.
    """
    import deepspeed

    whole: dict[int, nn.Parameter] = {}
    for submodule in module.modules():
        for name, parameter in list(submodule.named_parameters(recurse=False)):
            if id(parameter) not in whole:  # tied parameters stay tied
                with deepspeed.zero.GatheredParameters([parameter]):
                    values = parameter.detach().clone()
                whole[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            submodule._parameters[name] = whole[id(parameter)]


def _complete(config: dict[str, Any]) -> None:
    """Set what a configuration leaves open and this strategy relies on."""
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    # The caller of step() owns the boundary: DeepSpeed's own counter carries a partial window into the next epoch.
    config.setdefault("managed_gradient_accumulation", False)
    zero = config.get("zero_optimization", {})
    if zero.get("stage", 0) < 2:
        zero["overlap_comm"] = False  # these stages reduce in step(), when nothing is left to overlap with

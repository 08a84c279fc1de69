"""DeepSpeed: ZeRO shards optimizer state (stage 1), gradients (2) and parameters (3) over the workers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from typing_extensions import Unpack, override

from itwinai.checkpoints.checkpoint_io import PortableCheckpointIO, selected_path
from itwinai.checkpoints.sharded import SHARDED, ShardWriter, contents, is_sharded, read_content
from itwinai.compat import deepspeed as compat_deepspeed
from itwinai.compat import lightning_loops
from itwinai.errors import ConfigurationError, require
from itwinai.interfaces import WorkerSource
from itwinai.launchers.environment import WorkerKind
from itwinai.launchers.environment_variables import environment_variables
from itwinai.profiling.step_timer import StepClock
from itwinai.strategies.base import LocalProcesses
from itwinai.strategies.ddp import DEFAULT_TIMEOUT, TorchDistributedStrategy, as_timedelta
from itwinai.strategies.options import DeepSpeedOptions, check_options
from itwinai.strategies.registry import INSTALL
from itwinai.strategies.zero_checks import check_optimizer, check_parameters, refuse_second_derivatives
from itwinai.strategies.zero_comm_timer import CollectiveTimer
from itwinai.strategies.zero_gather import ShardedOptimizer, accepts_keep_vars, gather_weights, whole_parameters
from itwinai.strategies.zero_gradients import EnginePrecision, UnshardedGradients, hooks_on_gradients
from itwinai.strategies.zero_module import OriginalModule
from itwinai.strategies.zero_outputs import tolerant
from itwinai.strategies.zero_sharded_checkpoint import Shards

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class DeepSpeedStrategy(TorchDistributedStrategy, compat_deepspeed.EngineMaker):
    """Train with DeepSpeed, on CUDA or on the CPU with gloo.

    The module's own optimizer and scheduler are used. The caller owns the boundary of gradient accumulation, so that
    the last, partial window of an epoch ends with a step, as under DDP.

    Args:
        stage: what is sharded: nothing (0), optimizer state (1), gradients too (2), parameters too (3).
        offload_optimizer: keep the optimizer state in host memory.
        offload_parameters: keep the parameters of stage 3 in host memory.
        config: a DeepSpeed configuration, as a dictionary or the path of a JSON file; ``stage`` and the offload
            options are then ignored in favor of what it says.
        sharded_checkpoints: write checkpoints of stage 3 as folders, into which each worker writes its part, for models
            that are too large for one host. They resume with any number of workers, and under any strategy where the
            whole model fits. All workers have to see the same folder.
        whole_gradients: keep averaged, unsharded gradients on each worker until the step, so that hooks can read and
            change them, and gradients can be summed in any way. Needs as much memory for gradients as stage 1. By
            default on if there are hooks on gradients or the module optimizes manually. Set False if these do not read
            gradients.
        timeout: seconds after which a collective operation that some worker has not joined is an error.
        launcher: how the workers of this machine are started; see `ItwinaiTrainer`.
        workers: where workers come from; processes of this machine by default.
        check_drift: compare the parameters that are not sharded, of all ranks, after each epoch.
        **kwargs: further arguments of Lightning's DeepSpeedStrategy: see `DeepSpeedOptions`.

    Raises:
        UnknownArgumentError: Lightning's strategy does not accept one of the further arguments.
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
        sharded_checkpoints: bool = False,
        whole_gradients: bool | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        launcher: WorkerKind = "auto",
        workers: WorkerSource | None = None,
        check_drift: bool = True,
        **kwargs: Unpack[DeepSpeedOptions],
    ) -> None:
        check_options(DeepSpeedStrategy, kwargs, LightningDeepSpeedStrategy.__init__)
        require("deepspeed", f"Install it with `{INSTALL['deepspeed']}`.", "The strategy 'deepspeed'")
        if stage not in (0, 1, 2, 3):
            raise ConfigurationError(f"stage must be 0, 1, 2 or 3; got {stage!r}.")
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            config=config,
            **kwargs,
        )
        self.collective_timeout = as_timedelta(timeout)
        self.worker_source = workers or LocalProcesses(launcher)
        self.check_drift = check_drift
        self.whole_gradients = whole_gradients
        self._clips_by_config = "gradient_clipping" in self.config
        self._original: OriginalModule | None = None
        self._groups: list[list[nn.Parameter]] = []
        self._trained: frozenset[int] = frozenset()
        self._timed: CollectiveTimer | None = None
        self.sharded_checkpoints = sharded_checkpoints
        self._shard_writer: ShardWriter | None = None
        self._ranks: ExitStack | None = None  # the environment variables of one process, while it runs
        if sharded_checkpoints and self.stage != 3:
            raise ConfigurationError(
                f"sharded_checkpoints=True needs stage 3; in stage {self.stage} every worker has all weights."
            )
        _complete(self.config)

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.config.get("zero_optimization", {}).get("stage", 0))

    @property
    def _offloads(self) -> bool:
        """Whether host memory has what the device has no room for."""
        zero = self.config.get("zero_optimization", {})
        return any(
            (zero.get(f"offload_{what}") or {}).get("device", "none") != "none" for what in ("optimizer", "param")
        )

    # ---------------------------------------------------------------------------------------------- the group

    @override
    def worker_variables(self) -> dict[str, str]:
        # DeepSpeed chooses its accelerator when it is imported, and prefers a GPU that is not meant to be used.
        return {"DS_ACCELERATOR": "cpu"} if self._on_cpu() else {}

    @override
    def worker_imports(self) -> tuple[str, ...]:
        # Elsewhere DeepSpeed looks at the devices, and a process that has done so cannot be copied.
        return compat_deepspeed.DEEPSPEED_MODULES if self._on_cpu() else ()

    def _on_cpu(self) -> bool:
        return not self.parallel_devices or self.parallel_devices[0].type == "cpu"

    @override
    def setup_environment(self) -> None:
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    @override
    def init_process_group(self, backend: str) -> None:
        super().init_process_group(backend)
        # Before DeepSpeed is asked anything, it has to know where it runs.
        ranks = {"RANK": self.global_rank, "WORLD_SIZE": self.world_size, "LOCAL_RANK": self.local_rank}
        if self.world_size == 1:  # in the script's process, whose next trainer would take itself for a worker
            self._ranks = self._ranks or ExitStack()
            self._ranks.enter_context(environment_variables({name: str(rank) for name, rank in ranks.items()}))
        else:
            os.environ.update({name: str(rank) for name, rank in ranks.items()})
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        wanted = "cpu" if self._on_cpu() else "cuda"
        if get_accelerator().device_name() != wanted:
            raise ConfigurationError(
                f"DeepSpeed chose the accelerator '{get_accelerator().device_name()}' when it was imported, and this "
                f"run is on '{wanted}'. Set the environment variable DS_ACCELERATOR={wanted}."
            )
        compat_deepspeed.leave_out_shared_memory_operator()
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)

    @override
    def describe_backend(self) -> str:
        return f"ZeRO stage {self.stage}, {super().describe_backend()}"

    # ---------------------------------------------------------------------------------------------- the model

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: Lightning's loop says when to step, so that partial windows are treated as under DDP."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Do nothing: until the step the engine accumulates on each worker, and stages 2 and 3 know no other way."""
        yield

    @override
    def setup(self, trainer: Trainer) -> None:
        if self._layer_sync is not None and trainer.training:
            assert self.model is not None
            self.model = self._layer_sync.apply(self.model)
        self.precision_plugin = EnginePrecision(self.precision_plugin.precision, self._check_frozen)
        super().setup(trainer)
        if self.stage and self.optimizers:
            lightning_loops.replace_zero_grad(self, self.precision_plugin.clear_gradients(self.model))
        if self.sharded_checkpoints and trainer.state.fn == TrainerFn.FITTING:  # now, and not when hours are at stake
            self._shard_writer = ShardWriter(self.collective_timeout)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().training_step(*args, **kwargs)
        compat_deepspeed.remove_manager_of_engine(output)
        return output

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

        optimizer = options.get("optimizer")
        self._groups = [list(group["params"]) for group in optimizer.param_groups] if optimizer else []
        if optimizer is not None:
            check_optimizer(optimizer)
        check_parameters(model, self.stage, self._precision_of_engine(config))
        trained = {id(parameter): parameter for group in self._groups for parameter in group if parameter.requires_grad}
        self._trained = frozenset(trained)
        rounded = [one for one in model.parameters() if id(one) not in trained and one.dtype == torch.float32]
        self._original = OriginalModule(model, rounded if self._precision_of_engine(config) != torch.float32 else [])
        self._original.align()
        reasons = self._reasons_for_whole_gradients() if optimizer is not None else []
        if reasons and not self._clips_by_config:
            config = {**config, "gradient_clipping": 0.0}  # as in one process, the hooks clip
        # By default DeepSpeed takes the device's index for the local rank, and a CPU has none.
        arguments = argparse.Namespace(device_rank=self.local_rank)
        with compat_deepspeed.making_engine([one for one in model.parameters() if not hasattr(one, "ds_id")]):
            engine, engine_optimizer, _, _ = deepspeed.initialize(
                args=arguments, config=config, model=model, dist_init_required=False, **options
            )
        if reasons:
            self._keep_gradients_whole(engine, list(trained.values()), reasons)
        if self.stage == 3:
            compat_deepspeed.tolerate_outputs(model, tolerant)
            compat_deepspeed.refuse_second_derivatives(model, refuse_second_derivatives)
        return engine, engine_optimizer

    def _precision_of_engine(self, config: dict[str, Any]) -> torch.dtype:
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            if config.get(name, {}).get("enabled", False):
                return dtype
        return torch.float32

    def _reasons_for_whole_gradients(self) -> list[str]:
        """Return what asks for whole gradients, by name."""
        assert self.lightning_module is not None
        if self.whole_gradients is not None:
            return ["whole_gradients=True"] if self.whole_gradients else []
        reasons = hooks_on_gradients(self.lightning_module.trainer)
        if self.stage == 0:  # whose own exchange knows real numbers only
            named = self.lightning_module.named_parameters()
            reasons += [f"the complex parameter {name}" for name, parameter in named if parameter.is_complex()]
        return reasons

    def _keep_gradients_whole(self, engine: Any, parameters: list[nn.Parameter], reasons: list[str]) -> None:
        precision, module = self.precision_plugin, self.lightning_module
        assert isinstance(precision, EnginePrecision) and module is not None
        named = ", ".join(reasons)
        if self._precision_of_engine(self.config) == torch.float16 or not compat_deepspeed.keep_gradients_whole(engine):
            raise ConfigurationError(
                f"DeepSpeed does not support hooks on gradients ({named}) in stage {self.stage} with this precision: "
                "until the step they are scaled, or accumulated elsewhere in another dtype. Use "
                "precision='bf16-mixed' or '32-true' without a `data_types` section in the config, or the strategy "
                "'ddp'."
            )
        if self.stage > 1:
            rank_zero_info(
                f"itwinai: gradients are kept whole on each worker until the step, which takes as much memory as in "
                f"stage 1, because of {named}. Set whole_gradients=False if these hooks do not read gradients."
            )
        early = any(name.endswith((".on_after_backward", ".optimizer_step")) for name in reasons)
        precision.gradients = UnshardedGradients(
            engine, parameters, self.weigh_loss, manual=not module.automatic_optimization, early=early
        )

    def _check_frozen(self) -> None:
        """Refuse parameters of the optimizer that were frozen, or no longer are, since the engine was created.

        Raises:
            ConfigurationError: there is one.
        """
        assert self.lightning_module is not None
        if self.stage == 0:
            return
        for group in self._groups:
            for parameter in group:
                if parameter.requires_grad == (id(parameter) in self._trained):
                    continue
                names = {id(value): name for name, value in self.lightning_module.named_parameters()}
                raise ConfigurationError(
                    f"DeepSpeed does not support to {'un' * parameter.requires_grad}freeze "
                    f"{names.get(id(parameter), 'a parameter')} while it trains: ZeRO's stages 1 to 3 step all "
                    "parameters that were trainable at the start, and no others. Use the strategy "
                    "'deepspeed_stage_0', 'ddp' or 'horovod'; or train in two fits, with what is frozen set before "
                    "each."
                )

    def teardown(self) -> None:
        """Leave the module with plain, whole parameters, as it came."""
        self.collect_final_state()
        if self._timed is not None:
            self._timed.end()
            self._timed = None
        engine: Any = self.model
        module = self.lightning_module
        if hasattr(engine, "destroy") and module is not None:
            assert self._original is not None
            values = self._values_at_end(self._original, module)
            if isinstance(self.precision_plugin, EnginePrecision) and self.precision_plugin.gradients is not None:
                self.precision_plugin.gradients.end()
                self.precision_plugin.gradients = None
            engine.destroy()
            self._original.restore(values)
            self._original = None
            self.model = module
        super().teardown()
        if self._shard_writer is not None:
            self._shard_writer.close()
            self._shard_writer = None
        self.leave_group_of_one()

    @override
    def leave_group_of_one(self) -> None:
        super().leave_group_of_one()
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None

    # ---------------------------------------------------------------------------------- what callbacks ask

    @override
    def time_communication(self, clock: StepClock) -> None:
        if self._on_cpu():  # on a GPU a call returns when the exchange is told to start
            self._timed = CollectiveTimer(clock)
            clock.covers_gradients = True

    def gradients(self) -> list[Tensor] | None:
        """None: until the step they are shards, or not averaged yet, unless they are kept whole."""
        precision = self.precision_plugin
        if not isinstance(precision, EnginePrecision) or precision.gradients is None:
            return None
        return [one.grad for one in precision.gradients.parameters if one.grad is not None]

    @override
    def full_size(self, parameter: Tensor) -> int:
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def last_gradient_norm(self) -> float | None:
        """Return the norm of all gradients of the last step; stage 0 does not compute it."""
        engine: Any = self.model
        norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def _values_at_end(self, original: OriginalModule, module: nn.Module) -> dict[int, Tensor]:
        """Return the values of the parameters, by id, as far as this worker can have them."""
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.status != TrainerStatus.INTERRUPTED:
            return original.whole_values()
        # After an exception the other workers may be gone, and gathering needs them all.
        plain = [parameter for parameter in module.parameters() if not hasattr(parameter, "ds_id")]
        return {id(parameter): parameter.detach().clone() for parameter in plain}

    # -------------------------------------------------------------------------------------------- checkpoints

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether a checkpoint holds shards that only an engine can take: of DeepSpeed's own, or of stage 3 here."""
        assert self.lightning_module is not None
        path = selected_path(self.lightning_module.trainer)
        return path is not None and (is_engine_checkpoint(path) or self._takes_shards(path))

    def _takes_shards(self, path: str | Path) -> bool:
        """Return whether the workers read their own parts of a checkpoint."""
        assert self.lightning_module is not None
        fitting = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        return fitting and self.zero_stage_3 and is_sharded(path)

    def _shards(self) -> Shards:
        assert self.lightning_module is not None
        return Shards(self.lightning_module, ShardedOptimizer(self.optimizers[0], self._groups))

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the optimizer's state is in the checkpoint, and not loaded by the engine."""
        assert self.lightning_module is not None
        path = selected_path(self.lightning_module.trainer)
        return path is None or not is_engine_checkpoint(path)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's whole weights on rank 0; all workers have to call it."""
        assert self.lightning_module is not None
        if self.sharded_checkpoints:  # the rest is in the folder
            state = self.lightning_module.state_dict(keep_vars=True)
            return {name: value for name, value in state.items() if not isinstance(value, nn.Parameter)}
        return gather_weights(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the whole state of the user's optimizer on rank 0; all workers have to call it."""
        if self.stage == 0:
            state: dict[str, Any] = optimizer.state_dict()
            return state
        sharded_optimizer = ShardedOptimizer(optimizer, self._groups)
        if self.sharded_checkpoints:
            return sharded_optimizer.shared()
        return sharded_optimizer.gather(keep=self.is_global_zero)

    @override
    def parameter_names(self) -> list[list[list[str]]] | None:
        assert self.lightning_module is not None
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        return [[[names.get(id(parameter), "") for parameter in group] for group in self._groups]]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint as all strategies do, on rank 0, where its content was gathered; or a folder of shards."""
        if self.sharded_checkpoints:
            assert self._shard_writer is not None
            shards, path = self._shards(), str(self.broadcast(filepath))
            kinds = shards.optimizer.kinds() if "optimizer_states" in checkpoint else []
            rest = {**checkpoint, SHARDED: shards.parts(kinds)} if self.is_global_zero else {}
            mine = contents(shards.to_write(kinds, self._offloads), rest)
            if isinstance(self.checkpoint_io, PortableCheckpointIO):
                self.checkpoint_io.save_with(self._shard_writer.write, mine, path)
            else:
                self._shard_writer.write(mine, path)
            return
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint that any strategy has written, or the folder of a DeepSpeed engine.

        Of the latter only the weights are read unless this is a fit, of any stage and number of workers: the
        engine could not load those of stage 3 without an optimizer.
        """
        assert self.lightning_module is not None
        if self._takes_shards(checkpoint_path):
            return read_content(Path(checkpoint_path), weights_only is not False)
        if not is_engine_checkpoint(checkpoint_path):
            return Strategy.load_checkpoint(self, checkpoint_path, weights_only)
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            return super().load_checkpoint(checkpoint_path, weights_only)
        return read_engine_checkpoint(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole weights, unless the engine has loaded them."""
        assert self.lightning_module is not None
        if "state_dict" not in checkpoint:
            return
        if SHARDED in checkpoint:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=False)  # what is not sharded
            self._shards().load_weights(Path(str(self.lightning_module.trainer.ckpt_path)))
            return
        if any(hasattr(parameter, "ds_id") for parameter in self.lightning_module.parameters()):
            if accepts_keep_vars(self.lightning_module):
                self.restore_sharded(checkpoint, strict)
                return
            with whole_parameters(
                self.lightning_module, changed=True
            ):  # its state dict is its own, and so is how it is loaded
                self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)
        else:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Deal the whole state of the user's optimizer out to the workers."""
        (optimizer,), (state,) = self.optimizers, checkpoint["optimizer_states"]
        if SHARDED in checkpoint:
            assert self.lightning_module is not None
            shards, kinds = self._shards(), checkpoint[SHARDED]["kinds"]
            shards.optimizer.initialize(state, kinds)
            shards.load_states(Path(str(self.lightning_module.trainer.ckpt_path)), kinds)
            return
        if self.stage == 0:
            optimizer.load_state_dict(state)
        else:
            ShardedOptimizer(optimizer, self._groups).scatter(state)


# The folder inside a checkpoint directory into which Lightning lets DeepSpeed write.
TAG = "checkpoint"


def is_engine_checkpoint(path: str | Path) -> bool:
    """Return whether a checkpoint is the folder of a DeepSpeed engine."""
    return (Path(path) / TAG).is_dir()


def read_engine_checkpoint(folder: Path) -> dict[str, Any]:
    """Read Lightning's content and the whole weights from the folder of a DeepSpeed engine.

    Args:
        folder: which Lightning or DeepSpeed has written, in any stage and with any number of workers.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    sharded = folder / TAG / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    states = sharded if sharded.exists() else folder / TAG / "mp_rank_00_model_states.pt"
    checkpoint: dict[str, Any] = torch.load(states, map_location="cpu", weights_only=False)
    weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), TAG) if sharded.exists() else None
    checkpoint["state_dict"] = checkpoint.pop("module") if weights is None else dict(weights)
    return checkpoint


def _complete(config: dict[str, Any]) -> None:
    """Set what a configuration leaves open and this strategy relies on."""
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    # The caller of step() owns the boundary: DeepSpeed's own counter carries a partial window into the next epoch.
    config.setdefault("managed_gradient_accumulation", False)
    zero = config.get("zero_optimization", {})
    if zero.get("stage", 0) < 2:
        zero["overlap_comm"] = False  # these stages reduce in step(), when nothing is left to overlap with

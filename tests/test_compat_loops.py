"""What `itwinai.compat` and `itwinai.loops` take for granted about lightning's loops and about what it logs.

As in ``test_compat.py``: each test here fails when a release of lightning moves what it is about. `RECORDED` holds the
code that the lean loops restate; a change of it fails a test even where no other test sees what it changes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerState
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from itwinai import ItwinaiTrainer, compat
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.optimization import LeanOptimization
from itwinai.loops.results import LeanLoggerConnector, LeanResults
from itwinai.loops.training import LeanTrainingEpochLoop
from tests.test_compat import LaunchedStrategy, Numbers, RecordingLauncher, Tiny, TinyData, make_trainer, numbers

OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def lean_trainer(**options: Any) -> ItwinaiTrainer:
    """Return a trainer with our loops, whether or not they were compared with those of the lightning that is here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat, "VERIFIED_LOOPS", (lightning.__version__,))
        return ItwinaiTrainer(**OPTIONS | options)


class At(Callback):
    """Calls a function whenever a hook of callbacks runs, and keeps what it returns."""

    def __init__(self, hook: str, look: Callable[..., Any]) -> None:
        self.look = look
        self.found: list[Any] = []
        setattr(self, hook, self.call)

    def call(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.found.append(self.look(trainer, module, *args))


def in_fit(
    hook: str, look: Callable[..., Any], module: LightningModule | None = None, loader: Any = None, **options: Any
) -> list[Any]:
    """Fit, call a function of trainer, module and arguments in every run of a hook, and return what it returned."""
    at = At(hook, look)
    make_trainer(callbacks=at, **options).fit(module or Tiny(), loader or numbers(6))
    assert at.found, f"{hook} never ran"
    return at.found


class Steps(Logger):
    """Remembers which keys were logged at which step, and how often it was told to save."""

    name = "steps"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, set[str]]] = []
        self.saves = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.logged.append((step, set(metrics) - {"epoch"}))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def save(self) -> None:
        self.saves += 1

    def steps_of(self, key: str) -> list[int | None]:
        return [step for step, keys in self.logged if key in keys]


class Workers(SingleDeviceStrategy):
    """Runs in this process, and calls itself one of two workers."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))
        self.world_size = 2


@pytest.fixture
def process_group() -> Iterator[None]:
    """Let torch.distributed have a default group, with this process alone in it."""
    store = dist.TCPStore("localhost", 0, 1, is_master=True, timeout=timedelta(seconds=10))
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def plain(value: Any) -> Any:
    """Return a value with its tensors replaced by numbers, their dtypes and whether they have a graph."""
    if isinstance(value, Tensor):
        return value.tolist(), value.dtype, value.requires_grad
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


# ---------------------------------------------------------------------------------- the code that loops restate

# First digits of the SHA-256 of definitions in lightning, without their docstrings.
RECORDED: dict[str, dict[str, dict[str, str]]] = {
    "2.6.6": {
        "pytorch.trainer.connectors.checkpoint_connector": {
            "_CheckpointConnector.resume_start": "5dd5216f0848",
            "_CheckpointConnector._select_ckpt_path": "a04deb263291",
            "_CheckpointConnector.restore_model": "28b7f2e98d70",
            "_CheckpointConnector.restore_optimizers": "687471a6858c",
            "_CheckpointConnector.restore_loops": "c14dd96d6233",
            "_CheckpointConnector.restore_training_state": "70598800ab26",
            "_CheckpointConnector.dump_checkpoint": "1ce4ea53971c",
        },
        "pytorch.callbacks.model_checkpoint": {
            "ModelCheckpoint.setup": "d1db6e5cabf9",
            "ModelCheckpoint.on_train_start": "1d02b2b6de8f",
            "ModelCheckpoint.on_train_batch_end": "6463af1228b5",
            "ModelCheckpoint.on_train_epoch_end": "775c07e80914",
            "ModelCheckpoint.on_train_end": "56862dd784fc",
            "ModelCheckpoint.state_dict": "a813b691b4f2",
            "ModelCheckpoint.load_state_dict": "95686c90b42f",
            "ModelCheckpoint._save_topk_checkpoint": "44e0246b01dc",
            "ModelCheckpoint._save_checkpoint": "478de606bf6f",
            "ModelCheckpoint._update_best_and_save": "33a09e9a9e0a",
            "ModelCheckpoint._remove_checkpoint": "32127cefaff3",
            "ModelCheckpoint.file_exists": "4d92c2bcfa0c",
        },
        "pytorch.loops.loop": {
            "_Loop.restarting": "994e24bfd65d",
            "_Loop.is_resuming": "d786f967ac6a",
            "_Loop.state_dict": "ab221783267d",
            "_Loop.load_state_dict": "0ebaf7986141",
            "_Loop._load_from_state_dict": "200c32f07fa0",
            "_Loop.on_iteration_done": "a26eb73bc24c",
        },
        "pytorch.loops.fetchers": {
            "_DataFetcher.__next__": "cc02c8894e53",
            "_PrefetchDataFetcher.__next__": "0552b7edd8b7",
        },
        "pytorch.loops.training_epoch_loop": {
            "_TrainingEpochLoop.__init__": "3ca038b3f5cf",
            "_TrainingEpochLoop.total_batch_idx": "b748989da311",
            "_TrainingEpochLoop.batch_idx": "6a4ea6bacdc2",
            "_TrainingEpochLoop.global_step": "331a1aada69f",
            "_TrainingEpochLoop._is_training_done": "9864188b1dc7",
            "_TrainingEpochLoop._is_validation_done": "6383dce69873",
            "_TrainingEpochLoop.done": "f7a0587c303a",
            "_TrainingEpochLoop.run": "e30ceb816306",
            "_TrainingEpochLoop.reset": "a9639eca6e29",
            "_TrainingEpochLoop.on_run_start": "828e1d7a9bd9",
            "_TrainingEpochLoop._on_before_fetch": "bbb3feefeffb",
            "_TrainingEpochLoop._on_after_fetch": "c22a929de996",
            "_TrainingEpochLoop._broadcast_sigterm_tensor": "b10e128cc039",
            "_TrainingEpochLoop.advance": "c9dc6815d84b",
            "_TrainingEpochLoop.on_advance_end": "5b4416a03261",
            "_TrainingEpochLoop.teardown": "ef5782ac72e5",
            "_TrainingEpochLoop._accumulated_batches_reached": "f8de6168585b",
            "_TrainingEpochLoop._num_ready_batches_reached": "8537350449db",
            "_TrainingEpochLoop._should_accumulate": "7f2ecf5dcfb1",
            "_TrainingEpochLoop.update_lr_schedulers": "8f9287868754",
            "_TrainingEpochLoop._update_learning_rates": "d5035c998c3d",
            "_TrainingEpochLoop._should_check_val_epoch": "2e00997b9670",
            "_TrainingEpochLoop._should_check_val_fx": "be6830e892c1",
            "_TrainingEpochLoop._save_loggers_on_train_batch_end": "1ca60b86b326",
            "_TrainingEpochLoop._build_kwargs": "a87f345d7d18",
            "_TrainingEpochLoop._get_monitor_value": "07c3e2090638",
            "_TrainingEpochLoop.update_restart_stage": "bd0b17336cac",
        },
        "pytorch.loops.fit_loop": {
            "_FitLoop.restarting": "4d68d3c9f086",
            "_FitLoop._skip_backward": "d889872e5eeb",
            "_FitLoop._results": "8ff91ba14fa1",
            "_FitLoop.run": "67e16429c6e8",
            "_FitLoop.advance": "66fb57ec34f4",
            "_FitLoop.on_advance_end": "261910f9deb1",
            "_FitLoop._should_accumulate": "bf0e607f72f0",
        },
        "pytorch.loops.evaluation_loop": {
            "_EvaluationLoop.__init__": "b5fade0b3a1f",
            "_EvaluationLoop.num_dataloaders": "845b8a5320d7",
            "_EvaluationLoop._is_sequential": "062c67b41188",
            "_EvaluationLoop.run": "c215a14362be",
            "_EvaluationLoop.reset": "418747f2e1f1",
            "_EvaluationLoop.on_run_start": "140d1350c9b1",
            "_EvaluationLoop.on_run_end": "6709c843ce64",
            "_EvaluationLoop._store_dataloader_outputs": "572d91035d39",
            "_EvaluationLoop._on_before_fetch": "8cc7e10b1249",
            "_EvaluationLoop._on_after_fetch": "eddf3add6283",
            "_EvaluationLoop._evaluation_step": "d6e50ede3ee7",
            "_EvaluationLoop._build_kwargs": "0079d98d3aef",
            "_EvaluationLoop._build_step_args_from_hook_kwargs": "b7ca144eadec",
            "_EvaluationLoop._on_evaluation_end": "ff9dedcd3ae1",
            "_EvaluationLoop.setup_data": "8c88f41853eb",
        },
        "pytorch.loops.optimization.automatic": {
            "ClosureResult.__post_init__": "07bea196b06e",
            "ClosureResult._clone_loss": "3935ad30c468",
            "ClosureResult.from_training_step_output": "9561ec6c386e",
            "ClosureResult.asdict": "298603fcea43",
            "Closure.closure": "692746408eaf",
            "Closure.__call__": "4b86f1eb9431",
            "_AutomaticOptimization.run": "bbf35eaceece",
            "_AutomaticOptimization._make_closure": "efc9a0f83303",
            "_AutomaticOptimization._make_step_fn": "368dc586934d",
            "_AutomaticOptimization._make_zero_grad_fn": "0996762cd8df",
            "_AutomaticOptimization._make_backward_fn": "7a41512ca767",
            "_AutomaticOptimization._optimizer_step": "dbde9c441f46",
            "_AutomaticOptimization._on_before_zero_grad": "f336f9baff4a",
            "_AutomaticOptimization._optimizer_zero_grad": "e4618fe89498",
            "_AutomaticOptimization._training_step": "1290e15c65e4",
        },
        "pytorch.loops.optimization.closure": {
            "AbstractClosure.__init__": "44c4729aec31",
            "AbstractClosure.consume_result": "6c47b8b17026",
            "AbstractClosure.closure": "216ad00b3854",
            "AbstractClosure.__call__": "2bbfa9c3ad30",
        },
        "pytorch.loops.optimization.manual": {
            "_ManualOptimization.run": "0927947c1555",
            "_ManualOptimization.on_run_start": "19dfbb861302",
            "_ManualOptimization.advance": "3ff14b420f7f",
            "_ManualOptimization.on_run_end": "f94835fc0327",
        },
        "pytorch.loops.utilities": {
            "_block_parallel_sync_behavior": "df2a738729c6",
            "_is_max_limit_reached": "59f4113aef4d",
            "_no_grad_context": "6dae0c7c297d",
            "_select_data_fetcher": "fdbd846990e6",
        },
        "pytorch.trainer.call": {
            "_call_callback_hooks": "c0549cbe7000",
            "_call_lightning_module_hook": "5f052a5d2b39",
            "_call_lightning_datamodule_hook": "15275d75069f",
            "_call_strategy_hook": "c84b702bec9f",
        },
        "pytorch.trainer.trainer": {
            "Trainer.received_sigterm": "2bbeded5da66",
            "Trainer._evaluation_loop": "b61b06f8aa94",
            "Trainer._active_loop": "e4e0bc5a174b",
            "Trainer._results": "c7ec3c4f6964",
        },
        "pytorch.trainer.connectors.logger_connector.fx_validator": {
            "_FxValidator.check_logging_and_get_default_levels": "7650d55f63eb",
        },
        "pytorch.trainer.connectors.logger_connector.logger_connector": {
            "_LoggerConnector.__init__": "8da56ea50c29",
            "_LoggerConnector.should_update_logs": "23ad375edf8d",
            "_LoggerConnector.log_metrics": "98f6ee2c0e13",
            "_LoggerConnector.update_eval_step_metrics": "928a5d90edc5",
            "_LoggerConnector.update_train_step_metrics": "a199ceb87ef6",
            "_LoggerConnector.update_train_epoch_metrics": "0bb0998504aa",
            "_LoggerConnector.on_batch_start": "54f490612ab3",
            "_LoggerConnector.epoch_end_reached": "9454197064b1",
            "_LoggerConnector.on_epoch_end": "24968aac0b7b",
            "_LoggerConnector.on_batch_end": "f6183279bb6e",
            "_LoggerConnector.should_reset_tensors": "0cc96f5039cd",
            "_LoggerConnector.reset_results": "f0850f5d44e6",
            "_LoggerConnector.progress_bar_metrics": "e29bd854a78f",
            "_LoggerConnector.metrics": "193190954b69",
            "_LoggerConnector.logged_metrics": "0e938de2e29e",
            "_LoggerConnector.callback_metrics": "5dfd9bfd1c1b",
        },
        "pytorch.trainer.connectors.logger_connector.result": {
            "_Sync.should": "4571260704f8",
            "_Sync._generate_sync_fn": "16641d39e9bd",
            "_Sync.no_op": "0cbcb9920e4c",
            "_Metadata.sync": "0c1cc257c8c2",
            "_Metadata.forked": "797c5158e762",
            "_Metadata.forked_name": "5c1fe3a36db3",
            "_ResultMetric.__init__": "4382564d1841",
            "_ResultMetric.update": "41123590811d",
            "_ResultMetric.compute": "9ac048967d6e",
            "_ResultMetric.reset": "4a4e4bb09623",
            "_ResultMetric.forward": "68acc0aa7610",
            "_ResultMetric._wrap_compute": "9506982e745b",
            "_ResultMetric.to": "aa9715f07efd",
            "_ResultCollection.__init__": "bb85e14a1670",
            "_ResultCollection._extract_batch_size": "f83ccd3c301b",
            "_ResultCollection._forked_name": "dedc34c39f6f",
            "_ResultCollection.log": "356a9fabfa00",
            "_ResultCollection.update_metrics": "64a74ee51f75",
            "_ResultCollection._get_cache": "d5e4849fe94e",
            "_ResultCollection.valid_items": "5995b45f2602",
            "_ResultCollection.metrics": "3ef1a9b453a5",
            "_ResultCollection.reset": "e64c167920ed",
        },
        "pytorch.trainer.connectors.signal_connector": {
            "_SignalConnector.__init__": "5b3eac9bd19b",
            "_SignalConnector.register_signal_handlers": "0131b73c6043",
            "_SignalConnector._sigterm_notifier_fn": "f8ab0ca44a5f",
            "_SignalConnector._slurm_sigusr_handler_fn": "bddbe23fe51a",
            "_SignalConnector.teardown": "e919e503e655",
        },
        "pytorch.core.module": {
            "LightningModule.log": "1116025d78ab",
            "LightningModule.log_dict": "010aa7252723",
            "LightningModule.__to_tensor": "cf95a1a50885",
            "LightningModule._call_batch_hook": "3d8cf158f89f",
            "LightningModule._on_before_batch_transfer": "70c36c246c08",
            "LightningModule._apply_batch_transfer_handler": "6920f8d6e65b",
            "LightningModule.backward": "16cf8e6d813c",
            "LightningModule.optimizer_step": "c08230e3a837",
            "LightningModule.optimizer_zero_grad": "9baf71a75468",
            "LightningModule.configure_gradient_clipping": "d8dcb05939b9",
            "LightningModule.clip_gradients": "75b891846781",
        },
        "pytorch.core.hooks": {
            "DataHooks.on_before_batch_transfer": "0bf87ed57ca9",
            "DataHooks.transfer_batch_to_device": "d702f06a28e9",
            "DataHooks.on_after_batch_transfer": "984b6931fb45",
        },
        "pytorch.core.optimizer": {
            "LightningOptimizer.optimizer": "b9d09a2fd344",
            "LightningOptimizer.step": "39371d292bad",
            "LightningOptimizer._to_lightning_optimizer": "1d68aeaa1686",
        },
        "pytorch.strategies.strategy": {
            "Strategy.optimizers": "2248e2c9d63c",
            "Strategy.training_step": "fe1642fac085",
            "Strategy.validation_step": "41303a951b40",
            "Strategy.test_step": "02ee2f1028a4",
            "Strategy.backward": "58023d18250d",
            "Strategy.optimizer_step": "eb6b6f90acec",
            "Strategy.batch_to_device": "01cfe8d8cbb5",
        },
        "pytorch.strategies.ddp": {
            "DDPStrategy.optimizer_step": "c0d4a0de348b",
            "DDPStrategy.pre_backward": "6c3ef3ae6214",
            "DDPStrategy.post_backward": "850bfd321eae",
        },
        "pytorch.strategies.parallel": {
            "ParallelStrategy.block_backward_sync": "a80f9c6df09e",
        },
        "pytorch.plugins.precision.precision": {
            "Precision.pre_backward": "0275bf41bb28",
            "Precision.backward": "e217bb3563e9",
            "Precision.post_backward": "0e01b5796bee",
            "Precision._after_closure": "41c591bfb332",
            "Precision._wrap_closure": "83d9e0f21a0d",
            "Precision.optimizer_step": "feeb3e252d1b",
            "Precision._clip_gradients": "f39fb4128376",
            "Precision.clip_gradients": "76de5d7e8591",
            "Precision.train_step_context": "af9ecbe7e3f7",
            "Precision.val_step_context": "7ba05fdc2d21",
            "Precision.test_step_context": "dc08e2b513e7",
        },
        "pytorch.plugins.precision.amp": {
            "MixedPrecision.pre_backward": "9c5c948430a7",
            "MixedPrecision.optimizer_step": "b86dc8566eeb",
            "MixedPrecision.clip_gradients": "3c5ee96d3d62",
            "MixedPrecision.forward_context": "66b38e847c3c",
            "MixedPrecision.autocast_context_manager": "4cffdb458087",
        },
        "pytorch.utilities.data": {
            "_extract_batch_size": "387868f7903e",
            "extract_batch_size": "2b12d79aace8",
        },
        "pytorch.utilities.signature_utils": {
            "is_param_in_hook_signature": "428069e15f77",
        },
        "fabric.plugins.precision.precision": {
            "Precision.convert_input": "cc3fc5af1eb6",
            "Precision.forward_context": "0e07027ce4d6",
        },
    }
}

LATEST = list(RECORDED)[-1]

WHAT_TO_DO = (
    "Compare each with what stands for it in itwinai/loops and itwinai/compat.py, mend that, run "
    "`ITWINAI_TESTS_EXAMPLES=2000 pytest tests/loops`, and then add the version to compat.VERIFIED_LOOPS and what is "
    "printed here to RECORDED."
)


@functools.cache
def definitions(module: str) -> dict[str, list[tuple[ast.FunctionDef, str]]]:
    """Return all functions that a module of lightning defines, by their qualified names.

    A property and its setter have the same name. Read from the file: decorators hide what they wrap from `inspect`.
    """
    source = inspect.getsource(importlib.import_module(f"lightning.{module}"))
    lines = source.splitlines()
    found: dict[str, list[tuple[ast.FunctionDef, str]]] = {}

    def collect(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                collect(node, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                kept = lines[first - 1 : node.end_lineno]
                if ast.get_docstring(node, clean=False) is not None:
                    text = node.body[0]
                    assert text.end_lineno is not None
                    del kept[text.lineno - first : text.end_lineno - first + 1]
                found.setdefault(prefix + node.name, []).append((node, "\n".join(kept)))

    collect(ast.parse(source), "")
    return found


def digest(module: str, name: str) -> str | None:
    """Return what is recorded of a definition; None if there is none any more."""
    parts = definitions(module).get(name)
    return parts and hashlib.sha256("\n".join(text for _, text in parts).encode()).hexdigest()[:12]


def test_our_loops_run_with_the_lightning_that_is_here_and_its_code_is_recorded() -> None:
    assert set(RECORDED) == set(compat.VERIFIED_LOOPS)
    assert lightning.__version__ in RECORDED, f"itwinai's loops do not run with this lightning yet. {WHAT_TO_DO}"


@pytest.mark.parametrize("module", RECORDED[LATEST])
def test_code_that_our_loops_restate_is_as_it_was(module: str) -> None:
    recorded = RECORDED.get(lightning.__version__, RECORDED[LATEST])[module]
    changed = {name: now for name, before in recorded.items() if (now := digest(module, name)) != before}
    if changed:
        pytest.fail(
            f"lightning.{module} of lightning {lightning.__version__} has other code than when itwinai's loops "
            f"were compared with it (None: it is gone):\n{changed}\n{WHAT_TO_DO}",
            pytrace=False,
        )


HOOKS = {
    "pytorch.core.hooks:ModelHooks": (
        "on_train_batch_start",
        "on_train_batch_end",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "on_test_batch_start",
        "on_test_batch_end",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
    ),
    "pytorch.strategies.strategy:Strategy": (
        "on_train_batch_start",
        "post_training_step",
        "pre_backward",
        "post_backward",
    ),
}
HOOKS["pytorch.profilers.base:PassThroughProfiler"] = ("start", "stop")
HOOKS["pytorch.callbacks.callback:Callback"] = HOOKS["pytorch.core.hooks:ModelHooks"]


@pytest.mark.parametrize(("owner", "hook"), [(owner, hook) for owner, hooks in HOOKS.items() for hook in hooks])
def test_hook_that_nobody_has_written_does_nothing(owner: str, hook: str) -> None:
    """The lean loops leave it out."""
    module, name = owner.split(":")
    ((node, _),) = definitions(module)[f"{name}.{hook}"]
    assert all(isinstance(part, ast.Pass) or ast.get_docstring(node) and part is node.body[0] for part in node.body)


# Our subclasses, an object of lightning's own class, and which methods and attributes of it ours have as well.
OURS: dict[type, tuple[Callable[[Trainer], Any], set[str], set[str]]] = {
    compat.TrainingEpochLoop: (
        lambda trainer: trainer.fit_loop.epoch_loop,
        {"_broadcast_sigterm_tensor", "_get_monitor_value"},
        set(),
    ),
    compat.EvaluationLoop: (
        lambda trainer: trainer.validate_loop,
        {"_evaluation_step", "_on_evaluation_end", "_store_dataloader_outputs"},
        {"_last_val_dl_reload_epoch"},
    ),
    compat.SignalConnector: (
        lambda trainer: trainer._signal_connector,
        {"_sigterm_notifier_fn", "_slurm_sigusr_handler_fn", "register_signal_handlers", "teardown"},
        {"received_sigterm"},
    ),
    LeanTrainingEpochLoop: (
        lambda trainer: trainer.fit_loop.epoch_loop,
        {"advance", "done", "on_advance_end", "on_run_start", "reset", "run", "teardown", "update_restart_stage"},
        {"val_loop"},
    ),
    LeanEvaluationLoop: (lambda trainer: trainer.validate_loop, {"on_run_start", "run", "setup_data"}, set()),
    LeanOptimization: (lambda trainer: compat.Closure(lambda: compat.ClosureResult(None)), {"closure"}, {"_result"}),
    LeanResults: (lambda trainer: trainer.validate_loop._results, {"log", "metrics", "update_metrics"}, set()),
    LeanLoggerConnector: (
        lambda trainer: trainer._logger_connector,
        {"progress_bar_metrics", "update_train_epoch_metrics"},
        set(),
    ),
}


def names_of(ours: type) -> set[str]:
    """Return what a class defines, and what its methods assign to themselves."""
    tree = ast.parse(inspect.getsource(ours))
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return {name for name in assigned | vars(ours).keys() if not name.startswith(("__", "_abc_"))}


@pytest.mark.parametrize("ours", OURS)
def test_our_classes_have_no_other_names_of_lightning_s_than_those_known_here(ours: type) -> None:
    find, methods, attributes = OURS[ours]
    stock = find(make_trainer())
    assert {name for name in names_of(ours) if hasattr(stock, name)} == methods | attributes


def overridden(ours: type, name: str) -> tuple[str, str]:
    """Return where lightning defines what a class of ours overrides: the module, and the qualified name."""
    base = next(base for base in ours.__mro__ if base.__module__.startswith("lightning.") and name in vars(base))
    return base.__module__.removeprefix("lightning."), f"{base.__qualname__}.{name}"


@pytest.mark.parametrize(
    ("ours", "name"), [(ours, name) for ours, (_, methods, _) in OURS.items() for name in sorted(methods)]
)
def test_our_classes_override_recorded_methods_of_lightning_by_their_signature(ours: type, name: str) -> None:
    module, qualified = overridden(ours, name)
    assert qualified in RECORDED[LATEST][module]
    ((node, _),) = definitions(module)[qualified]
    definition = vars(ours)[name]
    assert isinstance(definition, property) is ("property" in map(ast.unparse, node.decorator_list))
    mine, theirs = (
        inspect.getfullargspec(definition.fget if isinstance(definition, property) else definition),
        node.args,
    )
    arguments = [argument.arg for argument in theirs.args]
    if mine.varargs and mine.varkw:  # what ours doesn't name it passes on
        assert mine.args == arguments[: len(mine.args)]
        return
    assert mine.args == arguments
    assert (mine.varargs, mine.varkw) == (theirs.vararg and theirs.vararg.arg, theirs.kwarg and theirs.kwarg.arg)
    assert (mine.defaults, mine.kwonlyargs, theirs.defaults, theirs.kwonlyargs) == (None, [], [], [])


# ------------------------------------------------------------------------------------------- which loops are run


def types_of_parts(trainer: Trainer) -> list[type]:
    epoch_loop = trainer.fit_loop.epoch_loop
    parts = (epoch_loop, epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop)
    return [type(part) for part in (*parts, trainer._logger_connector, trainer._signal_connector)]


STOCK = [_TrainingEpochLoop, *3 * [_EvaluationLoop], _LoggerConnector, _SignalConnector]
LEAN = [LeanTrainingEpochLoop, *3 * [LeanEvaluationLoop], LeanLoggerConnector, compat.SignalConnector]


@pytest.mark.parametrize("verified", [True, False])
def test_our_loops_run_only_where_they_were_compared_with_lightning_s(
    verified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "VERIFIED_LOOPS", ("1.0.0", lightning.__version__ if verified else "1.0.1"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = ItwinaiTrainer(**OPTIONS)
        torch.manual_seed(1)
        module = Tiny()
        trainer.fit(module, numbers(8), numbers(4))
        trainer.validate(module, numbers(8), verbose=False)
    messages = [str(warning.message) for warning in caught if "itwinai's loops" in str(warning.message)]
    assert types_of_parts(trainer) == (LEAN if verified else STOCK)
    assert len(messages) == (0 if verified else 1)
    assert all("1.0.0, 1.0.1" in message and lightning.__version__ in message for message in messages)
    torch.manual_seed(1)
    stock, expected = make_trainer(), Tiny()
    stock.fit(expected, numbers(8), numbers(4))
    stock.validate(expected, numbers(8), verbose=False)
    assert module.trained == expected.trained
    assert module.layer.weight == expected.layer.weight
    assert metrics_of(trainer) == metrics_of(stock)


class Counting(_TrainingEpochLoop):
    advanced = 0

    def advance(self, data_fetcher: Any) -> None:
        self.advanced += 1
        super().advance(data_fetcher)


def test_training_epochs_are_run_by_the_loop_put_in_place() -> None:
    trainer, module = make_trainer(max_epochs=3, max_steps=5, min_steps=2), Tiny()
    compat.replace_training_epoch_loop(trainer, Counting)
    loop = trainer.fit_loop.epoch_loop
    assert (type(loop), loop.trainer) == (Counting, trainer)
    assert (trainer.max_steps, trainer.min_steps, loop.max_steps, loop.min_steps) == (5, 2, 5, 2)
    trainer.fit(module, numbers(6))
    assert loop.advanced == len(module.trained) == trainer.global_step == 5


class Evaluating(compat.EvaluationLoop):
    """Remembers what it was told to evaluate."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock.trainer, **compat.evaluation_options(stock))
        self.evaluated: list[tuple[Any, int, int, bool]] = []

    def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        self.evaluated.append((batch, batch_idx, dataloader_idx, dataloader_iter is not None))
        super().evaluate_batch(batch, batch_idx, dataloader_idx, dataloader_iter)


@pytest.mark.parametrize("entry_point", ["validate", "test"])
def test_evaluation_is_run_by_the_loop_put_in_place(entry_point: str) -> None:
    trainer = make_trainer()
    compat.replace_evaluation_loops(trainer, Evaluating)
    loop = getattr(trainer, f"{entry_point}_loop")
    returned = getattr(trainer, entry_point)(Tiny(), numbers(5), verbose=False)
    assert [(batch.tolist(), *rest) for batch, *rest in loop.evaluated] == [
        ([0, 1], 0, 0, False),
        ([2, 3], 1, 0, False),
        ([4], 2, 0, False),
    ]
    assert returned == getattr(make_trainer(), entry_point)(Tiny(), numbers(5), verbose=False)
    assert len(returned[0]) == 1


def test_end_of_each_loader_is_told_before_anything_is_made_of_its_values() -> None:
    told: list[Any] = []

    class Ending(Evaluating):
        def end_loader(self) -> None:
            computed = [kept._computed for kept in self._results.values()]
            told.append((len(self.evaluated), self._results.dataloader_idx, computed))

    class Told(Evaluated):
        def on_validation_epoch_end(self) -> None:
            told.append("on_validation_epoch_end")

    trainer = make_trainer()
    compat.replace_evaluation_loops(trainer, Ending)
    trainer.validate(Told(), [numbers(4), numbers(2)], verbose=False)
    (first, second, hook) = told
    assert first == (2, 0, [None])
    assert second[:2] == (3, 1)
    assert second[2][-1] is None  # that of the loader before has been made, and is not in use any more
    assert hook == "on_validation_epoch_end"


class OfIterator(Tiny):
    """As Tiny, with a step that takes the loader's iterator."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:
        batch, _, _ = next(dataloader_iter)
        return self.layer(batch.float().reshape(-1, 1)).square().mean()

    def validation_step(self, dataloader_iter: Iterator[Any]) -> None:
        next(dataloader_iter)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pass  # there is no batch yet


@pytest.mark.parametrize("module_class", [Tiny, OfIterator])
def test_step_that_takes_the_loader_s_iterator_is_known_by_what_the_loops_are_given(module_class: type) -> None:
    fetchers = []

    class Recording(_TrainingEpochLoop):
        def on_run_start(self, data_fetcher: Any) -> None:
            fetchers.append(data_fetcher)
            super().on_run_start(data_fetcher)

    trainer = make_trainer()
    compat.replace_training_epoch_loop(trainer, Recording)
    compat.replace_evaluation_loops(trainer, Evaluating)
    trainer.fit(module_class(), numbers(4))
    trainer.validate(module_class(), numbers(4), verbose=False)
    (fetcher,) = fetchers
    assert isinstance(fetcher, compat.DataFetcher)
    assert isinstance(fetcher, compat.DataLoaderIterFetcher) is (module_class is OfIterator)
    assert {of_iterator for *_, of_iterator in trainer.validate_loop.evaluated} == {module_class is OfIterator}


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize(
    ("name", "function", "stage"),
    [
        ("val_loop", TrainerFn.FITTING, RunningStage.VALIDATING),
        ("validate_loop", TrainerFn.VALIDATING, RunningStage.VALIDATING),
        ("test_loop", TrainerFn.TESTING, RunningStage.TESTING),
    ],
)
def test_evaluation_loop_is_made_again_with_the_same_arguments(
    name: str, function: TrainerFn, stage: RunningStage, inference_mode: bool
) -> None:
    trainer = make_trainer(inference_mode=inference_mode)
    stock = trainer.fit_loop.epoch_loop.val_loop if name == "val_loop" else getattr(trainer, name)
    assert isinstance(stock, compat.StockEvaluationLoop)
    options = compat.evaluation_options(stock)
    assert options.keys() == inspect.signature(compat.StockEvaluationLoop).parameters.keys() - {"trainer"}
    assert options == {
        "trainer_fn": function,
        "stage": stage,
        "verbose": name != "val_loop",
        "inference_mode": inference_mode and name != "val_loop",
    }
    assert compat.evaluation_options(compat.EvaluationLoop(trainer, **options)) == options


def saved_loops(trainer: Trainer, module: LightningModule, path: Path) -> dict[str, Any]:
    trainer.fit(module, numbers(8), numbers(4))
    trainer.validate(module, numbers(4), verbose=False)
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=False)["loops"]


def names_in(state: Any) -> Any:
    """Return the keys of nested dictionaries, in their order."""
    return [(key, names_in(value)) for key, value in state.items()] if isinstance(state, dict) else None


def test_checkpoints_of_our_loops_have_the_keys_and_values_of_lightning_s(tmp_path: Path) -> None:
    replaced = make_trainer(max_epochs=2, val_check_interval=2)
    compat.replace_training_epoch_loop(replaced, Counting)
    compat.replace_evaluation_loops(replaced, Evaluating)
    stock = saved_loops(make_trainer(max_epochs=2, val_check_interval=2), Tiny(), tmp_path / "stock.ckpt")
    for trainer in (replaced, lean_trainer(max_epochs=2, val_check_interval=2)):
        loops = saved_loops(trainer, Tiny(), tmp_path / "ours.ckpt")
        assert loops == stock
        assert names_in(loops) == names_in(stock)


def test_signal_connector_is_known_once_it_was_replaced() -> None:
    trainer = make_trainer()
    with pytest.raises(AssertionError):
        compat.signal_connector(trainer)
    compat.replace_signal_connector(trainer)
    assert compat.signal_connector(trainer) is trainer._signal_connector


# ---------------------------------------------------------------------------------------- the training epoch loop


def test_lightning_asks_whether_to_stop_before_each_batch_of_several_workers(process_group: None) -> None:
    asked = []

    class Stopping(compat.TrainingEpochLoop):
        def stop_if_agreed(self) -> None:
            asked.append(self.batch_progress.total.ready)
            if len(asked) == 3:
                raise SIGTERMException

    trainer, module = make_trainer(strategy=Workers()), Tiny()
    compat.replace_training_epoch_loop(trainer, Stopping)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, numbers(8))
    assert asked == [0, 1, 2]
    assert [batch for *_, batch in module.trained] == [[0, 1], [2, 3]]


def test_lightning_does_not_ask_a_single_worker_whether_to_stop(process_group: None) -> None:
    trainer = make_trainer()
    compat.replace_training_epoch_loop(trainer, compat.TrainingEpochLoop)
    with pytest.raises(NotImplementedError):
        trainer.fit_loop.epoch_loop.stop_if_agreed()
    trainer.fit(Tiny(), numbers(4))
    assert trainer.global_step == 2


class Noting(_TrainingEpochLoop):
    """Notes after each batch, before lightning decides on validation, what compat says of it."""

    def __init__(self, trainer: Trainer, **limits: Any) -> None:
        super().__init__(trainer, **limits)
        self.noted: list[tuple[int, bool, bool, bool, bool]] = []

    def on_advance_end(self, data_fetcher: Any) -> None:
        before = self.val_loop.batch_progress.total.ready
        skips, validates = compat.skips_next_validation(self), compat.validates_now(self, data_fetcher)
        done = compat.is_training_done(self)
        super().on_advance_end(data_fetcher)
        validated = self.val_loop.batch_progress.total.ready > before
        self.noted.append((self.batch_idx, skips, validates, validated, done))


def stop_at_1(trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
    trainer.should_stop = batch_idx == 1


def noting_trainer(**options: Any) -> Trainer:
    trainer = make_trainer(num_sanity_val_steps=0, **options)
    compat.replace_training_epoch_loop(trainer, Noting)
    return trainer


@pytest.mark.parametrize(
    ("options", "validated", "done"),
    [
        ({}, [False, False, False, True], [False, False, False, True]),
        ({"val_check_interval": 2}, [False, True, False, True], [False, False, False, True]),
        ({"max_steps": 3, "val_check_interval": 3}, [False, False, True], [False, False, True]),
        ({"limit_val_batches": 0, "limit_train_batches": 2}, [False, False], [False, True]),
        ({"callbacks": At("on_train_batch_end", stop_at_1)}, [False, True], [False, False]),
    ],
)
def test_validation_and_end_are_due_when_lightning_does_them(
    options: dict[str, Any], validated: list[bool], done: list[bool]
) -> None:
    trainer = noting_trainer(**options)
    trainer.fit(Tiny(), numbers(8), numbers(2))
    assert trainer.fit_loop.epoch_loop.noted == [
        (index, False, *2 * [one], other) for index, (one, other) in enumerate(zip(validated, done, strict=True))
    ]


def test_validation_is_skipped_once_by_a_run_that_was_saved_after_it(tmp_path: Path) -> None:
    path = tmp_path / "validated.ckpt"
    saving = At("on_validation_end", lambda trainer, module: path.exists() or trainer.save_checkpoint(path))
    make_trainer(callbacks=saving, val_check_interval=2, num_sanity_val_steps=0).fit(Tiny(), numbers(8), numbers(2))
    trainer, module = noting_trainer(val_check_interval=2), Tiny()
    trainer.fit(module, numbers(8), numbers(2), ckpt_path=path)
    assert [index for _, index, *_ in module.trained] == [2, 3]
    assert trainer.fit_loop.epoch_loop.noted == [
        (1, True, True, False, False),  # due only in order to be skipped
        (2, False, False, False, False),
        (3, False, True, True, True),
    ]


def test_validation_that_is_to_be_skipped_is_due_even_where_none_would_be() -> None:
    """Lightning forgets only then that it is to be skipped."""

    def skip(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            trainer.fit_loop.epoch_loop._skip_next_val = True

    trainer = noting_trainer(callbacks=At("on_train_batch_start", skip))
    trainer.fit(Tiny(), numbers(6), numbers(2))
    noted = trainer.fit_loop.epoch_loop.noted
    assert [tuple(values[1:4]) for values in noted] == [(True, True, False), (False, False, False), (False, True, True)]


def test_loggers_number_their_steps_by_the_batches_after_which_the_optimizer_stepped() -> None:
    def steps(look: Callable[..., Any], **options: Any) -> tuple[list[int | None], list[Any]]:
        logger, at = Steps(), At("on_train_batch_end", look)
        make_trainer(callbacks=at, logger=logger, **options).fit(Tiny(), numbers(8))
        return logger.steps_of("loss_step"), at.found

    def count(trainer: Trainer, *args: Any) -> int:
        counted = compat.stepped_batches(trainer.fit_loop.epoch_loop)
        if counted == 1:
            compat.count_stepped_batch(trainer.fit_loop.epoch_loop)
        return counted

    stock, counted = steps(lambda trainer, *args: compat.stepped_batches(trainer.fit_loop.epoch_loop))
    assert stock == counted == [0, 1, 2, 3]
    ours, counted = steps(count)
    assert counted == [0, 1, 3, 4]
    assert ours == [0, 2, 3, 4]  # one more has been counted before the second was logged
    _, counted = steps(count, accumulate_grad_batches=2)
    assert counted == [0, 0, 1, 2]


def test_loggers_are_flushed_when_the_run_is_about_to_stop() -> None:
    logger = Steps()

    def flush(trainer: Trainer, module: LightningModule, *args: Any) -> list[int]:
        before, saves = logger.saves, []
        for trainer.should_stop in (False, True):
            compat.flush_loggers(trainer.fit_loop.epoch_loop)
            saves.append(logger.saves - before)
        return saves

    assert in_fit("on_train_batch_start", flush, logger=logger) == [[0, 1]]


def none_at(*indices: int) -> DataLoader:
    """Return a loader that yields None instead of some batches."""
    return DataLoader(
        Numbers(4), batch_size=1, collate_fn=lambda samples: None if samples[0] in indices else torch.tensor(samples)
    )


def test_none_instead_of_a_batch_is_warned_of_once() -> None:
    def look(trainer: Trainer, *args: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                compat.warn_of_none_batch(trainer.fit_loop.epoch_loop)
        return [str(warning.message) for warning in caught]

    module = Tiny()
    (first, *others) = in_fit("on_train_batch_end", look, module, none_at(1, 2), max_epochs=2)
    assert len(first) == 1
    assert "train_dataloader yielded None" in first[0]
    assert others == 7 * [[]]  # lightning calls the hook at the end of such a batch, too
    assert [index for _, index, *_ in module.trained] == 2 * [0, 3]


# ----------------------------------------------------------------------------------------------------- the batch


class Journaling(Precision):
    """Notes that a batch is converted."""

    def __init__(self, journal: list[Any]) -> None:
        self.journal = journal

    def convert_input(self, data: Any) -> Any:
        self.journal.append("convert_input")
        return [data]


def transferring(journal: list[Any], base: type, **methods: Any) -> Any:
    """Return an object whose three hooks note that they are called, and wrap the batch into another list."""

    def noting(name: str) -> Callable[..., Any]:
        def hook(self: Any, batch: Any, *args: Any) -> Any:
            journal.append((name, *args))
            return [batch]

        return hook

    names = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    return type("Transferring", (base,), {**{name: noting(name) for name in names}, **methods})()


def unwrapped(batch: Any) -> Any:
    while isinstance(batch, list):
        (batch,) = batch
    return batch


@pytest.mark.parametrize("owner", ["module", "datamodule"])
def test_batch_goes_through_all_hooks_in_the_order_of_lightning(owner: str) -> None:
    journal: list[Any] = []
    runs: list[Any] = []
    loaders = [numbers(2), numbers(2)]

    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        stock = [*journal], batch
        journal.clear()
        batch = compat.transfer_batch(self.trainer, unwrapped(batch), dataloader_idx)
        runs.append((stock, ([*journal], batch)))
        journal.clear()

    if owner == "module":
        module = transferring(journal, Tiny, validation_step=validation_step)
        data = {"dataloaders": loaders}
    else:
        module = type("Stepping", (Tiny,), {"validation_step": validation_step})()
        data = {"datamodule": transferring(journal, TinyData, val_dataloader=lambda self: loaders)}
    make_trainer(plugins=Journaling(journal)).validate(module, verbose=False, **data)
    device = torch.device("cpu")
    expected = [
        (
            [
                "convert_input",
                ("on_before_batch_transfer", index),
                ("transfer_batch_to_device", device, index),
                ("on_after_batch_transfer", index),
            ],
            "[[[[tensor([0, 1])]]]]",
        )
        for index in (0, 1)
    ]
    assert [[(calls, str(batch)) for calls, batch in both] for both in runs] == [2 * [one] for one in expected]


def test_datamodule_is_that_of_the_run() -> None:
    trainer, data = make_trainer(), TinyData()
    assert compat.datamodule(trainer) is None
    trainer.fit(Tiny(), numbers(4))
    assert compat.datamodule(trainer) is None
    trainer.fit(Tiny(), datamodule=data)
    assert compat.datamodule(trainer) is trainer.datamodule is data


class Stepped(Tiny):
    """Remembers what its step was given beside the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Any, ...]] = []

    def learn(self, batch: Tensor, *given: Any) -> Tensor:
        self.given.append(given)
        return super().training_step(batch, 0)


def decorated(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def wrapped(*args: Any) -> Any:
        return step(*args)

    return wrapped


@pytest.mark.parametrize("wrap", [lambda step: step, decorated], ids=["bare", "decorated"])
@pytest.mark.parametrize(
    ("step", "takes"),
    [
        (lambda self, batch: self.learn(batch), False),
        (lambda self, batch, batch_idx: self.learn(batch, batch_idx), True),
        (lambda self, batch, number: self.learn(batch, number), True),
        (lambda self, batch, number=7: self.learn(batch, number), True),
        (lambda self, batch, *rest: self.learn(batch, *rest), True),
        (lambda self, batch, *, number=7: self.learn(batch, number), False),
        (lambda self, batch, **rest: self.learn(batch, *rest.values()), False),
    ],
    ids=["batch", "batch_idx", "another name", "default", "any arguments", "keyword", "any keywords"],
)
def test_step_takes_the_index_of_the_batch_under_any_name(
    step: Callable[..., Any], takes: bool, wrap: Callable[..., Any]
) -> None:
    module = type("Stepping", (Stepped,), {"training_step": wrap(step)})()
    make_trainer().fit(module, numbers(6))
    assert (module.given == [(0,), (1,), (2,)]) is takes
    assert compat.takes_batch_idx(module.training_step) is takes


# ------------------------------------------------------------------------------------------------- hooks and self.log

NAMED_HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_before_batch_transfer",
    "on_train_batch_start",
    "training_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "optimizer_step",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "validation_step",
    "on_validation_batch_end",
    "on_train_epoch_end",
)


def naming(hook: str) -> Callable[..., Any]:
    default = getattr(Tiny, hook)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = vars(self)[compat.HOOK_NAME]
        returned = default(self, *args, **kwargs)
        self.named.append((hook, before, vars(self)[compat.HOOK_NAME]))
        return returned

    return functools.wraps(default)(method)


class Scheduled(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}]


@pytest.mark.parametrize("make", [make_trainer, lean_trainer], ids=["lightning", "itwinai"])
def test_each_hook_finds_its_name_on_the_module(make: Callable[[], Trainer]) -> None:
    methods = {hook: naming(hook) for hook in NAMED_HOOKS}
    module: Any = type("Naming", (Scheduled,), {**methods, "named": []})()
    assert vars(module)[compat.HOOK_NAME] is None
    make().fit(module, numbers(4), numbers(2))
    assert {hook for hook, *_ in module.named} == set(NAMED_HOOKS)
    assert [(before, after) for _, before, after in module.named] == [2 * (hook,) for hook, *_ in module.named]
    assert vars(module)[compat.HOOK_NAME] is None


def test_log_reads_the_name_of_the_hook() -> None:
    def log(trainer: Trainer, module: Any, *args: Any) -> list[str]:
        name = vars(module)[compat.HOOK_NAME]
        vars(module)[compat.HOOK_NAME] = None
        with pytest.raises(MisconfigurationException, match="not managed"):
            module.log("value", 1.0)
        vars(module)[compat.HOOK_NAME] = "on_after_backward"
        module.log("value", 1.0)
        vars(module)[compat.HOOK_NAME] = name
        return [key for key in trainer.fit_loop.epoch_loop._results if "value" in key]

    assert in_fit("on_train_batch_start", log) == 3 * [["on_after_backward.value"]]


# ------------------------------------------------------------------------------------------------------- optimization


def test_progress_of_the_optimizer_is_what_counts_global_steps() -> None:
    def step_more(trainer: Trainer, *args: Any) -> int:
        counters = compat.optimizer_progress(trainer).step
        if args[-1] == 4:  # the last batch
            counters.increment_ready()
            counters.increment_completed()
        return trainer.global_step

    trainer = make_trainer(accumulate_grad_batches=2)
    trainer.fit(Tiny(), numbers(10))
    progress = compat.optimizer_progress(trainer)
    assert vars(progress.step.total) == {"ready": 3, "completed": 3}
    assert vars(progress.zero_grad.total) == {"ready": 3, "started": 3, "completed": 3}
    assert trainer.global_step == 3
    steps = in_fit("on_train_batch_end", step_more, loader=numbers(10), accumulate_grad_batches=2)
    assert steps == [0, 1, 1, 2, 4]


def test_lightning_s_optimizer_is_around_that_of_the_module_until_another_is_set() -> None:
    def look(trainer: Trainer, module: LightningModule, *args: Any) -> bool:
        wrapper = compat.lightning_optimizer(trainer.strategy)
        same = module.optimizers() is wrapper
        assert wrapper.optimizer is trainer.optimizers[0]
        trainer.optimizers = [torch.optim.Adam(module.parameters())]
        assert compat.lightning_optimizer(trainer.strategy) is not wrapper
        assert compat.lightning_optimizer(trainer.strategy).optimizer is trainer.optimizers[0]
        return same

    assert in_fit("on_train_batch_end", look) == 3 * [True]


class OwnStep(SingleDeviceStrategy):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().optimizer_step(*args, **kwargs)


class OwnDDPStep(DDPStrategy):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().optimizer_step(*args, **kwargs)


@pytest.mark.parametrize(
    ("strategy_class", "plain"),
    [(SingleDeviceStrategy, True), (DDPStrategy, True), (OwnStep, False), (OwnDDPStep, False)],
)
def test_strategies_with_a_step_of_their_own_are_found(strategy_class: type[Strategy], plain: bool) -> None:
    assert compat.only_steps_optimizer(strategy_class()) is plain


@pytest.fixture
def ddp(process_group: None, monkeypatch: pytest.MonkeyPatch) -> type[DDPStrategy]:
    """Let lightning's DDP run in this process, as if a launcher had started it."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # or lightning sets it, for all that follows
    return DDPStrategy


@pytest.mark.parametrize("averages", [False, True])
def test_ddp_that_averages_models_does_more_in_a_step_than_to_step(averages: bool, ddp: type[DDPStrategy]) -> None:
    options: dict[str, Any] = {}
    if averages:
        state = PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=1)
        options = {"ddp_comm_state": state, "model_averaging_period": 1}

    def look(trainer: Trainer, *args: Any) -> bool:
        return compat.only_steps_optimizer(trainer.strategy)

    assert in_fit("on_train_batch_end", look, strategy=ddp(**options)) == 3 * [not averages]


def test_gradients_are_not_exchanged_in_a_context(ddp: type[DDPStrategy]) -> None:
    seen = []

    class Seeing(Tiny):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            seen.append(self.trainer.strategy.model.require_backward_grad_sync)
            return super().training_step(batch, batch_idx)

    def look(trainer: Trainer, *args: Any) -> tuple[bool, bool]:
        with compat.without_gradient_sync(trainer.strategy):
            within = trainer.strategy.model.require_backward_grad_sync
        return within, trainer.strategy.model.require_backward_grad_sync

    assert in_fit("on_train_batch_end", look, Seeing(), strategy=ddp(), accumulate_grad_batches=2) == 3 * [
        (False, True)
    ]
    assert seen == [False, True, True]  # lightning's own, while it accumulates; it steps after the last batch


def test_context_without_exchange_of_gradients_is_nothing_for_a_strategy_without_workers() -> None:
    entered = False
    with compat.without_gradient_sync(SingleDeviceStrategy()):
        entered = True
    assert entered


class Stepping(Tiny):
    """Notes the calls of hooks around backward and the optimizer's step, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def note(self, *call: Any) -> None:
        self.calls.append((*call, vars(self)[compat.HOOK_NAME]))

    def on_before_backward(self, loss: Tensor) -> None:
        self.note("on_before_backward", loss.requires_grad)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.note("backward", args, kwargs)
        super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        self.note("on_after_backward")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.note("optimizer_step", epoch, batch_idx, optimizer, callable(optimizer_closure))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.note("on_before_optimizer_step", optimizer)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.note("configure_gradient_clipping", optimizer, args, kwargs)
        super().configure_gradient_clipping(optimizer, *args, **kwargs)

    def taken(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


class Backward(SingleDeviceStrategy):
    """Notes the strategy's own hooks around backward."""

    def pre_backward(self, closure_loss: Tensor) -> None:
        self.lightning_module.note("pre_backward", closure_loss.requires_grad)

    def post_backward(self, closure_loss: Tensor) -> None:
        self.lightning_module.note("post_backward", closure_loss.requires_grad)


BACKWARD = ["pre_backward", "on_before_backward", "backward", "on_after_backward", "post_backward"]
STEP = ["on_before_optimizer_step", "configure_gradient_clipping"]


def test_backward_goes_through_the_hooks_that_lightning_s_own_goes_through() -> None:
    def look(trainer: Trainer, module: Any, *args: Any) -> Any:
        stock = [call for call in module.taken() if call[0] in BACKWARD]
        trainer.optimizers[0].zero_grad()
        compat.call_backward(trainer, module.layer(torch.ones(1, 1)).sum(), trainer.optimizers[0])
        return stock, module.taken(), module.layer.bias.grad.item()

    found = in_fit("on_train_batch_end", look, Stepping(), strategy=Backward())
    for stock, ours, gradient in found:
        assert [name for name, *_ in stock] == BACKWARD
        # In lightning's own step, backward is nested in it, with the same name of the hook.
        assert ours == stock
        assert gradient == 1.0


def test_step_goes_through_the_hooks_that_lightning_s_own_goes_through() -> None:
    def look(trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> Any:
        stock = [call for call in module.taken() if call[0] not in BACKWARD]
        weight = module.layer.weight.item()

        def closure() -> Tensor:
            module.note("closure")
            module.layer.weight.grad = torch.full((1, 1), 2.0)
            return torch.zeros(())

        module.layer.bias.grad = None
        optimizer = compat.lightning_optimizer(trainer.strategy)
        compat.call_optimizer_step(trainer, batch_idx, optimizer, closure)
        return stock, module.taken(), module.layer.weight.item() - weight

    for stock, ours, change in in_fit("on_train_batch_end", look, Stepping()):
        assert [name for name, *_ in stock] == ["optimizer_step", *STEP]
        assert [name for name, *_ in ours] == ["optimizer_step", "closure", *STEP]
        assert [call for call in ours if call[0] != "closure"] == stock
        assert ("closure", "optimizer_step") in ours
        assert change == pytest.approx(-0.02)


@pytest.mark.parametrize(
    ("algorithm", "value", "clipped"),
    [("norm", 0.5, [0.3, 0.4]), ("value", 0.5, [0.5, 0.5]), (None, None, [3.0, 4.0]), (None, 5.0, [3.0, 4.0])],
)
def test_gradients_are_clipped_as_the_trainer_is_told_to(
    algorithm: str | None, value: float | None, clipped: list[float]
) -> None:
    def look(trainer: Trainer, module: Any, *args: Any) -> Any:
        (stock,) = [call for call in module.taken() if call[0] == "configure_gradient_clipping"]
        module.layer.weight.grad, module.layer.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
        optimizer = trainer.optimizers[0]
        compat.clip_gradients(trainer, optimizer)
        (ours,) = module.taken()
        return stock[:-1], ours[:-1], [module.layer.weight.grad.item(), module.layer.bias.grad.item()]

    options = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    for stock, ours, gradients in in_fit("on_train_batch_end", look, Stepping(), **options):
        assert ours == stock
        assert gradients == pytest.approx(clipped)


def test_backward_is_skipped_in_the_epoch_that_renews_batchnorm() -> None:
    class Normalised(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
            self.backwards: list[int] = []

        def on_after_backward(self) -> None:
            self.backwards.append(self.current_epoch)

    module = Normalised()
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    at = At("on_train_batch_start", lambda trainer, *args: (trainer.current_epoch, compat.skips_backward(trainer)))
    make_trainer(callbacks=[averaging, at], max_epochs=2).fit(module, numbers(4))
    assert at.found == [*2 * [(0, False)], *2 * [(1, False)], *2 * [(2, True)]]
    assert module.backwards == [0, 0, 1, 1]


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "loss": lambda loss: loss,
    "dictionary": lambda loss: {"extra": 3, "loss": loss, "logits": loss.detach() * 2},
    "none": lambda loss: None,
}


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("output", OUTPUTS)
def test_output_of_a_step_is_passed_on_as_by_lightning(output: str, window: int) -> None:
    class Returning(Tiny):
        returned: Any

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.returned = OUTPUTS[output](super().training_step(batch, batch_idx))
            return self.returned

    def look(trainer: Trainer, module: Any, outputs: Any, *args: Any) -> tuple[Any, Any]:
        result = compat.closure_result(module.returned, window)
        return plain(outputs), plain({} if result.loss is None else result.asdict())

    found = in_fit("on_train_batch_end", look, Returning(), accumulate_grad_batches=window)
    assert len(found) == 3
    for stock, ours in found:
        assert ours == stock
        assert list(ours) == list(stock)
    assert ("loss" in found[0][0]) is (output != "none")


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("output", ["loss", "dictionary"])
def test_gradients_of_a_step_are_those_of_lightning_s_own_result(output: str, window: int) -> None:
    def gradient(make: Callable[..., Any]) -> tuple[Any, ...]:
        weight = torch.tensor([0.1, 0.7], requires_grad=True)
        result = make(OUTPUTS[output](weight.square().sum()), window)
        loss = plain(result.loss)
        result.closure_loss.backward()
        with torch.no_grad():
            result.closure_loss.mul_(2)  # as a gradient scaler might
        assert plain(result.loss) == loss
        return loss, plain(weight.grad)

    assert gradient(compat.closure_result) == gradient(compat.ClosureResult.from_training_step_output)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("output", ["text", {"logits": 1}])
def test_output_that_lightning_refuses_is_refused(output: Any, window: int) -> None:
    with pytest.raises(MisconfigurationException, match="training_step"):
        compat.closure_result(output, window)


class Skipping(Tiny):
    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        return None


def test_skipped_step_of_one_worker_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = type(compat.Closure.warning_cache)()
    monkeypatch.setattr(compat.Closure, "warning_cache", cache)  # whoever came before has filled it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_fit("on_train_batch_end", lambda trainer, *args: compat.check_skipped_step(trainer), Skipping())
    messages = [str(warning.message) for warning in caught if "returned `None`" in str(warning.message)]
    assert len(messages) == len(set(messages)) == 2  # lightning's and ours


def test_skipped_step_of_one_of_several_workers_is_an_error_as_in_lightning() -> None:
    trainer = make_trainer(strategy=Workers())
    with pytest.raises(RuntimeError, match="returning None in distributed training"):
        trainer.fit(Skipping(), numbers(4))
    with pytest.raises(RuntimeError, match="returned None. With several workers"):
        compat.check_skipped_step(trainer)


def test_manual_optimization_is_run_by_lightning() -> None:
    class Manual(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.given: list[tuple[Any, int]] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.given.append((batch.tolist(), batch_idx))
            loss = super().training_step(batch, batch_idx)
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss

    def look(trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> Any:
        weight = module.layer.weight.item()
        again = compat.optimize_manually(trainer.fit_loop.epoch_loop, batch, batch_idx + 10)
        assert module.layer.weight.item() != weight
        return list(outputs), list(again), again["loss"].requires_grad, trainer.global_step

    module = Manual()
    found = in_fit("on_train_batch_end", look, module, numbers(4))
    assert found == [(["loss"], ["loss"], False, 2), (["loss"], ["loss"], False, 4)]
    assert module.given == [([0, 1], 0), ([0, 1], 10), ([2, 3], 1), ([2, 3], 11)]


# ---------------------------------------------------------------------------------------------------- evaluation


class Evaluated(Tiny):
    """Logs in each step of validation; remembers which arguments the hook got beside the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[tuple[int, ...]] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("value", float(batch_idx), on_step=True, on_epoch=True)

    def on_validation_batch_start(self, batch: Any, *indices: int) -> None:
        self.hooks.append(indices)


@pytest.mark.parametrize(
    ("loaders", "several"),
    [
        (lambda: numbers(4), False),
        (lambda: [numbers(4)], False),
        (lambda: [numbers(4), numbers(2)], True),
        (lambda: {"a": numbers(4), "b": numbers(2)}, True),
        (lambda: CombinedLoader([numbers(4), numbers(4)], "min_size"), False),
        (lambda: CombinedLoader([numbers(4), numbers(4)], "sequential"), True),
    ],
)
def test_hooks_get_the_number_of_the_loader_where_there_are_several_in_turn(
    loaders: Callable[[], Any], several: bool
) -> None:
    module = Evaluated()
    at = At("on_validation_start", lambda trainer, *args: compat.evaluates_several_loaders(trainer.validate_loop))
    make_trainer(callbacks=at).validate(module, loaders(), verbose=False)
    assert at.found == [several]
    assert {len(indices) for indices in module.hooks} == {2 if several else 1}


@pytest.mark.parametrize("loaders", [1, 2])
def test_batches_of_each_loader_are_counted_for_the_loggers(loaders: int) -> None:
    class Counted(Evaluating):
        """Counts each batch as seen, instead of evaluating it."""

        def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
            trainer = self.trainer
            before = compat.count_evaluated_batch(self, dataloader_idx)
            self.evaluated.append((dataloader_idx, before, 0, False))
            trainer._logger_connector.on_batch_start(batch, dataloader_idx if loaders > 1 else None)
            trainer._logger_connector.on_batch_end()

    data = [numbers(6), numbers(4)][:loaders]
    logger = Steps()
    stock = make_trainer(logger=logger)
    stock.validate(Evaluated(), data, verbose=False)
    ours = make_trainer()
    compat.replace_evaluation_loops(ours, Counted)
    ours.validate(Evaluated(), data, verbose=False)
    counted = [(index, step) for index, step, *_ in ours.validate_loop.evaluated]
    assert counted == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)][: 3 if loaders == 1 else 5]
    for index in range(loaders):
        key = f"value_step/dataloader_idx_{index}" if loaders > 1 else "value_step"
        assert logger.steps_of(key) == [step for loader, step in counted if loader == index]
    assert ours.validate_loop._seen_batches_per_dataloader == stock.validate_loop._seen_batches_per_dataloader
    assert ours.validate_loop._has_run is stock.validate_loop._has_run is True


# ------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """Let SIGTERM do no harm outside lightning's handler, and return where the signals that got through are noted."""
    signals: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    previous = signal.signal(signal.SIGTERM, note)
    yield signals
    assert signal.signal(signal.SIGTERM, previous) is note  # lightning has put it back


class Terminated(Tiny):
    """Gets SIGTERM in its second batch, twice."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def test_sigterm_ends_the_run_of_a_single_process_at_the_next_batch(terminated: list[int]) -> None:
    trainer, module = make_trainer(), Terminated()
    compat.replace_signal_connector(trainer)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, numbers(8))
    assert [index for _, index, *_ in module.trained] == [0, 1]
    assert trainer.received_sigterm
    assert terminated == 2 * [signal.SIGTERM]


def test_sigterm_is_left_to_others_where_somebody_listens(terminated: list[int], process_group: None) -> None:
    asked: list[bool] = []

    class Agreeing(compat.TrainingEpochLoop):
        def stop_if_agreed(self) -> None:
            # As when the workers have agreed on a later batch than that in which the signal came.
            compat.signal_connector(self.trainer).received_sigterm = self.batch_idx == 2

    trainer, module = make_trainer(strategy=Workers()), Terminated()
    compat.replace_training_epoch_loop(trainer, Agreeing)
    compat.replace_signal_connector(trainer)
    compat.signal_connector(trainer).on_sigterm = lambda: asked.append(trainer.received_sigterm)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, numbers(10))
    assert [index for _, index, *_ in module.trained] == [0, 1, 2, 3]
    assert asked == [False, False]
    assert terminated == 2 * [signal.SIGTERM]


class Running(RecordingLauncher):
    """Runs the function in this process; remembers the signals it was told to send on."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        self.killed.append(signum)


def test_sigterm_is_sent_on_to_what_the_launcher_has_started(terminated: list[int]) -> None:
    launcher = Running()
    trainer = make_trainer(strategy=LaunchedStrategy(launcher))
    compat.replace_signal_connector(trainer)
    with pytest.raises(SIGTERMException):
        trainer.fit(Terminated(), numbers(8))
    assert launcher.killed == [signal.SIGTERM]


def test_store_is_another_object_on_the_same_data(process_group: None) -> None:
    def innermost(store: Any) -> Any:
        while isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        return store

    default = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    store = compat.default_store()
    # A connection of its own: a thread that waits at one of them must not hold up the other.
    assert isinstance(innermost(store), dist.TCPStore)
    assert innermost(store) is not innermost(default)
    store.set("ours", "1")
    default.set("theirs", "2")
    assert default.check(["ours"]) and store.check(["theirs"])


# ------------------------------------------------------------------------------------------------- logged values


class Adding(compat.ResultCollection):
    """Keeps values by compat, as `LeanResults` does."""

    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        compat.add_to_result(self[key], value, batch_size)


class Syncing:
    """Stands for the other workers: notes what is exchanged, and makes another number of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Any, Any]] = []

    def __call__(self, value: Tensor, group: Any = None, reduce_op: Any = None) -> Tensor:
        self.calls.append((float(value), group, reduce_op))
        return value + 10


def state(results: Any) -> dict[str, Any]:
    """Return all that is kept of the logged values."""
    names = ("value", "cumulated_batch_size", "_forward_cache", "_computed", "_update_count", "has_reset")
    return {
        key: {name: plain(getattr(metric, name, "absent")) for name in names} | {"meta": metric.meta.sync.should}
        for key, metric in results.items()
    }


REDUCTIONS = ("mean", "sum", "max", "min", "avg", torch.mean)
LEVELS = [(True, False), (False, True), (True, True)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("on_step", "on_epoch"), LEVELS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_is_added_to_what_is_kept_as_by_lightning(
    reduction: Any, on_step: bool, on_epoch: bool, dtype: torch.dtype
) -> None:
    stock, ours = compat.ResultCollection(training=True), Adding(training=True)
    options: dict[str, Any] = {"on_step": on_step, "on_epoch": on_epoch, "reduce_fx": reduction}
    for batch_size, number in enumerate((3, -7, 5, 2), start=1):
        value = torch.tensor(number, dtype=dtype)
        for results in (stock, ours):
            results.log("training_step", "loss", value, batch_size=batch_size, prog_bar=True, **options)
            if batch_size == 2:  # what was computed before is forgotten by the next value
                results.metrics(on_step=False)
        assert state(ours) == state(stock)
        value.fill_(100)  # none of them keeps a reference
        assert state(ours) == state(stock)
    for level in (True, False):
        assert plain(ours.metrics(on_step=level)) == plain(stock.metrics(on_step=level))
    for results in (stock, ours):
        results.reset()
        assert not list(results.valid_items())
        results.log("training_step", "loss", torch.tensor(4, dtype=dtype), batch_size=2, prog_bar=True, **options)
    assert state(ours) == state(stock)
    assert len(list(ours.valid_items())) == 1


@pytest.mark.parametrize(("on_step", "on_epoch"), LEVELS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_values_that_are_exchanged_together_end_as_those_that_lightning_exchanges(
    reduction: str, on_step: bool, on_epoch: bool
) -> None:
    stock, ours = compat.ResultCollection(training=True), Adding(training=True)
    theirs, mine = Syncing(), Syncing()
    options = {"on_step": on_step, "on_epoch": on_epoch, "reduce_fx": reduction, "sync_dist": True}
    for number in (3.0, -7.0):
        for results, sync in ((stock, theirs), (ours, mine)):
            results.log("training_step", "loss", torch.tensor(number), batch_size=2, sync_dist_fn=sync, **options)
        metric = ours["training_step.loss"]
        assert compat.is_synced(metric)
        assert compat.sync_operation(metric) == reduction
        if on_step:
            assert compat.step_value(metric) == number
            compat.set_step_value(metric, compat.step_value(metric) + 10)
        assert state(ours) == state(stock)
        assert plain(ours.metrics(on_step=True)) == plain(stock.metrics(on_step=True))
    metric = ours["training_step.loss"]
    assert compat.waits_for_epoch(metric) is on_epoch
    if on_epoch:
        value, weight = compat.epoch_state(metric)
        assert (weight is None) is (reduction != "mean")
        compat.set_epoch_value(metric, value + 10 if weight is None else (value + 10) / (weight + 10))
        assert not compat.waits_for_epoch(metric)
    assert plain(ours.metrics(on_step=False)) == plain(stock.metrics(on_step=False))
    assert mine.calls == []  # lightning has exchanged nothing behind our back
    assert {call[1:] for call in theirs.calls} == {(None, reduction)}
    of_epoch = 2 if reduction == "mean" else 1
    assert len(theirs.calls) == 2 * on_step + of_epoch * on_epoch  # where lightning needs as many operations


@pytest.mark.parametrize(
    ("options", "exchanged"),
    [
        ({"sync_dist": True}, True),
        ({"sync_dist": False}, False),
        ({"sync_dist": True, "rank_zero_only": True}, False),
        ({"sync_dist": True, "sync_dist_group": "some"}, False),
    ],
)
def test_only_values_that_all_workers_have_are_exchanged_together(options: dict[str, Any], exchanged: bool) -> None:
    stock, ours = compat.ResultCollection(training=True), Adding(training=True)
    theirs, mine = Syncing(), Syncing()
    for results, sync in ((stock, theirs), (ours, mine)):
        results.log(
            "training_step", "loss", torch.tensor(1.0), on_step=True, batch_size=1, sync_dist_fn=sync, **options
        )
    metric = ours["training_step.loss"]
    assert compat.is_synced(metric) is exchanged
    assert compat.waits_for_epoch(metric) is exchanged
    if exchanged:
        assert (len(theirs.calls), mine.calls) == (1, [])
    else:  # as in lightning: not at all, or by lightning itself
        assert mine.calls == theirs.calls == ([(1.0, "some", "mean")] if "sync_dist_group" in options else [])
        assert state(ours) == state(stock)


def test_metrics_of_torchmetrics_and_values_of_steps_do_not_wait_for_the_end_of_the_epoch() -> None:
    results = compat.ResultCollection(training=True)
    metric = MeanMetric()
    metric.update(1.0)
    results.log("training_step", "metric", metric, sync_dist=True, metric_attribute="metric")
    results.log("training_step", "step", torch.tensor(1.0), on_step=True, on_epoch=False, sync_dist=True)
    results.log("training_step", "epoch", torch.tensor(1.0), sync_dist=True)
    assert {key: compat.waits_for_epoch(kept) for key, kept in results.items()} == {
        "training_step.metric": False,
        "training_step.step": False,
        "training_step.epoch": True,
    }
    assert [kept.is_tensor for kept in results.values()] == [False, True, True]
    assert {type(kept) for kept in results.values()} == {compat.ResultMetric}


class Recording(compat.ResultCollection):
    """Notes under which key and with which weight lightning adds each value, and what compat would have said."""

    def __init__(self, training: bool) -> None:
        super().__init__(training)
        self.noted: list[tuple[Any, ...]] = []
        self.asked: tuple[int | None, bool] = (None, True)

    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        given, add_dataloader_idx = self.asked
        metric = self[key]
        self.batch_size = None  # that of this batch is found out anew
        weight = compat.batch_size_of(self, metric, given)
        hook = metric.meta.fx.split(".")[0]
        self.noted.append(
            (key, compat.result_key(self, hook, metric.meta.name, add_dataloader_idx), batch_size, weight)
        )
        super().update_metrics(key, value, batch_size)


class Weighing(Tiny):
    """Logs with given options in each step, and tells the collection of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def log_all(self, batch: Any) -> None:
        results: Any = self.trainer._results
        results.asked = self.options.get("batch_size"), self.options.get("add_dataloader_idx", True)
        # The name differs between loaders where lightning adds no number of its own.
        name = "value" if self.options.get("add_dataloader_idx", True) else f"value{results.dataloader_idx}"
        self.log(name, batch.float().mean(), **self.options)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log_all(batch)
        return self.layer(batch.float().reshape(-1, 1)).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log_all(batch)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"on_epoch": True}, [2, 2, 1]),
        ({"on_epoch": True, "batch_size": 7}, [7, 7, 7]),
        ({"on_epoch": True, "reduce_fx": "sum"}, [1, 1, 1]),
        ({"on_step": True}, [1, 1, 1]),
        ({"on_step": True, "on_epoch": True}, [2, 2, 1]),
    ],
)
def test_value_weighs_in_the_mean_of_its_epoch_as_in_lightning(options: dict[str, Any], weights: list[int]) -> None:
    trainer, results = make_trainer(), Recording(training=True)
    compat.replace_results(trainer.fit_loop.epoch_loop, results)
    trainer.fit(Weighing(**options), numbers(5))
    assert results.noted == [("training_step.value", "training_step.value", weight, weight) for weight in weights]


@pytest.mark.parametrize("add_dataloader_idx", [True, False])
@pytest.mark.parametrize("loaders", [1, 2])
def test_values_are_kept_under_the_key_of_their_hook_and_loader(loaders: int, add_dataloader_idx: bool) -> None:
    trainer, results = make_trainer(), Recording(training=False)
    compat.replace_results(trainer.validate_loop, results)
    module = Weighing(add_dataloader_idx=add_dataloader_idx)
    trainer.validate(module, [numbers(2) for _ in range(loaders)], verbose=False)
    keys = {
        (1, True): ["validation_step.value"],
        (1, False): ["validation_step.valueNone"],
        (2, True): ["validation_step.value.0", "validation_step.value.1"],
        (2, False): ["validation_step.value0", "validation_step.value1"],
    }[loaders, add_dataloader_idx]
    assert [(stock, ours) for stock, ours, *_ in results.noted] == [(key, key) for key in keys]
    assert list(results) == keys


class Logging(Tiny):
    """Logs at the end of epochs as well; notes to which collection it logs."""

    def __init__(self) -> None:
        super().__init__()
        self.active: dict[str, set[Any]] = {}

    def note(self, hook: str) -> None:
        self.active.setdefault(hook, set()).add(id(self.trainer._results))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("validation_step")
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("test_step")
        super().test_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.note("on_train_epoch_end")
        self.log("end", 1.0)

    def on_validation_epoch_end(self) -> None:
        self.note("on_validation_epoch_end")
        self.log("val_end", 1.0)

    def on_test_epoch_end(self) -> None:
        self.note("on_test_epoch_end")
        self.log("test_end", 1.0)


def test_values_go_to_the_collection_put_in_place_of_a_loop_s_own() -> None:
    trainer, module, validated = make_trainer(), Logging(), Logging()
    epoch_loop = trainer.fit_loop.epoch_loop
    loops = [epoch_loop, epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop]
    collections = [compat.ResultCollection(training=loop is epoch_loop) for loop in loops]
    for loop, collection in zip(loops, collections, strict=True):
        compat.replace_results(loop, collection)
    assert trainer._results is None
    trainer.fit(module, numbers(6), numbers(2))
    trainer.test(module, numbers(2), verbose=False)
    trainer.validate(validated, numbers(2), verbose=False)
    train, val, validate, test = [{id(collection)} for collection in collections]
    assert module.active == {
        **dict.fromkeys(("training_step", "on_train_epoch_end"), train),
        **dict.fromkeys(("validation_step", "on_validation_epoch_end"), val),
        **dict.fromkeys(("test_step", "on_test_epoch_end"), test),
    }
    assert validated.active == dict.fromkeys(("validation_step", "on_validation_epoch_end"), validate)
    assert [list(collection) for collection in collections] == [
        ["training_step.loss", "on_train_epoch_end.end"],
        *2 * [["validation_step.val_mean", "on_validation_epoch_end.val_end"]],
        ["test_step.test_mean", "on_test_epoch_end.test_end"],
    ]


class Connector(compat.LoggerConnector):
    """Does by compat what `LeanLoggerConnector` does, and notes whether lightning would have done the same."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.first: list[bool] = []
        self.reset: list[tuple[bool, bool]] = []

    def on_batch_start(self, batch: Any, dataloader_idx: int | None = None) -> None:
        compat.count_iteration(self)
        self.first.append(compat.is_first_iteration(self))
        results: Any = self.trainer._results
        results.batch, results.batch_size, results.dataloader_idx = batch, None, dataloader_idx

    def on_batch_end(self) -> None:
        results: Any = self.trainer._results
        compat.publish(self, results.metrics(on_step=True))
        results.batch = results.batch_size = None

    def should_reset_tensors(self, fx: str) -> bool:
        resets = super().should_reset_tensors(fx)
        self.reset.append((resets, compat.goes_on_logging(self, fx)))
        return resets


def metrics_of(trainer: Trainer) -> list[Any]:
    assert compat.logger_connector(trainer).callback_metrics is trainer.callback_metrics
    return [plain(trainer.callback_metrics), plain(trainer.logged_metrics), plain(trainer.progress_bar_metrics)]


def test_connector_put_in_place_keeps_what_lightning_s_own_keeps() -> None:
    found, loggers = [], []
    for connector_class in (compat.LoggerConnector, Connector, LeanLoggerConnector):
        loggers.append(logger := Steps())
        at = At("on_train_batch_end", lambda trainer, *args: metrics_of(trainer))
        trainer = make_trainer(callbacks=at, logger=logger, max_epochs=2, val_check_interval=2, num_sanity_val_steps=1)
        compat.replace_logger_connector(trainer, connector_class)
        assert type(compat.logger_connector(trainer)) is connector_class
        assert not compat.is_first_iteration(compat.logger_connector(trainer))  # no batch has begun
        torch.manual_seed(1)
        module = Logging()
        trainer.fit(module, numbers(8), numbers(4))
        fitted = metrics_of(trainer)
        trainer.validate(Evaluated(), [numbers(4), numbers(2)], verbose=False)
        found.append((at.found, fitted, metrics_of(trainer)))
        if connector_class is Connector:
            first, reset = trainer._logger_connector.first, trainer._logger_connector.reset
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert loggers[0].logged == loggers[1].logged == loggers[2].logged
    # Sanity check; two epochs, of whose validation no batch counts as a first one; two loaders.
    assert first == [True, *2 * [True, *7 * [False]], True, False, True]
    assert {resets for resets, _ in reset} == {True, False}
    assert all(resets is not goes_on for resets, goes_on in reset)


def test_published_values_are_read_from_the_trainer() -> None:
    def publish(trainer: Trainer, *args: Any) -> list[Any]:
        values = compat.Metrics(callback={"a": torch.ones(())}, log={"b": torch.zeros(())}, pbar={"c": 0.5})
        compat.publish(compat.logger_connector(trainer), values)
        return [set(trainer.callback_metrics), set(trainer.logged_metrics), set(trainer.progress_bar_metrics)]

    assert in_fit("on_train_batch_start", publish, Skipping(), numbers(2)) == [[{"a"}, {"b"}, {"c"}]]
    of_lightning = compat.ResultCollection(training=True).metrics(on_step=True)
    assert of_lightning.keys() == compat.Metrics.__annotations__.keys() == {"callback", "log", "pbar"}


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, True),
        ({"monitor": "loss", "save_last": True}, True),
        ({"every_n_train_steps": 2}, False),
        ({"train_time_interval": timedelta(seconds=1)}, False),
        ({"every_n_epochs": 2}, True),
    ],
)
def test_checkpoint_callbacks_that_do_nothing_per_batch_are_known(options: dict[str, Any], idle: bool) -> None:
    callback = ModelCheckpoint(**options)
    assert compat.does_nothing_per_batch(callback) is idle
    # What is left out would have asked neither the trainer nor the module for anything but how it is optimized.
    if idle:
        for automatic in (True, False):
            trainer = SimpleNamespace(
                global_step=4, fast_dev_run=False, state=TrainerState(fn=TrainerFn.FITTING), sanity_checking=False
            )
            before = callback.state_dict()
            callback.on_train_batch_end(trainer, SimpleNamespace(automatic_optimization=automatic), None, None, 3)
            assert callback.state_dict() == before


class WritesPerBatch(ModelCheckpoint):
    def on_train_batch_end(self, *args: Any) -> None:
        """Do something else."""


def test_checkpoint_callback_of_the_user_s_own_is_called_per_batch() -> None:
    assert not compat.does_nothing_per_batch(WritesPerBatch())
    changed = ModelCheckpoint()
    changed.on_train_batch_end = lambda *args: None  # type: ignore[method-assign]
    assert not compat.does_nothing_per_batch(changed)
    assert not compat.does_nothing_per_batch(Callback())


class LogsInTwoLoaders(Tiny):
    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("both", 1.0, on_step=True, on_epoch=True)
        self.log("one", 2.0, on_step=True, on_epoch=False)
        self.log("end", 3.0, on_step=False, on_epoch=True)


@pytest.mark.parametrize("loaders", [1, 2])
def test_values_of_a_step_and_their_names_are_those_that_lightning_publishes(loaders: int) -> None:
    compared = 0

    def look(trainer: Trainer, module: LightningModule, *args: Any) -> None:
        nonlocal compared
        results = trainer._results
        assert results is not None
        published = compat.ResultCollection.metrics(results, on_step=True)["log"]
        ours = {}
        for metric in results.values():
            value = compat.step_value_if_any(metric)
            if value is not None and metric.meta.dataloader_idx == results.dataloader_idx:
                ours[compat.published_names(results, metric, on_step=True)[1]] = value
        assert plain(ours) == plain(dict(published))
        compared += len(ours)

    at = At("on_validation_batch_end", look)
    data = numbers(4) if loaders == 1 else [numbers(4), numbers(2)]
    make_trainer(callbacks=at).validate(LogsInTwoLoaders(), data, verbose=False)
    assert compared


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loader", [None, 1])
def test_lean_results_publish_in_a_step_what_lightning_s_own_would(loader: int | None, training: bool) -> None:
    stock, lean = compat.ResultCollection(training), LeanResults(training, make_trainer())
    number = torch.tensor(2.0, requires_grad=True) * 2
    metric, never_called = MeanMetric(), MeanMetric()
    assert metric(number).requires_grad
    never_called.update(1.0)
    options: dict[str, Any] = {"on_step": True, "on_epoch": True, "batch_size": 1}
    for results in (stock, lean):
        results.dataloader_idx = 0
        results.log("step", "of another loader", torch.tensor(1.0), **options)
        results.dataloader_idx = loader
        for add in (True, False):
            results.log("step", f"both {add}", torch.tensor(1.0), add_dataloader_idx=add, **options)
        results.log("step", "epoch", torch.tensor(2.0), prog_bar=True, batch_size=1)
        results.log("step", "detached", number, prog_bar=True, **options | {"on_epoch": False})
        results.log("step", "not for loggers", torch.tensor(5.0), logger=False, prog_bar=True, **options)
        for graph in (True, False):
            results.log("step", f"metric {graph}", metric, enable_graph=graph, metric_attribute="metric", **options)
        results.log("step", "metric of the epoch", metric, metric_attribute="metric")
        results.log("step", "never called", never_called, metric_attribute="metric", **options)
        results.log("other", "reset", torch.tensor(6.0), **options)
        results.reset(metrics=False, fx="other" if loader is None else f"other.{loader}")
    expected, got = stock.metrics(on_step=True), lean.metrics(on_step=True)
    got["pbar"] = {name: float(value) for name, value in got["pbar"].items()}  # left to who reads them
    assert [plain(values) for values in got.values()] == [plain(values) for values in expected.values()]
    assert [list(values) for values in got.values()] == [list(values) for values in expected.values()]
    assert len(expected["log"]) == 5


class CountingProfiler(Profiler):
    """Counts what it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []

    def start(self, action_name: str) -> None:
        self.started.append(action_name)

    def stop(self, action_name: str) -> None:
        pass


@pytest.mark.parametrize("entry_point", ["fit", "validate"])
def test_fetches_are_left_out_of_a_profile_that_nobody_keeps(entry_point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """lightning tells its profiler of every batch that is fetched, also one that does nothing."""
    told: list[str] = []
    monkeypatch.setattr(PassThroughProfiler, "start", lambda self, action_name: told.append(action_name))
    profiler = CountingProfiler()
    for trainer in (make_trainer(), lean_trainer(), lean_trainer(profiler=profiler)):
        getattr(trainer, entry_point)(Tiny(), numbers(4))
    fetches = [[name for name in names if name.endswith("_next")] for names in (told, profiler.started)]
    assert len(fetches[0]) == len(fetches[1]) > 0  # of lightning's own trainer, and of ours with a profiler


def test_batch_size_is_the_one_that_lightning_extracts() -> None:
    def look(trainer: Trainer, module: LightningModule, *args: Any) -> list[int]:
        results = trainer._results
        assert results is not None
        (metric,) = (metric for metric in results.values() if metric.meta.name == "end")
        sizes = []
        x, y = torch.ones(3, 2), torch.ones(3)
        for batch in (x, [x, y], (x, y), {"x": x, "y": y}, torch.ones(()), [x, {"y": y}], [torch.ones(5), x]):
            results.batch, results.batch_size = batch, None
            ours = compat.batch_size_of(results, metric, None)
            results.batch_size = None
            assert ours == results._extract_batch_size(metric, None, metric.meta)
            sizes.append(ours)
        return sizes

    at = At("on_validation_batch_end", look)
    make_trainer(callbacks=at).validate(LogsInTwoLoaders(), numbers(2), verbose=False)
    assert at.found[0] == [3, 3, 3, 3, 1, 3, 5]

"""The code of lightning that the lean loops restate, and that our classes override.

`RECORDED` holds digests of it: a change fails a test here even where no other test sees what it changes."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import lightning
import pytest
from lightning.pytorch import Trainer

from itwinai.compat import lightning_loops, lightning_signals
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.optimization import LeanOptimization
from itwinai.loops.prediction import LeanPredictionLoop
from itwinai.loops.results import LeanLoggerConnector, LeanResults
from itwinai.loops.training import LeanTrainingEpochLoop
from tests.compat.examples import make_trainer

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
        "pytorch.loops.prediction_loop": {
            "_PredictionLoop.__init__": "17289f7081a6",
            "_PredictionLoop.return_predictions": "5ef66510bef8",
            "_PredictionLoop.num_dataloaders": "845b8a5320d7",
            "_PredictionLoop.skip": "e64b2fa5d4bc",
            "_PredictionLoop.run": "7d7d145da33d",
            "_PredictionLoop.setup_data": "59aef1212ec1",
            "_PredictionLoop.reset": "47249f2b7a40",
            "_PredictionLoop.on_run_start": "fb1216bc5766",
            "_PredictionLoop.on_run_end": "19c28f412fd4",
            "_PredictionLoop._predict_step": "bd77b95759b0",
            "_PredictionLoop._build_kwargs": "0079d98d3aef",
            "_PredictionLoop._build_step_args_from_hook_kwargs": "b7ca144eadec",
            "_PredictionLoop._get_batch_indices": "5ab52f7d6616",
            "_PredictionLoop._store_data_for_prediction_writer": "9c9ca4740f18",
            "_PredictionLoop._on_before_fetch": "e35ff4637a76",
            "_PredictionLoop._on_after_fetch": "8edf4a3f0c14",
        },
        "pytorch.overrides.distributed": {
            "_IndexBatchSamplerWrapper.__init__": "f902137c57ba",
            "_IndexBatchSamplerWrapper.__next__": "71a8a1074aeb",
            "_IndexBatchSamplerWrapper.__iter__": "72f9e53dcd56",
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
            "LightningModule.predict_step": "c4492b58748d",
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
            "Strategy.predict_step": "bef63a1fe6f1",
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
            "Precision.predict_step_context": "522f0971f1c2",
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
    "Compare each with what stands for it in itwinai/loops and itwinai/compat, mend that, run "
    "`ITWINAI_TESTS_EXAMPLES=2000 pytest tests/loops`, and then add the version to "
    "`itwinai.compat.lightning_loops.VERIFIED_LOOPS` and what is printed here to RECORDED."
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
    assert set(RECORDED) == set(lightning_loops.VERIFIED_LOOPS)
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
        "on_predict_batch_start",
        "on_predict_batch_end",
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
    lightning_loops.TrainingEpochLoop: (
        lambda trainer: trainer.fit_loop.epoch_loop,
        {"_broadcast_sigterm_tensor", "_get_monitor_value"},
        set(),
    ),
    lightning_loops.EvaluationLoop: (
        lambda trainer: trainer.validate_loop,
        {"_evaluation_step", "_on_evaluation_end", "_store_dataloader_outputs"},
        {"_last_val_dl_reload_epoch"},
    ),
    lightning_loops.PredictionLoop: (
        lambda trainer: trainer.predict_loop,
        {"_predict_step", "return_predictions"},
        set(),
    ),
    LeanPredictionLoop: (lambda trainer: trainer.predict_loop, {"on_run_start", "run", "setup_data", "skip"}, set()),
    lightning_signals.SignalConnector: (
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
    LeanOptimization: (
        lambda trainer: lightning_loops.Closure(lambda: lightning_loops.ClosureResult(None)),
        {"closure"},
        {"_result"},
    ),
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
    (node, _), *_ = definitions(module)[qualified]  # of a property, and of its setter
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

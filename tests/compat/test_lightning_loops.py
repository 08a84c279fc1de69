"""What `itwinai.compat.lightning_loops` takes for granted about private names."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.utils.data import DataLoader

from itwinai import ItwinaiTrainer
from itwinai.compat import (
    lightning_dataloaders,
    lightning_logging,
    lightning_loops,
    lightning_signals,
    lightning_trainer,
)
from itwinai.loops.evaluation import LeanEvaluationLoop
from itwinai.loops.results import LeanLoggerConnector
from itwinai.loops.training import LeanTrainingEpochLoop
from tests.compat.examples import (
    At,
    Evaluated,
    Looks,
    Numbers,
    Skipping,
    Steps,
    Tiny,
    TinyData,
    Workers,
    connected,
    in_fit,
    looked,
    make_trainer,
    metrics_of,
    numbers,
    plain,
    run,
)
from tests.support.cases import Regression, loader
from tests.support.cases import make_trainer as itwinai_trainer


def test_gradients_are_cleared_by_us_through_the_optimizer_and_its_wrapper() -> None:
    strategy = SingleDeviceStrategy("cpu")
    strategy.optimizers = [torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)]
    cleared: list[bool] = []
    lightning_loops.replace_zero_grad(strategy, lambda set_to_none=True: cleared.append(set_to_none))
    strategy.optimizers[0].zero_grad()
    lightning_loops.lightning_optimizer(strategy).zero_grad(set_to_none=False)
    assert cleared == [True, False]


def test_hooks_before_a_step_are_those_of_lightning() -> None:
    module, trainer = Tiny(), make_trainer()
    module.trainer = trainer
    trainer.strategy.connect(module)
    calls: list[str] = []
    module.on_before_optimizer_step = lambda optimizer: calls.append("before")  # type: ignore[method-assign]
    module.configure_gradient_clipping = lambda *_, **__: calls.append("clip")  # type: ignore[method-assign]
    lightning_loops.call_before_step(Precision(), module, MagicMock())
    assert calls == ["before", "clip"]


class Checking(lightning_loops.TrainingEpochLoop):
    """Notes what schedulers read."""

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        super().__init__(trainer, **options)
        self.read: list[tuple[str, float]] = []

    def stop_if_agreed(self) -> None:
        pass

    def check_monitored(self, key: str, value: float) -> None:
        self.read.append((key, value))


class Plateau(Regression):
    """Has a scheduler that monitors a value."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def test_loop_is_told_what_a_plateau_scheduler_reads() -> None:
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    lightning_loops.replace_training_epoch_loop(trainer, Checking)
    run(trainer, Plateau())
    loop = trainer.fit_loop.epoch_loop
    assert isinstance(loop, Checking)
    assert loop.read == [("val_loss", float(trainer.callback_metrics["val_loss"]))]


@pytest.mark.parametrize(("options", "stops"), [({}, True), ({"min_epochs": 2}, False), ({"min_steps": 5}, False)])
def test_fit_can_stop_early_after_its_least_epochs_and_steps(options: dict[str, int], stops: bool) -> None:
    assert lightning_loops.can_stop_early(Trainer(max_epochs=3, barebones=True, **options)) is stops


class SkippingBatches(Regression):
    """Leaves an epoch before its third batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


def test_batches_that_a_hook_skips_have_not_begun() -> None:
    trainer = Trainer(max_epochs=1, barebones=True)
    trainer.fit(SkippingBatches(), loader(8))
    assert lightning_loops.begun_batches(trainer.fit_loop.epoch_loop) == 2


def test_is_epoch_begun() -> None:
    found, trainer = looked(lightning_loops.is_epoch_begun)
    assert found == [True] * 13
    assert not lightning_loops.is_epoch_begun(trainer)


def test_is_accumulating() -> None:
    found, _ = looked(lightning_loops.is_accumulating, accumulate_grad_batches=3)
    assert found == [True, True, False] * 4 + [False]  # 13 batches: the last is a step of its own


class Placing(lightning_loops.FitLoop):
    """Writes down what it is told."""

    def loaders_made(self, loader: Any) -> None:
        self.made = loader


def test_fit_loop(tmp_path: Path) -> None:
    trainer, _ = connected()
    lightning_loops.replace_fit_loop(trainer, Placing)
    loop: Any = trainer.fit_loop
    assert (type(loop), loop.max_epochs) == (Placing, 2) and loop.combined_loader is None
    trainer.fit(Regression(), loader(8))
    assert loop.made is loop.combined_loader
    assert lightning_dataloaders.loader_mode(loop.made) == "max_size_cycle" and loop.last_reload == 0
    loop.last_reload = 1
    assert loop._last_train_dl_reload_epoch == 1
    progress = loop.progress()
    assert progress["epoch_progress"]["total"]["completed"] == 2
    assert loop.combined_loader is loop.made
    other: Any = Placing(trainer, max_epochs=2)
    other.epoch_loop = loop.epoch_loop
    other.load_progress(progress)
    assert other.epoch_progress.total.completed == 2 and other._loaded_from_state_dict
    lightning_trainer.forget_loading(other)
    assert not other._loaded_from_state_dict and not other.epoch_loop.val_loop.restarting


class Kept(DataLoader):
    """A loader with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"kept": 3}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_states_of_loaders_are_loaded() -> None:
    trainer, _ = connected()
    lightning_loops.replace_fit_loop(trainer, Placing)
    loop: Any = trainer.fit_loop
    kept = Kept(loader(8).dataset, 8)
    trainer.fit(Regression(), kept)
    loop.on_load_checkpoint(loop.on_save_checkpoint())
    loop.load_loaders()
    assert kept.loaded == {"kept": 3}


def test_history_of_validation() -> None:
    found, trainer = looked(lambda trainer: lightning_loops.is_epoch_over(trainer.fit_loop.epoch_loop))
    assert found == [False] * 12 + [True]
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    assert loop.loaders == []
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Regression(), loader(8), loader(8))
    assert len(loop.loaders) == 1
    history = loop.read_history()
    assert history["reloaded"] == 1 or history["reloaded"] == 0
    loop.write_history({"reloaded": 5, "seen": {0: 7}})
    assert loop.read_history() == {"reloaded": 5, "seen": {**history["seen"], 0: 7}}


def test_validation_that_only_a_stop_brings() -> None:
    def look(trainer: Any) -> Any:
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        trainer.should_stop = True
        found = lightning_loops.validates_now(loop, fetcher), lightning_loops.is_validation_due(loop, fetcher)
        assert trainer.should_stop
        trainer.should_stop = False
        return found

    looks = Looks(look)
    trainer = itwinai_trainer("auto", 1, max_epochs=1, callbacks=[looks])
    trainer.fit(Regression(), loader(8), loader(8))
    assert looks.found == [(True, False)] * 12 + [(True, True)]
    loop: Any = trainer.fit_loop.epoch_loop
    lightning_loops.skip_next_validation(loop)
    assert lightning_loops.skips_next_validation(loop)
    assert lightning_loops.iterates_again(loop)
    loop._restarting = True
    assert not lightning_loops.iterates_again(loop)


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
        patch.setattr(lightning_loops, "VERIFIED_LOOPS", (lightning.__version__,))
        return ItwinaiTrainer(**OPTIONS | options)


def types_of_parts(trainer: Trainer) -> list[type]:
    epoch_loop = trainer.fit_loop.epoch_loop
    parts = (epoch_loop, epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop)
    return [type(part) for part in (*parts, trainer._logger_connector, trainer._signal_connector)]


STOCK = [_TrainingEpochLoop, *3 * [_EvaluationLoop], _LoggerConnector, _SignalConnector]


LEAN = [LeanTrainingEpochLoop, *3 * [LeanEvaluationLoop], LeanLoggerConnector, lightning_signals.SignalConnector]


@pytest.mark.parametrize("verified", [True, False])
def test_our_loops_run_only_where_they_were_compared_with_lightning_s(
    verified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_loops, "VERIFIED_LOOPS", ("1.0.0", lightning.__version__ if verified else "1.0.1"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = ItwinaiTrainer(**OPTIONS)
        torch.manual_seed(1)
        module = Tiny()
        trainer.fit(module, numbers(8), numbers(4))
        trainer.validate(module, numbers(8), verbose=False)
    messages = [str(warning.message) for warning in caught if "itwinai's fast loops" in str(warning.message)]
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
    lightning_loops.replace_training_epoch_loop(trainer, Counting)
    loop = trainer.fit_loop.epoch_loop
    assert (type(loop), loop.trainer) == (Counting, trainer)
    assert (trainer.max_steps, trainer.min_steps, loop.max_steps, loop.min_steps) == (5, 2, 5, 2)
    trainer.fit(module, numbers(6))
    assert loop.advanced == len(module.trained) == trainer.global_step == 5


class Evaluating(lightning_loops.EvaluationLoop):
    """Remembers what it was told to evaluate."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock.trainer, **lightning_loops.evaluation_options(stock))
        self.evaluated: list[tuple[Any, int, int, bool]] = []

    def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        self.evaluated.append((batch, batch_idx, dataloader_idx, dataloader_iter is not None))
        super().evaluate_batch(batch, batch_idx, dataloader_idx, dataloader_iter)


@pytest.mark.parametrize("entry_point", ["validate", "test"])
def test_evaluation_is_run_by_the_loop_put_in_place(entry_point: str) -> None:
    trainer = make_trainer()
    lightning_loops.replace_evaluation_loops(trainer, Evaluating)
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
    lightning_loops.replace_evaluation_loops(trainer, Ending)
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
    lightning_loops.replace_training_epoch_loop(trainer, Recording)
    lightning_loops.replace_evaluation_loops(trainer, Evaluating)
    trainer.fit(module_class(), numbers(4))
    trainer.validate(module_class(), numbers(4), verbose=False)
    (fetcher,) = fetchers
    assert isinstance(fetcher, lightning_loops.DataFetcher)
    assert isinstance(fetcher, lightning_loops.DataLoaderIterFetcher) is (module_class is OfIterator)
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
    assert isinstance(stock, lightning_loops.StockEvaluationLoop)
    options = lightning_loops.evaluation_options(stock)
    assert options.keys() == inspect.signature(lightning_loops.StockEvaluationLoop).parameters.keys() - {"trainer"}
    assert options == {
        "trainer_fn": function,
        "stage": stage,
        "verbose": name != "val_loop",
        "inference_mode": inference_mode and name != "val_loop",
    }
    assert lightning_loops.evaluation_options(lightning_loops.EvaluationLoop(trainer, **options)) == options


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
    lightning_loops.replace_training_epoch_loop(replaced, Counting)
    lightning_loops.replace_evaluation_loops(replaced, Evaluating)
    stock = saved_loops(make_trainer(max_epochs=2, val_check_interval=2), Tiny(), tmp_path / "stock.ckpt")
    for trainer in (replaced, lean_trainer(max_epochs=2, val_check_interval=2)):
        loops = saved_loops(trainer, Tiny(), tmp_path / "ours.ckpt")
        assert loops == stock
        assert names_in(loops) == names_in(stock)


def test_signal_connector_is_known_once_it_was_replaced() -> None:
    trainer = make_trainer()
    with pytest.raises(AssertionError):
        lightning_signals.signal_connector(trainer)
    lightning_signals.replace_signal_connector(trainer)
    assert lightning_signals.signal_connector(trainer) is trainer._signal_connector


def test_lightning_asks_whether_to_stop_before_each_batch_of_several_workers(process_group: None) -> None:
    asked = []

    class Stopping(lightning_loops.TrainingEpochLoop):
        def stop_if_agreed(self) -> None:
            asked.append(self.batch_progress.total.ready)
            if len(asked) == 3:
                raise SIGTERMException

    trainer, module = make_trainer(strategy=Workers()), Tiny()
    lightning_loops.replace_training_epoch_loop(trainer, Stopping)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, numbers(8))
    assert asked == [0, 1, 2]
    assert [batch for *_, batch in module.trained] == [[0, 1], [2, 3]]


def test_lightning_does_not_ask_a_single_worker_whether_to_stop(process_group: None) -> None:
    trainer = make_trainer()
    lightning_loops.replace_training_epoch_loop(trainer, lightning_loops.TrainingEpochLoop)
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
        skips, validates = (
            lightning_loops.skips_next_validation(self),
            lightning_loops.validates_now(self, data_fetcher),
        )
        done = lightning_loops.is_training_done(self)
        super().on_advance_end(data_fetcher)
        validated = self.val_loop.batch_progress.total.ready > before
        self.noted.append((self.batch_idx, skips, validates, validated, done))


def stop_at_1(trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
    trainer.should_stop = batch_idx == 1


def noting_trainer(**options: Any) -> Trainer:
    trainer = make_trainer(num_sanity_val_steps=0, **options)
    lightning_loops.replace_training_epoch_loop(trainer, Noting)
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
        counted = lightning_loops.stepped_batches(trainer.fit_loop.epoch_loop)
        if counted == 1:
            lightning_loops.count_stepped_batch(trainer.fit_loop.epoch_loop)
        return counted

    stock, counted = steps(lambda trainer, *args: lightning_loops.stepped_batches(trainer.fit_loop.epoch_loop))
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
            lightning_loops.flush_loggers(trainer.fit_loop.epoch_loop)
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
                lightning_loops.warn_of_none_batch(trainer.fit_loop.epoch_loop)
        return [str(warning.message) for warning in caught]

    module = Tiny()
    (first, *others) = in_fit("on_train_batch_end", look, module, none_at(1, 2), max_epochs=2)
    assert len(first) == 1
    assert "train_dataloader yielded None" in first[0]
    assert others == 7 * [[]]  # lightning calls the hook at the end of such a batch, too
    assert [index for _, index, *_ in module.trained] == 2 * [0, 3]


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
        batch = lightning_loops.transfer_batch(self.trainer, unwrapped(batch), dataloader_idx)
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
    assert lightning_loops.takes_batch_idx(module.training_step) is takes


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
        before = vars(self)[lightning_logging.HOOK_NAME]
        returned = default(self, *args, **kwargs)
        self.named.append((hook, before, vars(self)[lightning_logging.HOOK_NAME]))
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
    assert vars(module)[lightning_logging.HOOK_NAME] is None
    make().fit(module, numbers(4), numbers(2))
    assert {hook for hook, *_ in module.named} == set(NAMED_HOOKS)
    assert [(before, after) for _, before, after in module.named] == [2 * (hook,) for hook, *_ in module.named]
    assert vars(module)[lightning_logging.HOOK_NAME] is None


def test_log_reads_the_name_of_the_hook() -> None:
    def log(trainer: Trainer, module: Any, *args: Any) -> list[str]:
        name = vars(module)[lightning_logging.HOOK_NAME]
        vars(module)[lightning_logging.HOOK_NAME] = None
        with pytest.raises(MisconfigurationException, match="not managed"):
            module.log("value", 1.0)
        vars(module)[lightning_logging.HOOK_NAME] = "on_after_backward"
        module.log("value", 1.0)
        vars(module)[lightning_logging.HOOK_NAME] = name
        return [key for key in trainer.fit_loop.epoch_loop._results if "value" in key]

    assert in_fit("on_train_batch_start", log) == 3 * [["on_after_backward.value"]]


def test_progress_of_the_optimizer_is_what_counts_global_steps() -> None:
    def step_more(trainer: Trainer, *args: Any) -> int:
        counters = lightning_loops.optimizer_progress(trainer).step
        if args[-1] == 4:  # the last batch
            counters.increment_ready()
            counters.increment_completed()
        return trainer.global_step

    trainer = make_trainer(accumulate_grad_batches=2)
    trainer.fit(Tiny(), numbers(10))
    progress = lightning_loops.optimizer_progress(trainer)
    assert vars(progress.step.total) == {"ready": 3, "completed": 3}
    assert vars(progress.zero_grad.total) == {"ready": 3, "started": 3, "completed": 3}
    assert trainer.global_step == 3
    steps = in_fit("on_train_batch_end", step_more, loader=numbers(10), accumulate_grad_batches=2)
    assert steps == [0, 1, 1, 2, 4]


def test_lightning_s_optimizer_is_around_that_of_the_module_until_another_is_set() -> None:
    def look(trainer: Trainer, module: LightningModule, *args: Any) -> bool:
        wrapper = lightning_loops.lightning_optimizer(trainer.strategy)
        same = module.optimizers() is wrapper
        assert wrapper.optimizer is trainer.optimizers[0]
        trainer.optimizers = [torch.optim.Adam(module.parameters())]
        assert lightning_loops.lightning_optimizer(trainer.strategy) is not wrapper
        assert lightning_loops.lightning_optimizer(trainer.strategy).optimizer is trainer.optimizers[0]
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
    assert lightning_loops.only_steps_optimizer(strategy_class()) is plain


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
        return lightning_loops.only_steps_optimizer(trainer.strategy)

    assert in_fit("on_train_batch_end", look, strategy=ddp(**options)) == 3 * [not averages]


def test_gradients_are_not_exchanged_in_a_context(ddp: type[DDPStrategy]) -> None:
    seen = []

    class Seeing(Tiny):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            seen.append(self.trainer.strategy.model.require_backward_grad_sync)
            return super().training_step(batch, batch_idx)

    def look(trainer: Trainer, *args: Any) -> tuple[bool, bool]:
        with lightning_loops.without_gradient_sync(trainer.strategy):
            within = trainer.strategy.model.require_backward_grad_sync
        return within, trainer.strategy.model.require_backward_grad_sync

    assert in_fit("on_train_batch_end", look, Seeing(), strategy=ddp(), accumulate_grad_batches=2) == 3 * [
        (False, True)
    ]
    assert seen == [False, True, True]  # lightning's own, while it accumulates; it steps after the last batch


def test_context_without_exchange_of_gradients_is_nothing_for_a_strategy_without_workers() -> None:
    entered = False
    with lightning_loops.without_gradient_sync(SingleDeviceStrategy()):
        entered = True
    assert entered


class Stepping(Tiny):
    """Notes the calls of hooks around backward and the optimizer's step, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def note(self, *call: Any) -> None:
        self.calls.append((*call, vars(self)[lightning_logging.HOOK_NAME]))

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
        lightning_loops.call_backward(trainer, module.layer(torch.ones(1, 1)).sum(), trainer.optimizers[0])
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
        optimizer = lightning_loops.lightning_optimizer(trainer.strategy)
        lightning_loops.call_optimizer_step(trainer, batch_idx, optimizer, closure)
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
        lightning_loops.clip_gradients(trainer, optimizer)
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
    at = At(
        "on_train_batch_start", lambda trainer, *args: (trainer.current_epoch, lightning_loops.skips_backward(trainer))
    )
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
        result = lightning_loops.closure_result(module.returned, window)
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

    assert gradient(lightning_loops.closure_result) == gradient(lightning_loops.ClosureResult.from_training_step_output)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("output", ["text", {"logits": 1}])
def test_output_that_lightning_refuses_is_refused(output: Any, window: int) -> None:
    with pytest.raises(MisconfigurationException, match="training_step"):
        lightning_loops.closure_result(output, window)


def test_skipped_step_of_one_worker_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itwinai.warn._shown", {})  # whoever came before has filled it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        in_fit("on_train_batch_end", lambda trainer, *args: lightning_loops.check_skipped_step(trainer), Skipping())
    assert len([None for warning in caught if "this batch changes no weights" in str(warning.message)]) == 1


def test_skipped_step_of_one_of_several_workers_is_an_error_as_in_lightning() -> None:
    trainer = make_trainer(strategy=Workers())
    with pytest.raises(RuntimeError, match="returning None in distributed training"):
        trainer.fit(Skipping(), numbers(4))
    with pytest.raises(RuntimeError, match="returned None. With several workers"):
        lightning_loops.check_skipped_step(trainer)


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
        again = lightning_loops.optimize_manually(trainer.fit_loop.epoch_loop, batch, batch_idx + 10)
        assert module.layer.weight.item() != weight
        return list(outputs), list(again), again["loss"].requires_grad, trainer.global_step

    module = Manual()
    found = in_fit("on_train_batch_end", look, module, numbers(4))
    assert found == [(["loss"], ["loss"], False, 2), (["loss"], ["loss"], False, 4)]
    assert module.given == [([0, 1], 0), ([0, 1], 10), ([2, 3], 1), ([2, 3], 11)]


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
    at = At(
        "on_validation_start", lambda trainer, *args: lightning_loops.evaluates_several_loaders(trainer.validate_loop)
    )
    make_trainer(callbacks=at).validate(module, loaders(), verbose=False)
    assert at.found == [several]
    assert {len(indices) for indices in module.hooks} == {2 if several else 1}


@pytest.mark.parametrize("loaders", [1, 2])
def test_batches_of_each_loader_are_counted_for_the_loggers(loaders: int) -> None:
    class Counted(Evaluating):
        """Counts each batch as seen, instead of evaluating it."""

        def evaluate_batch(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
            trainer = self.trainer
            before = lightning_loops.count_evaluated_batch(self, dataloader_idx)
            self.evaluated.append((dataloader_idx, before, 0, False))
            trainer._logger_connector.on_batch_start(batch, dataloader_idx if loaders > 1 else None)
            trainer._logger_connector.on_batch_end()

    data = [numbers(6), numbers(4)][:loaders]
    logger = Steps()
    stock = make_trainer(logger=logger)
    stock.validate(Evaluated(), data, verbose=False)
    ours = make_trainer()
    lightning_loops.replace_evaluation_loops(ours, Counted)
    ours.validate(Evaluated(), data, verbose=False)
    counted = [(index, step) for index, step, *_ in ours.validate_loop.evaluated]
    assert counted == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)][: 3 if loaders == 1 else 5]
    for index in range(loaders):
        key = f"value_step/dataloader_idx_{index}" if loaders > 1 else "value_step"
        assert logger.steps_of(key) == [step for loader, step in counted if loader == index]
    assert ours.validate_loop._seen_batches_per_dataloader == stock.validate_loop._seen_batches_per_dataloader
    assert ours.validate_loop._has_run is stock.validate_loop._has_run is True


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

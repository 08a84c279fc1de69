"""What `itwinai.compat.lightning_logging` takes for granted about private names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchmetrics import MeanMetric

from itwinai.compat import lightning_logging
from itwinai.compat import torchmetrics as compat_torchmetrics
from itwinai.loggers import JSONLLogger
from itwinai.loops.results import LeanLoggerConnector, LeanResults
from tests.compat.examples import (
    At,
    Evaluated,
    Recording,
    Skipping,
    Steps,
    Tiny,
    in_fit,
    make_trainer,
    metrics_of,
    numbers,
    plain,
    state,
)
from tests.support.cases import Regression, loader
from tests.support.cases import make_trainer as itwinai_trainer


@pytest.mark.parametrize(
    ("log_model", "save_top_k", "expected"), [("all", 1, True), (True, -1, True), (True, 1, False)]
)
@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_loggers_that_upload_at_once(
    kind: str, log_model: Any, save_top_k: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    logger: Any
    if kind == "mlflow":
        logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", log_model=log_model)
    else:
        logger = WandbLogger(save_dir=tmp_path, log_model=log_model)
    callback = ModelCheckpoint(save_top_k=save_top_k)
    assert lightning_logging.uploads_at_once(logger, callback) is expected
    uploaded: list[Any] = []
    monkeypatch.setattr(type(logger), "_scan_and_log_checkpoints", lambda self, callback: uploaded.append(callback))
    logger.after_save_checkpoint(callback)
    assert uploaded == [callback] * expected


def test_run_of_wandb_is_opened_in_the_caller_and_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path)
    trainer = Trainer(barebones=False, logger=[logger, CSVLogger(tmp_path)], enable_progress_bar=False)
    assert logger.version is None
    lightning_logging.open_runs(trainer)
    assert logger.version == logger.experiment.id
    state = logger.__getstate__()
    assert state["_experiment"] is None
    assert {name for name in state if state[name] != vars(logger).get(name)} <= lightning_logging.live_attributes(
        logger
    ) | {
        "_id",
        "_name",
    }
    assert lightning_logging.live_attributes(CSVLogger(tmp_path)) == frozenset()
    wandb.finish()


class Logs(Regression):
    """Logs a metric and values with all reductions."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for name in ("sum", "max"):
            self.log(name, loss, on_step=True, on_epoch=True, reduce_fx=name)
        self.error(batch[1], batch[1] + 1)
        self.log("error", self.error, on_step=False, on_epoch=True)
        return loss


class Takes(L.Callback):
    """Takes the logged values in mid-epoch, and lets them be made anew of that."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        results = trainer.fit_loop.epoch_loop._results
        for key, metric in list(results.items()):
            state = lightning_logging.read_result(metric)
            assert state is not None
            made = lightning_logging.make_result(state, trainer)
            assert made.meta == metric.meta  # otherwise the next call of `self.log` would be refused
            lightning_logging.write_result(made, state, module.device)
            results[key] = made
        kept = compat_torchmetrics.read_metric(module.error)
        module.error.reset()
        assert kept is not None and compat_torchmetrics.read_metric(module.error) is None
        compat_torchmetrics.write_metric(module.error, kept)


def test_logged_values_are_made_anew() -> None:
    found = []
    for callbacks in ([], [Takes()]):
        L.seed_everything(3)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, callbacks=callbacks, enable_progress_bar=False
        )
        trainer.fit(Logs(), loader(8))
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    epochs = [{name: value for name, value in values.items() if not name.endswith("_step")} for values in found]
    names = ("sum", "max")  # by which also the value of the step is read
    assert {name: value for name, value in epochs[0].items() if name not in names} == {
        name: value for name, value in epochs[1].items() if name not in names
    }
    assert {"train_loss", "sum_epoch", "max_epoch", "error"} <= epochs[0].keys()


def test_resume_iteration() -> None:
    trainer = itwinai_trainer("auto", 1)
    connector = lightning_logging.logger_connector(trainer)
    lightning_logging.resume_iteration(connector)
    lightning_logging.count_iteration(connector)
    assert not lightning_logging.is_first_iteration(connector)


class Adding(lightning_logging.ResultCollection):
    """Keeps values by compat, as `LeanResults` does."""

    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        lightning_logging.add_to_result(self[key], value, batch_size)


class Syncing:
    """Stands for the other workers: notes what is exchanged, and makes another number of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Any, Any]] = []

    def __call__(self, value: Tensor, group: Any = None, reduce_op: Any = None) -> Tensor:
        self.calls.append((float(value), group, reduce_op))
        return value + 10


REDUCTIONS = ("mean", "sum", "max", "min", "avg", torch.mean)


LEVELS = [(True, False), (False, True), (True, True)]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("on_step", "on_epoch"), LEVELS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_is_added_to_what_is_kept_as_by_lightning(
    reduction: Any, on_step: bool, on_epoch: bool, dtype: torch.dtype
) -> None:
    stock, ours = lightning_logging.ResultCollection(training=True), Adding(training=True)
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
def test_sums_that_someone_else_has_computed(on_step: bool, on_epoch: bool) -> None:
    stock, ours = lightning_logging.ResultCollection(training=True), Adding(training=True)
    options = {"on_step": on_step, "on_epoch": on_epoch}
    for number, batch_size in ((3.0, 2), (-7.0, 4)):
        stock.log("training_step", "loss", torch.tensor(number), batch_size=batch_size, **options)
        if "training_step.loss" not in ours:  # registered by the first call
            ours.log("training_step", "loss", torch.tensor(number), batch_size=batch_size, **options)
            continue
        metric = ours["training_step.loss"]
        total, weight = metric.value, metric.cumulated_batch_size if on_epoch else torch.tensor(0)
        assert lightning_logging.is_summed(metric, torch.zeros(()), torch.tensor(0))
        assert not lightning_logging.is_summed(metric, torch.zeros((), dtype=torch.float64), torch.tensor(0))
        value = torch.tensor(number)
        lightning_logging.set_sums(metric, value, total + value * batch_size, weight + batch_size)
    assert state(ours) == state(stock)
    ours.log("training_step", "other", torch.tensor(1.0), batch_size=1, on_epoch=True, reduce_fx="max")
    ours.log("training_step", "synced", torch.tensor(1.0), batch_size=1, on_epoch=True, sync_dist=True)
    for name in ("other", "synced"):
        assert not lightning_logging.is_summed(ours[f"training_step.{name}"], torch.zeros(()), torch.tensor(0))


@pytest.mark.parametrize(("on_step", "on_epoch"), LEVELS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_values_that_are_exchanged_together_end_as_those_that_lightning_exchanges(
    reduction: str, on_step: bool, on_epoch: bool
) -> None:
    stock, ours = lightning_logging.ResultCollection(training=True), Adding(training=True)
    theirs, mine = Syncing(), Syncing()
    options = {"on_step": on_step, "on_epoch": on_epoch, "reduce_fx": reduction, "sync_dist": True}
    for number in (3.0, -7.0):
        for results, sync in ((stock, theirs), (ours, mine)):
            results.log("training_step", "loss", torch.tensor(number), batch_size=2, sync_dist_fn=sync, **options)
        metric = ours["training_step.loss"]
        assert lightning_logging.is_synced(metric)
        assert lightning_logging.sync_operation(metric) == reduction
        if on_step:
            assert lightning_logging.step_value(metric) == number
            lightning_logging.set_step_value(metric, lightning_logging.step_value(metric) + 10)
        assert state(ours) == state(stock)
        assert plain(ours.metrics(on_step=True)) == plain(stock.metrics(on_step=True))
    metric = ours["training_step.loss"]
    assert lightning_logging.waits_for_epoch(metric) is on_epoch
    if on_epoch:
        value, weight = lightning_logging.epoch_state(metric)
        assert (weight is None) is (reduction != "mean")
        lightning_logging.set_epoch_value(metric, value + 10 if weight is None else (value + 10) / (weight + 10))
        assert not lightning_logging.waits_for_epoch(metric)
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
    stock, ours = lightning_logging.ResultCollection(training=True), Adding(training=True)
    theirs, mine = Syncing(), Syncing()
    for results, sync in ((stock, theirs), (ours, mine)):
        results.log(
            "training_step", "loss", torch.tensor(1.0), on_step=True, batch_size=1, sync_dist_fn=sync, **options
        )
    metric = ours["training_step.loss"]
    assert lightning_logging.is_synced(metric) is exchanged
    assert lightning_logging.waits_for_epoch(metric) is exchanged
    if exchanged:
        assert (len(theirs.calls), mine.calls) == (1, [])
    else:  # as in lightning: not at all, or by lightning itself
        assert mine.calls == theirs.calls == ([(1.0, "some", "mean")] if "sync_dist_group" in options else [])
        assert state(ours) == state(stock)


def test_metrics_of_torchmetrics_and_values_of_steps_do_not_wait_for_the_end_of_the_epoch() -> None:
    results = lightning_logging.ResultCollection(training=True)
    metric = MeanMetric()
    metric.update(1.0)
    results.log("training_step", "metric", metric, sync_dist=True, metric_attribute="metric")
    results.log("training_step", "step", torch.tensor(1.0), on_step=True, on_epoch=False, sync_dist=True)
    results.log("training_step", "epoch", torch.tensor(1.0), sync_dist=True)
    assert {key: lightning_logging.waits_for_epoch(kept) for key, kept in results.items()} == {
        "training_step.metric": False,
        "training_step.step": False,
        "training_step.epoch": True,
    }
    assert [kept.is_tensor for kept in results.values()] == [False, True, True]
    assert {type(kept) for kept in results.values()} == {lightning_logging.ResultMetric}


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
    lightning_logging.replace_results(trainer.fit_loop.epoch_loop, results)
    trainer.fit(Weighing(**options), numbers(5))
    assert results.noted == [("training_step.value", "training_step.value", weight, weight) for weight in weights]


@pytest.mark.parametrize("add_dataloader_idx", [True, False])
@pytest.mark.parametrize("loaders", [1, 2])
def test_values_are_kept_under_the_key_of_their_hook_and_loader(loaders: int, add_dataloader_idx: bool) -> None:
    trainer, results = make_trainer(), Recording(training=False)
    lightning_logging.replace_results(trainer.validate_loop, results)
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
    collections = [lightning_logging.ResultCollection(training=loop is epoch_loop) for loop in loops]
    for loop, collection in zip(loops, collections, strict=True):
        lightning_logging.replace_results(loop, collection)
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


class Connector(lightning_logging.LoggerConnector):
    """Does by compat what `LeanLoggerConnector` does, and notes whether lightning would have done the same."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.first: list[bool] = []
        self.reset: list[tuple[bool, bool]] = []

    def on_batch_start(self, batch: Any, dataloader_idx: int | None = None) -> None:
        lightning_logging.count_iteration(self)
        self.first.append(lightning_logging.is_first_iteration(self))
        results: Any = self.trainer._results
        results.batch, results.batch_size, results.dataloader_idx = batch, None, dataloader_idx

    def on_batch_end(self) -> None:
        results: Any = self.trainer._results
        lightning_logging.publish(self, results.metrics(on_step=True))
        results.batch = results.batch_size = None

    def should_reset_tensors(self, fx: str) -> bool:
        resets = super().should_reset_tensors(fx)
        self.reset.append((resets, lightning_logging.keeps_logging(self, fx)))
        return resets


def test_connector_put_in_place_keeps_what_lightning_s_own_keeps() -> None:
    found, loggers = [], []
    for connector_class in (lightning_logging.LoggerConnector, Connector, LeanLoggerConnector):
        loggers.append(logger := Steps())
        at = At("on_train_batch_end", lambda trainer, *args: metrics_of(trainer))
        trainer = make_trainer(callbacks=at, logger=logger, max_epochs=2, val_check_interval=2, num_sanity_val_steps=1)
        lightning_logging.replace_logger_connector(trainer, connector_class)
        assert type(lightning_logging.logger_connector(trainer)) is connector_class
        assert not lightning_logging.is_first_iteration(
            lightning_logging.logger_connector(trainer)
        )  # no batch has begun
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
        values = lightning_logging.Metrics(callback={"a": torch.ones(())}, log={"b": torch.zeros(())}, pbar={"c": 0.5})
        lightning_logging.publish(lightning_logging.logger_connector(trainer), values)
        return [set(trainer.callback_metrics), set(trainer.logged_metrics), set(trainer.progress_bar_metrics)]

    assert in_fit("on_train_batch_start", publish, Skipping(), numbers(2)) == [[{"a"}, {"b"}, {"c"}]]
    of_lightning = lightning_logging.ResultCollection(training=True).metrics(on_step=True)
    assert of_lightning.keys() == lightning_logging.Metrics.__annotations__.keys() == {"callback", "log", "pbar"}


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
        published = lightning_logging.ResultCollection.metrics(results, on_step=True)["log"]
        ours = {}
        for metric in results.values():
            value = lightning_logging.step_value_if_any(metric)
            if value is not None and metric.meta.dataloader_idx == results.dataloader_idx:
                ours[lightning_logging.published_names(results, metric, on_step=True)[1]] = value
        assert plain(ours) == plain(dict(published))
        compared += len(ours)

    at = At("on_validation_batch_end", look)
    data = numbers(4) if loaders == 1 else [numbers(4), numbers(2)]
    make_trainer(callbacks=at).validate(LogsInTwoLoaders(), data, verbose=False)
    assert compared


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loader", [None, 1])
def test_lean_results_publish_in_a_step_what_lightning_s_own_would(loader: int | None, training: bool) -> None:
    stock, lean = lightning_logging.ResultCollection(training), LeanResults(training, make_trainer())
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


def test_batch_size_is_the_one_that_lightning_extracts() -> None:
    def look(trainer: Trainer, module: LightningModule, *args: Any) -> list[int]:
        results = trainer._results
        assert results is not None
        (metric,) = (metric for metric in results.values() if metric.meta.name == "end")
        sizes = []
        x, y = torch.ones(3, 2), torch.ones(3)
        for batch in (x, [x, y], (x, y), {"x": x, "y": y}, torch.ones(()), [x, {"y": y}], [torch.ones(5), x]):
            results.batch, results.batch_size = batch, None
            ours = lightning_logging.batch_size_of(results, metric, None)
            results.batch_size = None
            assert ours == results._extract_batch_size(metric, None, metric.meta)
            sizes.append(ours)
        return sizes

    at = At("on_validation_batch_end", look)
    make_trainer(callbacks=at).validate(LogsInTwoLoaders(), numbers(2), verbose=False)
    assert at.found[0] == [3, 3, 3, 3, 1, 3, 5]


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_runs_are_opened_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    for name, value in {"MLFLOW_TRACKING_URI": "", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    address = f"sqlite:///{tmp_path}/mlflow.db"

    def new(**options: Any) -> Any:
        if kind == "mlflow":
            return MLFlowLogger(tracking_uri=address, **({"run_id": options["id"]} if options else {}))
        return WandbLogger(save_dir=tmp_path, **options)

    first = new()
    assert lightning_logging.can_continue_run(first)
    run = lightning_logging.open_run(first)
    assert run and not lightning_logging.can_continue_run(first)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("failed")
    if kind == "wandb":
        first.experiment.finish()
    later = new()
    lightning_logging.continue_run(later, run)
    assert later.version == run
    assert not lightning_logging.can_continue_run(later)
    later.log_metrics({"loss": 0.5}, 1)
    if kind == "mlflow":
        found = later.experiment.get_run(run)
        assert found.info.status == "RUNNING"
        assert [point.value for point in later.experiment.get_metric_history(run, "loss")] == [1.0, 0.5]
    else:
        assert later.experiment.id == run
        later.experiment.finish()
    assert not lightning_logging.can_continue_run(new(id="own"))  # the user has chosen one


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger, JSONLLogger])
def test_versions_are_opened_again(kind: Any, tmp_path: Path) -> None:
    first = kind(tmp_path)
    assert lightning_logging.can_continue_run(first)
    assert lightning_logging.open_run(first) == 0
    assert not lightning_logging.can_continue_run(first)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("failed")
    files = {path.name: path.stat().st_size for path in Path(first.log_dir).iterdir()}
    later = kind(tmp_path)
    lightning_logging.continue_run(later, 0)
    assert later.log_dir == first.log_dir
    later.log_metrics({"loss": 0.5, "error": 2.0}, 1)  # a key more: the header changes
    later.finalize("success")
    assert all(size <= Path(first.log_dir, name).stat().st_size for name, size in files.items())
    if kind is CSVLogger:
        with Path(later.log_dir, "metrics.csv").open() as file:
            rows = [(row["step"], row["loss"], row["error"]) for row in csv.DictReader(file)]
        assert rows == [("0", "1.0", ""), ("1", "0.5", "2.0")]
    assert not lightning_logging.can_continue_run(kind(tmp_path, version="own"))  # the user has chosen one

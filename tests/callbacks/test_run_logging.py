"""`LoggingCallback` where a run has something special: accumulation, several optimizers, no logger, no batch size."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor, nn

from itwinai.callbacks import LoggingCallback, SystemMonitor
from itwinai.errors import ConfigurationError
from tests.support.cases import Regression, loader, make_trainer


class Keeper(Logger):
    """Keeps in memory what it is given; of a kind that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.parameters: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "keeper"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.parameters |= params

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, row[name]) for step, row in self.rows if name in row]


def fit(module: LightningModule, callback: LoggingCallback, **options: Any) -> Keeper:
    keeper = Keeper()
    options = {"max_epochs": 1, "log_every_n_steps": 2, **options}
    make_trainer("auto", 1, logger=keeper, callbacks=[callback], **options).fit(module, loader(8), loader(8))
    return keeper


def test_unknown_loggers_get_facts_as_hyperparameters_and_metrics() -> None:
    keeper = fit(Regression(), LoggingCallback())
    assert keeper.parameters["launch/world_size"] == 1
    assert keeper.parameters["versions/torch"] == torch.__version__
    assert [step for step, _ in keeper.curve("lr")] == [1, 3, 5, 7, 9, 11]


def test_under_accumulation_values_are_logged_once_per_optimizer_step() -> None:
    keeper = fit(Regression(), LoggingCallback(), accumulate_grad_batches=3)
    steps = [step for step, _ in keeper.curve("lr")]
    assert steps == [1, 3]  # 13 batches are 5 optimizer steps
    assert [step for step, _ in keeper.curve("gradient_norm")] == steps


def test_the_norm_is_that_before_clipping() -> None:
    torch.manual_seed(1)
    free = fit(Regression(), LoggingCallback()).curve("gradient_norm")
    torch.manual_seed(1)
    clipped = fit(Regression(), LoggingCallback(), gradient_clip_val=1e-3).curve("gradient_norm")
    assert free[0][1] > 1e-2 and clipped[0][1] > 1e-2
    assert fit(Regression(), LoggingCallback(gradient_norm=False)).curve("gradient_norm") == []


class Several(LightningModule):
    """Two optimizers, one of them with two groups, optimized by hand; batches without a size."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.a(batch[0]).mean() + self.b(batch[0]).mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups = [{"params": [self.b.weight], "lr": 0.3}, {"params": [self.b.bias], "lr": 0.4}]
        return [torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.Adam(groups)]


def test_learning_rates_of_several_optimizers_and_groups_have_names_of_their_own() -> None:
    keeper = fit(Several(), LoggingCallback(), limit_val_batches=0)
    last = {name: value for _, row in keeper.rows for name, value in row.items() if name.startswith("lr")}
    assert last == {"lr/0-SGD": 0.1, "lr/1-Adam/group0": 0.3, "lr/1-Adam/group1": 0.4}
    assert keeper.curve("speed/step_ms")


def test_without_a_logger_it_is_an_error() -> None:
    trainer = make_trainer("auto", 1, callbacks=[LoggingCallback()], max_epochs=1)
    with pytest.raises(ConfigurationError, match=r"needs a logger, but the trainer has none\. Add one \(--logger csv"):
        trainer.fit(Regression(), loader(8))


def test_what_no_logger_takes_is_said() -> None:
    with pytest.warns(UserWarning, match=r"none of this run's loggers \(Keeper\) can store models"):
        fit(Regression(), LoggingCallback(model=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LoggingCallback")
        fit(Regression(), LoggingCallback())


def test_configuration_is_kept_without_secrets(tmp_path: Path) -> None:
    class Configured(Regression):
        def __init__(self, password: str, url: str, layers: tuple[int, ...] = (1, 2)) -> None:
            super().__init__()
            self.save_hyperparameters()

    logger = CSVLogger(tmp_path)
    trainer = make_trainer("auto", 1, logger=logger, callbacks=[LoggingCallback()], max_epochs=1, max_steps=2)
    trainer.fit(Configured("abc", "https://me:abc@host/data"), loader(8))
    config = yaml.safe_load(Path(logger.log_dir, "resolved-config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 2
    assert config["model"]["class_path"].endswith("Configured")
    assert config["model"]["init_args"] == {"password": "***", "url": "https://me:***@host/data", "layers": [1, 2]}


def test_a_model_that_cannot_be_kept_does_not_spoil_the_run(tmp_path: Path) -> None:
    class Unpicklable(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.open_file = open(__file__)  # noqa: SIM115

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    from itwinai.loggers import MLFlowLogger

    logger = MLFlowLogger(save_dir=str(tmp_path))
    trainer = make_trainer("auto", 1, logger=logger, callbacks=[LoggingCallback(model=True)], max_epochs=1)
    module = Unpicklable()
    with pytest.warns(UserWarning, match="the trained module is not kept with the run"):
        trainer.fit(module, loader(8))
    module.open_file.close()
    assert trainer.state.finished


def test_speed_of_several_fits_is_that_of_each(tmp_path: Path) -> None:
    callback, logger = LoggingCallback(), CSVLogger(tmp_path)
    for _ in range(2):
        trainer = make_trainer("auto", 1, logger=logger, callbacks=[callback], max_epochs=1, log_every_n_steps=2)
        trainer.fit(Regression(), loader(8))
    with Path(logger.log_dir, "metrics.csv").open() as file:
        shown = [row["speed/step_ms"] for row in csv.DictReader(file) if row["speed/step_ms"]]
    assert len(shown) == 12


def test_under_lightnings_own_loop_everything_is_logged_too() -> None:
    class Iterating(Regression):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            (x, y), _, _ = next(dataloader_iter)
            return nn.functional.mse_loss(self.net(x), y)

    keeper, monitor = Keeper(), SystemMonitor(interval=0.01)
    callbacks = [LoggingCallback(), monitor]
    trainer = make_trainer("auto", 1, logger=keeper, callbacks=callbacks, max_epochs=1, log_every_n_steps=2)
    trainer.fit(Iterating(), loader(8))
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 13
    assert [step for step, _ in keeper.curve("lr")] == [1, 3, 5, 7, 9, 11]
    assert keeper.curve("gradient_norm") and not keeper.curve("speed/step_ms")
    assert {step for step, _ in keeper.curve("system/processes")} <= {1, 3, 5, 7, 9, 11, 12}
    assert keeper.curve("system/processes")

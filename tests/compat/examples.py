"""Modules, data and trainers that several of these tests use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from itwinai import ItwinaiTrainer
from itwinai.compat import lightning_checkpoints, lightning_launching, lightning_logging
from tests.support.cases import Regression, loader
from tests.support.cases import make_trainer as itwinai_trainer

ENTRY_POINTS = ("fit", "validate", "test", "predict")


class Tiny(LightningModule):
    """One weight, one number per sample; remembers which batches it trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.trained: list[tuple[int, int, int, list[int]]] = []

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.trained.append((self.current_epoch, batch_idx, self.global_step, batch.tolist()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch.float().reshape(-1, 1)).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_mean", batch.float().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_mean", batch.float().mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TinyData(LightningDataModule):
    """The numbers up to eight, in batches of two."""

    def __init__(self) -> None:
        super().__init__()
        self.exceptions: list[BaseException] = []

    def train_dataloader(self) -> DataLoader:
        return numbers(8)

    def on_exception(self, exception: BaseException) -> None:
        self.exceptions.append(exception)


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


def numbers(size: int, batch_size: int | None = 2, **options: Any) -> DataLoader:
    return DataLoader(Numbers(size), batch_size=batch_size, **options)


def make_trainer(**options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **options,
        }
    )


class RecordingLauncher(lightning_launching.Launcher):
    """Has all that lightning asks of a launcher, and launches nothing."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []

    @property
    def is_interactive_compatible(self) -> bool:
        return True

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        assert trainer is not None
        self.launched.append(
            {"function": function, "args": args, "trainer": trainer, "module": trainer.lightning_module}
        )
        # The entry points check this when the launcher is back.
        trainer.state.status, trainer.state.stage = TrainerStatus.FINISHED, None
        return ["returned"]

    def kill(self, signum: int) -> None:
        pass


class LaunchedStrategy(lightning_launching.ConfiguresLauncher, SingleDeviceStrategy):
    def __init__(self, launcher: lightning_launching.Launcher | None = None) -> None:
        super().__init__(device=torch.device("cpu"))
        self.made = 0
        self.given = launcher

    def make_launcher(self) -> lightning_launching.Launcher | None:
        self.made += 1
        return self.given


class OnException(Callback):
    def __init__(self) -> None:
        self.exceptions: list[BaseException] = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.exceptions.append(exception)


def run(trainer: Trainer, module: LightningModule) -> None:
    trainer.fit(module, loader(8), loader(8))


class Connector(lightning_checkpoints.CheckpointConnector):
    """Writes down which of its public methods were called."""

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(trainer)
        self.calls: list[Any] = []

    def complete(self, checkpoint: dict[str, Any], weights_only: bool) -> None:
        self.calls.append(("complete", "state_dict" in checkpoint, weights_only))

    def choose(self, given: str | None) -> str | None:
        self.calls.append(("choose", given))
        return given

    def locate(self, path: str) -> str | None:
        self.calls.append(("locate", path))
        return path

    def adapt(self, checkpoint: dict[str, Any]) -> None:
        self.calls.append(("adapt", len(checkpoint["optimizer_states"])))

    def take(self, checkpoint: dict[str, Any]) -> None:
        self.calls.append(("take", self.trainer.fit_loop.epoch_loop.global_step))  # the loops are restored

    def explain_mismatch(self, weights: Any, error: RuntimeError) -> None:
        self.calls.append(("mismatch", sorted(weights)[:1], str(error)[:5]))


def connected() -> tuple[L.Trainer, Connector]:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=2, **quiet)
    lightning_checkpoints.replace_checkpoint_connector(trainer, Connector)
    connector = lightning_checkpoints.checkpoint_connector(trainer)
    assert isinstance(connector, Connector)
    return trainer, connector


class Looks(L.Callback):
    """Calls a function at the end of every training batch."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.found: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.found.append(self.look(trainer))


def looked(look: Any, **options: Any) -> tuple[list[Any], ItwinaiTrainer]:
    looks = Looks(look)
    trainer = itwinai_trainer("auto", 1, max_epochs=1, callbacks=[looks], **options)
    trainer.fit(Regression(), loader(8))
    return looks.found, trainer


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


def plain(value: Any) -> Any:
    """Return a value with its tensors replaced by numbers, their dtypes and whether they have a graph."""
    if isinstance(value, Tensor):
        return value.tolist(), value.dtype, value.requires_grad
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


class Skipping(Tiny):
    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        return None


class Evaluated(Tiny):
    """Logs in each step of validation; remembers which arguments the hook got beside the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[tuple[int, ...]] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("value", float(batch_idx), on_step=True, on_epoch=True)

    def on_validation_batch_start(self, batch: Any, *indices: int) -> None:
        self.hooks.append(indices)


def state(results: Any) -> dict[str, Any]:
    """Return all that is kept of the logged values."""
    names = ("value", "cumulated_batch_size", "_forward_cache", "_computed", "_update_count", "has_reset")
    return {
        key: {name: plain(getattr(metric, name, "absent")) for name in names} | {"meta": metric.meta.sync.should}
        for key, metric in results.items()
    }


class Recording(lightning_logging.ResultCollection):
    """Notes under which key and with which weight lightning adds each value, and what compat would have said."""

    def __init__(self, training: bool) -> None:
        super().__init__(training)
        self.noted: list[tuple[Any, ...]] = []
        self.asked: tuple[int | None, bool] = (None, True)

    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        given, add_dataloader_idx = self.asked
        metric = self[key]
        self.batch_size = None  # that of this batch is found out anew
        weight = lightning_logging.batch_size_of(self, metric, given)
        hook = metric.meta.fx.split(".")[0]
        self.noted.append(
            (key, lightning_logging.result_key(self, hook, metric.meta.name, add_dataloader_idx), batch_size, weight)
        )
        super().update_metrics(key, value, batch_size)


def metrics_of(trainer: Trainer) -> list[Any]:
    assert lightning_logging.logger_connector(trainer).callback_metrics is trainer.callback_metrics
    return [plain(trainer.callback_metrics), plain(trainer.logged_metrics), plain(trainer.progress_bar_metrics)]

"""A small fit that is stopped somewhere, gone on with, and compared with the fit that was not stopped."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint

SAMPLES, BATCH, EPOCHS = 43, 5, 3  # nine batches, the last of three samples

ACCUMULATIONS = (1, 2, 3)
VALIDATIONS: dict[str, dict[str, Any]] = {
    "none": {"limit_val_batches": 0},
    "half": {"val_check_interval": 0.5},
    "epoch": {"val_check_interval": 1.0},
    "seven": {"val_check_interval": 7},
    "seven in all": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "second": {"check_val_every_n_epoch": 2},
}
TRIGGERS = ("steps", "time", "epoch", "signal", "max_steps", "max_time", "early")
WORKERS = (0, 2)


class Numbers(Dataset):
    """Samples that know their number, each with noise where the process that loads is the one that trains."""

    def __init__(self, samples: int = SAMPLES, noise: bool = True) -> None:
        self.x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(samples))
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index] + (0.01 * torch.randn(4) if self.noise else 0.0), index


class Stream(IterableDataset):
    """Samples in an order of their own, another one in each pass, which go on where they were."""

    def __init__(self) -> None:
        self.samples = Numbers(noise=False)
        self.passes = self.index = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = torch.utils.data.get_worker_info()
        share, shares = (0, 1) if info is None else (info.id, info.num_workers)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.passes)).tolist()[share::shares]
        while self.index < len(order):
            self.index += 1
            yield self.samples[order[self.index - 1]]
        self.passes, self.index = self.passes + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.index = state["passes"], state["index"]


class SizedStream(Stream):
    """The same with a length, which only one process can tell."""

    def __len__(self) -> int:
        return SAMPLES


class Plain(IterableDataset):
    """Samples without state, in the order of the process's random numbers."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = torch.utils.data.get_worker_info()
        share, shares = (0, 1) if info is None else (info.id, info.num_workers)
        samples = Numbers(noise=False)
        return (samples[index] for index in torch.randperm(SAMPLES).tolist()[share::shares])


def _shuffled(workers: int, samples: int = SAMPLES, **options: Any) -> DataLoader:
    return DataLoader(Numbers(samples, noise=not workers), BATCH, shuffle=True, num_workers=workers, **options)


def _generator(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _several(mode: str, workers: int, first: int = SAMPLES) -> CombinedLoader:
    loaders = {"a": _shuffled(workers, first), "b": _shuffled(workers, 18, generator=_generator())}
    return CombinedLoader(loaders, mode)


LOADERS: dict[str, Callable[[int], Any]] = {
    "shuffled": _shuffled,
    "generator": lambda workers: _shuffled(workers, generator=_generator()),
    "stateful": lambda workers: DataLoader(Stream(), BATCH, num_workers=workers),
    "sized stateful": lambda workers: DataLoader(SizedStream(), BATCH, num_workers=workers),
    "plain iterable": lambda workers: DataLoader(Plain(), BATCH, num_workers=workers),
    "cycle": lambda workers: {"a": _shuffled(workers), "b": _shuffled(workers, 18, generator=_generator())},
    "longest": lambda workers: _several("max_size", workers),
    "shortest": lambda workers: CombinedLoader([_shuffled(workers), _shuffled(workers, 50)], "min_size"),
    "reload": lambda workers: _shuffled(workers, generator=_generator()),
    "reload second": lambda workers: _shuffled(workers),
    "overfit": _shuffled,
    "limited": lambda workers: _shuffled(workers, generator=_generator()),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "reload": {"reload_dataloaders_every_n_epochs": 1},
    "reload second": {"reload_dataloaders_every_n_epochs": 2},
    "overfit": {"overfit_batches": 8},
    "limited": {"limit_train_batches": 8},
}


@dataclass(frozen=True, order=True)
class Case:
    """One combination; its stops are all steps of the epochs."""

    accumulate: int
    validation: str
    trigger: str
    workers: int
    loader: str

    def __str__(self) -> str:
        return "-".join(str(value) for value in vars(self).values()).replace(" ", "_")

    @property
    def possible(self) -> bool:
        """Whether lightning takes these settings together."""
        lengthless = self.loader in ("stateful", "plain iterable")
        return not (lengthless and self.validation == "half") and not (
            self.loader == "sized stateful" and self.workers  # each worker ends with a batch that is not whole
        )


class Recording(Logger):
    """Notes what it is given among what the module has seen."""

    name = "recording"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.events.append(("row", step, dict(sorted(metrics.items()))))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""


class Everything(L.LightningModule):
    """Changes its state in every hook, draws random numbers and logs."""

    ema: Tensor
    counts: Tensor

    def __init__(self, events: list[Any], accumulate: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2), nn.Linear(3, 1))
        self.register_buffer("ema", torch.zeros(3, 4))
        self.register_buffer("counts", torch.zeros(4, dtype=torch.long))
        self.mean = MeanMetric()
        self.events = events

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = list(batch.values()) if isinstance(batch, dict) else batch if isinstance(batch[0], list) else [batch]
        parts = [part for part in parts if part is not None]
        self.events.append(("batch", batch_idx, [part[1].tolist() for part in parts]))
        loss = sum(self.net(part[0]).square().mean() for part in parts) + torch.rand(())
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(parts[0][1]))
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx == 1:
            self.log("once", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        self.mean.update(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.events.append(("validation", batch[1].tolist()))
        self.log("val", self.net(batch[0]).square().mean() + torch.rand(()))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ema.lerp_(self.net[0].weight.detach(), 0.1)
        self.counts[0] += 1
        self.log("after", self.ema.sum(), on_step=True, on_epoch=True, batch_size=2)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.counts[1] += 1

    def on_train_epoch_start(self) -> None:
        self.counts[2] += 1
        torch.rand(1)

    def on_train_epoch_end(self) -> None:
        self.counts[3] += 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        steps = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return [optimizer], [{"scheduler": steps, "interval": "step"}]


class Plateau(Everything):
    """Has a scheduler that reads what validation has logged, or the training."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "loss_epoch"}}


class Counting(Checkpoint):
    """Counts hooks in its state. It comes after the callback that saves, as it is a kind of checkpoint."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("batches", "validations", "epochs"), 0)

    def on_train_batch_end(self, *args: Any) -> None:
        self.counts["batches"] += 1

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        self.counts["validations"] += not trainer.sanity_checking

    def on_train_epoch_end(self, *args: Any) -> None:
        self.counts["epochs"] += 1

    def state_dict(self) -> dict[str, int]:
        return dict(self.counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.counts = dict(state)


class StopsAfter(L.Callback):
    """Ends the run after some batch."""

    def __init__(self, trigger: str, batch: int) -> None:
        self.trigger = trigger
        self.batch = batch  # of the whole run, from 1

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            if self.trigger == "signal":
                signal.raise_signal(signal.SIGTERM)
            elif self.trigger == "max_time":
                timer = next(callback for callback in trainer.callbacks if isinstance(callback, Timer))
                timer._offset = 1e9  # its time is over
            elif self.trigger == "early":
                trainer.should_stop = True


@dataclass
class Seen:
    """What a fit has left."""

    trainer: Any
    module: Everything
    events: list[Any]
    counting: Counting
    stopping: EarlyStopping

    def state(self, counts: bool) -> dict[str, Any]:
        """Return what has to be equal; counts of hooks only if no end in the midst of an epoch has added to them."""
        weights = dict(self.module.state_dict())
        found: dict[str, Any] = {
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in self.trainer.lr_scheduler_configs],
            "metrics": dict(self.trainer.callback_metrics),
            "step": self.trainer.global_step,
            "epoch": self.trainer.current_epoch,
            "random": torch.get_rng_state(),
        }
        if counts:
            found["callbacks"] = (dict(self.counting.counts), self.stopping.state_dict())
        else:
            weights["counts"] = weights["counts"][:1]
        return {**found, "weights": weights}


class Data(L.LightningDataModule):
    """Makes loaders when it is asked for them, as a reload does."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def train_dataloader(self) -> Any:
        return LOADERS[self.case.loader](self.case.workers)

    def val_dataloader(self) -> Any:
        return DataLoader(Numbers(9), 4, shuffle=True)


def fit(
    case: Case,
    callbacks: list[L.Callback],
    resume: Path | None = None,
    module_class: type[Everything] = Everything,
    **options: Any,
) -> Seen:
    """Fit, from the beginning or from a checkpoint; with another seed there, which must not matter."""
    L.seed_everything(5 if resume is None else 6, verbose=False)
    logger = Recording()
    module = module_class(logger.events)
    counting = Counting()
    monitor = "loss_epoch" if case.validation == "none" else "val"
    stopping = EarlyStopping(monitor, patience=1000, check_on_train_epoch_end=case.validation == "none", strict=False)
    trainer = ItwinaiTrainer(
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=case.accumulate,
        callbacks=[stopping, *callbacks, counting],
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": EPOCHS, **VALIDATIONS[case.validation], **OPTIONS.get(case.loader, {}), **options},
    )
    try:
        trainer.fit(module, datamodule=Data(case), ckpt_path=resume, weights_only=False)
    except SystemExit:
        if case.trigger != "signal":
            raise
    return Seen(trainer, module, logger.events, counting, stopping)


@contextmanager
def quiet() -> Iterator[None]:
    """Let lightning say nothing, and torch use one thread, which is fastest for tiny tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, bit by bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differences(reference: Seen, resumed: Seen, cut: int, counts: bool) -> list[str]:
    """Return what differs in a run that has gone on behind the first ``cut`` events of another."""
    found = []
    expected = reference.events[cut:]
    for kind in ("batch", "validation", "row"):
        one, other = ([event for event in events if event[0] == kind] for events in (expected, resumed.events))
        if not same(one, other):
            first = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if not same(a, b)), None)
            detail = f"{len(one)} against {len(other)}" if first is None else f"{one[first]} against {other[first]}"
            found.append(f"{kind}: {detail}")
    if not found and not same(expected, resumed.events):
        found.append("order of events")
    one, other = reference.state(counts), resumed.state(counts)
    found += [name for name in one if not same(one[name], other[name])]
    return found


def batches_in(path: Path) -> int:
    """Return after how many batches a checkpoint was written; with gradients that wait for more it cannot be exact."""
    progress = torch.load(path, weights_only=False)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return int(progress["total"]["processed"])


def batches_per_epoch(reference: Seen) -> int:
    """Return the number of batches of an epoch."""
    return (
        int(reference.trainer.num_training_batches)
        if reference.trainer.num_training_batches != float("inf")
        else sum(event[0] == "batch" for event in reference.events) // EPOCHS
    )


def cut_after(events: list[Any], batch: int, level: str) -> int:
    """Return the number of events up to the end of a batch, with its validation, or with the end of its epoch."""
    ends = [index for index, event in enumerate(events) if event[0] == "batch"] + [len(events)]
    start, stop = ends[batch - 1], ends[batch]
    rest = events[start + 1 : stop]
    if level == "epoch":
        return stop
    number = start + 1
    for event in rest:
        of_step = event[0] == "row" and "loss_step" in event[2]
        of_validation = event[0] == "validation" or (event[0] == "row" and "val" in event[2])
        if not (of_step or (of_validation and level == "iteration")):
            break
        number += 1
    return number


def check_case(
    case: Case,
    folder: Path,
    reference: Seen,
    chosen: Callable[[int, int], bool] = lambda batch, per_epoch: True,
    module_class: type[Everything] = Everything,
) -> Iterator[tuple[int, list[str]]]:
    """Stop at the steps of a case; yield the number of each batch, from 1 over all epochs, with what differs.

    Args:
        case: the combination.
        folder: for its checkpoints.
        reference: the fit that is not stopped.
        chosen: tells of the number of a batch, and of the batches of an epoch, whether to stop there.
        module_class: what is trained.
    """
    per_epoch = batches_per_epoch(reference)
    total = per_epoch * EPOCHS
    steps = [  # batch numbers after which the optimizer has stepped
        batch
        for batch in range(1, total + 1)
        if ((batch - 1) % per_epoch + 1) % case.accumulate == 0 or batch % per_epoch == 0
    ]

    def compare(path: Path, batch: int, level: str, counts: bool = True) -> list[str]:
        resumed = fit(case, [], path, module_class)
        return differences(reference, resumed, cut_after(reference.events, batch, level), counts)

    if case.trigger in ("steps", "time", "epoch"):
        trigger: dict[str, Any] = {
            "steps": {"every": "1steps"},
            "time": {"train_time_interval": timedelta(0)},
            "epoch": {"every": "1epochs"},
        }[case.trigger]
        saves = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **trigger)
        whole = fit(case, [saves], None, module_class)
        yield 0, differences(reference, whole, 0, True)
        for number, batch in enumerate(steps, start=1):
            path = folder / f"step={number}.ckpt"
            if not chosen(batch, per_epoch) and case.trigger != "epoch":
                continue
            if case.trigger != "epoch":
                yield batch, compare(path, batch, "batch")
            elif path.exists() and batch < total and batches_in(path) == batch:
                # It saves after validation where there are several in an epoch.
                after_epoch = saves._should_save_on_train_epoch_end(whole.trainer) and batch % per_epoch == 0
                yield batch, compare(path, batch, "epoch" if after_epoch else "iteration")
        return
    for number, batch in enumerate(steps, start=1):
        if not chosen(batch, per_epoch):
            continue
        saves = ModelCheckpoint(folder, every="10h" if case.trigger == "max_time" else "2epochs")
        callbacks: list[L.Callback] = [saves]
        options: dict[str, Any] = {}
        if case.trigger == "max_steps":
            options = {"max_steps": number, "max_epochs": -1}
        else:
            callbacks.append(StopsAfter(case.trigger, batch))
        if case.trigger == "max_time":
            callbacks.append(Timer(timedelta(hours=1), verbose=False))
        stopped = fit(case, callbacks, None, module_class, **options)
        at_end = batch % per_epoch == 0
        if case.trigger == "signal":
            path = folder / "preempted.ckpt"
            if not path.exists():  # it has come too late for this run
                assert batch == total
                continue
        elif case.trigger == "max_time":
            path = Path(saves.best_model_path)  # it saves the end of the run
        else:
            path = folder / "by hand.ckpt"
            stopped.trainer.save_checkpoint(path)
        if batch < total:
            level = "epoch" if at_end else "iteration"
            interrupted = case.trigger == "signal" and stopped.trainer.fit_loop.epoch_loop.val_loop.is_running
            # A validation, or the end of an epoch, that only a run has that stops here is counted by its hooks.
            undisturbed = same(stopped.events, reference.events[: cut_after(reference.events, batch, level)])
            counts = undisturbed and at_end or case.trigger == "signal"
            yield batch, compare(path, batch, "batch" if interrupted else level, counts)
        for file in folder.glob("*.ckpt"):
            os.unlink(file)

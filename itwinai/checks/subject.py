"""What is checked: a module, its data, and the trainer's options that change numbers; made again for each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Callback,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    Timer,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

from itwinai.compat.lightning_dataloaders import with_batch_size
from itwinai.errors import ConfigurationError

NUMERIC_OPTIONS = (
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "inference_mode",
    "use_distributed_sampler",
    "weigh_uneven_batches",
    "detect_anomaly",
)
"""The arguments of the trainer that change numbers; the checks keep yours, and leave out all others.

``sync_batchnorm`` is none of them, because torch synchronizes batch norm on GPUs only, and checks run on the CPU.
"""

# They watch a run, write files or end it early, and change no numbers.
_WATCHERS = (
    Checkpoint,
    EarlyStopping,
    Timer,
    ModelSummary,
    ProgressBar,
    BasePredictionWriter,
    DeviceStatsMonitor,
    LearningRateMonitor,
)


@dataclass
class Built:
    """A module and its data, as one run has them.

    Attributes:
        module: the module.
        data: a datamodule; or the loaders for training and validation; or nothing, where the module has its own.
        callbacks: the user's, without those that only watch.
    """

    module: L.LightningModule
    data: L.LightningDataModule | tuple[Any, Any] | None
    callbacks: list[Callback] = field(default_factory=list)

    @property
    def datamodule(self) -> L.LightningDataModule | None:
        """The datamodule, if the data comes from one."""
        return self.data if isinstance(self.data, L.LightningDataModule) else None

    def has_loader(self, stage: str) -> bool:
        """Return whether there is data for ``train``, ``val`` or ``predict``."""
        if isinstance(self.data, tuple):
            return self.data[{"train": 0}.get(stage, 1)] is not None
        return any(is_overridden(f"{stage}_dataloader", one) for one in (self.module, self.data) if one is not None)

    @contextmanager
    def changed_loader(self, stage: str, change: Callable[[Any], Any], source: str = "") -> Iterator[None]:
        """Let the data of a stage be changed before the trainer gets it.

        Args:
            stage: ``train``, ``val`` or ``predict``.
            change: is given the loader, or each of several, and returns another.
            source: the stage whose loader is changed; by default the same.
        """
        if isinstance(self.data, tuple):
            before = self.data
            place = {"train": 0}.get(source or stage, 1)
            self.data = (before[0], _each(before[1], change)) if place else (_each(before[0], change), before[1])
            yield
            self.data = before
            return
        name = f"{source or stage}_dataloader"
        owner: Any = self.data if self.data is not None and is_overridden(name, self.data) else self.module
        make, scope, own = getattr(owner, name), vars(owner), f"{stage}_dataloader"
        kept = {own: scope[own]} if own in scope else {}
        scope[own] = lambda: _each(make(), change)
        yield
        del scope[own]
        scope.update(kept)

    def arguments(self, stage: str) -> dict[str, Any]:
        """Return the arguments of the trainer's method for a stage: ``fit``, ``validate`` or ``predict``."""
        if not isinstance(self.data, tuple):
            return {"model": self.module, "datamodule": self.data}
        train, other = self.data
        if stage == "fit":
            return {"model": self.module, "train_dataloaders": train, "val_dataloaders": other}
        return {"model": self.module, "dataloaders": other}


class Subject(Protocol):
    """Makes module and data of a run, with the same seed each time."""

    @property
    def seed(self) -> int:
        """The seed of each run."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """The arguments of the trainer."""
        ...

    def build(self) -> Built:
        """Return module and data."""
        ...

    def module_class(self) -> str:
        """Return the name of the module's class."""
        ...


@dataclass
class GivenObjects:
    """A module and data that the caller has made. Each run is in a copy of the caller's process, and has its own.

    Attributes:
        module: the module.
        data: a datamodule, a loader, or a pair of loaders for training and validation.
        options: of the trainer.
        seed: of each run.
    """

    module: L.LightningModule
    data: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 42

    def build(self) -> Built:
        """Return the objects themselves."""
        L.seed_everything(self.seed, workers=True, verbose=False)
        return _built(self.module, self.data, self.options)

    def module_class(self) -> str:
        """Return the name of the module's class."""
        return type(self.module).__name__


@dataclass
class MadeObjects:
    """A function that makes module and data, with the random numbers of the seed.

    Attributes:
        make: returns the module and its data, as in `GivenObjects`.
        options: of the trainer.
        seed: of each run.
    """

    make: Callable[[], tuple[L.LightningModule, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 42

    def build(self) -> Built:
        """Return new objects."""
        L.seed_everything(self.seed, workers=True, verbose=False)
        module, data = self.make()
        return _built(module, data, self.options)

    def module_class(self) -> str:
        """Return the name of the function."""
        return getattr(self.make, "__qualname__", "module")


@dataclass
class ConfiguredObjects:
    """What a config file describes.

    Attributes:
        config: the whole config, as plain values.
        tune: its section for a search; empty if there is none.
    """

    config: Mapping[str, Any]
    tune: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The config's seed, or 42 if it has none."""
        seed = self.config.get("seed_everything")
        return 42 if seed is None or isinstance(seed, bool) else int(seed)

    @property
    def options(self) -> Mapping[str, Any]:
        """The trainer's options."""
        return self.config["trainer"]

    @property
    def quiet_config(self) -> dict[str, Any]:
        """The config with a trainer that writes nothing and has no options but those that change numbers."""
        trainer = {name: self.options[name] for name in NUMERIC_OPTIONS if name in self.options}
        trainer |= {"accelerator": "cpu", "devices": 1, "logger": False, "callbacks": self.options.get("callbacks")}
        trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
        return {**self.config, "seed_everything": self.seed, "trainer": trainer}

    def build(self) -> Built:
        """Return new objects, as `itwinai fit` makes them."""
        from itwinai.compat.lightning_trainer import callbacks
        from itwinai.config.lightning_cli import command_line

        made = command_line(self.quiet_config, run=False, save_config_callback=None)
        return Built(made.model, made.datamodule, numeric_callbacks(callbacks(made.trainer)))

    def module_class(self) -> str:
        """Return the name of the module's class."""
        return str(self.config["model"]["class_path"]).rpartition(".")[2]


def numeric_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks that may change numbers."""
    own = [one for one in callbacks if not type(one).__module__.startswith("itwinai.")]
    return [one for one in own if not isinstance(one, _WATCHERS)]


def numeric_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a trainer that may change numbers."""
    return {name: options[name] for name in NUMERIC_OPTIONS if options.get(name) is not None}


def _built(module: L.LightningModule, data: Any, options: Mapping[str, Any]) -> Built:
    callbacks = options.get("callbacks") or []
    kept = numeric_callbacks(callbacks if isinstance(callbacks, Sequence) else [callbacks])
    if data is None or isinstance(data, L.LightningDataModule):
        return Built(module, data, kept)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (int, float)):
        return Built(module, data, kept)
    if not hasattr(data, "__iter__"):
        raise ConfigurationError(
            f"The data to check with is a {type(data).__name__}; give a LightningDataModule, a DataLoader, or a pair "
            "of loaders for training and validation."
        )
    return Built(module, (data, data), kept)


def divisible(loader: Any) -> Any:
    """Return a loader whose batches two workers can share: one of an odd batch size gets one more sample."""
    size = getattr(loader, "batch_size", None)
    if (
        not isinstance(loader, DataLoader)
        or type(loader.batch_sampler) is not BatchSampler
        or not size
        or size % 2 == 0
    ):
        return loader
    return with_batch_size(loader, size + 1)


def resized(loader: Any, size: int, samples: int) -> DataLoader:
    """Return a loader of the first samples of another one, in their order, with another batch size.

    Args:
        loader: the user's.
        size: the batch size.
        samples: how many samples at most.

    Raises:
        ConfigurationError: its batches are not those of a batch size over a dataset with indices.
    """
    plain = isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler
    if not plain or isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            f"{type(loader).__name__} has no batch size that could be changed, or a dataset without indices"
        )
    dataset = Subset(loader.dataset, range(min(samples, len(loader.dataset))))
    return DataLoader(dataset, size, collate_fn=loader.collate_fn)


def _each(loaders: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(loaders, (list, tuple)):
        return [change(one) for one in loaders]
    if isinstance(loaders, Mapping):
        return {name: change(one) for name, one in loaders.items()}
    return change(loaders)

"""Run a scenario under one of the two trainers and keep all that can be seen of it."""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import types
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import cloudpickle
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric

from itwinai.checkpoints.naming import EXTENSION, MODULE_CLASS, PREEMPTED
from itwinai.checkpoints.state import KEY
from itwinai.profiling.step_timer import StepClock
from tests.loops.freezing import bits, freeze
from tests.loops.scenarios import CALLBACK_HOOKS, Log, Scenario, Scheduler

# Under torchrun every rank has data and logs values of its own.
RANK = int(os.environ.get("RANK", "0"))


class Refused(RuntimeError):
    """What drawn hooks raise."""


class Journal:
    """What happened in a run, in the order in which it happened.

    Reached by a class attribute, so that copies of modules and callbacks write into the same one.
    """

    current: ClassVar[Journal]

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.entries: list[Any] = []
        self.visits: Counter[tuple[str, str]] = Counter()
        self.logs: dict[tuple[str, str], list[Log]] = {}
        for log in scenario.logs:
            self.logs.setdefault((log.actor, log.hook), []).append(log)
        self.actions = {(action.actor, action.hook, action.visit): action.what for action in scenario.actions}
        self.patch: Any = None
        self.was_patched = False
        self.folder = Path()

    def visit(
        self, actor: str, hook: str, trainer: Trainer | None, module: LightningModule, args: Any = ()
    ) -> str | None:
        """Note a call of a hook, and do in it what the scenario says; return the name of what was done."""
        self.visits[actor, hook] += 1
        visit = self.visits[actor, hook]
        state = None if trainer is None else see(trainer, module)
        metrics = see_metrics(trainer) if trainer is not None and actor in self.scenario.reads else None
        self.entries.append((actor, hook, freeze(args), state, metrics))
        for log in self.logs.get((actor, hook), ()):
            if visit % log.every == 0:
                call_log(log, module, visit)
        what = self.actions.get((actor, hook, visit))
        if what is not None and trainer is not None:
            ACTIONS[what](self, trainer, module)
        return what


def see(trainer: Trainer, module: LightningModule) -> Any:
    """Return what user code can see of a run, the metrics excepted."""
    loop = trainer.fit_loop
    epoch = loop.epoch_loop
    optimizer = epoch.automatic_optimization.optim_progress.optimizer
    counters = [
        (*vars(progress.total).values(), *vars(progress.current).values())
        for progress in (
            loop.epoch_progress,
            epoch.batch_progress,
            epoch.scheduler_progress,
            optimizer.step,
            optimizer.zero_grad,
            epoch.manual_optimization.optim_step_progress,
            epoch.val_loop.batch_progress,
            trainer.validate_loop.batch_progress,
            trainer.test_loop.batch_progress,
        )
    ]
    return (
        vars(module).get("_current_fx_name"),
        (trainer.global_step, trainer.current_epoch, loop.batch_idx, loop.total_batch_idx),
        (trainer.should_stop, str(trainer.state.stage), module.training, epoch.batch_progress.is_last_batch),
        counters,
        [group["lr"] for used in trainer.optimizers for group in used.param_groups],
        [bits(parameter) for parameter in module.parameters()],
        [None if parameter.grad is None else bits(parameter.grad) for parameter in module.parameters()],
        torch.is_grad_enabled(),
    )


def see_metrics(trainer: Trainer) -> Any:
    """Return the three dictionaries of metrics."""
    return [freeze(dict(found)) for found in (trainer.callback_metrics, trainer.logged_metrics)] + [
        freeze(trainer.progress_bar_metrics)
    ]


# ------------------------------------------------------------------------------------------------- logging


def logged_value(kind: str, module: Any, visit: int) -> Any:
    """Return a value to be logged, another one in each visit."""
    number = 0.3 * visit + RANK
    if kind in ("loss", "graph"):
        return module.head.weight.sum() * number
    if kind == "metric":
        module.metric.update(number)
        return module.metric
    if kind == "changing":
        module.changing.fill_(number)
        return module.changing
    simple = {
        "float": number,
        "int": visit,
        "bool": visit % 2 == 0,
        "nan": float("nan") if visit % 3 == 0 else number,
        "tensor": torch.tensor(number),
        "double": torch.tensor(number, dtype=torch.float64),
        "half": torch.tensor(number, dtype=torch.bfloat16),
        "long": torch.tensor(visit),
        "one element": torch.tensor([number]),
        "two elements": torch.tensor([number, number]),
    }
    return simple[kind]


def call_log(log: Log, module: Any, visit: int) -> None:
    """Call ``self.log`` as the scenario says."""
    value = logged_value(log.value, module, visit)
    options = dict(log.options)
    if log.by_dict:
        module.log_dict({log.name: value, f"{log.name}_too": value}, **options)
    elif log.positional:
        module.log(log.name, value, options.pop("prog_bar", False), **options)
    else:
        module.log(log.name, value, **options)
    if log.value == "changing":
        module.changing.fill_(-1.0)  # whoever has kept a reference instead of a copy now has this


# ------------------------------------------------------------------------------------------------- actions


def _raise(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    raise Refused("drawn")


def _raise_stop_iteration(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    raise StopIteration


def _stop(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    trainer.should_stop = True


def _copy(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    use_copy(journal, copy.deepcopy(module))


def _pickle(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    use_copy(journal, cloudpickle.loads(cloudpickle.dumps(module)))


def use_copy(journal: Journal, module: LightningModule) -> None:
    """Let a copy of the module log and run on its own, as one that was never part of a trainer."""
    module.log("of the copy", 1.0)
    output = module(torch.ones(2, 2, dtype=next(module.parameters()).dtype))
    journal.entries.append(("copy", freeze(output), freeze(module.state_dict()), module._trainer is None))


def _patch_log(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    if journal.patch is None:
        journal.patch = mock.patch.object(module, "log", side_effect=lambda *args, **kwargs: None)
        patched = journal.patch.start()
        journal.was_patched = True
        journal.entries.append(("patched", id(patched) == id(module.log)))


def _unpatch_log(journal: Journal, trainer: Trainer, module: Any) -> None:
    if journal.patch is not None:
        calls = [(freeze(call.args), freeze(call.kwargs)) for call in module.log.call_args_list]
        journal.entries.append(("unpatched", calls))
        journal.patch.stop()
        journal.patch = None


def _add_callback(journal: Journal, trainer: Any, module: LightningModule) -> None:
    trainer.callbacks.append(make_callback("late", CALLBACK_HOOKS))


def _remove_callback(journal: Journal, trainer: Any, module: LightningModule) -> None:
    drawn = [callback for callback in trainer.callbacks if hasattr(callback, "actor")]
    if drawn:
        trainer.callbacks.remove(drawn[0])


def _read_metrics(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    journal.entries.append(("read", see_metrics(trainer)))


def _save(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    trainer.save_checkpoint(journal.folder / f"by hand {len(journal.entries)}.ckpt")


def _accumulate(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    if module.automatic_optimization:
        trainer.accumulate_grad_batches = 3 if trainer.accumulate_grad_batches == 2 else 2


def _clip(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    if module.automatic_optimization:
        trainer.gradient_clip_val = 0.05


def _log_elsewhere(journal: Journal, trainer: Trainer, module: Any) -> None:
    module.log("elsewhere", torch.tensor(0.5), on_epoch=True)


def _interrupt(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    raise KeyboardInterrupt


def _terminate(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN):  # lightning's handler is there
        signal.raise_signal(signal.SIGTERM)


def _freeze(journal: Journal, trainer: Trainer, module: Any) -> None:
    module.backbone.requires_grad_(not module.backbone.weight.requires_grad)


def _more_steps(journal: Journal, trainer: Trainer, module: LightningModule) -> None:
    if trainer.max_steps != -1:
        trainer.fit_loop.epoch_loop.max_steps += 1


def _log_always(journal: Journal, trainer: Any, module: LightningModule) -> None:
    trainer.log_every_n_steps = 1


def _swap_hook(journal: Journal, trainer: Any, module: Any) -> None:
    for hook in ("on_before_zero_grad", "on_after_backward", "on_train_batch_end"):
        setattr(module, hook, types.MethodType(make_hook(hook), module))


def _swap_step(journal: Journal, trainer: Any, module: Any) -> None:
    def step(batch: Any, batch_idx: int) -> Any:
        return module.train_on(batch, batch_idx + 100)

    module.training_step = step


def _swap_optimizer(journal: Journal, trainer: Any, module: Any) -> None:
    if module.automatic_optimization:
        trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.3)]


def _swap_step_of_optimizer(journal: Journal, trainer: Any, module: Any) -> None:
    optimizer = trainer.optimizers[0]
    step = optimizer.step
    optimizer.step = lambda *args, **kwargs: step(*args, **kwargs)


def _no_validation(journal: Journal, trainer: Any, module: Any) -> None:
    trainer.limit_val_batches = 0


ACTIONS: dict[str, Callable[[Journal, Trainer, LightningModule], None]] = {
    "raise": _raise,
    "raise StopIteration": _raise_stop_iteration,
    "stop": _stop,
    "skip": lambda journal, trainer, module: None,  # see `make_hook`
    "copy": _copy,
    "pickle": _pickle,
    "patch log": _patch_log,
    "unpatch log": _unpatch_log,
    "add callback": _add_callback,
    "remove callback": _remove_callback,
    "read metrics": _read_metrics,
    "save": _save,
    "accumulate": _accumulate,
    "clip": _clip,
    "log elsewhere": _log_elsewhere,
    "interrupt": _interrupt,
    "terminate": _terminate,
    "freeze": _freeze,
    "more steps": _more_steps,
    "log always": _log_always,
    "swap hook": _swap_hook,
    "swap step": _swap_step,
    "swap optimizer": _swap_optimizer,
    "swap step of optimizer": _swap_step_of_optimizer,
    "no validation": _no_validation,
}


# ------------------------------------------------------------------------------------------------- module


class DrawnModule(LightningModule):
    """What all drawn modules have in common; the drawn hooks are added by `make_module`."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario
        self.automatic_optimization = not scenario.manual
        self.backbone = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3) if scenario.norm else nn.Identity()
        self.dropout = nn.Dropout(0.3) if scenario.dropout else nn.Identity()
        self.head = nn.Linear(3, 1)
        self.metric = MeanMetric()
        self.changing = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.backbone(x))))

    def train_on(self, batch: Any, batch_idx: int) -> Any:
        """Do what the training step does, under whatever signature."""
        Journal.current.visit("module", "training_step", self._trainer, self, (batch, batch_idx))
        loss = (self(first_tensor(batch).to(self.dtype)) - 1).square().mean()
        if self.scenario.manual:
            self.optimize(loss, batch_idx)
        returns = self.scenario.returns
        if returns == "nothing" or returns == "none" and batch_idx % 2 or returns == "some none" and batch_idx == 1:
            return None
        if returns in ("dict", "extras"):
            extras = {"twice": loss * 2, "name": "text"} if returns == "extras" else {}
            return {"loss": loss, **extras}
        return loss

    def optimize(self, loss: Tensor, batch_idx: int) -> None:
        """Step all optimizers by hand, each in another way."""
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for index, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            if index == 0 and self.scenario.optimizer != "lbfgs":
                self.manual_backward(loss, retain_graph=True)
                optimizer.step()
            else:
                optimizer.step(closure=lambda: self.again(batch_idx))
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if scheduler is not None and not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step()

    def again(self, batch_idx: int) -> Tensor:
        """Be the closure of an optimizer: compute another loss, and its gradients."""
        loss = self(torch.ones(2, 2, dtype=self.dtype)).square().sum() * (batch_idx + 1)
        self.manual_backward(loss)
        return loss

    def evaluate(self, hook: str, batch: Any, args: tuple[Any, ...]) -> Tensor:
        """Do what the evaluation steps do."""
        Journal.current.visit("module", hook, self._trainer, self, (batch, *args))
        return self(first_tensor(batch).to(self.dtype)).mean()

    def configure_optimizers(self) -> Any:
        groups = [self.head.parameters(), self.backbone.parameters()] if self.scenario.manual > 1 else None
        optimizers = [
            make_optimizer(self.scenario.optimizer, parameters) for parameters in groups or [self.parameters()]
        ]
        return optimizers, [
            make_scheduler(scheduler, optimizers[index % len(optimizers)])
            for index, scheduler in enumerate(self.scenario.schedulers)
        ]


def make_optimizer(name: str, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer by its name."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=0.05)
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3, history_size=2)


def make_scheduler(scheduler: Scheduler, optimizer: torch.optim.Optimizer) -> Any:
    """Return what ``configure_optimizers`` says of a scheduler."""
    config = {"interval": scheduler.interval, "frequency": scheduler.frequency}
    if scheduler.plateau:
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"scheduler": plateau, "monitor": "watched", "strict": False, **config}
    return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7), **config}


def _step_with_index(self: DrawnModule, batch: Any, batch_idx: int) -> Any:
    return self.train_on(batch, batch_idx)


def _step_other_name(self: DrawnModule, batch: Any, number: int) -> Any:
    return self.train_on(batch, number)


def _step_without_index(self: DrawnModule, batch: Any) -> Any:
    return self.train_on(batch, Journal.current.visits["module", "training_step"])


def _step_of_iterator(self: DrawnModule, dataloader_iter: Any) -> Any:
    batch, batch_idx, _ = next(dataloader_iter)
    return self.train_on(batch, batch_idx)


STEPS = {
    "with index": _step_with_index,
    "other name": _step_other_name,
    "without index": _step_without_index,
    "of iterator": _step_of_iterator,
}


def _evaluation_step(hook: str, scenario: Scenario) -> Callable[..., Any]:
    """Return a validation or test step."""
    if scenario.val_loaders > 1:

        def step(self: DrawnModule, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
            return self.evaluate(hook, batch, (batch_idx, dataloader_idx))

    elif scenario.val_step == "without index":

        def step(self: DrawnModule, batch: Any) -> None:  # type: ignore[misc]
            self.evaluate(hook, batch, ())

    else:

        def step(self: DrawnModule, batch: Any, batch_idx: int) -> Any:  # type: ignore[misc]
            output = self.evaluate(hook, batch, (batch_idx,))
            return {"mean": output} if scenario.val_step == "returns" else None

    return step


def make_hook(hook: str) -> Callable[..., Any]:
    """Return a module's hook that notes its visits and then does what the hook does by default."""
    default = getattr(LightningModule, hook)

    def method(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        what = Journal.current.visit("module", hook, self._trainer, self, (args, kwargs))
        if what == "skip" and hook == "on_train_batch_start":
            return -1
        return default(self, *args, **kwargs)

    return method


def _own_log(self: LightningModule, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
    Journal.current.entries.append(("own log", name, freeze(value), freeze(args), freeze(kwargs)))
    LightningModule.log(self, name, value, *args, **kwargs)


def make_module(scenario: Scenario) -> LightningModule:
    """Return the module of a scenario, of a class in which only the drawn hooks are written."""
    methods: dict[str, Any] = {
        hook: make_hook(hook) for hook in scenario.overridden if hook not in scenario.on_instance
    }
    methods["training_step"] = STEPS["of iterator" if scenario.loader == "iterator step" else scenario.step]
    if scenario.val_loaders:
        methods["validation_step"] = _evaluation_step("validation_step", scenario)
    methods["test_step"] = _evaluation_step("test_step", scenario)
    if scenario.own_log:
        methods["log"] = _own_log
    module = type("Drawn", (DrawnModule,), methods)(scenario)
    for hook in scenario.on_instance:
        setattr(module, hook, types.MethodType(make_hook(hook), module))
    return module


# ------------------------------------------------------------------------------------------------- callbacks


class DrawnCallback(Callback):
    """What all drawn callbacks have in common; the drawn hooks are added by `make_callback`."""

    actor: str

    @property
    def state_key(self) -> str:
        return self.actor


def make_callback(actor: str, hooks: tuple[str, ...]) -> Callback:
    """Return a callback in whose class only the given hooks are written."""

    def note(hook: str) -> Callable[..., None]:
        def method(self: DrawnCallback, trainer: Trainer, module: LightningModule, *args: Any, **kwargs: Any) -> None:
            Journal.current.visit(self.actor, hook, trainer, module, (args, kwargs))

        return method

    methods: dict[str, Any] = {hook: note(hook) for hook in hooks}
    if "state_dict" in hooks:
        methods["state_dict"] = lambda self: {"kept by": self.actor}
    if "load_state_dict" in hooks:
        methods["load_state_dict"] = lambda self, state: Journal.current.entries.append((self.actor, freeze(state)))
    return type("Recorder", (DrawnCallback,), {"actor": actor, **methods})()


class Thawing(BaseFinetuning):
    """Trains the backbone only from the second epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class Watching(Callback):
    """Lets our loop time its steps, and says nothing of it: under lightning's nobody does."""

    step_clock: StepClock | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}


def make_extra(name: str, folder: Path) -> Callback:
    """Return one of lightning's own callbacks, or one that lets the steps be timed."""
    if name == "watching":
        return Watching()
    if name.startswith("checkpoint"):
        options = {
            "checkpoint steps": {"every_n_train_steps": 2, "save_top_k": -1},
            "checkpoint epoch": {"every_n_epochs": 1, "save_top_k": -1},
            "checkpoint train epoch": {"save_on_train_epoch_end": True, "save_top_k": -1, "save_last": True},
            "checkpoint best": {"monitor": "watched", "save_last": True},
        }[name]
        return ModelCheckpoint(dirpath=folder / name.replace(" ", "-"), **options)
    if name == "early stopping":
        return EarlyStopping("watched", patience=0, mode="max", strict=False)
    if name == "early stopping of steps":
        return EarlyStopping("watched_step", patience=0, check_on_train_epoch_end=True, strict=False)
    if name == "swa":
        return StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=0.5)
    if name == "accumulation":
        return GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})
    if name == "lambda":
        return LambdaCallback(
            on_train_batch_end=lambda trainer, module, *args: Journal.current.visit(
                "lambda", "on_train_batch_end", trainer, module, args
            )
        )
    if name == "weight averaging":
        return WeightAveraging()
    if name == "lr monitor":
        return LearningRateMonitor()
    assert name == "finetuning"
    return Thawing()


# ------------------------------------------------------------------------------------------------- data


class Pair(NamedTuple):
    """A batch with names."""

    x: Tensor
    y: Tensor


class CustomBatch:
    """A batch that only its own ``to`` can move."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, *args: Any, **kwargs: Any) -> CustomBatch:
        return CustomBatch(self.x.to(*args, **kwargs))


def first_tensor(batch: Any) -> Tensor:
    """Return the tensor that the network takes, wherever it is in the batch."""
    while not isinstance(batch, Tensor):
        if isinstance(batch, CustomBatch):
            batch = batch.x
        else:
            batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return batch


class Collate:
    """Makes batches of the kind that the scenario names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, samples: list[tuple[int, Tensor]]) -> Any:
        x = torch.stack([sample for _, sample in samples])
        y = x.sum(1)
        if self.kind == "some none":
            return None if samples[0][0] == 2 else x
        return {
            "tensor": x,
            "list": [x, y],
            "tuple": (x, y),
            "dict": {"x": x, "y": y},
            "nested": {"in": [x, {"y": y}], "names": ("a", "b")},
            "mixed": {"x": x, "name": "text", "number": 3},
            "custom": CustomBatch(x),
            "named tuple": Pair(x, y),
        }[self.kind]


class Numbered(Dataset):
    """Samples that know their index."""

    def __init__(self, samples: int, seed: int) -> None:
        self.x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed + 100 * RANK))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.x[index]


class Stream(IterableDataset):
    """The same samples without indices, once or forever."""

    def __init__(self, data: Numbered, endless: bool = False) -> None:
        self.data = data
        self.endless = endless

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        yield from (self.data[index] for index in range(len(self.data)))
        while self.endless:
            yield from (self.data[index] for index in range(len(self.data)))


class SizedStream(Stream):
    """A stream that says how long it is."""

    def __len__(self) -> int:
        return len(self.data)


class StatefulLoader(DataLoader):
    """A loader whose place is kept in checkpoints."""

    drawn = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.drawn += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def make_train_loader(scenario: Scenario) -> Any:
    """Return what the training step gets its batches from."""
    data = Numbered(scenario.samples, 1)
    options: dict[str, Any] = {"batch_size": 2, "collate_fn": Collate(scenario.batch)}
    kind = scenario.loader
    if kind in ("iterable", "endless"):
        return DataLoader(Stream(data, endless=kind == "endless"), **options)
    if kind == "sized iterable":
        return DataLoader(SizedStream(data), **options)
    if kind == "dict of loaders":
        return {"a": DataLoader(data, **options), "b": DataLoader(Numbered(3, 2), **options)}
    if kind == "shortest":
        return CombinedLoader([DataLoader(data, **options), DataLoader(Numbered(5, 2), **options)], "min_size")
    if kind == "stateful":
        return StatefulLoader(data, **options)
    return DataLoader(data, shuffle=True, generator=torch.Generator().manual_seed(4), **options)


def make_val_loaders(scenario: Scenario) -> Any:
    """Return the loaders of validation."""
    options: dict[str, Any] = {"batch_size": 2, "collate_fn": Collate(scenario.batch)}
    loaders = [DataLoader(Numbered(5 - index, 7 + index), **options) for index in range(scenario.val_loaders)]
    return None if not loaders else loaders if len(loaders) > 1 else loaders[0]


def make_datamodule(scenario: Scenario, train: Any, val: Any) -> LightningDataModule:
    """Return a datamodule with the drawn hooks."""

    def note(hook: str) -> Callable[..., Any]:
        def method(self: LightningDataModule, *args: Any) -> Any:
            Journal.current.entries.append(("datamodule", hook, freeze(args)))
            return getattr(LightningDataModule, hook)(self, *args)

        return method

    methods: dict[str, Any] = {hook: note(hook) for hook in scenario.datamodule_hooks}
    methods["train_dataloader"] = lambda self: train
    if val is not None:
        methods["val_dataloader"] = lambda self: val
    return type("DrawnData", (LightningDataModule,), methods)()


# ------------------------------------------------------------------------------------------------- trainer


class RecordingLogger(Logger):
    """Notes in the journal what it is given."""

    name = "recording"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        Journal.current.entries.append(("logger", "log_metrics", freeze(metrics), step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        Journal.current.entries.append(("logger", "log_hyperparams", freeze(args)))

    def save(self) -> None:
        Journal.current.entries.append(("logger", "save"))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        Journal.current.entries.append(("logger", "after_save_checkpoint"))

    def finalize(self, status: str) -> None:
        Journal.current.entries.append(("logger", "finalize", status))


class RecordingProfiler(Profiler):
    """Notes in the journal which sections begin and end."""

    def start(self, action_name: str) -> None:
        Journal.current.entries.append(("profiler", "start", action_name.replace("[Lean", "[_")))

    def stop(self, action_name: str) -> None:
        Journal.current.entries.append(("profiler", "stop", action_name.replace("[Lean", "[_")))


def make_plugged(base: Any, methods: tuple[str, ...], **options: Any) -> Any:
    """Return a strategy or a precision plugin that notes the calls of some of its methods."""

    def note(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            Journal.current.entries.append((base.__name__, name, freeze(args), freeze(kwargs)))
            return getattr(base, name)(self, *args, **kwargs)

        return method

    return type(f"Own{base.__name__}", (base,), {name: note(name) for name in methods})(**options)


def make_trainer(scenario: Scenario, trainer_class: type[Trainer], folder: Path) -> Trainer:
    """Return a trainer for a scenario, on one worker or on those of torchrun."""
    callbacks = [make_callback(f"callback {index}", hooks) for index, hooks in enumerate(scenario.callbacks)]
    callbacks += [make_extra(name, folder) for name in scenario.extras]
    options = dict(scenario.options)
    profiler = {"recording": RecordingProfiler, "simple": SimpleProfiler}.get(options.pop("profiler", ""))
    if not options.get("barebones"):
        options.setdefault("enable_checkpointing", any(name.startswith("checkpoint") for name in scenario.extras))
        options.update(enable_progress_bar=False, enable_model_summary=False)
        options["logger"] = {
            "none": lambda: False,
            "recording": RecordingLogger,
            "two": lambda: [RecordingLogger(), CSVLogger(folder / "csv", flush_logs_every_n_steps=2)],
        }[scenario.logger]()
    if scenario.strategy:
        options["strategy"] = make_plugged(SingleDeviceStrategy, scenario.strategy, device=torch.device("cpu"))
    if scenario.precision:
        options["plugins"] = [make_plugged(Precision, scenario.precision)]
    if "RANK" in os.environ:
        options.update(strategy=DDPStrategy(find_unused_parameters=True), use_distributed_sampler=False)
    return trainer_class(
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        callbacks=callbacks,
        default_root_dir=folder,
        profiler=None if profiler is None else profiler(),
        **options,
    )


def run(scenario: Scenario, trainer_class: type[Trainer], folder: Path) -> dict[str, Any]:
    """Run a scenario and return all that was seen of it.

    Args:
        scenario: what to run.
        trainer_class: under which trainer.
        folder: where files may be written meanwhile; the paths in checkpoints depend on it.
    """
    folder.mkdir()
    journal = Journal.current = Journal(scenario)
    journal.folder = folder
    torch.manual_seed(3)
    try:
        module = make_module(scenario)
        trainer = make_trainer(scenario, trainer_class, folder)
        _attempt(journal, "fit", trainer, module, lambda: _fit(scenario, trainer, module))
        ends = [see_end(trainer, module)]
        if journal.patch is not None:
            _unpatch_log(journal, trainer, module)
        if scenario.after == "fit":
            if trainer.max_epochs != -1:
                trainer.fit_loop.max_epochs = (trainer.max_epochs or 0) + 1
            if trainer.max_steps != -1:
                trainer.fit_loop.epoch_loop.max_steps += 2
            trainer.should_stop = False
            _attempt(journal, "second fit", trainer, module, lambda: _fit(scenario, trainer, module))
            ends.append(see_end(trainer, module))
        elif scenario.after in ("validate", "test"):
            entry_point = getattr(trainer, scenario.after)
            loaders = make_val_loaders(scenario)
            if loaders is not None:
                _attempt(journal, scenario.after, trainer, module, lambda: entry_point(module, loaders, verbose=False))
            ends.append(see_end(trainer, module))
        for path in folder.glob(
            f"**/{PREEMPTED}{EXTENSION}"
        ):  # of a run that SIGTERM stops, which lightning does not save
            path.unlink()
        checkpoints = {
            str(path.relative_to(folder)): freeze(lightnings_part(path)) for path in sorted(folder.glob("**/*.ckpt"))
        }
        if scenario.after == "resume":
            for name in list(checkpoints)[:3]:
                module = make_module(scenario)
                trainer = make_trainer(scenario, trainer_class, folder)
                resume = partial(_fit, scenario, trainer, module, folder / name)
                _attempt(journal, f"from {name}", trainer, module, resume)
                ends.append(see_end(trainer, module))
        files = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("csv/**/*.csv"))}
    finally:
        shutil.rmtree(folder)
    # lightning saves in the midst of hooks, and we when all are done.
    saving = [entry[:2] for entry in journal.entries if is_about_saving(entry)]
    if any(action.what == "terminate" for action in scenario.actions):
        saving = []
    entries = [entry for entry in journal.entries if not is_about_saving(entry)]
    return {"entries": entries, "saving": saving, "ends": ends, "checkpoints": checkpoints, "files": files}


def is_about_saving(entry: Any) -> bool:
    """Tell whether something that happened is part of saving a checkpoint."""
    return entry[1] in ("after_save_checkpoint", "on_save_checkpoint") or (
        entry[0] == "profiler" and entry[2].endswith("save_checkpoint")
    )


def lightnings_part(path: Path) -> dict[str, Any]:
    """Return lightning's content of a checkpoint, and leave nothing else in the file.

    A run that goes on from it is then one that goes on from lightning's own; from ours it would go on at the next
    sample, which lightning does not.
    """
    content: dict[str, Any] = torch.load(path, weights_only=False)
    for name in (KEY, MODULE_CLASS):  # of our own
        content.pop(name, None)
    kept = [state for state in content.get("callbacks", {}).values() if "last_model_path" in state]
    for state in kept:
        state["last_model_path"] = ""
        if len(kept) > 1:  # what the first of two callbacks saves does not know of the other's hook in lightning
            state.update(best_model_path="", best_model_score=None, current_score=None, best_k_models={})
            state.update(kth_best_model_path="", kth_value=torch.tensor(float("inf")))
    plateaus = [state for state in content.get("lr_schedulers", ()) if "num_bad_epochs" in state]
    if plateaus:  # which lightning steps after it has saved at the end of an epoch
        for state in plateaus:
            state.update(best=0.0, num_bad_epochs=0, cooldown_counter=0, last_epoch=0, _last_lr=[0.1])
        for group in (group for state in content["optimizer_states"] for group in state["param_groups"]):
            group["lr"] = 0.1
    torch.save(content, path)
    return content


def _fit(scenario: Scenario, trainer: Trainer, module: LightningModule, checkpoint: Path | None = None) -> None:
    train, val = make_train_loader(scenario), make_val_loaders(scenario)
    if scenario.datamodule_hooks:
        trainer.fit(module, datamodule=make_datamodule(scenario, train, val), ckpt_path=checkpoint, weights_only=False)
    else:
        trainer.fit(module, train, val, ckpt_path=checkpoint, weights_only=False)


def _attempt(
    journal: Journal, name: str, trainer: Trainer, module: LightningModule, entry_point: Callable[[], Any]
) -> None:
    """Run one of the trainer's entry points and note how it ended."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        journal.entries.append((name, "returned", freeze(entry_point())))
    except (Exception, SystemExit) as error:
        signal.signal(signal.SIGINT, handler)  # lightning has turned it off, if this was an interrupt
        journal.entries.append((name, "raised", type(error).__name__, re.sub(r"0x[0-9a-f]+", "0x", str(error))))


def see_end(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the state in which a run has left its trainer and its module."""
    return {
        "seen": see(trainer, module),
        "metrics": see_metrics(trainer),
        "fit_loop": freeze(trainer.fit_loop.state_dict()),
        "validate_loop": freeze(trainer.validate_loop.state_dict()),
        "test_loop": freeze(trainer.test_loop.state_dict()),
        "status": (str(trainer.state.status), str(trainer.state.fn), str(trainer.state.stage)),
        "weights": freeze(module.state_dict()),
        "optimizers": [freeze(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [freeze(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        # Who patches `log` during the run and takes that back later, puts back what was there during the run.
        "attributes": sorted(set(vars(module)) - ({"log"} if Journal.current.was_patched else set())),
        "hook": vars(module)["_current_fx_name"],
        "random": torch.random.get_rng_state().sum().item(),
        "profile": {
            name.replace("[Lean", "[_"): len(times) for name, times in trainer.profiler.recorded_durations.items()
        }
        if isinstance(trainer.profiler, SimpleProfiler)
        else None,
        "accumulate": trainer.accumulate_grad_batches,
    }

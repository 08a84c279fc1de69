"""Callbacks that note what a run does, for the checks that look at it."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn

from itwinai.checks.source_lines import calling_line
from itwinai.compat.lightning_logging import HOOK_NAME
from itwinai.compat.lightning_trainer import module_internals
from itwinai.loops.deferred_save import DeferredSaves

State = dict[str, Any]


@dataclass
class Notes:
    """What was noted of a fit in one process.

    Attributes:
        initial: hash of the weights before the first step.
        batches: hashes of the batches, in their order.
        losses: of the steps.
        unused: names of trained parameters that no backward pass has reached, with the number of batches.
        saved: the state of the module at each checkpoint, by the checkpoint's name.
        final: the state of the module at the end.
        restored: its state before the first step.
        random_step: whether a training step has drawn random numbers.
        random_data: whether loading a batch has.
    """

    initial: str = ""
    batches: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    saved: dict[str, State] = field(default_factory=dict)
    final: State = field(default_factory=dict)
    restored: State = field(default_factory=dict)
    random_step: bool = False
    random_data: bool = False


class Recorder(Callback):
    """Notes batches, losses, parameters without gradients and the module's state.

    Args:
        notes: where to.
    """

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self._reached: set[str] = set()
        self._handles: list[Any] = []
        self._random = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to follow the parameters."""
        self.notes.initial = digest([*pl_module.state_dict().values()])
        self.notes.restored = plain_state(pl_module)
        for name, parameter in pl_module.named_parameters():
            if parameter.is_leaf and parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._note, name)))

    def _note(self, name: str, parameter: Tensor) -> None:
        self._reached.add(name)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch."""
        self.notes.random_data |= batch_idx > 1 and self._random != random_numbers()  # the first ones draw the order
        self.notes.batches.append(digest(batch))
        self._reached.clear()
        self._random = random_numbers()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, and the parameters that got no gradient."""
        self.notes.random_step |= self._random != random_numbers()
        self._random = random_numbers()
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.notes.losses.append(float(loss))
        optimized = {id(one) for optimizer in trainer.optimizers for g in optimizer.param_groups for one in g["params"]}
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and id(parameter) in optimized and name not in self._reached:
                self.notes.unused[name] = self.notes.unused.get(name, 0) + 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the state of the module."""
        self.notes.final = plain_state(pl_module)
        for handle in self._handles:
            handle.remove()


class Saver(Checkpoint):
    """Saves checkpoints at chosen places. As a kind of checkpoint it comes after all other callbacks.

    Args:
        folder: for the files.
        points: number of steps to choose at random.
        seed: of the choice.
        notes: for the module's state at each place.

    Attributes:
        saved: descriptions of the places, by the file's name.
    """

    def __init__(self, folder: Path, points: int, seed: int, notes: Notes) -> None:
        self.folder = folder
        self.points = points
        self.seed = seed
        self.notes = notes
        self.saved: dict[str, str] = {}
        self._chosen: set[tuple[int, int]] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose among the steps within an epoch, after which no gradients wait for more."""
        windows, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
        epochs = range(trainer.max_epochs or 1)
        possible = [(epoch, batch) for epoch in epochs for batch in range(windows, batches, windows)]
        self._chosen = set(random.Random(self.seed).sample(possible, min(self.points, len(possible))))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after the batches that were chosen, and after the last one of the first epoch."""
        epoch, batch_number = trainer.current_epoch, batch_idx + 1
        if (epoch, batch_number) in self._chosen:
            self._save(trainer, f"epoch-{epoch}-batch-{batch_number}", f"after batch {batch_number} of epoch {epoch}")
        elif trainer.current_epoch == 0 and batch_idx + 1 == trainer.num_training_batches:
            self._save(trainer, "last-step", "at the last step of epoch 0")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after the validation of the first epoch."""
        if not trainer.sanity_checking and trainer.current_epoch == 0:
            self._save(trainer, "validation", "after the validation of epoch 0")

    def _save(self, trainer: L.Trainer, name: str, where: str) -> None:
        path = str(self.folder / f"{name}.ckpt")

        def save() -> None:
            self.notes.saved[name] = plain_state(trainer.lightning_module)
            trainer.save_checkpoint(path)

        saves = getattr(trainer.fit_loop, "saves", None)
        if not (isinstance(saves, DeferredSaves) and saves.postpone(path, save)):
            save()
        self.saved[name] = where


def plain_state(module: nn.Module) -> State:
    """Return the attributes of a module and its parts that are plain values or tensors, and no parameters or buffers.

    Values that cannot be copied are left out.
    """
    internals = module_internals()
    state: State = {}
    for prefix, part in module.named_modules():
        if type(part).__module__.startswith(("torch.", "torchmetrics.")):
            continue
        for name, value in vars(part).items():
            if name not in internals and not name.startswith("_") and _is_plain(value):
                state[f"{prefix}.{name}" if prefix else name] = copy.deepcopy(value)
    return state


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Tensor):
        return not value.requires_grad
    if isinstance(value, (list, tuple, set)):
        return depth > 0 and len(value) < 10_000 and all(_is_plain(one, depth - 1) for one in value)
    if isinstance(value, dict):
        return depth > 0 and len(value) < 10_000 and all(_is_plain(one, depth - 1) for one in value.values())
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def random_numbers() -> str:
    """Return a hash of where the global generators of torch, numpy and Python stand."""
    numpy: Any = np.random.get_state()
    return digest(
        [torch.get_rng_state(), str(numpy[1:3]), torch.from_numpy(numpy[1].astype("int64")), random.getstate()]
    )


def digest(value: Any) -> str:
    """Return a hash of the tensors and plain values in a batch."""
    found = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, Tensor):
            found.update(one.detach().cpu().contiguous().to_dense().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(one, dict):
            for name, part in one.items():
                found.update(str(name).encode())
                add(part)
        elif isinstance(one, (list, tuple)):
            for part in one:
                add(part)
        elif isinstance(one, (bool, int, float, str, bytes)):
            found.update(repr(one).encode())

    add(value)
    return found.hexdigest()[:16]


@contextmanager
def logged_keys_to(path: Path) -> Iterator[None]:
    """Write each key that a module logs to a file, a line for each hook, with the line of the user's that logs it.

    It is written at once, because a worker that logs other keys than the rest may never come to an end.

    Args:
        path: of the file, with one JSON list ``[hook, key, place]`` per line.
    """
    log: Callable[..., None] = L.LightningModule.log
    seen: set[tuple[str, str]] = set()

    def noting(self: L.LightningModule, name: str, *args: Any, **options: Any) -> None:
        hook = str(getattr(self, HOOK_NAME, "") or "")
        if (hook, name) not in seen and not getattr(self.trainer, "sanity_checking", False):
            seen.add((hook, name))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([hook, name, calling_line()]) + "\n")
        log(self, name, *args, **options)

    L.LightningModule.log = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        L.LightningModule.log = log  # type: ignore[method-assign]


def read_logged_keys(path: Path) -> dict[tuple[str, str], str]:
    """Return the keys of a file of `logged_keys_to`: the line that logs each, by hook and key."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(hook, key): at for hook, key, at in lines}
